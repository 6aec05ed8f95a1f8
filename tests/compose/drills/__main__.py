"""The drills that tests/compose/run performs. They start the real docker-compose.yml, send a steady stream of requests
through nginx, and break one part after another. At the end they print the counts, and `N passed, N failed`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time

import bundle
import faults
import machines
import observability
import operations
from clients import Client, User
from engine import PROJECT, SUBNET, Failed, compose, down, expect, left_behind, say, up
from table import ROWS, table

# Sessions that must survive every drill.
SESSIONS = 8
DISK_FULL = "tests/compose/disk-full.yml"
OBSERVABILITY = "tests/compose/observability.yml"
DRILLS = [
    bundle.as_documented,
    bundle.image,
    bundle.hardened,
    bundle.missing_secret,
    bundle.sharing,
    faults.replica_killed,
    faults.replica_stopped,
    faults.redis_paused,
    faults.redis_killed,
    faults.redis_restarted,
    faults.replica_cut_off,
    operations.rolling_update,
    operations.fourth_replica,
    operations.backup_restore,
    operations.restore_refused,
    operations.moved,
]
# These need a second fleet with a small users' volume. It sends traces; until the second drill, nobody receives them.
SECOND_DRILLS = [faults.disk_full, observability.observability]
TRACES = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4318"}
FLEETS = [
    ("", ["docker-compose.yml"], {}, DRILLS),
    (" (small disk for users, traces)", ["docker-compose.yml", DISK_FULL, OBSERVABILITY], TRACES, SECOND_DRILLS),
    # The first of these drills moves the fleet to three machines.
    (" (to be moved to three machines)", ["docker-compose.yml"], {}, machines.DRILLS),
]
# Settings of one fleet that another one must not have.
FOREIGN = {*TRACES, "AUTHFLEET_POSTGRES_1", "AUTHFLEET_POSTGRES_2"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def perform(drills: list, results: list[bool]) -> None:
    """Runs the drills on the fleet that is up, with one set of users."""
    users: list[User] = []
    for drill in drills:
        begin = time.monotonic()
        try:
            if not users:
                users = [User.register("drill") for _ in range(SESSIONS)]
            for user in users:
                if not user.cookie or Client().ask("GET", "/profile", cookie=user.cookie).status != 200:
                    answer = user.sign_in()
                    expect(answer.status == 200, f"sign-in before the drill: {answer.says()}")
            drill(users)
        except (Failed, subprocess.TimeoutExpired) as error:
            print(f"FAILED {drill.__name__}: {error}", flush=True)
            results.append(False)
            with contextlib.suppress(Failed, subprocess.TimeoutExpired):
                said = compose("logs", "--since", "60s").splitlines()
                grave = [
                    line for line in said if re.search(r'"level":"(WARN|ERROR)"|"status":5|\[(error|crit)\]', line)
                ]
                say("\n".join(["warnings and errors in the logs:", *grave[-40:]]))
                # Restore the fleet for the next drill.
                compose("unpause", "redis", check=False)
                up()
        else:
            print(f"ok {drill.__name__} ({time.monotonic() - begin:.0f} s): {drill.__doc__}", flush=True)
            results.append(True)


def main() -> int:
    known = {drill.__name__.replace("_", "-"): drill for fleet in FLEETS for drill in fleet[3]}
    unknown = [name for name in sys.argv[1:] if name not in known]
    if unknown:
        print(f"unknown drills: {' '.join(unknown)}; known: {' '.join(known)}", file=sys.stderr)
        return 2
    wanted = [known[name] for name in sys.argv[1:]] or list(known.values())

    lock = open(__file__)  # noqa: SIM115  held until the end
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("tests/compose: another run is in progress", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(down)
    # Remove what a killed run left behind.
    down()

    results: list[bool] = []
    begin = time.monotonic()
    try:
        print("Building the image", flush=True)
        compose("build", "migrate", timeout=3600)
        say(f"built in {time.monotonic() - begin:.0f} s")
        for which, files, settings, drills in FLEETS:
            chosen = [drill for drill in drills if drill in wanted]
            if not chosen:
                continue
            if machines.grown in drills and chosen[0] is not machines.grown:
                chosen.insert(0, machines.grown)
            for name in FOREIGN:
                os.environ.pop(name, None)
            os.environ |= {"COMPOSE_FILE": ":".join(files), **settings}
            begin = time.monotonic()
            up()
            print(f"docker compose up --wait{which}: ready in {time.monotonic() - begin:.1f} s", flush=True)
            perform(chosen, results)
            down()
            rest = left_behind()
            expect(not rest, f"docker compose down -v left {rest}")
    except (Failed, subprocess.TimeoutExpired) as error:
        print(f"FAILED: {error}", flush=True)
        with contextlib.suppress(Failed, subprocess.TimeoutExpired):
            say("logs:\n" + compose("logs", "--tail", "15"))
        results.append(False)
    for rows in (ROWS, machines.ROWS):
        if len(rows) > 1:
            print(f"\n{table(rows)}\n")
    print(f"{results.count(True)} passed, {results.count(False)} failed", flush=True)
    return 0 if all(results) else 1


if __name__ == "__main__":
    published = ("AUTHFLEET_HTTP_PORT", "AUTHFLEET_GRAFANA_PORT", "AUTHFLEET_PROMETHEUS_PORT", "AUTHFLEET_JAEGER_PORT")
    published += ("AUTHFLEET_HTTP_PORT_2",)
    os.environ |= {name: str(free_port()) for name in published}
    os.environ |= {"COMPOSE_PROJECT_NAME": PROJECT, "COMPOSE_FILE": "docker-compose.yml", "AUTHFLEET_SUBNET": SUBNET}
    # The drills start containers dozens of times, and each start waits for health checks.
    os.environ.setdefault("AUTHFLEET_HEALTH_INTERVAL", "3s")
    os.environ["AUTHFLEET_STORE"] = machines.STORE
    try:
        code = main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\ntests/compose: interrupted, taking everything down", file=sys.stderr)
        code = 130
    sys.exit(code)
