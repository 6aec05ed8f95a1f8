"""Whether a session check costs more with more sessions, connections or threads; and the memory of a connection."""

from __future__ import annotations

import contextlib
import re
import resource
import secrets
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from .measurements import CONNECTIONS, Cost, median, rotating, say, wrk
from .overlap import sessions
from .parts import BenchError, Missing, Redis, Server, cpu, resident

# Sessions that are asked for in turn, at most: so many that with a million of them few are in the processor's caches.
ASKED = 100_000
# Connections of the arms with many, and those whose memory is measured.
MANY, IDLE = 10_000, 9_000
# Files that a process opens besides its connections.
OTHER_FILES = 200
# Seconds until wrk has opened its connections: the kernel tries again where the server's queue was full.
OPENING = 4
THREADS = (1, 2, 4)
# What the cost of a check may be, as a multiple of the first arm's, and the KiB that an idle connection may take. A
# replica that scales to 0.8 N on N threads spends at most 1 / 0.8 times as much on each check.
LIMITS = {"sessions": 1.1, "connections": 1.3, "threads": 1.25, "threads, half the load": 1.25}
CONNECTION_KIB = 16

Arms = dict[str, Callable[[int], Cost]]


def measure(directory: Path, binary: Path, seconds: int, rounds: int, most: int) -> dict:
    """Each part with its arms in alternation. `most` is the number of sessions that is compared with a thousand."""
    home = directory / "growth"
    home.mkdir()
    (home / "secret").write_text(secrets.token_hex(32))
    allow_files(MANY + OTHER_FILES)
    with contextlib.ExitStack() as stack:
        parts = {"sessions": alternating(by_sessions(stack, home, binary, most), seconds, rounds)}
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(Redis.started(home, "--appendonly", "no"))
        first = stack.enter_context(Server.started(home, binary, redis, MAX_CONNECTIONS=str(MANY + OTHER_FILES)))
        cookies = sessions(redis, first)
        script = rotating(home / "cookies.lua", cookies)
        parts["connections"] = alternating(by_connections(first, redis, script, cookies), seconds, rounds)
        servers = {n: stack.enter_context(Server.started(home, binary, redis, WORKER_THREADS=str(n))) for n in THREADS}
        busy = {words(n, "thread"): at_most(s, script, redis) for n, s in servers.items()}
        parts["threads"] = alternating(busy, seconds, rounds)
        rate = next(iter(parts["threads"]["arms"].values()))["per_second"] / 2
        paced = script_at(script, CONNECTIONS / rate)
        calm = {words(n, "thread"): at_most(s, paced, redis) for n, s in servers.items()}
        parts["threads, half the load"] = alternating(calm, seconds, rounds)
        kib = [memory(home, binary, redis, script, cookies) for _ in range(rounds)]
    return {"parts": parts, "connection_kib": statistics.median(kib)}


def table(r: dict) -> str:
    lines = []
    for part, found in r["parts"].items():
        head = f"by {part}, CPU in microseconds"
        lines.append(f"{head:<48}{'server':>8}{'Redis':>8}{'both':>8}{'ratio':>8}{'per second':>12}")
        for name, arm in found["arms"].items():
            costs = f"{arm['server']:8.1f}{arm['redis']:8.1f}{arm['server'] + arm['redis']:8.1f}"
            ratio = found["ratios"].get(name)
            limit = f" (at most {LIMITS[part]:g})" if ratio else ""
            lines.append(f"{name:<48}{costs}{ratio or 1:8.2f}{arm['per_second']:12.0f}{limit}")
        lines.append("")
    lines.append(f"{'memory of an idle connection, in KiB':<48}{r['connection_kib']:24.1f} (at most {CONNECTION_KIB})")
    return "\n".join(lines)


def alternating(arms: Arms, seconds: int, rounds: int) -> dict:
    """Runs the arms in turn. Returns their medians, and for all but the first the median of its ratios to the first one
    in the same round: what slows a whole round down doesn't change those."""
    found: dict[str, list[Cost]] = {name: [] for name in arms}
    for turn in range(-1, rounds):
        for name, run in arms.items():
            say(f"round {turn + 1} of {rounds}: {name}")
            cost = run(seconds if turn >= 0 else 1)
            # The first turn opens connections and fills caches.
            if turn >= 0:
                found[name].append(cost)
    first, *others = found
    ratios = {
        name: statistics.median(mine.both / its.both for mine, its in zip(found[name], found[first])) for name in others
    }
    return {"arms": {name: asdict(median(costs)) for name, costs in found.items()}, "ratios": ratios}


def by_sessions(stack: contextlib.ExitStack, home: Path, binary: Path, most: int) -> Arms:
    """Each number of sessions has a Redis and a server of its own, so that rounds can alternate."""
    arms: Arms = {}
    for count in (1000, most):
        here = home / f"sessions-{count}"
        here.mkdir()
        (here / "secret").write_text((home / "secret").read_text())
        redis = stack.enter_context(Redis.started(here, "--appendonly", "no"))
        server = stack.enter_context(Server.started(here, binary, redis))
        say(f"{count} sessions into Redis")
        script = rotating(here / "cookies.lua", sessions(redis, server, count, min(count, ASKED)))
        arms[words(count, "session")] = at_most(server, script, redis)
    return arms


def by_connections(server: Server, redis: Redis, script: Path, cookies: list[str]) -> Arms:
    """All on one server: few connections, few among many that are idle, and many."""

    def among_idle(seconds: int) -> Cost:
        with opened(server, cookies, MANY - CONNECTIONS):
            cost = steady(server, script, redis, seconds, CONNECTIONS)
            if (left := connections(server)) < MANY - CONNECTIONS:
                raise BenchError(f"only {left} connections were left after the measurement")
            return cost

    return {
        f"{CONNECTIONS} connections": lambda seconds: steady(server, script, redis, seconds, CONNECTIONS),
        f"{CONNECTIONS} busy ones among {words(MANY, 'connection')}": among_idle,
        words(MANY, "busy connection"): lambda seconds: steady(server, script, redis, seconds, MANY),
    }


def at_most(server: Server, script: Path, redis: Redis) -> Callable[[int], Cost]:
    return lambda seconds: wrk(server.base, script, seconds, server.pid, redis)


def memory(home: Path, binary: Path, redis: Redis, script: Path, cookies: list[str]) -> float:
    """KiB of resident memory for each idle connection that has had one answer, in a new server."""
    with Server.started(home, binary, redis, MAX_CONNECTIONS=str(MANY + OTHER_FILES)) as server:
        # What a busy server has anyway.
        wrk(server.base, script, 1, server.pid, redis)
        before = resident(server.pid)
        say(f"memory of {words(IDLE, 'idle connection')}")
        with opened(server, cookies, IDLE):
            return (resident(server.pid) - before) * 1024 / IDLE


def steady(server: Server, script: Path, redis: Redis, seconds: int, count: int) -> Cost:
    """The cost of checks while `count` connections are open, without that of opening and closing them. While many open
    at once, checks may time out, so only answers after that have to be right."""
    command = ["wrk", "-t1", f"-c{count}", f"-d{OPENING + seconds + 2}s", "--timeout", "20s", "-s", str(script)]
    running = subprocess.Popen([*command, server.base], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(OPENING)
        if (there := connections(server)) < count:
            raise BenchError(f"{there} of {count} connections are open after {OPENING} s")
        before = checks(server), cpu(server.pid), redis.cpu(), time.monotonic()
        wrong = checks(server, "error")
        time.sleep(seconds)
        wrong = checks(server, "error") - wrong
        after = checks(server), cpu(server.pid), redis.cpu(), time.monotonic()
        shown = running.communicate(timeout=seconds + 60)[0]
    finally:
        running.kill()
        running.wait()
    asked, used, used_redis, took = (b - a for a, b in zip(before, after))
    if wrong or "Socket errors" in shown or not asked:
        raise BenchError(f"{wrong} of {asked} checks failed with {count} connections:\n{shown}")
    fewer(server, there - count)
    return Cost(used / asked * 1e6, used_redis / asked * 1e6, asked / took)


@contextlib.contextmanager
def opened(server: Server, cookies: list[str], count: int) -> Iterator[None]:
    """Connections that have had one answer each, and stay open. The server closes them after 30 s."""
    address = urlsplit(server.base)
    with contextlib.ExitStack() as stack:
        for n in range(count):
            one = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=30))
            cookie = cookies[n % len(cookies)]
            one.sendall(f"GET /profile HTTP/1.1\r\nHost: {address.netloc}\r\nCookie: {cookie}\r\n\r\n".encode())
            answer = one.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise BenchError(f"connection {n + 1} of {count}: {answer[:200]!r}")
        yield
    fewer(server, 0)


def fewer(server: Server, count: int) -> None:
    """Waits until the server has closed all but `count` connections. Those of the next arm would be above its limit."""
    deadline = time.monotonic() + 30
    while (left := connections(server)) > count:
        if time.monotonic() > deadline:
            raise BenchError(f"{left} connections are still open")
        time.sleep(0.05)


def script_at(script: Path, think: float) -> Path:
    """The script, with a pause of up to twice `think` seconds before each request of a connection."""
    paced = script.with_name("paced.lua")
    paced.write_text(f"{script.read_text()}function delay() return math.random(0, {round(think * 2e3)}) end\n")
    return paced


def checks(server: Server, result: str = "valid") -> int:
    """Session checks that the server has answered in this way."""
    return metric(server, "authfleet_session_checks_total", f'result="{result}"')


def connections(server: Server) -> int:
    return metric(server, "authfleet_http_connections")


def metric(server: Server, name: str, label: str = "") -> int:
    with urllib.request.urlopen(f"{server.ops}/metrics", timeout=30) as answer:
        found = re.search(rf"^{name}\{{.*{label}.*\}} (\S+)$", answer.read().decode(), re.M)
    if not found:
        raise BenchError(f"{server.ops}/metrics has no {name} {label}")
    return int(float(found[1]))


def allow_files(wanted: int) -> None:
    """Raises this process's limit of open files, which the programs that it starts inherit."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < wanted:
        raise Missing(f"{MANY} connections take {wanted} open files, but only {most} are allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, wanted), most))


def words(count: int, what: str) -> str:
    """For example "10 000 sessions"."""
    return f"{count:,} {what}{'s' * (count != 1)}".replace(",", " ")
