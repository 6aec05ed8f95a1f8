"""A fleet of three replicas, each of which can run either version, on SQLite or on PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "local"))
sys.path.insert(0, str(ROOT / "loadtest"))
import fleet as fleets  # noqa: E402
from driver.parts import Postgres  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--binary", type=Path, default=ROOT / "target" / "release" / "authfleet", help="this version")


class Site:
    """The fleet and the two versions."""

    def __init__(self, fleet: fleets.Fleet, old: Path, new: Path, engine: str) -> None:
        self.fleet, self.old, self.new, self.engine = fleet, old, new, engine
        self.version = dict.fromkeys(fleet.replicas, "old")

    def replace(self, replica: str, version: str, **env: str) -> None:
        """Drains a replica, and starts it with a version's binary, and with these variables like all that are started
        after it. Returns when it is ready."""
        fleets.stop(self.fleet, replica)
        self.fleet.env.update(env)
        self.fleet.binary = str(self.new if version == "new" else self.old)
        fleets.start(self.fleet, replica)
        self.version[replica] = version

    def run(self, binary: Path, *command: str) -> subprocess.CompletedProcess:
        """A command of one version, with a replica's settings."""
        env = fleets.replica_env(self.fleet, self.fleet.replicas[0])
        return subprocess.run([binary, *command], env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(params=["sqlite", "postgres"])
def site(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Iterator[Site]:
    old, new = Path(os.environ["AUTHFLEET_PREVIOUS"]), pytestconfig.getoption("binary").absolute()
    with ExitStack() as stack:
        # PostgreSQL runs as another user, who must be able to reach its directory.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="authfleet-upgrade-")))
        env = {"REGISTRATIONS_PER_ADDRESS": "1000000", "LOGIN_ATTEMPTS_PER_ADDRESS": "1000000"}
        if request.param == "postgres":
            env["DATABASE_URL"] = stack.enter_context(Postgres.started(directory)).url
        limits = directory / "limits.conf"
        # nginx's own limits would refuse the load; other tests cover them.
        limits.write_text("")
        fleet = fleets.up(directory / "fleet", binary=old, auto_ports=True, env=env, limits=limits)
        stack.callback(fleets.down, fleet)
        yield Site(fleet, old, new, request.param)
