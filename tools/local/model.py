"""What a local fleet is: its directory, its ports and its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEPLOY = ROOT / "deploy"
HOST = "127.0.0.1"


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
    # Of app1 and app2; none in a fleet without applications.
    apps: list[int] = field(default_factory=list)


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
    # Of app1 and app2 behind nginx; none in a fleet without applications.
    app_ports: list[int] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return Path(self.dir)

    @property
    def replicas(self) -> list[str]:
        return [f"replica-{i + 1}" for i in range(len(self.replica_ports))]

    @property
    def parts(self) -> list[str]:
        """The names of all parts, in the order of starting."""
        return ["redis", *self.replicas, *self.apps, "nginx", *(["prometheus"] if self.prometheus_port else [])]

    @property
    def apps(self) -> list[str]:
        return [f"app{i + 1}" for i in range(len(self.app_ports))]

    def app_url(self, name: str) -> str:
        """The URL of an application for users: through nginx."""
        return f"http://{name}.localhost:{self.http_port}"

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
            "applications": {name: self.app_url(name) for name in self.apps},
            **({"prometheus": f"http://{HOST}:{self.prometheus_port}"} if self.prometheus_port else {}),
        }
