"""Starts the parts of a local fleet, finds their processes, and waits until they answer or have ended."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from model import HOST, Fleet, FleetError
from parts import command_of

# Enough for a busy machine with two cores. When all is well, nothing waits nearly as long.
START_TIMEOUT = 60.0


def process_start(pid: int) -> str | None:
    """The start time of a running process, in the system's own format. None if there is no such process or it is a
    zombie."""
    try:
        # The name in parentheses may contain anything; the fields after it are state, ppid, …, starttime (22nd).
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, began = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else began.strip()


def running(fleet: Fleet, name: str) -> int | None:
    """The part's process id, or None if it doesn't run. Also compares the start time, because ids are reused."""
    try:
        pid, _, began = (fleet.path / "pid" / name).read_text().strip().partition(" ")
    except FileNotFoundError:
        return None
    return int(pid) if process_start(int(pid)) == began else None


def send(fleet: Fleet, name: str, number: signal.Signals) -> int:
    pid = running(fleet, name)
    if pid is None:
        raise FleetError(f"{name} is not running")
    os.kill(pid, number)
    return pid


def wait_gone(fleet: Fleet, names: Iterable[str], timeout: float) -> list[str]:
    """Waits until the parts have ended; returns those that have not."""
    deadline = time.monotonic() + timeout
    left = list(names)
    while True:
        reap()
        left = [name for name in left if running(fleet, name)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def reap() -> None:
    """Reaps children of this process that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def launch(fleet: Fleet, name: str) -> None:
    """Starts one part detached, with its output in its log and its process id in its pid file."""
    if running(fleet, name):
        raise FleetError(f"{name} is already running")
    command, env = command_of(fleet, name)
    # nginx writes its access log to standard output, a JSON object per line.
    out_path = fleet.log("access") if name == "nginx" else fleet.log(name)
    with open(out_path, "ab") as out, open(fleet.log(name), "ab") as err:
        child = subprocess.Popen(
            command,
            cwd=fleet.path,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            # In a process group of its own Ctrl-C doesn't reach it, so that the caller can stop the parts in order. Not
            # in a session of its own: Linux divides the CPU by session first (sched_autogroup), and hashing would lose
            # its low priority.
            preexec_fn=os.setpgrp,
        )
    (fleet.path / "pid" / name).write_text(f"{child.pid} {process_start(child.pid)}\n")
    # wait_gone reaps the child. With a return code set, Popen doesn't wait for it as well.
    child.returncode = 0


def answers(port: int, path: str, want: Callable[[int], bool]) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=3)
    try:
        connection.request("GET", path)
        return want(connection.getresponse().status)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def redis_pongs(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=3) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def ready(fleet: Fleet, name: str) -> bool:
    if name == "redis":
        return redis_pongs(fleet.redis_port)
    if name == "nginx":
        return answers(fleet.http_port, "/openapi.json", lambda status: status == 200)
    if name == "prometheus":
        return answers(fleet.prometheus_port, "/-/ready", lambda status: status == 200)
    if name in fleet.apps:
        return answers(fleet.app_ports[fleet.apps.index(name)], "/", lambda status: status == 200)
    return answers(fleet.ops_ports[fleet.replicas.index(name)], "/readyz", lambda status: status == 200)


def wait_ready(fleet: Fleet, names: list[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    left = list(names)
    while left:
        for name in left:
            if not running(fleet, name):
                raise FleetError(f"{name} ended while starting; the end of {fleet.log(name)}:\n{tail(fleet.log(name))}")
        left = [name for name in left if not ready(fleet, name)]
        if left and time.monotonic() > deadline:
            logs = "\n".join(f"the end of {fleet.log(name)}:\n{tail(fleet.log(name))}" for name in left)
            raise FleetError(f"not ready after {START_TIMEOUT:.0f} s: {', '.join(left)}; {logs}")
        if left:
            time.sleep(0.02)


def tail(path: Path, lines: int = 20) -> str:
    try:
        return "\n".join("    " + line for line in path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "    (nothing)"
