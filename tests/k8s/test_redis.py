"""Runs a real Redis with the rendered configuration, the pod's arguments and new credentials."""

import base64
import json
import re
import shutil
import subprocess
import time
from urllib.parse import urlsplit

import pytest

from fleet import full, named
from test_credentials import credentials, decoded
from test_nginx import free_port


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """Runs the pod's container on this machine. Yields its port, the credentials and the readiness probe's command."""
    assert shutil.which("redis-server"), "redis-server is missing: tools/local/install.sh installs it"
    directory = tmp_path_factory.mktemp("redis")
    made = decoded(credentials("new"))
    (directory / "users.acl").write_text(made["authfleet-redis"]["users.acl"])
    config = named(full("local"), "ConfigMap", "authfleet-redis")["data"]["redis.conf"]
    (directory / "redis.conf").write_text(config)
    (directory / "data").mkdir()
    container = named(full("local"), "StatefulSet", "authfleet-redis")["spec"]["template"]["spec"]["containers"][0]
    port = str(free_port())
    here = {"/etc/redis/redis.conf": "redis.conf", "/run/secrets/redis/users.acl": "users.acl", "/data": "data"}
    args = [str(directory / here[arg]) if arg in here else arg for arg in container["args"]]
    args[args.index("6379")] = port
    # Listen only on loopback.
    args[args.index("*") : args.index("-::*") + 1] = ["127.0.0.1"]
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen([*container["command"], *args], stdout=log, stderr=log)
    probe = [
        container["readinessProbe"]["exec"]["command"][0],
        "-p",
        port,
        *container["readinessProbe"]["exec"]["command"][1:],
    ]
    try:
        end = time.monotonic() + 20
        while subprocess.run(probe, capture_output=True).returncode and time.monotonic() < end:
            assert server.poll() is None, (directory / "log").read_text()
            time.sleep(0.1)
        yield port, made, probe
    finally:
        server.terminate()
        server.wait(10)


def secrets(made: dict[str, dict[str, str]]) -> list[dict]:
    """The Secrets as `kubectl get` returns them."""
    return [
        {
            "metadata": {"name": name},
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
        }
        for name, data in made.items()
    ]


def ask(port: str, user: str | None, password: str, *words: str) -> str:
    login = ["--user", user, "--pass", password, "--no-auth-warning"] if user else []
    done = subprocess.run(["redis-cli", "-e", "-p", port, *login, *words], capture_output=True, text=True)
    return done.stdout.strip() + done.stderr.strip()


def test_the_probes_see_redis_and_can_do_nothing_else(redis):
    port, _, probe = redis
    assert subprocess.run(probe, capture_output=True, text=True).stdout.strip() == "PONG"
    assert "NOPERM" in ask(port, "probe", "none", "get", "session:x")
    assert "NOPERM" in ask(port, "probe", "none", "info")


def test_nobody_enters_without_a_password(redis):
    port, _, _ = redis
    assert "NOAUTH" in ask(port, None, "", "ping")
    assert "WRONGPASS" in ask(port, "authfleet", "guess", "ping")
    assert "WRONGPASS" in ask(port, "default", "", "ping")


def test_the_replicas_may_what_they_do_and_no_administration(redis):
    port, made, _ = redis
    password = urlsplit(made["authfleet-server"]["REDIS_URL"]).password
    for command in (
        ["hset", "session:{u}:s", "user_id", "u"],
        ["eval", "return {redis.call('TIME'), redis.call('PEXPIRE', KEYS[1], 60000)}", "1", "session:{u}:s"],
        ["hgetall", "session:{u}:s"],
        ["info", "server"],
        ["config", "get", "maxmemory-policy"],
    ):
        assert not re.search("NOPERM|ERR", ask(port, "authfleet", password, *command)), command
    for command in (["flushall"], ["keys", "*"], ["config", "set", "appendonly", "no"], ["acl", "list"], ["shutdown"]):
        assert "NOPERM" in ask(port, "authfleet", password, *command), command


def test_the_operator_may_look(redis):
    port, made, _ = redis
    password = made["authfleet-redis"]["operator"]
    assert "session:{u}:s" in ask(port, "operator", password, "keys", "session:*")
    assert "noeviction" in ask(port, "operator", password, "config", "get", "maxmemory-policy")
    assert "yes" in ask(port, "operator", password, "config", "get", "appendonly")


def test_a_running_redis_takes_the_passwords_of_a_rotation(redis):
    port, made, _ = redis
    begin = json.dumps({"kind": "List", "items": secrets(made)})
    old = urlsplit(made["authfleet-server"]["REDIS_URL"]).password
    between = credentials("rotate", "redis", given=begin)
    new = urlsplit(decoded(between)["authfleet-server"]["REDIS_URL"]).password
    finished = credentials("finish", "redis", given=between)

    def load(given: str) -> None:
        done = subprocess.run(
            ["redis-cli", "-p", port], input=credentials("acl", given=given), capture_output=True, text=True
        )
        assert done.stdout.split() == ["OK", "OK"], done

    # Like a replica, this connection was opened with the old password.
    replica = subprocess.Popen(
        ["redis-cli", "-p", port, "--user", "authfleet", "--pass", old, "--no-auth-warning"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )

    def client_id() -> str:
        # The id shows whether the connection is still the same, because redis-cli reconnects by itself.
        replica.stdin.write("client id\n")
        replica.stdin.flush()
        return replica.stdout.readline()

    def accepts(password: str) -> bool:
        return ask(port, "authfleet", password, "ping") == "PONG"

    try:
        connection = client_id()
        assert accepts(old) and not accepts(new)
        load(between)
        assert client_id() == connection and accepts(old) and accepts(new)
        load(finished)
        assert client_id() == connection and not accepts(old) and accepts(new)
        load(begin)
        assert accepts(old)
    finally:
        replica.stdin.close()
        replica.wait(10)


def test_during_a_rotation_both_passwords_are_good(redis, tmp_path):
    _, made, _ = redis
    old = urlsplit(made["authfleet-server"]["REDIS_URL"]).password
    between = credentials("rotate", "redis", given=json.dumps({"kind": "List", "items": secrets(made)}))
    new = urlsplit(decoded(between)["authfleet-server"]["REDIS_URL"]).password
    finished = credentials("finish", "redis", given=between)
    file = tmp_path / "users.acl"
    for text, good, bad in ((between, (old, new), ()), (finished, (new,), (old,))):
        other = str(free_port())
        file.write_text(decoded(text)["authfleet-redis"]["users.acl"])
        server = subprocess.Popen(
            [
                "redis-server",
                "--port",
                other,
                "--bind",
                "127.0.0.1",
                "--dir",
                tmp_path,
                "--save",
                "",
                "--aclfile",
                file,
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 20
            while "PONG" not in ask(other, "probe", "none", "ping") and time.monotonic() < end:
                time.sleep(0.1)
            assert all(ask(other, "authfleet", password, "ping") == "PONG" for password in good)
            assert all("WRONGPASS" in ask(other, "authfleet", password, "ping") for password in bad)
        finally:
            server.terminate()
            server.wait(10)


def test_sessions_survive_a_restart(redis, tmp_path):
    """Redis replays its AOF as the default user. Without rights, that user would lose what scripts have written."""
    _, made, _ = redis
    password = urlsplit(made["authfleet-server"]["REDIS_URL"]).password
    (tmp_path / "users.acl").write_text(made["authfleet-redis"]["users.acl"])
    create = "redis.call('HSET', KEYS[1], 'user_id', 'u'); return redis.call('PEXPIRE', KEYS[1], 60000)"
    for is_restart in (False, True):
        port = str(free_port())
        here = f"--port {port} --bind 127.0.0.1 --dir {tmp_path} --aclfile {tmp_path}/users.acl --appendonly yes"
        server = subprocess.Popen(["redis-server", *here.split()], stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 20
            while "PONG" not in ask(port, "probe", "none", "ping") and time.monotonic() < end:
                time.sleep(0.1)
            if not is_restart:
                assert ask(port, "authfleet", password, "eval", create, "1", "session:{u}:s") == "1"
            assert ask(port, "authfleet", password, "hget", "session:{u}:s", "user_id") == "u"
        finally:
            server.kill()
            server.wait(10)
