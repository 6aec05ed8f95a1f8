"""Fleets that can be tested: their addresses, and how to restart, kill and start their parts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "local"))
import fleet as fleets  # noqa: E402  (the local fleet's own script)
import proxies  # noqa: E402


class TargetError(Exception):
    """An error that the user can act on. It is printed without a traceback."""


class Target:
    """A fleet under test: the base URLs of its replicas and of the balancer in front of them."""

    name = "urls"
    # Whether a replica keeps its URL when it restarts.
    stable = True

    def __init__(self, replicas: list[str], edge: str | None, ops: list[str] | None = None) -> None:
        self.replicas, self.edge, self.ops = replicas, edge, ops or []
        # A proxy of deploy/forward-auth, with a port for each replica. The proxy at that port asks only that replica.
        self.via: str | None = None
        self.proxy_ports: list[int] = []

    def can(self) -> set[str]:
        """The supported faults, a subset of `restart`, `kill`, `redis`, `failover`."""
        return set()

    def restart(self, number: int) -> None:
        """Stops replica `number` (from 0) as an orchestrator does and starts it again. Returns when it is ready."""
        raise NotImplementedError

    def kill(self, number: int) -> None:
        """Kills a replica with SIGKILL."""
        raise NotImplementedError

    def start(self, number: int) -> None:
        """Starts a killed replica. Returns when it is ready."""
        raise NotImplementedError

    def kill_redis(self) -> None:
        raise NotImplementedError

    def start_redis(self) -> None:
        raise NotImplementedError

    def kill_primary(self, store: str) -> None:
        """Kills the primary of `Redis` or `PostgreSQL`."""
        raise NotImplementedError

    def replace_primary(self, store: str) -> None:
        """Waits for another primary, or makes one. Returns when it takes writes."""
        raise NotImplementedError

    def bring_back(self, store: str) -> None:
        """Makes the primary that was killed a replica or a standby of the new one."""
        raise NotImplementedError

    def shared_volumes(self) -> set[str] | None:
        """The volumes that more than one replica has mounted. None if that can't be told."""
        return None


class Hooked(Target):
    """URLs, with the operator's command for faults: COMMAND restart|kill|start NUMBER, COMMAND kill|start redis."""

    def __init__(self, replicas: list[str], edge: str | None, hook: str | None) -> None:
        super().__init__(replicas, edge)
        self.hook = hook

    def can(self) -> set[str]:
        return {"restart", "kill", "redis"} if self.hook else set()

    def _call(self, action: str, part: str) -> None:
        run(["sh", "-c", f'{self.hook} "$@"', "hook", action, part])

    def restart(self, number: int) -> None:
        self._call("restart", str(number + 1))

    def kill(self, number: int) -> None:
        self._call("kill", str(number + 1))

    def start(self, number: int) -> None:
        self._call("start", str(number + 1))

    def kill_redis(self) -> None:
        self._call("kill", "redis")

    def start_redis(self) -> None:
        self._call("start", "redis")


class Local(Target):
    """A fleet of tools/local/fleet.py."""

    name = "local"

    def __init__(self, fleet: fleets.Fleet) -> None:
        at = f"http://{fleets.HOST}"
        super().__init__(
            [f"{at}:{port}" for port in fleet.replica_ports],
            f"{at}:{fleet.http_port}",
            [f"{at}:{port}" for port in fleet.ops_ports],
        )
        self.fleet = fleet

    def can(self) -> set[str]:
        return {"restart", "kill", "redis"}

    def restart(self, number: int) -> None:
        fleets.stop(self.fleet, self.fleet.replicas[number])
        fleets.start(self.fleet, self.fleet.replicas[number])

    def kill(self, number: int) -> None:
        fleets.stop(self.fleet, self.fleet.replicas[number], fleets.signal.SIGKILL)

    def start(self, number: int) -> None:
        fleets.start(self.fleet, self.fleet.replicas[number])

    def kill_redis(self) -> None:
        fleets.stop(self.fleet, "redis", fleets.signal.SIGKILL)

    def start_redis(self) -> None:
        fleets.start(self.fleet, "redis")


class Compose(Target):
    """The fleet of docker compose. Requests to replicas go to the addresses of their containers (Linux only)."""

    name = "compose"

    def __init__(self) -> None:
        need("docker")
        self.services = sorted(
            (s for s in self._compose("config", "--services").split() if s.startswith("replica-")),
            key=lambda s: int(re.sub(r"\D", "", s) or 0),
        )
        if not self.services:
            raise TargetError("docker compose: no service replica-… in the compose file")
        replicas = []
        for service in self.services:
            ids = self._compose("ps", "-q", service).split()
            if not ids:
                raise TargetError(
                    f"docker compose: {service} is not running; start the fleet with: docker compose up -d"
                )
            form = "{{range .NetworkSettings.Networks}}{{println .IPAddress}}{{end}}"
            addresses = run(["docker", "inspect", "-f", form, ids[0]]).split()
            url = next((f"http://{a}:3000" for a in addresses if connects(a, 3000)), None)
            if url is None:
                raise TargetError(
                    f"{service} can't be reached at {', '.join(addresses) or 'any address'}:3000 from here; "
                    "run k6 inside: docker compose run --rm k6 run /loadtest/sharing.js"
                )
            replicas.append(url)
        super().__init__(replicas, f"http://127.0.0.1:{os.environ.get('AUTHFLEET_HTTP_PORT') or 8080}")

    # Files instead of those of the directory or of COMPOSE_FILE.
    files: tuple[str, ...] = ()

    def _compose(self, *args: str) -> str:
        files = [word for file in self.files for word in ("-f", file)]
        return run(["docker", "compose", *files, *args], cwd=ROOT)

    def _wait(self, service: str, *how: str) -> None:
        self._compose("up", "-d", "--no-build", *how, "--wait", "--wait-timeout", "120", service)

    def can(self) -> set[str]:
        return {"restart", "kill", "redis"}

    def restart(self, number: int) -> None:
        self._compose("stop", self.services[number])
        self._wait(self.services[number], "--no-deps", "--no-recreate")

    def kill(self, number: int) -> None:
        self._compose("kill", self.services[number])

    def start(self, number: int) -> None:
        self._wait(self.services[number], "--no-deps", "--no-recreate")

    def kill_redis(self) -> None:
        self._compose("kill", "redis")

    def start_redis(self) -> None:
        self._wait("redis", "--no-deps", "--no-recreate")


class ComposeScaleOut(Compose):
    """The fleet of docker compose with deploy/compose/scale-out.yml."""

    name = "compose-scale-out"
    files = ("docker-compose.yml", "deploy/compose/scale-out.yml")
    NAMES = ("AUTHFLEET_POSTGRES_1", "AUTHFLEET_POSTGRES_2")

    def __init__(self) -> None:
        super().__init__()
        if "sentinel-1" not in self._compose("ps", "--services").split():
            files = " ".join(f"-f {file}" for file in self.files)
            raise TargetError(
                f"docker compose: no Sentinel is running; start the fleet with: docker compose {files} up -d"
            )
        self.killed = ""

    def can(self) -> set[str]:
        return {"restart", "kill", "failover"}

    def shared_volumes(self) -> set[str]:
        found = [
            {mount["Name"] for mount in json.loads(run(["docker", "inspect", container]))[0]["Mounts"]}
            for container in self._compose("ps", "-q", *self.services).split()
        ]
        return {name for name in set().union(*found) if sum(name in names for names in found) > 1}

    def _redis(self, service: str, port: int, secret: str, *words: str) -> str:
        ask = f'REDISCLI_AUTH=$(cat /run/redis/{secret}-password) exec redis-cli --no-auth-warning -p {port} "$@"'
        return self._compose("exec", "-T", service, "sh", "-c", ask, "sh", *words)

    def _redis_primary(self) -> str:
        """The host that the Sentinels name, once it takes writes."""
        for sentinel in ("sentinel-1", "sentinel-2", "sentinel-3"):
            with contextlib.suppress(TargetError):
                said = self._redis(sentinel, 26379, "sentinel", "sentinel", "get-master-addr-by-name", "authfleet")
                host = said.split()[0]
                info = self._redis(host, 6379, "operator", "--user", "operator", "info", "replication")
                if "role:master" in info and "connected_slaves:0" not in info:
                    return host
        return ""

    def _sql(self, service: str, *statements: str) -> str:
        commands = [word for statement in statements for word in ("-c", statement)]
        return self._compose("exec", "-T", service, "psql", "-AtX", *commands).strip()

    def _postgres_primary(self) -> str:
        for service in ("postgres-1", "postgres-2"):
            with contextlib.suppress(TargetError):
                if self._sql(service, "SELECT pg_is_in_recovery()") == "f":
                    return service
        raise TargetError("neither postgres-1 nor postgres-2 is a primary")

    def kill_primary(self, store: str) -> None:
        self.killed = self._redis_primary() if store == "Redis" else self._postgres_primary()
        if not self.killed:
            raise TargetError("no Redis server is a primary with replicas")
        self._compose("kill", self.killed)

    def replace_primary(self, store: str) -> None:
        if store == "Redis":
            self._until(lambda: self._redis_primary() not in ("", self.killed), "the Sentinels have elected a primary")
            return
        # As docs/operations.md says. For the commands of this run, the environment replaces .env.
        new = "postgres-2" if self.killed == "postgres-1" else "postgres-1"
        for name in self.NAMES:
            os.environ[name] = "postgres" if name[-1] == new[-1] else "postgres-standby"
        # Without --no-deps: compose would take that for a change, and the next `up` would restart the replicas.
        self._wait(new)
        self._compose("exec", "-T", new, "pg_ctl", "promote", "--wait")
        self._sql(new, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")

    def bring_back(self, store: str) -> None:
        if store == "Redis":
            self._wait(self.killed)
            return
        new = self._postgres_primary()
        self._sql(new, "CHECKPOINT")
        self._compose("run", "--rm", "-T", "--no-deps", self.killed, "rejoin")
        self._wait(self.killed)
        self._until(
            lambda: "streaming" in self._sql(new, "SELECT state FROM pg_stat_replication"), "the standby follows"
        )
        both = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (postgres_1, postgres_2)'"
        self._sql(new, both, "SELECT pg_reload_conf()")

    @staticmethod
    def _until(true, what: str) -> None:
        deadline = time.monotonic() + 120
        while not true():
            if time.monotonic() > deadline:
                raise TargetError(f"not within 120 s: {what}")
            time.sleep(0.3)


class Kubernetes(Target):
    """The fleet of kubectl's current context, with a port-forward to each pod."""

    name = "k8s"
    stable = False
    server = "app.kubernetes.io/instance=authfleet,app.kubernetes.io/component=server"

    def __init__(self, stack: contextlib.ExitStack, edge: str | None) -> None:
        need("kubectl")
        self.namespace = os.environ.get("AUTHFLEET_NAMESPACE") or "authfleet"
        pods = self._pods()
        if not pods:
            raise TargetError(f"kubectl: no ready server pod in the namespace {self.namespace}")
        replicas = [self._forward(stack, f"pod/{pod}", 3000) for pod in pods]
        super().__init__(replicas, edge or self._forward(stack, "service/authfleet", 80))

    def _kubectl(self, *args: str) -> str:
        return run(["kubectl", "-n", self.namespace, *args])

    def _pods(self) -> list[str]:
        items = json.loads(self._kubectl("get", "pods", "-l", self.server, "-o", "json"))["items"]
        ready = (
            pod["metadata"]["name"]
            for pod in items
            if "deletionTimestamp" not in pod["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        )
        return sorted(ready)

    def _forward(self, stack: contextlib.ExitStack, what: str, port: int) -> str:
        local = free_port()
        command = ["kubectl", "-n", self.namespace, "port-forward", "--address", "127.0.0.1", what, f"{local}:{port}"]
        said = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (closed by the stack)
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
        stack.callback(end, child)
        deadline = time.monotonic() + 20
        while not connects("127.0.0.1", local):
            if child.poll() is not None:
                said.seek(0)
                raise TargetError(f"kubectl port-forward {what}: {said.read().decode(errors='replace').strip()}")
            if time.monotonic() > deadline:
                raise TargetError(f"kubectl port-forward {what}: nothing listens after 20 s")
            time.sleep(0.1)
        return f"http://127.0.0.1:{local}"

    def can(self) -> set[str]:
        return {"restart", "kill", "redis"}

    def _settled(self) -> None:
        self._kubectl("rollout", "status", "deployment/authfleet-server", "--timeout=300s")

    def restart(self, number: int) -> None:
        # One rollout replaces all pods.
        if number == 0:
            self._kubectl("rollout", "restart", "deployment/authfleet-server")
            self._settled()

    def kill(self, number: int) -> None:
        pods = self._pods()
        self._kubectl("delete", "pod", pods[number % len(pods)], "--grace-period=0", "--force")

    def start(self, number: int) -> None:
        self._settled()

    def kill_redis(self) -> None:
        self._kubectl("delete", "pod", "authfleet-redis-0", "--grace-period=0", "--force")

    def start_redis(self) -> None:
        self._kubectl("rollout", "status", "statefulset/authfleet-redis", "--timeout=300s")


@contextlib.contextmanager
def opened(
    name: str,
    *,
    edge: str | None,
    hook: str | None,
    fleet_dir: Path | None,
    binary: Path | None,
    via: str | None = None,
) -> Iterator[Target]:
    """Yields the target that `--target` names. Everything started for it ends with the block."""
    with contextlib.ExitStack() as stack:
        if via:
            fleet = private_fleet(stack, binary, proxies.environment())
            yield behind(stack, Local(fleet), fleet, via)
        elif name == "local":
            yield Local(fleets.load(fleet_dir.absolute()) if fleet_dir else private_fleet(stack, binary))
        elif name == "compose":
            yield Compose()
        elif name == "compose-scale-out":
            yield ComposeScaleOut()
        elif name == "k8s":
            yield Kubernetes(stack, edge)
        elif name.startswith(("http://", "https://")):
            urls = [url.strip().rstrip("/") for url in name.split(",") if url.strip()]
            for url in [*urls, *([edge] if edge else [])]:
                answers(url)
            # A single URL counts as a balancer, because the replicas behind it can't be addressed.
            yield Hooked(*(([], urls[0]) if len(urls) == 1 and not edge else (urls, edge)), hook)
        else:
            raise TargetError(f"--target {name}: local, compose, compose-scale-out, k8s, or URLs separated by commas")


def private_fleet(stack: contextlib.ExitStack, binary: Path | None, env: dict[str, str] | None = None) -> fleets.Fleet:
    """Starts three replicas, Redis and nginx on free ports, in a directory that is deleted with them."""
    directory = Path(tempfile.mkdtemp(prefix="authfleet-loadtest-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    fleet = fleets.up(directory, binary=binary, auto_ports=True, env={"RUST_LOG": "warn", **(env or {})})
    stack.callback(fleets.down, fleet)
    return fleet


def behind(
    stack: contextlib.ExitStack,
    target: Target,
    fleet: fleets.Fleet,
    via: str,
    broken: dict[str, dict[str, str]] | None = None,
) -> Target:
    """Starts two applications and, for each replica, one proxy that asks this replica alone."""
    directory = Path(tempfile.mkdtemp(prefix="authfleet-proxies-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    # Workers of a proxy may run as another user.
    directory.chmod(0o755)
    tls, apps = proxies.certificate(directory / "tls"), stack.enter_context(proxies.applications())
    target.via = via
    for number, port in enumerate(fleet.replica_ports, 1):
        started = proxies.started(via, directory / str(number), tls, [port] * 3, apps, broken)
        target.proxy_ports.append(stack.enter_context(started).port)
    return target


def answers(url: str) -> None:
    try:
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=10):
            return
    except (OSError, ValueError) as error:
        raise TargetError(f"{url}/openapi.json: {error}") from None


def connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def need(tool: str) -> None:
    if not shutil.which(tool):
        raise TargetError(f"{tool} is not installed")


def run(command: list[str], **more: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise TargetError(f"{' '.join(command[:4])} …: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
