#!/usr/bin/env python3
"""Runs a fleet on one machine without Docker: Redis, replicas that share one SQLite file, nginx, optionally Prometheus.

    fleet.py up                       start everything; returns when all parts answer
    fleet.py up --prometheus          the same, with a Prometheus that scrapes the replicas
    fleet.py status                   what runs; exit code 1 unless every part is ready
    fleet.py restart replica-2        SIGTERM, wait for the drain, start again, wait until ready
    fleet.py kill replica-1           SIGKILL; also: start, stop (SIGTERM), pause (SIGSTOP), resume (SIGCONT)
    fleet.py down                     stop all parts

Everything is in one directory (--dir, by default .run/fleet): data, secret, process ids, a log per part, and fleet.json
with the addresses, which doesn't change while the fleet is up. The parts keep running after `up` returns. Tests start
their own fleet with `fleet.py up --dir D --auto-ports --json`.

Needs Python 3.9, redis-server, nginx and a built authfleet; Prometheus only if asked for it. Exit codes: 0 done,
1 failed, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from model import HOST, ROOT, Fleet, FleetError
from parts import replica_env, tool, upstream_conf, write_nginx_conf, write_prometheus_conf, write_secret
from ports import PORTS, chosen_ports, is_free, private_ports
from processes import answers, launch, ready, reap, running, send, tail, wait_gone, wait_ready

# For tests and tools that start fleets; the other modules beside this one are its parts.
__all__ = [
    "HOST",
    "PORTS",
    "ROOT",
    "Fleet",
    "FleetError",
    "answers",
    "down",
    "is_free",
    "load",
    "private_ports",
    "reach_without_proxy",
    "reap",
    "replica_env",
    "running",
    "send",
    "start",
    "status",
    "stop",
    "tail",
    "tool",
    "up",
    "upstream_conf",
]

# More than DRAIN_DELAY and DRAIN_TIMEOUT (30 s by default) together.
STOP_TIMEOUT = 45.0


def reach_without_proxy() -> None:
    """Makes clients in this process and its children reach this machine without a proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        others = [os.environ[name]] if os.environ.get(name) else []
        os.environ[name] = ",".join([*others, "localhost", "127.0.0.1", "::1"])


def up(
    directory: Path,
    *,
    replicas: int = 3,
    binary: Path | None = None,
    auto_ports: bool = False,
    env: dict[str, str] | None = None,
    limits: Path | None = None,
    prometheus: bool = False,
    apps: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Fleet:
    """Starts a fleet in `directory` and returns when every part answers. On failure, stops what it started."""
    reach_without_proxy()
    directory = directory.absolute()
    if (directory / "fleet.json").exists():
        live = [name for name in load(directory).parts if running(load(directory), name)]
        if live:
            end = f"{Path(__file__).resolve()} down --dir {directory}"
            raise FleetError(f"a fleet already runs in {directory} ({', '.join(live)}); end it with: {end}")
    for name in ("redis-server", "nginx", *(["prometheus"] if prometheus else [])):
        tool(name)
    binary = binary or ROOT / "target" / "release" / "authfleet"
    if not os.access(binary, os.X_OK):
        raise FleetError(f"{binary} does not exist; build it with: cargo build --release --locked")

    ports = (private_ports if auto_ports else chosen_ports)(replicas, prometheus, 2 if apps else 0)
    fleet = Fleet(
        dir=str(directory),
        binary=str(Path(binary).absolute()),
        http_port=ports.http,
        redis_port=ports.redis,
        replica_ports=ports.replicas,
        ops_ports=ports.ops,
        env=env or {},
        prometheus_port=ports.prometheus,
        app_ports=ports.apps,
    )
    for name in ("data", "log", "pid", "nginx/conf"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    for old in (directory / "log").iterdir():
        old.unlink()
    write_secret(directory / "secret")
    write_nginx_conf(fleet, limits)
    if prometheus:
        write_prometheus_conf(fleet)
    (directory / "fleet.json").write_text(json.dumps(asdict(fleet), indent=2) + "\n")

    try:
        say(f"Redis on port {fleet.redis_port}")
        launch(fleet, "redis")
        wait_ready(fleet, ["redis"])
        say("authfleet migrate")
        migrate(fleet)
        for name in fleet.replicas:
            say(f"{name} on {fleet.replica_url(name)}, ops on {fleet.ops_url(name)}")
            launch(fleet, name)
        wait_ready(fleet, fleet.replicas)
        for name in fleet.apps:
            say(f"{name} on {fleet.app_url(name)}")
            launch(fleet, name)
        wait_ready(fleet, fleet.apps)
        say(f"nginx on {fleet.url}")
        launch(fleet, "nginx")
        wait_ready(fleet, ["nginx"])
        if prometheus:
            say(f"Prometheus on {fleet.prometheus_url}")
            launch(fleet, "prometheus")
            wait_ready(fleet, ["prometheus"])
    except BaseException:
        down(fleet)
        raise
    return fleet


def migrate(fleet: Fleet) -> None:
    env = replica_env(fleet, fleet.replicas[0])
    with open(fleet.log("migrate"), "ab") as log:
        done = subprocess.run([fleet.binary, "migrate"], cwd=fleet.path, env=env, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        log_path = fleet.log("migrate")
        raise FleetError(
            f"authfleet migrate failed with code {done.returncode}; the end of {log_path}:\n{tail(log_path)}"
        )


def down(fleet: Fleet) -> None:
    """Stops all parts: Prometheus, nginx, all replicas at once, Redis. Keeps data and logs."""
    for names in (["prometheus"], ["nginx"], fleet.apps, fleet.replicas, ["redis"]):
        live = [name for name in names if running(fleet, name)]
        # The second SIGTERM ends a drain at once. SIGCONT, because a paused part can't handle SIGTERM.
        for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for name in live:
                for each in (number, signal.SIGCONT):
                    try:
                        send(fleet, name, each)
                    except (FleetError, ProcessLookupError):
                        break
            live = wait_gone(fleet, live, patience) if live else []
        if live:
            raise FleetError(f"could not stop {', '.join(live)}")
        for name in names:
            (fleet.path / "pid" / name).unlink(missing_ok=True)


def start(fleet: Fleet, name: str) -> None:
    launch(fleet, name)
    wait_ready(fleet, [name])


def stop(fleet: Fleet, name: str, number: signal.Signals = signal.SIGTERM) -> None:
    send(fleet, name, number)
    if wait_gone(fleet, [name], STOP_TIMEOUT):
        raise FleetError(f"{name} still runs {STOP_TIMEOUT:.0f} s after {number.name}; see {fleet.log(name)}")


def status(fleet: Fleet) -> list[dict[str, object]]:
    return [
        {"part": name, "pid": (pid := running(fleet, name)), "ready": pid is not None and ready(fleet, name)}
        for name in fleet.parts
    ]


def load(directory: Path) -> Fleet:
    try:
        return Fleet(**json.loads((directory / "fleet.json").read_text()))
    except FileNotFoundError:
        raise FleetError(f"no fleet was started in {directory}") from None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dir", type=Path, default=ROOT / ".run" / "fleet", help="the fleet's directory (.run/fleet)")
    commands = parser.add_subparsers(dest="command", required=True)

    up_ = commands.add_parser("up", parents=[common], help="start everything")
    up_.add_argument("--replicas", type=int, default=3, metavar="N")
    up_.add_argument("--binary", type=Path, help="default: target/release/authfleet")
    up_.add_argument("--auto-ports", action="store_true", help="use random free ports instead of AUTHFLEET_*_PORT")
    up_.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable of the replicas")
    up_.add_argument("--limits", type=Path, metavar="FILE", help="use FILE instead of deploy/nginx/limits.conf")
    up_.add_argument("--apps", action="store_true", help="start two applications behind nginx that ask the fleet")
    up_.add_argument("--prometheus", action="store_true", help="start a Prometheus that scrapes the replicas")
    up_.add_argument("--json", action="store_true", help="print the addresses as JSON")
    status_ = commands.add_parser("status", parents=[common], help="show what runs")
    status_.add_argument("--json", action="store_true")
    commands.add_parser("down", parents=[common], help="stop everything")
    for name, text in (
        ("start", "start a part that was stopped or killed"),
        ("stop", "SIGTERM, wait until it has ended"),
        ("restart", "stop, start, wait until ready"),
        ("kill", "SIGKILL"),
        ("pause", "SIGSTOP"),
        ("resume", "SIGCONT"),
    ):
        one = commands.add_parser(name, parents=[common], help=text)
        one.add_argument("part", help="redis, nginx, prometheus or replica-N")

    args = parser.parse_args()
    args.dir = args.dir.absolute()
    if args.command == "up":
        if args.replicas < 1:
            parser.error("--replicas must be at least 1")
        bad = [pair for pair in args.env if "=" not in pair]
        if bad:
            parser.error(f"--env takes NAME=VALUE, not {bad[0]}")
    return args


def main() -> int:
    args = parse_args()
    if args.command == "up":
        say = (lambda _: None) if args.json else (lambda text: print(f"  {text}", flush=True))
        fleet = up(
            args.dir,
            replicas=args.replicas,
            binary=args.binary,
            auto_ports=args.auto_ports,
            env=dict(pair.split("=", 1) for pair in args.env),
            limits=args.limits,
            prometheus=args.prometheus,
            apps=args.apps,
            say=say,
        )
        if args.json:
            print(json.dumps(fleet.addresses(), indent=2))
        else:
            scraped = f"Prometheus: {fleet.prometheus_url}, " if fleet.prometheus_url else ""
            print(f"ready: {fleet.url}, {scraped}logs in {fleet.path / 'log'}")
        return 0

    fleet = load(args.dir)
    if args.command == "down":
        down(fleet)
        return 0
    if args.command == "status":
        rows = status(fleet)
        if args.json:
            print(json.dumps({**fleet.addresses(), "parts": rows}, indent=2))
        else:
            for row in rows:
                state = "not running" if row["pid"] is None else "ready" if row["ready"] else "not ready"
                print(f"{row['part']:<12} {row['pid'] or '-':<8} {state}")
        return 0 if all(row["ready"] for row in rows) else 1

    if args.part not in fleet.parts:
        raise FleetError(f"no part {args.part}; the parts are {', '.join(fleet.parts)}")
    if args.command == "start":
        start(fleet, args.part)
    elif args.command == "stop":
        stop(fleet, args.part)
    elif args.command == "restart":
        stop(fleet, args.part)
        start(fleet, args.part)
    elif args.command == "kill":
        stop(fleet, args.part, signal.SIGKILL)
    else:
        send(fleet, args.part, signal.SIGSTOP if args.command == "pause" else signal.SIGCONT)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FleetError as error:
        print(f"fleet: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
