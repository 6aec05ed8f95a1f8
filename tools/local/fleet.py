#!/usr/bin/env python3
"""A whole fleet on one machine without Docker: Redis, replicas that share one SQLite file, nginx; Prometheus if wanted.

    fleet.py up                       start everything, return when all parts answer
    fleet.py up --prometheus          the same, and a Prometheus that scrapes it
    fleet.py status                   what runs where; exit code 1 if a part is missing
    fleet.py restart replica-2        SIGTERM, wait for the drain, start again, wait until ready
    fleet.py kill replica-1           SIGKILL; also: start, stop (SIGTERM), pause (SIGSTOP), resume (SIGCONT)
    fleet.py down                     end all parts

Everything lives in one directory (--dir, by default .run/fleet): data, secret, process ids, a log per part, and
fleet.json, which names the addresses and never changes while the fleet is up. Parts run detached, so `up` returns and
tests can drive a fleet of their own: `fleet.py up --dir D --auto-ports --json`.

Needs Python 3.9, redis-server, nginx and a built authfleet; Prometheus only if asked for it. Exit codes: 0 done,
1 failed, 2 wrong use.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEPLOY = ROOT / "deploy"
HOST = "127.0.0.1"
# Generous: a cold, busy two-core machine. Nothing waits this long when things work.
START_TIMEOUT = 60.0
# DRAIN_TIMEOUT's default of 30 s, with the delay before it.
STOP_TIMEOUT = 45.0

# Variable, default, meaning. Replicas take consecutive ports from the first one on.
PORTS = {
    "http": ("AUTHFLEET_HTTP_PORT", 8080, "nginx"),
    "redis": ("AUTHFLEET_REDIS_PORT", 6390, "Redis"),
    "replica": ("AUTHFLEET_REPLICA_PORT", 3001, "the first replica"),
    "ops": ("AUTHFLEET_OPS_PORT", 9461, "the first replica's /readyz and /metrics"),
    "prometheus": ("AUTHFLEET_PROMETHEUS_PORT", 9090, "Prometheus"),
}


class FleetError(Exception):
    """Something the person at the terminal can act on; shown without a traceback."""


@dataclass
class Ports:
    """Where the parts listen."""

    http: int
    redis: int
    # Of replica-1, replica-2, …
    replicas: list[int]
    ops: list[int]
    # None: a fleet without Prometheus.
    prometheus: int | None = None


@dataclass
class Fleet:
    """What `up` decided; kept in fleet.json."""

    dir: str
    binary: str
    http_port: int
    redis_port: int
    # Of replica-1, replica-2, …
    replica_ports: list[int]
    ops_ports: list[int]
    # Extra variables of the replicas (--env).
    env: dict[str, str] = field(default_factory=dict)
    # None: a fleet without Prometheus.
    prometheus_port: int | None = None

    @property
    def path(self) -> Path:
        return Path(self.dir)

    @property
    def replicas(self) -> list[str]:
        return [f"replica-{i + 1}" for i in range(len(self.replica_ports))]

    @property
    def parts(self) -> list[str]:
        """In the order of starting."""
        return ["redis", *self.replicas, "nginx", *(["prometheus"] if self.prometheus_port else [])]

    @property
    def url(self) -> str:
        return f"http://localhost:{self.http_port}"

    @property
    def prometheus_url(self) -> str | None:
        return f"http://localhost:{self.prometheus_port}" if self.prometheus_port else None

    def replica_url(self, name: str) -> str:
        return f"http://{HOST}:{self.replica_ports[self.replicas.index(name)]}"

    def ops_url(self, name: str) -> str:
        return f"http://{HOST}:{self.ops_ports[self.replicas.index(name)]}"

    def log(self, name: str) -> Path:
        return self.path / "log" / f"{name}.log"

    def addresses(self) -> dict[str, object]:
        """For programs that drive the fleet."""
        return {
            "dir": self.dir,
            "nginx": f"http://{HOST}:{self.http_port}",
            "redis": f"redis://{HOST}:{self.redis_port}",
            "replicas": {n: {"http": self.replica_url(n), "ops": self.ops_url(n)} for n in self.replicas},
            "logs": str(self.path / "log"),
            **({"prometheus": f"http://{HOST}:{self.prometheus_port}"} if self.prometheus_port else {}),
        }


# --- Processes ----------------------------------------------------------------------------------------------------


def process_start(pid: int) -> str | None:
    """When a live process began, in the system's own words; None if there is none (a zombie is none)."""
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
    """The part's process id if it runs. The start time is compared, so a recycled id is never taken for it."""
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
    """Collects ended children, if this process started them."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def launch(fleet: Fleet, name: str) -> None:
    """Starts one part, detached, its output in its log, its id in its pid file."""
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
            # Ctrl-C belongs to whoever watches, who ends the parts in order. A group of processes, not a session: Linux
            # shares the CPU out by session first (sched_autogroup), which would undo the low priority of hashing.
            preexec_fn=os.setpgrp,
        )
    (fleet.path / "pid" / name).write_text(f"{child.pid} {process_start(child.pid)}\n")
    # Ended children are collected by wait_gone; Popen must not wait for them too.
    child.returncode = 0


def command_of(fleet: Fleet, name: str) -> tuple[list[str], dict[str, str]]:
    if name == "redis":
        redis_dir = fleet.path / "redis"
        redis_dir.mkdir(exist_ok=True)
        command = [tool("redis-server"), str(DEPLOY / "redis" / "redis.conf")]
        return [*command, "--bind", HOST, "--port", str(fleet.redis_port), "--dir", str(redis_dir)], dict(os.environ)
    if name == "nginx":
        return nginx_command(fleet, "-g", "daemon off;"), dict(os.environ)
    if name == "prometheus":
        return prometheus_command(fleet), dict(os.environ)
    return [fleet.binary, "serve"], replica_env(fleet, name)


def replica_env(fleet: Fleet, name: str) -> dict[str, str]:
    number = fleet.replicas.index(name)
    own = {
        "REPLICA_ID": name,
        "LISTEN_ADDR": f"{HOST}:{fleet.replica_ports[number]}",
        "OPS_ADDR": f"{HOST}:{fleet.ops_ports[number]}",
        "REDIS_URL": f"redis://{HOST}:{fleet.redis_port}",
        "DATABASE_URL": f"sqlite://{fleet.path}/data/authfleet.db",
        "SESSION_SECRET_FILE": str(fleet.path / "secret"),
        "COOKIE_SECURE": "false",  # Plain http on loopback.
        "TRUSTED_PROXIES": f"{HOST}/32",
        **fleet.env,
    }
    # The caller's RUST_LOG or OTEL_* reach the replicas, but not what is set here under either of its names.
    stems = {key.removesuffix("_FILE") for key in own}
    inherited = {key: value for key, value in os.environ.items() if key.removesuffix("_FILE") not in stems}
    # The replicas share one machine: together they shouldn't hash on more threads than it has cores.
    hashing = str(max(1, (os.cpu_count() or 1) // len(fleet.replicas)))
    return {"DRAIN_DELAY": "1s", "HASH_CONCURRENCY": hashing, **inherited, **own}


def nginx_command(fleet: Fleet, *more: str) -> list[str]:
    prefix = fleet.path / "nginx"
    command = [tool("nginx"), "-p", str(prefix), "-c", str(prefix / "conf" / "nginx.conf")]
    # Ubuntu 22.04 has nginx 1.18, which doesn't know -e. Without it, newer ones first try a log file of the system's.
    shown = subprocess.run([command[0], "-v"], capture_output=True, text=True, check=True).stderr
    version = tuple(int(part) for part in re.findall(r"\d+", shown)[:3])
    return command + (["-e", "stderr"] if version >= (1, 19, 5) else []) + list(more)


def prometheus_command(fleet: Fleet) -> list[str]:
    home = fleet.path / "prometheus"
    return [
        tool("prometheus"),
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        # docs/slo.md: objectives are over 30 days.
        "--storage.tsdb.retention.time=40d",
        f"--web.listen-address={HOST}:{fleet.prometheus_port}",
        # The runbook that alerts link to.
        f"--web.external-url={fleet.prometheus_url}",
        f"--web.console.templates={DEPLOY / 'prometheus' / 'consoles'}",
    ]


def tool(name: str) -> str:
    """A program's path; Debian keeps nginx where only root's PATH looks."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin:/usr/local/bin")
    if not found:
        option = " --bundle" if name == "prometheus" else ""
        raise FleetError(f"{name} is not installed; tools/local/install.sh{option} installs it")
    return found


# --- Waiting ------------------------------------------------------------------------------------------------------


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


# --- Ports --------------------------------------------------------------------------------------------------------


def is_free(port: int) -> bool:
    # A listener on all addresses doesn't always forbid a bind to one of them, so knock first.
    with socket.socket() as knock:
        knock.settimeout(1)
        if knock.connect_ex((HOST, port)) == 0:
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def chosen_ports(replicas: int, prometheus: bool) -> Ports:
    """Ports from the variables; a taken or impossible one is an error that names it before anything starts."""
    count = {"http": 1, "redis": 1, "replica": replicas, "ops": replicas, "prometheus": int(prometheus)}
    ports: dict[str, list[int]] = {}
    problems: list[str] = []
    for key, (variable, default, _) in PORTS.items():
        text = os.environ.get(variable) or str(default)
        first = int(text) if text.isdigit() else 0
        if count[key] and not 0 < first <= 65536 - count[key]:
            problems.append(f"{variable}={text} is not a usable port")
        ports[key] = [first + i for i in range(count[key])]
    if problems:
        raise FleetError("; ".join(problems))

    seen: dict[int, str] = {}
    for key, port in [(key, port) for key, several in ports.items() for port in several]:
        variable, _, meaning = PORTS[key]
        if port in seen:
            problems.append(f"port {port} would be used twice: set {seen[port]} or {variable} to another one")
        elif not is_free(port):
            problems.append(
                f"port {port} is taken: end what listens there, or set {variable} (for {meaning}) to another one"
            )
        seen[port] = variable
    if problems:
        raise FleetError("nothing was started:\n" + "\n".join(f"    {problem}" for problem in problems))
    return Ports(*ports["http"], *ports["redis"], ports["replica"], ports["ops"], *ports["prometheus"])


def private_ports(replicas: int, prometheus: bool) -> Ports:
    """A free block at a random place below the range that systems take outgoing ports from."""
    count = 2 + 2 * replicas + int(prometheus)
    for _ in range(200):
        base = random.randrange(15000, 32000 - count)
        ports = list(range(base, base + count))
        if all(is_free(port) for port in ports):
            http_port, redis_port, *rest = ports
            return Ports(http_port, redis_port, rest[:replicas], rest[replicas : 2 * replicas], *rest[2 * replicas :])
    raise FleetError("no block of free ports between 15000 and 32000")


# --- Commands -----------------------------------------------------------------------------------------------------


def reach_without_proxy() -> None:
    """From now on no client of this process or of its children asks a proxy for what runs on this machine."""
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
    say: Callable[[str], None] = lambda _: None,
) -> Fleet:
    """Starts a fleet in `directory` and returns when every part answers; on failure ends what it started."""
    reach_without_proxy()
    directory = directory.absolute()
    if (directory / "fleet.json").exists():
        live = [name for name in load(directory).parts if running(load(directory), name)]
        if live:
            end = f"{Path(__file__).resolve()} down --dir {directory}"
            raise FleetError(f"a fleet runs in {directory} already ({', '.join(live)}); end it with: {end}")
    for name in ("redis-server", "nginx", *(["prometheus"] if prometheus else [])):
        tool(name)
    binary = binary or ROOT / "target" / "release" / "authfleet"
    if not os.access(binary, os.X_OK):
        raise FleetError(f"{binary} does not exist; build it with: cargo build --release --locked")

    ports = (private_ports if auto_ports else chosen_ports)(replicas, prometheus)
    fleet = Fleet(
        dir=str(directory),
        binary=str(Path(binary).absolute()),
        http_port=ports.http,
        redis_port=ports.redis,
        replica_ports=ports.replicas,
        ops_ports=ports.ops,
        env=env or {},
        prometheus_port=ports.prometheus,
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


def write_secret(path: Path) -> None:
    """Kept from one start to the next in the same directory, as the sessions are."""
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")


def write_nginx_conf(fleet: Fleet, limits: Path | None) -> None:
    """The shipped files by symbolic link; only the addresses are this fleet's own."""
    conf = fleet.path / "nginx" / "conf"
    for old in conf.iterdir():
        old.unlink()
    for shipped in (DEPLOY / "nginx").glob("*.conf"):
        (conf / shipped.name).symlink_to(shipped)
    if limits:
        (conf / "limits.conf").unlink()
        (conf / "limits.conf").symlink_to(limits.absolute())
    (conf / "listen.conf").unlink()
    (conf / "listen.conf").write_text(f"listen {HOST}:{fleet.http_port};\n")
    (conf / "upstream.conf").write_text(upstream_conf(fleet.replica_ports))


def upstream_conf(ports: list[int]) -> str:
    """The local counterpart of deploy/nginx/upstream/*.conf: first each replica, left out for 5 s after a failure; then
    each again as a last resort that is never left out. When all have failed lately, the request is still passed on, and
    the client gets a replica's own answer."""
    servers = [f"server {HOST}:{port} max_fails=1 fail_timeout=5s;" for port in ports]
    servers += [f"server {HOST}:{port} max_fails=0 backup;" for port in ports]
    return "\n".join(servers) + "\n"


def write_prometheus_conf(fleet: Fleet) -> None:
    """The shipped files by symbolic link; only the targets are this fleet's own."""
    home = fleet.path / "prometheus"
    home.mkdir(exist_ok=True)
    for name, shipped in (("prometheus.yml", HERE / "prometheus.yml"), ("rules", DEPLOY / "prometheus" / "rules")):
        (home / name).unlink(missing_ok=True)
        (home / name).symlink_to(shipped)
    targets = [
        {"targets": [f"{HOST}:{port}"], "labels": {"replica": name}}
        for name, port in zip(fleet.replicas, fleet.ops_ports)
    ]
    (home / "targets.json").write_text(json.dumps(targets, indent=2) + "\n")


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
    """Ends all parts by their ids: who asks before who answers, the replicas together. Data and logs stay."""
    for names in (["prometheus"], ["nginx"], fleet.replicas, ["redis"]):
        live = [name for name in names if running(fleet, name)]
        # A paused part sees its signal only once it goes on. The second one ends a drain at once.
        for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for name in live:
                for each in (number, signal.SIGCONT):
                    try:
                        send(fleet, name, each)
                    except (FleetError, ProcessLookupError):
                        break
            live = wait_gone(fleet, live, patience) if live else []
        if live:
            raise FleetError(f"could not be ended: {', '.join(live)}")
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
    common.add_argument("--dir", type=Path, default=ROOT / ".run" / "fleet", help="where the fleet keeps everything")
    commands = parser.add_subparsers(dest="command", required=True)

    up_ = commands.add_parser("up", parents=[common], help="start everything")
    up_.add_argument("--replicas", type=int, default=3, metavar="N")
    up_.add_argument("--binary", type=Path, help="default: target/release/authfleet")
    up_.add_argument("--auto-ports", action="store_true", help="free ports instead of the AUTHFLEET_*_PORT ones")
    up_.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the replicas")
    up_.add_argument("--limits", type=Path, metavar="FILE", help="instead of deploy/nginx/limits.conf")
    up_.add_argument("--prometheus", action="store_true", help="start a Prometheus that scrapes the replicas")
    up_.add_argument("--json", action="store_true", help="print the addresses as JSON")
    status_ = commands.add_parser("status", parents=[common], help="what runs")
    status_.add_argument("--json", action="store_true")
    commands.add_parser("down", parents=[common], help="end everything")
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
            parser.error(f"--env wants NAME=VALUE, not {bad[0]}")
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
        raise FleetError(f"no part {args.part}; there are {', '.join(fleet.parts)}")
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
