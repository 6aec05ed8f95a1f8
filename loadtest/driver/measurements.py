"""The measurements of `loadtest/bench`: session checks, memory, logins."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import secrets
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from .parts import USER_AGENT, BenchError, Postgres, Redis, RedisCluster, Server, cpu, encode, resident
from .sessions import fill

CONNECTIONS = 32
CHECKED = ("username", "email", "created_at", "created_by", "groups")
# Arms of the table of session checks.
COMPACT = "authfleet, compact sessions"
BARE = "bare axum handler, all fields"
SMALLEST = "bare axum handler, two fields"


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def rotating(path: Path, cookies: list[str]) -> Path:
    """Writes a wrk script that sends a different session's cookie with each request."""
    # In a file of their own, because a Lua program holds 65,536 constants at most.
    data = path.with_suffix(".cookies")
    data.write_text("".join(f"{cookie}\n" for cookie in cookies))
    path.write_text(
        "local n = 0\n"
        "local requests = {}\n"
        "function init(args)\n"
        f"  for cookie in io.lines({json.dumps(str(data))}) do\n"
        '    requests[#requests + 1] = wrk.format("GET", "/profile", {["Host"] = wrk.host, ["Cookie"] = cookie})\n'
        "  end\n"
        "end\n"
        "function request() n = n % #requests + 1; return requests[n] end\n"
    )
    return path


@dataclass
class Cost:
    """Microseconds of CPU per request."""

    server: float
    redis: float
    per_second: float

    @property
    def both(self) -> float:
        return self.server + self.redis


def wrk(base: str, script: Path, seconds: int, server_pid: int, redis: Redis | RedisCluster) -> Cost:
    before = cpu(server_pid), redis.cpu()
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), base]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    after = cpu(server_pid), redis.cpu()
    requests = int(re.search(r"(\d+) requests in", shown).group(1))
    if "Non-2xx" in shown or "Socket errors" in shown or not requests:
        raise BenchError(f"{base}: wrong answers under load:\n{shown}")
    each = [(b - a) / requests * 1e6 for a, b in zip(before, after, strict=True)]
    return Cost(each[0], each[1], requests / seconds)


def median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(getattr(c, name) for c in costs) for name in ("server", "redis", "per_second")))


def redis_benchmark(redis: Redis, requests: int, *command: str) -> float:
    """Microseconds of Redis's CPU per command. Commands are sent in pairs, as a session check sends them."""
    before = redis.cpu()
    whole = [
        "redis-benchmark",
        "-p",
        str(redis.port),
        "-n",
        str(requests),
        "-c",
        str(CONNECTIONS),
        "-P",
        "2",
        "-q",
        *command,
    ]
    subprocess.run(whole, capture_output=True, check=True, timeout=120)
    return (redis.cpu() - before) / requests * 1e6


def checks(
    directory: Path,
    args: argparse.Namespace,
    redis: Redis,
    server: Server,
    variants: dict[str, Server],
    bare: tuple[int, str],
    real: dict[str, str],
    compact: dict[str, str],
) -> dict:
    """Measures the server with sessions of both formats, the server with other settings and the bare handler in
    alternation, then redis-benchmark."""
    cookies, keys = fill(redis, server.secret, 1000, real, 1000)
    compact_cookies, compact_keys = fill(redis, server.secret, 1000, compact, 1000)
    in_less = rotating(directory / "compact.lua", compact_cookies)
    mine = rotating(directory / "cookies.lua", cookies)
    theirs = rotating(directory / "keys.lua", [f"session={key}" for key in keys])
    # The smallest session that an application could keep: who it is, by number and by name.
    small = [key.replace("session:", "small:") for key in keys]
    redis.pipe(encode("HSET", key, "user_id", real["user_id"], "username", real["username"]) for key in small)
    smallest = rotating(directory / "small.lua", [f"session={key}" for key in small])
    arms = {
        f"authfleet{name}": lambda seconds, it=it: wrk(it.base, mine, seconds, it.pid, redis)
        for name, it in {"": server, **variants}.items()
    }
    # A server accepts sessions of both formats.
    arms[COMPACT] = lambda seconds: wrk(server.base, in_less, seconds, server.pid, redis)
    arms[BARE] = lambda seconds: wrk(bare[1], theirs, seconds, bare[0], redis)
    arms[SMALLEST] = lambda seconds: wrk(bare[1], smallest, seconds, bare[0], redis)
    for run in arms.values():
        run(1)  # Opens connections, fills caches, loads scripts.
    time.sleep(2)  # Until the spans of these requests have been sent.
    traced = {name: it for name, it in variants.items() if "traced" in name}
    before_rounds = {name: it.spans() for name, it in traced.items()}
    found: dict[str, list[Cost]] = {name: [] for name in arms}
    for turn in range(args.rounds):
        for name, run in arms.items():
            say(f"round {turn + 1} of {args.rounds}: {name}")
            found[name].append(run(args.seconds))

    before = redis.calls()
    probe = wrk(server.base, mine, 1, server.pid, redis)
    asked = probe.per_second
    calls = {name: round((n - before.get(name, 0)) / asked, 3) for name, n in redis.calls().items()}
    calls = {name: n for name, n in calls.items() if n > 0.01}

    say("redis-benchmark")
    n, key = args.commands, keys[0]
    pure = {
        "HGETALL + EXPIRE": redis_benchmark(redis, n, "HGETALL", key)
        + redis_benchmark(redis, n, "EXPIRE", key, "1800"),
        "HMGET + PEXPIRE": redis_benchmark(redis, n, "HMGET", key, *CHECKED)
        + redis_benchmark(redis, n, "PEXPIRE", key, "1800000"),
        "HMGET + PEXPIRE, compact": redis_benchmark(redis, n, "HMGET", compact_keys[0], *CHECKED)
        + redis_benchmark(redis, n, "PEXPIRE", compact_keys[0], "1800000"),
    }
    time.sleep(2)
    # The exporter drops spans when its queue is full, so this shows how many were sent.
    spans_sent = {
        name: (it.spans() - before_rounds[name])
        / (2 * sum(cost.per_second * args.seconds for cost in found[f"authfleet{name}"]))
        for name, it in traced.items()
    }
    return {
        "spans_sent": spans_sent,
        "arms": {name: median(costs).__dict__ for name, costs in found.items()},
        "commands_per_check": calls,
        "redis_benchmark": pure,
    }


def sizes(directory: Path, args: argparse.Namespace, reals: dict[str, dict[str, str]]) -> list[dict]:
    """Measures memory per session and cost per check, for each number of sessions, in both formats in alternation.
    Each format has a Redis and a server of its own. The default format comes last."""
    rows = []
    with contextlib.ExitStack() as stack:
        stores = {}
        for name in reals:
            (directory / name).mkdir()
            redis = stack.enter_context(Redis.started(directory / name, "--appendonly", "no"))
            stores[name] = (redis, stack.enter_context(Server.started(directory, args.binary, redis)))
        for count in args.sizes:
            arms: dict[str, tuple[Server, Path, Redis, dict[str, str], int]] = {}
            for name, (redis, server) in stores.items():
                redis.cli("FLUSHALL")
                before = int(redis.info("memory")["used_memory"])
                say(f"{count} {name} sessions into Redis")
                cookies, _ = fill(redis, server.secret, count, reals[name], 10_000)
                memory = redis.info("memory")
                script = rotating(directory / f"size-{count}-{name}.lua", cookies)
                arms[name] = (server, script, redis, memory, int(memory["used_memory"]) - before)
                wrk(server.base, script, 1 if args.quick else 2, server.pid, redis)
            costs: dict[str, list[Cost]] = {name: [] for name in arms}
            for turn in range(1 if args.quick else args.rounds):
                for name, (server, script, redis, *_) in arms.items():
                    say(f"round {turn + 1}: checks among {count} {name} sessions")
                    costs[name].append(wrk(server.base, script, args.seconds, server.pid, redis))
            rows += [
                {
                    "sessions": count,
                    "format": name,
                    "bytes_per_session": round(used / count),
                    "used_memory_rss": int(memory["used_memory_rss"]),
                    **median(costs[name]).__dict__,
                }
                for name, (_, _, _, memory, used) in arms.items()
            ]
    return rows


def encodings(directory: Path, args: argparse.Namespace, real: dict[str, str]) -> dict[str, dict[str, float]]:
    """Measures memory and a check's cost in Redis, by `hash-max-listpack-value`, of sessions whose user agent was kept
    as it was sent: by builds before this one, or because it wasn't recognised."""
    real = {**real, "user_agent": USER_AGENT}
    found: dict[str, dict[str, float]] = {}
    for limit in ("64", "512"):
        with Redis.started(directory, "--appendonly", "no", "--hash-max-listpack-value", limit) as redis:
            before = int(redis.info("memory")["used_memory"])
            _, (key,) = fill(redis, "x", 20_000, real, 1)
            each = round((int(redis.info("memory")["used_memory"]) - before) / 20_000)
            cost = redis_benchmark(redis, args.commands, "HMGET", key, *CHECKED) + redis_benchmark(
                redis, args.commands, "PEXPIRE", key, "1800000"
            )
            found[limit] = {"bytes": each, "redis": cost}
    return found


def logins(args: argparse.Namespace, redis: Redis, servers: dict[str, Server], postgres: Postgres) -> dict[str, dict]:
    """Measures CPU per login, one login at a time, with SQLite and PostgreSQL in alternation."""
    rounds, count = (2, 5) if args.quick else (6, 10)
    who = {"email": "bench@example.com", "password": secrets.token_urlsafe(18)}
    for server in servers.values():
        if (status := server.post("/auth/register", who)[0]) != 201:
            raise BenchError(f"register: {status}")
    cookies = dict.fromkeys(servers, "")
    spent = {name: [0.0, 0.0, 0.0] for name in servers}
    for turn in range(rounds + 1):
        for name, server in servers.items():
            before = cpu(server.pid), redis.cpu(), postgres.cpu()
            for _ in range(count):
                status, _, cookies[name] = server.post("/auth/login", who, cookies[name])
                if status != 200:
                    raise BenchError(f"login: {status}")
            after = cpu(server.pid), redis.cpu(), postgres.cpu()
            # The first round opens connections and prepares statements, so it doesn't count.
            if turn:
                spent[name] = [s + b - a for s, a, b in zip(spent[name], before, after, strict=True)]
    parts = ("server_ms", "redis_ms", "postgres_ms")
    return {
        name: {"logins": rounds * count}
        | {part: each / (rounds * count) * 1000 for part, each in zip(parts, each_spent, strict=True)}
        for name, each_spent in spent.items()
    }


def forms(directory: Path, args: argparse.Namespace, real: dict[str, str]) -> dict[str, dict]:
    """Measures session checks with each form of REDIS_URL in alternation, each on its own Redis. Sentinel is left out,
    because a check doesn't ask it and uses the same connection as with `redis://`."""
    with contextlib.ExitStack() as stack:
        (directory / "tls").mkdir()
        (directory / "cluster").mkdir()
        no_disk = ("--appendonly", "no")
        stores = {
            "redis://": stack.enter_context(Redis.started(directory, *no_disk)),
            "rediss://": stack.enter_context(Redis.started_with_tls(directory / "tls", *no_disk)),
            "redis-cluster://, 3 shards": stack.enter_context(RedisCluster.started(directory / "cluster", *no_disk)),
        }
        arms = {}
        for name, redis in stores.items():
            more = {"REDIS_CA_FILE": str(directory / "tls" / "ca.pem")} if name == "rediss://" else {}
            server = stack.enter_context(Server.started(directory, args.binary, redis, **more))
            cookies, _ = fill(redis, server.secret, 1000, real, 1000)
            script = rotating(directory / f"form-{len(arms)}.lua", cookies)
            arms[name] = (server.base, script, server.pid, redis)
            wrk(server.base, script, 1, server.pid, redis)
        found: dict[str, list[Cost]] = {name: [] for name in arms}
        for turn in range(args.rounds):
            for name, (base, script, pid, redis) in arms.items():
                say(f"round {turn + 1} of {args.rounds}: {name}")
                found[name].append(wrk(base, script, args.seconds, pid, redis))
        return {name: median(costs).__dict__ for name, costs in found.items()}


def storm(args: argparse.Namespace, server: Server) -> dict:
    """Measures resident memory before, during and after a flood of logins from 32 clients."""
    clients, seconds = 32, 3 if args.quick else 12
    idle = resident(server.pid)
    accounts = []
    for n in range(clients):
        who = {"email": f"storm-{n}@example.com", "password": secrets.token_urlsafe(18)}
        deadline = time.monotonic() + 60
        while (status := server.post("/auth/register", who)[0]) == 503 and time.monotonic() < deadline:
            time.sleep(0.2)
        if status != 201:
            raise BenchError(f"register: {status}")
        accounts.append(who)
    stop = time.monotonic() + seconds
    answers: dict[int, int] = {}
    lock = threading.Lock()

    def client(who: dict[str, str]) -> None:
        cookie = ""
        while time.monotonic() < stop:
            status, _, new = server.post("/auth/login", who, cookie)
            cookie = new or cookie
            with lock:
                answers[status] = answers.get(status, 0) + 1

    threads = [threading.Thread(target=client, args=(who,)) for who in accounts]
    for thread in threads:
        thread.start()
    peak = 0.0
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, resident(server.pid))
        time.sleep(0.02)
    time.sleep(2 if args.quick else 10)
    if set(answers) - {200, 503}:
        raise BenchError(f"logins under a storm: {answers}")
    return {
        "idle_mib": idle,
        "peak_mib": max(peak, resident(server.pid, "VmHWM")),
        "after_mib": resident(server.pid),
        "answers": answers,
    }
