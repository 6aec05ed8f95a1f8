"""Checks the alerts about a Redis Cluster: a real fleet has its sessions in one, and a real Prometheus scrapes it. The
tests run in the order of this file.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rules import ROOT
from test_live import Client, Prometheus, fires, running, shortened, wait

sys.path.insert(0, str(ROOT / "tools" / "local"))
import fleet as fleets

SHIPPED = ROOT / "deploy" / "redis"
SLOTS = ["0-5460", "5461-10922", "10923-16383"]
ACCOUNT = {"email": "ada@example.org", "password": "correct horse battery"}
RAISED = ("AuthfleetRedisShardMissing", "AuthfleetRevocationsUnconfirmed")


def free_ports(count: int) -> list[int]:
    """Ports that nobody has. They are chosen together, so that none is chosen twice."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((fleets.HOST, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    """Three primaries, of which each has the replica whose number is higher by three."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ports = free_ports(12)
        self.ports, self.buses = ports[:6], ports[6:]
        self.servers: dict[int, subprocess.Popen] = {}
        for index in range(6):
            data = directory / str(index)
            data.mkdir()
            # Each knows the others from the start, so nobody has to introduce them.
            lines = [
                f"{self.member(other)}{'myself,' if other == index else ''}{self.role(other)}" for other in range(6)
            ]
            (data / "nodes.conf").write_text("\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0", ""]))
            self.start(index)

    def member(self, index: int) -> str:
        return f"{index:040x} {fleets.HOST}:{self.ports[index]}@{self.buses[index]} "

    @staticmethod
    def role(index: int) -> str:
        if index < 3:
            return f"master - 0 0 {index + 1} connected {SLOTS[index]}"
        return f"slave {index - 3:040x} 0 0 {index - 2} connected"

    def start(self, index: int) -> None:
        command = ["redis-server", str(SHIPPED / "redis.conf"), "--include", str(SHIPPED / "replicated.conf")]
        command += ["--include", str(SHIPPED / "cluster.conf"), "--bind", fleets.HOST, "--port", str(self.ports[index])]
        # A primary without replicas goes on, so that nothing but the confirmation of revocations is missing.
        command += ["--cluster-port", str(self.buses[index]), "--min-replicas-to-write", "0"]
        command += ["--dir", str(self.directory / str(index))]
        with open(self.directory / f"{index}.log", "ab") as log:
            self.servers[index] = subprocess.Popen(command, stdout=log, stderr=log)

    def signal(self, number: signal.Signals, *indices: int) -> None:
        for index in indices:
            self.servers[index].send_signal(number)

    def kill(self, *indices: int) -> None:
        for index in indices:
            server = self.servers.pop(index)
            server.kill()
            server.wait(10)

    @property
    def url(self) -> str:
        return "redis-cluster://" + ",".join(f"{fleets.HOST}:{port}" for port in self.ports[:3])

    def ask(self, index: int, *words: str) -> str:
        command = ["redis-cli", "-h", fleets.HOST, "-p", str(self.ports[index]), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def is_whole(self) -> bool:
        followed = all("connected_slaves:1" in self.ask(index, "INFO", "replication") for index in range(3))
        return followed and all("cluster_state:ok" in self.ask(index, "CLUSTER", "INFO") for index in range(6))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        wait("the cluster is whole", made.is_whole)
        yield made
    finally:
        for index in list(made.servers):
            made.kill(index)


@pytest.fixture(scope="module")
def fleet(cluster, tmp_path_factory) -> Iterator[fleets.Fleet]:
    with running(tmp_path_factory.mktemp("fleet"), REDIS_URL=cluster.url) as up:
        shortened(up)
        yield up


@pytest.fixture(scope="module")
def prometheus(fleet) -> Prometheus:
    return Prometheus(fleet.prometheus_url)


def signed_in(fleet: fleets.Fleet) -> Client:
    client = Client(fleet)
    wait("a sign-in succeeds", lambda: client.call("POST", "/auth/login", ACCOUNT) == 200)
    return client


def test_live_revocations_that_no_replica_confirms_are_noticed(cluster, fleet, prometheus):
    assert Client(fleet).call("POST", "/auth/register", ACCOUNT) == 201
    assert signed_in(fleet).call("POST", "/auth/logout") == 200
    wait("the figures are there", lambda: prometheus.value("max(authfleet_redis_shards_missing)") == 0)
    assert not prometheus.alerts("firing").keys() & set(RAISED)
    client = signed_in(fleet)
    cluster.signal(signal.SIGSTOP, 3, 4, 5)

    def noticed() -> bool:
        # An increase shows only from one scrape to the next, so people go on trying.
        assert client.call("POST", "/auth/logout") == 503
        return "AuthfleetRevocationsUnconfirmed" in prometheus.alerts("firing")

    wait("AuthfleetRevocationsUnconfirmed fires", noticed)
    firing = prometheus.alerts("firing")
    assert firing["AuthfleetRevocationsUnconfirmed"]["labels"]["severity"] == "critical"
    assert "AuthfleetRedisShardMissing" not in firing, "checks go on"
    cluster.signal(signal.SIGCONT, 3, 4, 5)
    wait("a sign-out is confirmed again", lambda: signed_in(fleet).call("POST", "/auth/logout") == 200)


def test_live_a_missing_shard_is_noticed(cluster, fleet, prometheus):
    wait("the cluster is whole", cluster.is_whole)
    cluster.kill(0, 3)
    firing = fires(prometheus, "AuthfleetRedisShardMissing")
    alert = firing["AuthfleetRedisShardMissing"]
    assert alert["labels"]["severity"] == "critical"
    assert " 1 shards have not answered" in alert["annotations"]["description"]
    # The others are served, so Redis as a whole isn't down.
    assert "AuthfleetRedisDown" not in firing
    cluster.start(0)
    cluster.start(3)
    wait("the alert ends", lambda: "AuthfleetRedisShardMissing" not in prometheus.alerts("firing"))
