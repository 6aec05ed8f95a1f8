"""One fleet with two applications, and in front of it each proxy, with the files of deploy/forward-auth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from client import ROOT, Browser, fleets, proxies

RULES = """
[[rule]]
name = "preflights"
hosts = ["app1.example.org"]
methods = ["OPTIONS"]
allow = "anyone"

[[rule]]
name = "public"
hosts = ["app1.example.org"]
paths = ["/public/*"]
allow = "anyone"

[[rule]]
name = "nobody's"
hosts = ["app1.example.org"]
paths = ["/closed/*"]
allow = "nobody"

[[rule]]
name = "people"
allow = "signed-in"
"""


@dataclass
class Site:
    """A fleet with its applications, behind one proxy."""

    fleet: fleets.Fleet
    proxy: proxies.Proxy
    apps: list[int]
    tls: Path

    def browser(self) -> Browser:
        return Browser(self.proxy.port)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--binary", type=Path, default=ROOT / "target" / "release" / "authfleet", help="the server")


@contextlib.contextmanager
def fleet_in(directory: Path, binary: Path, **more: str) -> Iterator[fleets.Fleet]:
    env = {**proxies.environment(), "RUST_LOG": "info", "REGISTRATIONS_PER_ADDRESS": "1000", **more}
    fleet = fleets.up(directory, binary=binary, auto_ports=True, env=env)
    try:
        yield fleet
    finally:
        fleets.down(fleet)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proxies.certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def apps() -> Iterator[list[int]]:
    with proxies.applications() as ports:
        yield ports


@pytest.fixture(scope="session")
def fleet(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleets.Fleet]:
    directory = tmp_path_factory.mktemp("fleet")
    (directory / "rules.toml").write_text(RULES)
    rules = {"ACCESS_RULES": str(directory / "rules.toml")}
    with fleet_in(directory, pytestconfig.getoption("binary"), **rules) as fleet:
        yield fleet


@pytest.fixture(scope="session", params=proxies.PROXIES)
def site(
    request: pytest.FixtureRequest,
    fleet: fleets.Fleet,
    apps: list[int],
    tls: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp(request.param)
    with proxies.started(request.param, directory, tls, fleet.replica_ports, apps) as proxy:
        yield Site(fleet, proxy, apps, tls)
