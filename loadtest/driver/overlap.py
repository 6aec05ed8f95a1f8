"""Where `loadtest/simulate` and a real fleet of three overlap: the same load, measured and simulated side by side."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import secrets
import statistics
import subprocess
import tempfile
from pathlib import Path

from . import simulation
from .measurements import rotating, say, wrk
from .parts import BenchError, Missing, Redis, Server
from .sessions import fill, sample
from .targets import ROOT

REPLICAS = 3
# Connections of each load generator, enough to make requests come nearly at random.
CONNECTIONS = 40
LOADS = (0.1, 0.3, 0.5, 0.7, 0.85)


def compared(args: argparse.Namespace, cores: int) -> str:
    """A table of throughput and latency by load, measured and simulated."""
    binary = (args.binary or ROOT / "target" / "release" / "authfleet").absolute()
    if not os.access(binary, os.X_OK):
        raise Missing(f"{binary} does not exist; build it with: cargo build --release --locked")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="authfleet-simulate-")))
        (directory / "secret").write_text(secrets.token_hex(32))
        redis = stack.enter_context(Redis.started(directory))
        servers = [
            stack.enter_context(Server.started(directory, binary, redis, REPLICA_ID=f"replica-{number + 1}"))
            for number in range(REPLICAS)
        ]
        cookies = sessions(redis, servers[0])
        script = rotating(directory / "cookies.lua", cookies)
        say("CPU per check: 32 connections to one replica")
        wrk(servers[0].base, script, 1, servers[0].pid, redis)
        before = children()
        each = wrk(servers[0].base, script, args.seconds, servers[0].pid, redis)
        client = (children() - before) / (each.per_second * args.seconds)
        server, asked = each.server / 1e6, each.redis / 1e6
        whole = server + asked + client
        say("an idle fleet: one connection to each replica")
        _, lone, _ = measured(directory, script, servers, 20e-3, args.seconds, connections=1)
        idle = max(0.0, lone - server - asked - client / 2)
        rows = []
        for load in LOADS:
            think = REPLICAS * CONNECTIONS / (load * cores / whole)
            say(f"{load:.0%} of {cores} cores: {load * cores / whole:.0f} checks/s")
            seen = measured(directory, script, servers, think, args.seconds)
            shape = simulation.Shape(REPLICAS, server, asked, variation=args.variation)
            told = simulation.on_one_machine(
                shape, REPLICAS * CONNECTIONS, think, client, cores, args.requests, args.seed, idle
            )
            simulated = (told.per_second, told.quantile(0.5), told.quantile(0.99))
            rows.append([f"{load:.0%}".replace("%", " %"), *cells(seen), *cells(simulated)])
    head = ["load", "measured checks/s", "p50, ms", "p99, ms", "simulated checks/s", "p50, ms", "p99, ms"]
    lines = [head, ["---:"] * len(head), *rows]
    costs = f"{server * 1e6:.1f} µs in the server, {asked * 1e6:.1f} in Redis, {client * 1e6:.1f} in the load generator"
    costs = f"{costs}; {idle * 1e3:.2f} ms in an idle fleet, beyond these"
    return f"Per check {costs}; {cores} cores.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sessions(redis: Redis, server: Server, count: int = 1000, keep: int = 1000) -> list[str]:
    """Makes sessions like one of the server's own. Returns the cookies of `keep` of them."""
    return fill(redis, server.secret, count, sample(redis, server)[1], keep)[0]


def children() -> float:
    """Seconds of CPU of the load generators that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(
    directory: Path, script: Path, servers: list[Server], think: float, seconds: int, connections: int = CONNECTIONS
) -> tuple[float, float, float]:
    """One load generator for each replica, at the same time: checks per second of all; the averages of p50 and p99, in
    seconds."""
    paced = directory / "paced.lua"
    # In milliseconds, evenly up to twice the mean.
    paced.write_text(
        script.read_text()
        + f"math.randomseed({secrets.randbelow(1 << 30)})\n"
        + f"function delay() return math.random(0, {round(think * 2e3)}) end\n"
        + 'function done(summary, latency) io.write(string.format("CELLS %d %d %d %d\\n", summary.requests,\n'
        + "  summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout,\n"
        + "  latency:percentile(50), latency:percentile(99))) end\n"
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(paced)]
    running = [subprocess.Popen([*command, server.base], stdout=subprocess.PIPE, text=True) for server in servers]
    shown = [child.communicate(timeout=seconds + 60)[0] for child in running]
    found = [[int(part) for part in re.search(r"CELLS (.*)", text)[1].split()] for text in shown]
    if any(errors for _, errors, _, _ in found):
        raise BenchError(f"wrong answers under load: {json.dumps(found)}")
    median, last = (statistics.mean(line[n] for line in found) / 1e6 for n in (2, 3))
    return sum(line[0] for line in found) / seconds, median, last


def cells(seen: tuple[float, float, float]) -> list[str]:
    per_second, median, last = seen
    return [f"{per_second:,.0f}".replace(",", " "), f"{median * 1e3:.2f}", f"{last * 1e3:.2f}"]
