#!/usr/bin/env python3
"""Shows that any replica can answer any request: starts a fleet and walks one user through it.

    demo.py             does the walk-through, then runs until Ctrl-C and reports parts that end
    demo.py --check     does the walk-through and exits; exit code 0 only if every step went as expected

fleet.py starts the fleet and describes its directory, ports and options. If Prometheus is installed, the demo starts it
too, with the rules and alerts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import fleet as fleets
from fleet import Fleet, FleetError


@dataclass
class Answer:
    """One HTTP response, as curl received it."""

    status: int
    headers: dict[str, str]
    body: dict[str, object]

    @property
    def replica(self) -> str:
        return self.headers.get("x-served-by", "?")


def curl(*args: str) -> Answer:
    command = ["curl", "--noproxy", "*", "-sS", "-i", "--max-time", "20", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FleetError(f"curl {args[-1]}: {done.stderr.strip()}")
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    status, *lines = head.split("\n")
    pairs = (line.partition(": ") for line in lines)
    try:
        parsed = json.loads(body) if body else {}
    except ValueError:
        parsed = {"not JSON": body[:200]}
    return Answer(int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, parsed)


def walk(fleet: Fleet, jar: Path) -> None:
    """Performs the steps and prints each with the replica that answered. Raises at the first unexpected answer."""
    ways = {name: fleet.replica_url(name).replace(fleets.HOST, "localhost") for name in fleet.replicas}
    ways["nginx"] = fleet.url
    first, second, last = fleet.replicas[0], fleet.replicas[min(1, len(fleet.replicas) - 1)], fleet.replicas[-1]
    email, password = f"demo-{secrets.token_hex(4)}@example.com", secrets.token_urlsafe(18)
    account = ["-H", "Content-Type: application/json", "-d", json.dumps({"email": email, "password": password})]

    def step(what: str, way: str, path: str, want: int, *args: str, **fields: object) -> Answer:
        answer = curl(*args, ways[way] + path)
        note = ", ".join(f"{key}: {value}" for key, value in fields.items())
        print(
            f"  {what:<9} {'via ' + way:<14} {path:<15} {answer.status}  answered by {answer.replica:<10}  {note}",
            flush=True,
        )
        if answer.status != want:
            raise FleetError(f"{what} at {way} gave {answer.status} instead of {want}: {json.dumps(answer.body)}")
        if answer.replica != way and (way != "nginx" or answer.replica not in fleet.replicas):
            raise FleetError(f"{what} at {way} was answered by {answer.replica}")
        got = {**answer.body, **answer.body.get("session", {})}
        wrong = {key: got.get(key) for key, value in fields.items() if got.get(key) != value}
        if wrong:
            raise FleetError(f"{what} at {way}: expected {fields}, got {wrong}")
        return answer

    send_cookie = ("-b", str(jar))
    step("register", first, "/auth/register", 201, *account, email=email)
    # Only this step writes the jar, so that the old cookie is still sent after the logout and must be refused.
    step("login", first, "/auth/login", 200, "-c", str(jar), *account, message="Login successful")
    for way in dict.fromkeys([second, last]):
        step("profile", way, "/profile", 200, *send_cookie, created_by=first)
    for _ in fleet.replicas:
        step("profile", "nginx", "/profile", 200, *send_cookie, created_by=first)
    step("logout", last, "/auth/logout", 200, "-X", "POST", *send_cookie, message="Logged out")
    for way in ways:
        step("profile", way, "/profile", 401, *send_cookie, code="session_invalid")


def visit(fleet: Fleet, jar: Path) -> None:
    """One sign-in for both applications behind nginx, and one sign-out. Raises at the first unexpected answer."""
    email, password = f"demo-{secrets.token_hex(4)}@example.com", secrets.token_urlsafe(18)
    account = ["-H", "Content-Type: application/json", "-d", json.dumps({"email": email, "password": password})]

    def step(what: str, url: str, want: int, *args: str) -> Answer:
        # curl takes *.localhost for this machine itself only since 7.77.
        host = url.split("/")[2]
        answer = curl("--connect-to", f"{host}:{fleets.HOST}:{fleet.http_port}", *args, url)
        print(f"  {what:<9} {url.partition('?')[0]:<48} {answer.status}", flush=True)
        if answer.status != want:
            raise FleetError(f"{what} at {url} gave {answer.status} instead of {want}: {json.dumps(answer.body)}")
        return answer

    cookies = ("-b", str(jar), "-c", str(jar))
    step("register", f"{fleet.url}/auth/register", 201, *account)
    step("login", f"{fleet.url}/auth/login", 200, *cookies, *account)
    for name in fleet.apps:
        url = f"{fleet.app_url(name)}/"
        # A browser follows these by itself.
        for _ in range(4):
            url = step(
                "redirect", url, 302 if "/sign-in" not in url else 303, *cookies, "-H", "Accept: text/html"
            ).headers["location"]
        seen = step("open", url, 200, *cookies).body
        told = dict(seen.get("headers", []))
        if seen.get("application") != name or told.get("Remote-Email") != email:
            raise FleetError(f"{name} was told: {json.dumps(seen)}")
    step("logout", f"{fleet.url}/auth/logout", 200, "-X", "POST", "-b", str(jar))
    for name in fleet.apps:
        step("open", f"{fleet.app_url(name)}/", 401, "-b", str(jar))


def prometheus_or_why_not(auto_ports: bool) -> tuple[bool, str]:
    """Whether to start Prometheus, and if not, the reason. The demo works without it, so it is no error if Prometheus
    is missing or another one (the system's, for example) has its port."""
    try:
        fleets.tool("prometheus")
    except FleetError as error:
        return False, f"not started: {error}"
    variable, default, _ = fleets.PORTS["prometheus"]
    if not auto_ports and variable not in os.environ and not fleets.is_free(default):
        return False, f"not started: port {default} is taken; set {variable} to another one"
    return True, ""


def hints(fleet: Fleet, no_prometheus: str) -> str:
    script = Path(fleets.__file__)
    try:
        shown = script.relative_to(Path.cwd())
    except ValueError:
        shown = script
    where = [
        ("fleet", fleet.url),
        ("API, to try out", f"{fleet.url}/docs"),
        ("a replica", f"{fleet.replica_url('replica-1')} (the others: the next ports)"),
        ("its state and metrics", f"{fleet.ops_url('replica-1')}/readyz and /metrics"),
    ]
    if fleet.prometheus_url:
        where += [
            (
                "Prometheus, graphs",
                f"{fleet.prometheus_url}/graph?g0.expr=job_replica:authfleet_http_requests:rate5m&g0.tab=0",
            ),
            ("Prometheus, alerts", f"{fleet.prometheus_url}/alerts"),
            ("runbook", f"{fleet.prometheus_url}/consoles/runbook.html"),
        ]
    else:
        where.append(("Prometheus", no_prometheus))
    shown_where = "\n".join(f"  {what:<22} {url}" for what, url in where)
    return f"""
The fleet is up. Where to look:
{shown_where}
  {"logs":<22} {fleet.path}/log
Try, in another terminal:
  curl -i {fleet.url}/profile
  redis-cli -p {fleet.redis_port} keys 'session:*'
  {shown} kill replica-2 --dir {fleet.dir}      (and: start, stop, restart, pause, resume, status)
  tail -f {fleet.path}/log/access.log

Click through it, in a browser:
  {fleet.url}/register
      Make an account and sign in. Reload the account page: another replica answers.
  {" and ".join(f"{fleet.app_url(name)}/" for name in fleet.apps)}
      Two applications: one sign-in opens both. Sign out at {fleet.url}/sign-out: neither lets you in any more.
Ctrl-C stops everything that was started."""


def watch(fleet: Fleet) -> None:
    """Runs until Ctrl-C, and reports when a part ends or runs again."""
    down: set[str] = set()
    while True:
        time.sleep(0.5)
        fleets.reap()
        for name in fleet.parts:
            alive = fleets.running(fleet, name) is not None
            if not alive and name not in down:
                print(f"  {name} has ended; its log: {fleet.log(name)}", flush=True)
                down.add(name)
            elif alive and name in down:
                print(f"  {name} runs again", flush=True)
                down.remove(name)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    root = fleets.ROOT
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="do the walk-through and exit with its result")
    parser.add_argument("--dir", type=Path, help="default: .run/demo, with --check .run/demo-check (emptied first)")
    parser.add_argument("--binary", type=Path, help="default: target/release/authfleet")
    parser.add_argument("--auto-ports", action="store_true", help="use random free ports instead of AUTHFLEET_*_PORT")
    args = parser.parse_args()
    directory = (args.dir or root / ".run" / ("demo-check" if args.check else "demo")).absolute()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)

    if not shutil.which("curl"):
        raise FleetError("curl is not installed; tools/local/install.sh installs it")
    if args.check and args.dir is None:
        with contextlib.suppress(FleetError):
            fleets.down(fleets.load(directory))
        shutil.rmtree(directory, ignore_errors=True)

    print(f"Starting the fleet in {directory}", flush=True)
    prometheus, no_prometheus = prometheus_or_why_not(args.auto_ports)
    fleet = fleets.up(
        directory,
        binary=args.binary,
        auto_ports=args.auto_ports,
        prometheus=prometheus,
        apps=True,
        say=lambda text: print(f"  {text}", flush=True),
    )
    try:
        print("\nOne user, any replica", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            walk(fleet, Path(scratch) / "cookies")
        print("\nOne sign-in for two applications behind nginx", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            visit(fleet, Path(scratch) / "cookies")
        print(
            "\nAll replicas accepted a session from one of them. After another one ended it, all refused it.",
            flush=True,
        )
        if args.check:
            return 0
        print(hints(fleet, no_prometheus), flush=True)
        try:
            watch(fleet)
        except KeyboardInterrupt:
            return 0
    except FleetError:
        for name in [*fleet.parts, "access"]:
            print(f"the end of {fleet.log(name)}:\n{fleets.tail(fleet.log(name))}", file=sys.stderr)
        raise
    finally:
        # A second Ctrl-C, or the end of the terminal, must not interrupt this and leave parts running.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            print("\nStopping all parts", flush=True)
        fleets.down(fleet)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FleetError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
