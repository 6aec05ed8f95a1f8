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
# Enough for a busy machine with two cores. When all is well, nothing waits nearly as long.
START_TIMEOUT = 60.0
# More than DRAIN_DELAY and DRAIN_TIMEOUT (30 s by default) together.
STOP_TIMEOUT = 45.0

# Variable, default, meaning. The other replicas take the ports that follow the first one's.
PORTS = {
    "http": ("AUTHFLEET_HTTP_PORT", 8080, "nginx"),
    "redis": ("AUTHFLEET_REDIS_PORT", 6390, "Redis"),
    "replica": ("AUTHFLEET_REPLICA_PORT", 3001, "the first replica"),
    "ops": ("AUTHFLEET_OPS_PORT", 9461, "the first replica's /readyz and /metrics"),
    "prometheus": ("AUTHFLEET_PROMETHEUS_PORT", 9090, "Prometheus"),
}


class FleetError(Exception):
    """An error that the user can act on. It is printed without a traceback."""


@dataclass
class Ports:
    """The ports of the parts."""

    http: int
    redis: int
    # Of replica-1, replica-2, …
    replicas: list[int]
    ops: list[int]
    # None: a fleet without Prometheus.
    prometheus: int | None = None


@dataclass
class Fleet:
    """The addresses and settings of a fleet that `up` started; stored in fleet.json."""

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
        """The names of all parts, in the order of starting."""
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
        """The addresses as JSON, for programs that use the fleet."""
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
    # Replicas inherit variables such as RUST_LOG and OTEL_*, except those that are set here, as NAME or NAME_FILE.
    stems = {key.removesuffix("_FILE") for key in own}
    inherited = {key: value for key, value in os.environ.items() if key.removesuffix("_FILE") not in stems}
    # All replicas together shouldn't hash on more threads than this machine has cores.
    hashing = str(max(1, (os.cpu_count() or 1) // len(fleet.replicas)))
    return {"DRAIN_DELAY": "1s", "HASH_CONCURRENCY": hashing, **inherited, **own}


def nginx_command(fleet: Fleet, *more: str) -> list[str]:
    prefix = fleet.path / "nginx"
    command = [tool("nginx"), "-p", str(prefix), "-c", str(prefix / "conf" / "nginx.conf")]
    # -e needs nginx 1.19.5 (Ubuntu 22.04 has 1.18). Without it, nginx first tries to open the system's error log.
    shown = subprocess.run([command[0], "-v"], capture_output=True, text=True, check=True).stderr
    version = tuple(int(part) for part in re.findall(r"\d+", shown)[:3])
    return command + (["-e", "stderr"] if version >= (1, 19, 5) else []) + list(more)


def prometheus_command(fleet: Fleet) -> list[str]:
    home = fleet.path / "prometheus"
    return [
        tool("prometheus"),
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        # The objectives in docs/slo.md cover 30 days.
        "--storage.tsdb.retention.time=40d",
        f"--web.listen-address={HOST}:{fleet.prometheus_port}",
        # Links in alerts to the runbook begin with this address.
        f"--web.external-url={fleet.prometheus_url}",
        f"--web.console.templates={DEPLOY / 'prometheus' / 'consoles'}",
    ]


def tool(name: str) -> str:
    """The path of a program. Also looks in /usr/sbin, where Debian puts nginx, because only root's PATH includes it."""
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
    # Binding to one address can succeed although something listens on all addresses, so try to connect first.
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
    """The ports from the variables. Raises FleetError, naming every port that is taken or invalid."""
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
    """A random free block of ports, below the range that systems use for outgoing connections."""
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
    """Writes a new secret, unless the directory has one from an earlier start (sessions are kept too)."""
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")


def write_nginx_conf(fleet: Fleet, limits: Path | None) -> None:
    """Links to the shipped files, except for the addresses of this fleet."""
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
    """The local counterpart of deploy/nginx/upstream/*.conf. Each replica is listed twice. After a failure nginx skips
    the first entry for 5 s. It never skips the second entry, but uses it only if all first entries are skipped, so even
    then a replica answers the client."""
    servers = [f"server {HOST}:{port} max_fails=1 fail_timeout=5s;" for port in ports]
    servers += [f"server {HOST}:{port} max_fails=0 backup;" for port in ports]
    return "\n".join(servers) + "\n"


def write_prometheus_conf(fleet: Fleet) -> None:
    """Links to the shipped files, and writes the targets of this fleet."""
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
    """Stops all parts: Prometheus, nginx, all replicas at once, Redis. Keeps data and logs."""
    for names in (["prometheus"], ["nginx"], fleet.replicas, ["redis"]):
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
