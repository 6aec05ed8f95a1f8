"""What a session check costs through nginx as it ships, beside a proxy that does nothing else, and without nginx."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .front_door import SESSIONS, Cost, requests, session, wrk
from .measurements import say
from .parts import USER_AGENT, Nginx, Redis, Server
from .targets import ROOT, fleets, free_port

SHIPPED = ROOT / "deploy" / "nginx"
DIRECTLY, BAREST = "without nginx", "nginx as the barest proxy"
ONE, THREE = "nginx as it ships, one replica", "nginx as it ships, three replicas"
OTHER_DIRECTLY, OTHER = "the other binary, without nginx", "the other binary and its nginx, one replica"


@dataclass
class Fleet:
    """Replicas of one binary that share their users and a Redis, and the cookies of sessions there."""

    replicas: list[Server]
    redis: Redis
    cookies: list[str]

    @property
    def addresses(self) -> list[str]:
        return [urlsplit(replica.base).netloc for replica in self.replicas]

    @staticmethod
    @contextlib.contextmanager
    def started(home: Path, binary: Path, size: int) -> Iterator[Fleet]:
        home.mkdir()
        (home / "secret").write_text(secrets.token_hex(32))
        behind_nginx = {"TRUSTED_PROXIES": "127.0.0.1/32", "REGISTRATIONS_PER_ADDRESS": "1000"}
        with contextlib.ExitStack() as stack:
            redis = stack.enter_context(Redis.started(home, "--appendonly", "no"))
            replicas = [
                stack.enter_context(Server.started(home, binary, redis, REPLICA_ID=f"replica-{n}", **behind_nginx))
                for n in range(1, size + 1)
            ]
            yield Fleet(replicas, redis, [session(replicas[0]) for _ in range(SESSIONS)])


def measure(
    directory: Path, binary: Path, seconds: int, rounds: int, against: Path | None = None, conf: Path | None = None
) -> dict:
    """Measures all arms in alternation. Returns medians by arm, and ratios. `conf` is the directory with the nginx
    configuration of `against`, by default the shipped one."""
    with contextlib.ExitStack() as stack:
        home = directory / "edge"
        home.mkdir()
        fleet = stack.enter_context(Fleet.started(home / "fleet", binary, 3))
        first = fleet.addresses[:1]
        arms: dict[str, tuple[Fleet, Nginx | None, int]] = {
            DIRECTLY: (fleet, None, 1),
            BAREST: (fleet, stack.enter_context(barest(home / "barest", first)), 1),
            ONE: (fleet, stack.enter_context(shipped(home / "one", SHIPPED, first)), 1),
            THREE: (fleet, stack.enter_context(shipped(home / "three", SHIPPED, fleet.addresses)), 3),
        }
        if against:
            other = stack.enter_context(Fleet.started(home / "other-fleet", against, 1))
            its_nginx = stack.enter_context(shipped(home / "other", conf or SHIPPED, other.addresses))
            arms |= {OTHER_DIRECTLY: (other, None, 1), OTHER: (other, its_nginx, 1)}
        found: dict[str, list[Cost]] = {name: [] for name in arms}
        for turn in range(-1, rounds):
            for name, (asked, proxy, size) in arms.items():
                say(f"round {turn + 1} of {rounds}: {name}")
                script = requests(home / "requests.lua", "/profile", asked.cookies, {"User-Agent": USER_AGENT})
                pids = [replica.pid for replica in asked.replicas[:size]]
                base = (proxy or asked.replicas[0]).base
                cost = wrk(base, script, seconds if turn >= 0 else 1, proxy, pids, asked.redis)
                # The first turn opens connections and fills caches.
                if turn >= 0:
                    found[name].append(cost)
    costs = {name: Cost.median(all_) for name, all_ in found.items()}
    result = {
        "arms": {name: asdict(cost) for name, cost in costs.items()},
        "barest_ratio": costs[ONE].all / costs[BAREST].all,
    }
    if against:
        result["other_ratio"] = costs[ONE].all / costs[OTHER].all
    return result


@contextlib.contextmanager
def shipped(home: Path, source: Path, replicas: list[str]) -> Iterator[Nginx]:
    """nginx with the configuration in `source`, in front of these addresses. Only these and its own address differ."""
    conf = home / "conf"
    conf.mkdir(parents=True)
    port = free_port()
    own = {"listen.conf": f"listen 127.0.0.1:{port};\n"}
    own["upstream.conf"] = fleets.upstream_conf([int(address.rpartition(":")[2]) for address in replicas])
    for file in source.glob("*.conf"):
        if file.name not in own:
            (conf / file.name).symlink_to(file)
    for name, text in own.items():
        (conf / name).write_text(text)
    with Nginx.started(home, conf / "nginx.conf", port) as it:
        yield it


@contextlib.contextmanager
def barest(home: Path, replicas: list[str]) -> Iterator[Nginx]:
    """nginx that passes requests on over kept connections and does nothing else: no log, no header, no limit."""
    home.mkdir()
    port = free_port()
    servers = " ".join(f"server {address};" for address in replicas)
    (home / "nginx.conf").write_text(
        "pid nginx.pid; error_log stderr; worker_processes 2;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; upstream replicas {{ {servers} keepalive 64; keepalive_requests 10000; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://replicas;\n"
        'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; } } }\n'
    )
    with Nginx.started(home, home / "nginx.conf", port) as it:
        yield it


def table(r: dict) -> str:
    head = f"{'nginx':>8}{'server':>8}{'Redis':>8}{'all':>8}{'p50 ms':>8}{'per second':>12}"
    lines = [f"{'a session check through nginx, microseconds':<44}{head}"]
    for name, arm in r["arms"].items():
        whole = arm["nginx"] + arm["server"] + arm["redis"]
        cells = "".join(f"{value:8.1f}" for value in (arm["nginx"], arm["server"], arm["redis"], whole))
        lines.append(f"{name:<44}{cells}{arm['p50_ms']:8.2f}{arm['per_second']:12.0f}")
    lines.append(f"{'nginx as it ships, by the barest proxy':<68}{r['barest_ratio']:8.2f}")
    if "other_ratio" in r:
        lines.append(f"{'nginx as it ships, by the other binary and its nginx':<68}{r['other_ratio']:8.2f}")
    return "\n".join(lines)
