#!/usr/bin/env python3
"""Tests the proof of sharing: fleets that are broken on purpose must fail it, for the right reason.

Starts a fleet, breaks it in one way at a time, runs `sharing` on it, and repairs it. Prints a line per fleet and
`N passed, N failed`. Exits with 1 if a broken fleet passes or fails for another reason, or if the sound one fails.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "loadtest"))

from driver import scenarios, targets  # noqa: E402
from driver.targets import Target, connects, end, fleets, free_port  # noqa: E402


@contextlib.contextmanager
def another(fleet: fleets.Fleet, **changed: str) -> Iterator[None]:
    """Restarts replica-3 with some of its variables changed."""
    name = "replica-3"
    fleets.stop(fleet, name)
    env = fleets.replica_env(fleet, name)
    for key in changed:
        env.pop(f"{key}_FILE", None)
    with open(fleet.log("broken"), "ab") as log:
        child = subprocess.Popen(
            [fleet.binary, "serve"], env={**env, **changed}, cwd=fleet.path, stdout=log, stderr=log
        )
    try:
        wait_for(fleet.replica_ports[2], child)
        yield
    finally:
        end(child)
        fleets.start(fleet, name)


@contextlib.contextmanager
def another_redis(fleet: fleets.Fleet) -> Iterator[None]:
    port = free_port()
    command = [
        fleets.tool("redis-server"),
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, child)
        with another(fleet, REDIS_URL=f"redis://127.0.0.1:{port}"):
            yield
    finally:
        end(child)


@contextlib.contextmanager
def another_edge(fleet: fleets.Fleet, balancing: str, proxying: str) -> Iterator[str]:
    """Starts another nginx in front of the replicas, and yields its URL."""
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{p};" for p in fleet.replica_ports)
    with tempfile.TemporaryDirectory(prefix="authfleet-edge-") as directory:
        # If root starts nginx, its workers run as another user, who must reach the cache.
        Path(directory).chmod(0o755)
        temporary = " ".join(
            f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf = Path(directory) / "nginx.conf"
        conf.write_text(
            f"daemon off; pid {directory}/pid; error_log stderr;\n"
            "events {}\n"
            f"http {{ {temporary} access_log off; proxy_cache_path {directory}/cache keys_zone=answers:1m;\n"
            f"upstream fleet {{ {balancing} {servers} }}\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ {proxying} proxy_pass http://fleet; }} }} }}\n"
        )
        command = [fleets.tool("nginx"), "-p", directory, "-c", str(conf), "-e", "stderr"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(port, child)
            yield f"http://127.0.0.1:{port}"
        finally:
            end(child)


def wait_for(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not connects("127.0.0.1", port):
        if child.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nothing listens on port {port}: {child.args}")
        time.sleep(0.05)


def cache(key: str) -> str:
    return (
        f"proxy_cache answers; proxy_cache_key {key}; proxy_cache_valid any 1m; "
        "proxy_ignore_headers Cache-Control Expires Set-Cookie Vary;"
    )


@contextlib.contextmanager
def protected(
    fleet: fleets.Fleet, sound: Target, via: str, broken: dict[str, dict[str, str]] | None = None
) -> Iterator[Target]:
    """The fleet with applications behind a proxy."""
    with contextlib.ExitStack() as stack:
        yield targets.behind(stack, Target(sound.replicas, None), fleet, via, broken)


# A recipe whose answers are kept for a minute.
CACHING = {
    "conf.d/authfleet.conf": {
        "upstream authfleet {": "proxy_cache_path cache keys_zone=answers:1m;\nupstream authfleet {"
    },
    "authfleet/server.conf": {
        "    proxy_pass_request_body off;": "    proxy_pass_request_body off; proxy_cache answers; "
        "proxy_cache_key $http_cookie$http_accept; proxy_cache_valid 200 1m; "
        "proxy_ignore_headers Cache-Control Expires Set-Cookie Vary;"
    },
}
# A recipe that passes what the client says about its identity.
CREDULOUS = {"authfleet/protect.conf": {"proxy_set_header Remote-User-Id $authfleet_user_id;": ""}}


def judge(title: str, target: Target, want: set[str], only_third: bool = False) -> bool:
    """Runs the proof and returns whether it found exactly the kinds of violation in `want`; none if `want` is empty."""
    outcome = scenarios.run(scenarios.SCENARIOS["sharing"], target, {}, short=True, tick=lambda _: None)
    found = set(outcome.extra.get("kinds", {}))
    good = outcome.passed == (not want) and want <= found and bool(found) == bool(want)
    blamed = ""
    if only_third:
        cells = [(i, j) for i, row in enumerate(outcome.extra["violated"], 1) for j, n in enumerate(row, 1) if n]
        blamed = f", pairs {' '.join(f'{i}>{j}' for i, j in cells)}"
        # Only pairs of replica 3 and another one fail. Replica 3 alone, and replicas 1 and 2 together, work.
        good = good and set(cells) == {(1, 3), (2, 3), (3, 1), (3, 2)}
    print(
        f"  {'passed' if good else 'FAILED'}  {title}: {', '.join(sorted(found)) or 'no violation'}{blamed}", flush=True
    )
    if not good:
        for line in [f"{t.name}: {t.found}" for t in outcome.thresholds if not t.ok][:8] + outcome.log[:8]:
            print(f"            {line}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, help="the server (default: target/release/authfleet)")
    args = parser.parse_args()
    results = []
    with contextlib.ExitStack() as stack:
        fleet = targets.private_fleet(stack, args.binary)
        sound = targets.Local(fleet)
        direct = Target(sound.replicas, None)
        behind = lambda url: Target(sound.replicas, url)  # noqa: E731

        results.append(judge("the sound fleet", sound, set()))
        with another_redis(fleet):
            results.append(judge("one replica with another Redis", direct, {"refused_session"}, only_third=True))
        with another(fleet, SESSION_SECRET=secrets.token_hex(32)):
            results.append(judge("one replica with another secret", direct, {"refused_session"}, only_third=True))
        with another_edge(fleet, "", cache("$request_uri$http_cookie")) as edge:
            results.append(
                judge("a proxy that caches answers by cookie", behind(edge), {"cached", "alive_after_logout"})
            )
        with another_edge(fleet, "", cache("$request_uri")) as edge:
            results.append(judge("a proxy that caches answers by path", behind(edge), {"cached", "wrong_session"}))
        with another_edge(fleet, "ip_hash;", "") as edge:
            results.append(judge("a balancer that sticks to the address", behind(edge), {"sticky", "unreached"}))
        with another_edge(fleet, "hash $http_cookie;", "") as edge:
            results.append(judge("a balancer that sticks to the cookie", behind(edge), {"sticky"}))
        twice = Target([sound.replicas[0], sound.replicas[0].replace("127.0.0.1", "localhost")], None)
        results.append(judge("one replica under two names", twice, {"not_a_replica"}))
    with contextlib.ExitStack() as stack:
        fleet = targets.private_fleet(stack, args.binary, targets.proxies.environment())
        sound = targets.Local(fleet)
        with protected(fleet, sound, "nginx") as target:
            results.append(judge("applications behind a sound nginx", target, set()))
            rules = fleet.path / "rules.toml"
            rules.write_text('[[rule]]\nname = "elsewhere"\nhosts = ["app1.example.org"]\nallow = "nobody"\n')
            with another(fleet, ACCESS_RULES=str(rules)):
                results.append(judge("one replica with other rules", target, {"denied"}))
        with protected(fleet, sound, "nginx", CACHING) as target:
            results.append(judge("a proxy that caches the verification", target, {"alive_after_logout"}))
        with protected(fleet, sound, "nginx", CREDULOUS) as target:
            results.append(judge("a proxy that passes the client's Remote-User", target, {"wrong_identity"}))
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
