"""The programs that `loadtest/bench` starts: authfleet, nginx, Redis in each form, PostgreSQL, a trace collector."""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .targets import ROOT, connects, end, fleets, free_port

TICK = os.sysconf("SC_CLK_TCK")
# Seconds that a process may take until it listens, and a server until it is ready.
PATIENCE = 30
# The number of slots in a Redis Cluster.
SLOTS = 16_384
# A browser's user agent. It is the longest value of a session, and decides how Redis encodes the hash.
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36"


class BenchError(Exception):
    """A check that did not hold."""

    code = 1


class Missing(BenchError):
    """A part that has to be built or installed first."""

    code = 2


def cpu(pid: int) -> float:
    """Seconds of CPU that the process has used, in user and system mode, in all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def children(pid: int) -> list[int]:
    """The processes that the main thread of this one has started and that run."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(pid: int, field: str = "VmRSS") -> float:
    """A memory figure of the process in MiB; by default its resident memory."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0


@contextlib.contextmanager
def process(
    command: list[str], directory: Path, port: int, env: dict[str, str] | None = None, patience: float = PATIENCE
) -> Iterator[subprocess.Popen[bytes]]:
    name = Path(command[0]).name
    with open(directory / f"{name}-{port}.log", "ab") as log:
        child = subprocess.Popen(
            command, cwd=directory, stdout=log, stderr=log, env={**os.environ, **(env or {})}, start_new_session=True
        )
    try:
        deadline = time.monotonic() + patience
        while not connects("127.0.0.1", port):
            if child.poll() is not None or time.monotonic() > deadline:
                raise BenchError(
                    f"{name} does not listen on port {port}: {(directory / f'{name}-{port}.log').read_text()[-600:]}"
                )
            time.sleep(0.005)
        yield child
    finally:
        end(child)


class Redis:
    """A Redis with the shipped configuration; `options` change it."""

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid = port, pid
        self.url = f"redis://127.0.0.1:{port}"

    def cpu(self) -> float:
        return cpu(self.pid)

    @staticmethod
    @contextlib.contextmanager
    def started(directory: Path, *options: str, port: int | None = None) -> Iterator[Redis]:
        port = port or free_port()
        command = [
            fleets.tool("redis-server"),
            str(ROOT / "deploy" / "redis" / "redis.conf"),
            "--bind",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with process([*command, "--dir", str(directory), *options], directory, port) as child:
            yield Redis(port, child.pid)

    @staticmethod
    @contextlib.contextmanager
    def started_with_tls(directory: Path, *options: str) -> Iterator[Redis]:
        """Also listens with TLS, at the address in `url`. The private CA is in `directory`/ca.pem."""
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        issuer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
        leaf = [*issuer, "-addext", "basicConstraints=critical,CA:FALSE"]
        for name, more in (("ca", []), ("server", leaf)):
            made = ["openssl", "req", "-x509", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", *more]
            subprocess.run([*made, "-out", f"{name}.pem"], cwd=directory, check=True, capture_output=True)
        port = free_port()
        tls = ["--tls-cert-file", "server.pem", "--tls-key-file", "server.key", "--tls-auth-clients", "no"]
        tls = [str(directory / word) if word.startswith("server.") else word for word in tls]
        with Redis.started(directory, *options, "--tls-port", str(port), *tls) as redis:
            redis.url = f"rediss://127.0.0.1:{port}"
            yield redis

    def cli(self, *args: str) -> str:
        return subprocess.run(
            ["redis-cli", "-p", str(self.port), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    def info(self, section: str) -> dict[str, str]:
        return dict(line.split(":", 1) for line in self.cli("INFO", section).splitlines() if ":" in line)

    def calls(self) -> dict[str, int]:
        stats = self.info("commandstats")
        return {k.removeprefix("cmdstat_"): int(re.search(r"calls=(\d+)", v).group(1)) for k, v in stats.items()}

    def pipe(self, chunks: Iterator[bytes]) -> None:
        """Sends commands as fast as Redis accepts them. Raises BenchError if a reply is an error."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            failed: list[bytes] = []
            reader = threading.Thread(target=self._drain, args=(connection, failed))
            reader.start()
            for chunk in chunks:
                connection.sendall(chunk)
            connection.sendall(encode("ECHO", "the end"))
            reader.join()
            if failed:
                raise BenchError(f"Redis refused: {failed[0][:200]!r}")

    @staticmethod
    def _drain(connection: socket.socket, failed: list[bytes]) -> None:
        tail = b""
        while True:
            got = connection.recv(1 << 20)
            tail = tail[-64:] + got
            if b"\r\n-" in tail or tail.startswith(b"-"):
                failed.append(tail)
            if not got or b"the end" in tail:
                return


class RedisCluster:
    """Three primaries without replicas, each with a third of the slots."""

    def __init__(self, nodes: list[Redis]) -> None:
        self.nodes = nodes
        self.url = "redis-cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)

    def cpu(self) -> float:
        return sum(node.cpu() for node in self.nodes)

    def of(self, tag: str) -> Redis:
        """The node with the keys that have this hash tag. The CRC is the one in the Redis Cluster specification."""
        return self.nodes[binascii.crc_hqx(tag.encode(), 0) % SLOTS * len(self.nodes) // SLOTS]

    @staticmethod
    @contextlib.contextmanager
    def started(directory: Path, *options: str) -> Iterator[RedisCluster]:
        cluster = ["--cluster-enabled", "yes", "--cluster-config-file"]
        with contextlib.ExitStack() as stack:
            nodes = []
            for number in range(3):
                # The cluster bus listens on this port plus 10,000.
                port = free_port()
                while port > 55_535 or not is_free(port + 10_000):
                    port = free_port()
                own = [*options, *cluster, f"node-{number}.conf"]
                nodes.append(stack.enter_context(Redis.started(directory, *own, port=port)))
            for number, node in enumerate(nodes):
                first, last = (-(-SLOTS * n // len(nodes)) for n in (number, number + 1))
                node.cli("CLUSTER", "ADDSLOTSRANGE", str(first), str(last - 1))
                node.cli("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
                nodes[0].cli("CLUSTER", "MEET", "127.0.0.1", str(node.port))
            deadline = time.monotonic() + 30
            while not all("cluster_state:ok" in node.cli("CLUSTER", "INFO") for node in nodes):
                if time.monotonic() > deadline:
                    raise BenchError("the Redis cluster doesn't come up")
                time.sleep(0.05)
            yield RedisCluster(nodes)


class Postgres:
    """A PostgreSQL server that runs as an unprivileged user and listens on a socket in its directory."""

    def __init__(self, socket_directory: Path, pid: int) -> None:
        self.url = f"postgres://bench@localhost/postgres?host={socket_directory}"
        self.pid = pid

    def cpu(self) -> float:
        """CPU seconds of all processes of the server, including those that have ended."""
        own = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, own[11:15])) / TICK + sum(map(cpu, children(self.pid)))

    @staticmethod
    @contextlib.contextmanager
    def started(directory: Path) -> Iterator[Postgres]:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
        if not binaries and not shutil.which("postgres"):
            raise Missing("PostgreSQL is not installed; tools/local/install.sh --dev installs it")
        programs = binaries[-1].parent if binaries else Path(shutil.which("postgres")).parent
        # PostgreSQL refuses to run as root.
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
        home = directory / "postgres"
        home.mkdir()
        if user:
            directory.chmod(0o755)
            shutil.chown(home, "nobody", "nogroup")
        as_shipped = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--username=bench", "-D", str(home / "data")]
        made = subprocess.run([*user, str(programs / "initdb"), *as_shipped], cwd="/", capture_output=True, text=True)
        if made.returncode:
            raise BenchError(f"initdb: {made.stderr}")
        command = [*user, str(programs / "postgres"), "-D", str(home / "data"), "-k", str(home), "-h", ""]
        with open(directory / "postgres.log", "ab") as log:
            child = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 30
            ready = [str(programs / "pg_isready"), "-q", "-h", str(home)]
            while subprocess.run(ready).returncode:
                if child.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"PostgreSQL: {(directory / 'postgres.log').read_text()[-600:]}")
                time.sleep(0.02)
            yield Postgres(home, child.pid)
        finally:
            # SIGTERM would wait until all connections end.
            child.send_signal(signal.SIGINT)
            child.wait(30)


@dataclass
class Nginx:
    """A running nginx."""

    pid: int
    port: int

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu(self) -> float:
        """CPU seconds of the process and of its workers."""
        return sum(map(cpu, [self.pid, *children(self.pid)]))

    @staticmethod
    @contextlib.contextmanager
    def started(directory: Path, conf: Path, port: int) -> Iterator[Nginx]:
        """Starts nginx with this configuration, which listens on this port. Its state and logs are in `directory`."""
        options = ["-p", str(directory), "-c", str(conf), "-e", "stderr", "-g", "daemon off;"]
        with process([fleets.tool("nginx"), *options], directory, port) as child:
            yield Nginx(child.pid, port)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def encode(*args: str) -> bytes:
    """One command in RESP."""
    parts = [arg.encode() for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class Collector(BaseHTTPRequestHandler):
    """Receives traces and drops them, because only their cost for the server is measured."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass

    @classmethod
    @contextlib.contextmanager
    def started(cls) -> Iterator[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), cls)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@dataclass
class Server:
    """A running authfleet server."""

    pid: int
    base: str
    ops: str
    secret: str
    ready_ms: float

    @staticmethod
    @contextlib.contextmanager
    def started(
        directory: Path,
        binary: Path,
        redis: Redis | RedisCluster,
        under: Sequence[str] = (),
        patience: float = PATIENCE,
        **more: str,
    ) -> Iterator[Server]:
        """`under` is a command that runs it, such as valgrind's; `more` are variables."""
        port, ops = free_port(), free_port()
        env = {
            "REPLICA_ID": "replica-1",
            "LISTEN_ADDR": f"127.0.0.1:{port}",
            "OPS_ADDR": f"127.0.0.1:{ops}",
            "REDIS_URL": redis.url,
            "DATABASE_URL": f"sqlite://{directory}/users.db",
            "SESSION_SECRET": (directory / "secret").read_text(),
            "COOKIE_SECURE": "false",
            "DRAIN_DELAY": "0s",
            "LOG_FORMAT": "json",
            "RUST_LOG": "info",
            # One user signs in repeatedly from one address.
            "LOGIN_ATTEMPTS_PER_ACCOUNT": "1000000",
            "LOGIN_ATTEMPTS_PER_ADDRESS": "1000000",
            **more,
        }
        subprocess.run([binary, "migrate"], cwd=directory, env={**os.environ, **env}, check=True, capture_output=True)
        began = time.monotonic()
        with process([*under, str(binary), "serve"], directory, port, env, patience) as child:
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{ops}/readyz", timeout=2):
                        break
                except OSError:
                    if time.monotonic() - began > patience:
                        raise BenchError(f"the server is not ready after {patience} s") from None
                    time.sleep(0.002)
            ready_ms = (time.monotonic() - began) * 1000
            yield Server(
                child.pid, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops}", env["SESSION_SECRET"], ready_ms
            )

    def post(self, path: str, body: dict[str, str], cookie: str = "") -> tuple[int, dict, str]:
        """Sends a request. Returns status, body and cookie."""
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT, "Cookie": cookie}
        request = urllib.request.Request(self.base + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer), (answer.headers["Set-Cookie"] or "").split(";")[0]
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}"), ""

    def spans(self) -> float:
        """The number of spans that the server has sent to the collector."""
        with urllib.request.urlopen(f"{self.ops}/metrics", timeout=10) as answer:
            found = re.findall(
                r'^authfleet_trace_spans_total\{.*result="exported".*\} (\d+)', answer.read().decode(), re.M
            )
        return sum(map(int, found))
