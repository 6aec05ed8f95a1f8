"""A fleet of three replicas with users in SQLite, and Litestream that copies them into a directory."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "local"))
import fleet as fleets  # noqa: E402

# For a step of Litestream on a busy machine.
PATIENCE = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--binary", type=Path, default=ROOT / "target" / "release" / "authfleet", help="the server")


class Site:
    """The fleet, its backup and the program that makes it. Addresses of the backup are a directory here."""

    def __init__(self, fleet: fleets.Fleet, backup: Path) -> None:
        self.fleet, self.backup = fleet, backup
        self.database = fleet.path / "data" / "authfleet.db"
        self.environment = {**os.environ, "DATABASE": str(self.database), "BACKUP": f"file://{backup}"}
        self.program: subprocess.Popen | None = None

    def litestream(self, command: str, *arguments: str) -> str:
        """Runs one command to its end and returns what it prints."""
        line = ["litestream", command, *arguments]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def replicate(self) -> None:
        command = ["litestream", "replicate", "-config", str(ROOT / "deploy" / "litestream.yml")]
        with open(self.fleet.path / "log" / "litestream.log", "ab") as log:
            self.program = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.synced()

    def synced(self) -> None:
        """Returns when all changes so far are in the backup."""
        socket = Path(f"{self.database}-litestream.sock")
        while not socket.exists():
            assert self.program.poll() is None, fleets.tail(self.fleet.path / "log" / "litestream.log")
            time.sleep(0.05)
        self.litestream("sync", "-wait", "-timeout", str(PATIENCE), "-socket", str(socket), str(self.database))

    def kill_litestream(self) -> None:
        if self.program is not None:
            self.program.kill()
            self.program.wait()
            self.program = None

    def lose_the_machine(self) -> None:
        """Kills what writes to the disk, and loses the disk with the users."""
        self.kill_litestream()
        for name in self.fleet.replicas:
            fleets.stop(self.fleet, name, signal.SIGKILL)
        shutil.rmtree(self.database.parent)
        self.database.parent.mkdir()

    def redis(self, *command: str) -> str:
        line = ["redis-cli", "-p", str(self.fleet.redis_port), *command]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()

    def authfleet(self, command: str) -> None:
        env = fleets.replica_env(self.fleet, self.fleet.replicas[0])
        done = subprocess.run([self.fleet.binary, command], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start_replicas(self) -> None:
        for name in self.fleet.replicas:
            fleets.start(self.fleet, name)

    def sqlite(self, statement: str) -> list:
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: dict | None = None, cookie: str = "") -> tuple[int, str]:
        """One request through nginx: the status, and the session's cookie if one is set."""
        connection = http.client.HTTPConnection(fleets.HOST, self.fleet.http_port, timeout=30)
        headers = {"Content-Type": "application/json", **({"Cookie": cookie} if cookie else {})}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        answer.read()
        found = re.match(r"[^;]+", answer.headers.get("Set-Cookie", ""))
        connection.close()
        return answer.status, found[0] if found else ""


@pytest.fixture
def site(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[Site]:
    env = {"REGISTRATIONS_PER_ADDRESS": "100000"}
    limits = tmp_path / "limits.conf"
    # nginx's own limits would slow the test down; other tests cover them.
    limits.write_text(re.sub(r"rate=\S+;", "rate=10000r/s;", (ROOT / "deploy/nginx/limits.conf").read_text()))
    binary = pytestconfig.getoption("binary")
    fleet = fleets.up(tmp_path / "fleet", binary=binary, auto_ports=True, env=env, limits=limits)
    site = Site(fleet, tmp_path / "backup")
    try:
        yield site
    finally:
        site.kill_litestream()
        fleets.down(fleet)
