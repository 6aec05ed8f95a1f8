"""Counts what a session check costs a server that runs under valgrind's callgrind."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import secrets
import socket
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from driver import front_door
from driver.parts import USER_AGENT, BenchError, Redis, Server

# Requests before the first window: they open connections, fill caches and grow buffers to their size.
WARM_UP = 60
# Requests in a window, of two kinds. What a window costs besides its requests disappears from their difference.
FEW, MANY = 10, 30
# Windows of each kind that are needed, and windows in all after which it gives up.
WANTED, TRIES = 5, 80
# Seconds before the requests of a window, at most.
PAUSE = 0.8
# What the server does every second, which is subtracted, and every five seconds: windows with that don't count.
EVERY_SECOND, EVERY_FEW = re.compile(r"PrometheusHandle\d+run_upkeep"), re.compile(r"gauges6Gauges4look")
# Rust's allocator, whichever it is: every Vec, String and Box calls one of these.
ALLOCATION = re.compile(r"_rust_(?:alloc|alloc_zeroed|realloc)$")
# The end of a function's name, which differs from build to build.
HASH = re.compile(r"17h[0-9a-f]{16}E$")
# System calls that depend on what else the machine does: how often threads wait for each other, and into how many
# pieces the log is divided. Outside valgrind, the kernel isn't asked for the time.
INCIDENTAL = re.compile(r"^(?:clock_gettime\b.*|syscall|.*rustix.*)$")
# Seconds. valgrind is some fifty times slower than the processor, and the machine has other work.
PATIENCE = 180


@dataclass
class Window:
    """What the server did between two dumps."""

    requests: int
    instructions: int = 0
    # By the function's name in the binary: its calls, the instructions of its own, its system calls.
    called: Counter[str] = field(default_factory=Counter)
    own: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    # Instructions of what the server does every second, with all that it calls.
    in_between: int = 0

    @property
    def allocations(self) -> int:
        return sum(n for name, n in self.called.items() if ALLOCATION.search(name))

    @property
    def system_calls(self) -> int:
        return sum(n for name, n in self.asked.items() if not INCIDENTAL.search(name))

    @property
    def counts(self) -> bool:
        return not any(EVERY_FEW.search(name) for name in self.called)


@dataclass
class Cost:
    """What one request costs; functions are those of a window."""

    instructions: float
    allocations: float
    system_calls: float
    window: Window


def measure(binary: Path) -> dict[str, Cost]:
    """The cost of each kind of session check."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="authfleet-cost-")))
        (directory / "secret").write_text(secrets.token_hex(32))
        redis = stack.enter_context(Redis.started(directory, "--appendonly", "no"))
        settings = {
            "WORKER_THREADS": "1",
            "HASH_CONCURRENCY": "1",
            # Weak hashing, because nothing here measures it.
            "ARGON2_MEMORY": "64KiB",
            "ARGON2_ITERATIONS": "1",
            "PUBLIC_URL": f"http://{front_door.LOGIN}",
            "PROTECTED_HOSTS": front_door.APP,
            "TRUSTED_PROXIES": "127.0.0.1/32",
        }
        # Under valgrind on a busy machine, a login could be too slow for the server's own limits.
        with Server.started(directory, binary, redis, **settings) as native:
            own, bound = front_door.sign_in(native)
        # Threads take turns, or one that waits in a loop would keep the others from running.
        command = ["valgrind", "--tool=callgrind", "--collect-systime=yes", "--fair-sched=yes"]
        command += ["--demangle=no", "--dump-line=no", f"--vgdb-prefix={directory}/vgdb"]
        command += [f"--callgrind-out-file={directory}/profile"]
        server = stack.enter_context(
            Server.started(directory, binary, redis, under=command, patience=PATIENCE, **settings)
        )
        described = f"X-Original-Method: GET\r\nX-Original-URL: http://{front_door.APP}/page\r\n"
        kinds = {
            "GET /profile": request("/profile", front_door.LOGIN, own),
            "GET /auth/verify/nginx": request("/auth/verify/nginx", front_door.APP, bound, described),
        }
        address = urlsplit(server.base)
        found = {}
        for kind, text in kinds.items():
            with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as connection:
                ask(connection, text, WARM_UP)
                dumped(directory, server.pid, WARM_UP)
                counted = windows(partial(ask, connection, text), partial(dumped, directory, server.pid))
            found[kind] = Cost(
                per_request(counted, lambda window: window.instructions),
                per_request(counted, lambda window: window.allocations),
                per_request(counted, lambda window: window.system_calls),
                min((w for w in counted if w.requests == MANY), key=lambda w: w.instructions),
            )
        return found


def windows(ask_times: Callable[[int], bool], dump: Callable[[int], Window]) -> list[Window]:
    """Windows with few and with many requests, as many as are needed of both."""
    found: dict[int, list[Window]] = {FEW: [], MANY: []}
    for _ in range(TRIES):
        count = min(found, key=lambda n: len(found[n]))
        if len(found[count]) == WANTED:
            return found[FEW] + found[MANY]
        # At random, so that windows have more and less in between.
        time.sleep(random.uniform(0, PAUSE))
        is_answered = ask_times(count)
        window = dump(count)
        if is_answered and window.counts:
            found[count].append(window)
    raise BenchError(f"only {sum(map(len, found.values()))} of {TRIES} windows count")


def per_request(all_: list[Window], figure: Callable[[Window], int]) -> float:
    """The median difference of a window with many requests and one with few, divided by the difference of those. What
    came in between is subtracted first, by what the figure of windows with as many requests says about it."""
    pairs = list(itertools.combinations(all_, 2))
    most = max(window.in_between for window in all_)
    shares = [
        (figure(b) - figure(a)) / (b.in_between - a.in_between)
        for a, b in pairs
        if a.requests == b.requests and abs(b.in_between - a.in_between) > most / 4
    ]
    share = statistics.median(shares) if shares else 0.0
    return statistics.median(
        (figure(b) - figure(a) - share * (b.in_between - a.in_between)) / (b.requests - a.requests)
        for a, b in pairs
        if a.requests != b.requests
    )


def request(path: str, host: str, cookie: str, more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\nCookie: {cookie}\r\n{more}\r\n".encode()


def ask(connection: socket.socket, text: bytes, times: int) -> bool:
    """Sends each request after the answer to the one before it, on one connection. Returns whether Redis was in time
    each time: when the machine is busy, the server may wait for it in vain while valgrind writes its files."""
    in_time = True
    for _ in range(times):
        connection.sendall(text)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += received(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 503 ")):
            raise BenchError(f"{text!r}: {answer!r}")
        in_time &= b" 200 " in answer[:13]
        length = re.search(rb"(?i)^content-length: (\d+)\r?$", head, re.M)
        while len(body) < int(length[1] if length else 0):
            body += received(connection)
    return in_time


def received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise BenchError("the server closed the connection")
    return data


def dumped(directory: Path, pid: int, requests: int) -> Window:
    """Makes callgrind write what it has counted and begin again at 0. Returns that."""
    command = ["vgdb", f"--pid={pid}", f"--vgdb-prefix={directory}/vgdb", "dump"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise BenchError(f"vgdb: {done.stdout}{done.stderr}")
    (file,) = directory.glob("profile.*")
    window = read(file, requests)
    file.unlink()
    return window


def read(file: Path, requests: int) -> Window:
    """Reads callgrind's format, version 1, whose events are instructions, system calls and their time."""
    window = Window(requests)
    names: dict[str, str] = {}

    def named(text: str) -> str:
        # A name is written out once, with a number that stands for it afterwards.
        number, _, name = text.partition(" ")
        return names.setdefault(number, HASH.sub("", name))

    function = callee = ""
    inclusive = False
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in map(str.rstrip, lines):
            if line[:1] in ("+", "-", "*") or line[:1].isdigit():
                # A position and costs. The line after `calls=` has the callee's, which aren't the function's own.
                cost = line.split()
                if inclusive:
                    window.in_between += int(cost[1]) if EVERY_SECOND.search(callee) else 0
                else:
                    window.own[function] += int(cost[1])
                    window.asked[function] += int(cost[2]) if len(cost) > 2 else 0
                inclusive = False
            elif line.startswith("fn="):
                function = named(line[3:])
            elif line.startswith("cfn="):
                callee = named(line[4:])
            elif line.startswith("calls="):
                window.called[callee] += int(line[6:].split()[0])
                inclusive = True
            elif line.startswith("totals:"):
                window.instructions = int(line.split()[1])
    return window
