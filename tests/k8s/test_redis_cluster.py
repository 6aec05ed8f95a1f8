"""Runs the pods of components/redis-cluster as six real Redis servers, and its Job's script against them."""

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from fleet import K8S, full, named
from test_credentials import cluster, decoded
from test_redis import ask

SCRIPT = K8S / "components/redis-cluster/create.sh"


def free_ports(count: int) -> list[int]:
    """Ports that are free together with the bus port of each, which is 10 000 higher."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as first, socket.socket() as bus:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                bus.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            if port not in found:
                found.append(port)
    return found


class Pods:
    """The six pods of the StatefulSet, with its arguments, on this machine."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.made = decoded(cluster())
        objects = full("scale-out")
        for source in (named(objects, "ConfigMap", "authfleet-redis-cluster")["data"], self.made["authfleet-redis"]):
            for name, text in source.items():
                (directory / name).write_text(text)
        spec = named(objects, "StatefulSet", "authfleet-redis-cluster")["spec"]
        self.container = spec["template"]["spec"]["containers"][0]
        self.count = spec["replicas"]
        self.servers: list[subprocess.Popen] = []
        self.ports: list[int] = []

    def start(self, ports: list[int]) -> None:
        self.ports = ports
        for index, port in enumerate(ports):
            data = self.directory / str(index)
            data.mkdir(exist_ok=True)
            given = " ".join(self.container["args"])
            given = re.sub(r"/etc/redis|/run/secrets/redis", str(self.directory), given)
            for old, new in (
                ("--dir /data", f"--dir {data}"),
                ("6379", str(port)),
                ("* -::*", "127.0.0.1"),
                ("$(POD_IP)", "127.0.0.1"),
                ("$(POD_NAME)", f"authfleet-redis-cluster-{index}"),
            ):
                assert old in given, old
                given = given.replace(old, new)
            with (data / "log").open("ab") as log:
                self.servers.append(
                    subprocess.Popen([*self.container["command"], *given.split()], stdout=log, stderr=log)
                )

    def stop(self) -> None:
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            server.wait(30)
        self.servers = []

    def create(self) -> subprocess.CompletedProcess:
        environment = {
            "NODES": " ".join(f"127.0.0.1:{port}" for port in self.ports),
            "PASSWORD_FILE": str(self.directory / "operator"),
            "PATIENCE": "120",
            "PATH": "/usr/bin:/bin:/usr/local/bin",
        }
        return subprocess.run(["sh", SCRIPT], env=environment, capture_output=True, text=True)

    def operator(self, index: int, *words: str) -> str:
        return ask(str(self.ports[index]), "operator", self.made["authfleet-redis"]["operator"], *words)

    def fleet(self, *words: str) -> str:
        """A command of the fleet's user, on whichever member has the key."""
        password = re.search(r":([0-9a-f]{64})@", self.made["authfleet-server"]["REDIS_URL"])[1]
        return ask(str(self.ports[0]), "authfleet", password, "-c", *words)

    def roles(self) -> dict[str, tuple[str, str, str]]:
        """Each member's role, primary and slots by its id, as the first member sees them."""
        lines = [line.split() for line in self.operator(0, "cluster", "nodes").splitlines()]
        return {
            line[0]: (line[2].removeprefix("myself,"), line[3], " ".join(line[8:])) for line in lines if len(line) > 7
        }


@pytest.fixture
def pods(tmp_path):
    assert shutil.which("redis-server"), "redis-server is missing: tools/local/install.sh installs it"
    made = Pods(tmp_path)
    made.start(free_ports(made.count))
    try:
        yield made
    finally:
        made.stop()


def test_the_script_makes_a_cluster_once_and_brings_it_together_again(pods):
    done = pods.create()
    assert done.returncode == 0 and "made a cluster" in done.stdout, done.stdout + done.stderr
    roles = pods.roles()
    primaries = {name for name, role in roles.items() if role[0] == "master"}
    replicas = [role for role in roles.values() if role[0] == "slave"]
    # Each primary has one replica.
    assert len(primaries) == 3 and sorted(role[1] for role in replicas) == sorted(primaries)
    hosts = pods.operator(0, "cluster", "nodes")
    assert all(f"authfleet-redis-cluster-{index}.authfleet-redis-cluster." in hosts for index in range(6))
    # What authfleet asks a cluster, besides the commands that test_redis.py tries.
    for command in (["wait", "1", "0"], ["cluster", "slots"], ["cluster", "info"], ["asking"]):
        assert not re.search("NOPERM|ERR", pods.fleet(*command)), command
    for user in "abcdef":
        assert pods.fleet("set", f"session:{{{user}}}:1", user) == "OK"

    # A second run changes nothing.
    done = pods.create()
    assert done.returncode == 0 and "nothing changed" in done.stdout, done.stdout + done.stderr
    assert pods.roles() == roles

    # All members return with other addresses at once, so that none finds another one by itself.
    pods.stop()
    pods.start(free_ports(6))
    done = pods.create()
    assert done.returncode == 0 and "introducing them again" in done.stdout, done.stdout + done.stderr
    assert set(pods.roles()) == set(roles)
    for user in "abcdef":
        assert pods.fleet("get", f"session:{{{user}}}:1") == user


def wait_for_ping(pods: Pods) -> None:
    end = time.monotonic() + 60
    while any(pods.operator(index, "ping") != "PONG" for index in range(6)):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_an_interrupted_run_begins_anew_but_never_resets_keys(pods):
    wait_for_ping(pods)
    # As if the script had ended after the first primary got its slots.
    assert pods.operator(0, "cluster", "addslotsrange", "0", "5460") == "OK"
    end = time.monotonic() + 60
    # An incomplete cluster still serves the slots it has.
    while pods.operator(0, "set", "{06S}", "kept") != "OK":
        assert time.monotonic() < end, pods.operator(0, "cluster", "info")
        time.sleep(0.1)
    done = pods.create()
    assert done.returncode == 1 and "has keys but belongs to no whole cluster" in done.stderr, done.stdout + done.stderr
    assert pods.operator(0, "dbsize") == "1"
    assert pods.operator(0, "del", "{06S}") == "1"
    done = pods.create()
    assert done.returncode == 0 and "made a cluster" in done.stdout, done.stdout + done.stderr
