"""The drills that tests/compose/run performs. They start the real docker-compose.yml, send a steady stream of requests
through nginx, and break one part after another. At the end they print the counts, and `N passed, N failed`.
"""

from __future__ import annotations

import atexit
import base64
import collections
import contextlib
import dataclasses
import fcntl
import http.client
import json
import os
import pathlib
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping

from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = "authfleet-test"
SUBNET = "10.213.65.0/24"
REPLICAS = ["replica-1", "replica-2", "replica-3"]
DISK_FULL = "tests/compose/disk-full.yml"
OBSERVABILITY = "tests/compose/observability.yml"
# Sessions that must survive every drill.
SESSIONS = 8
CHECKERS = 4
# Pause between two checks of one checker, and between two sign-ins, in seconds.
CHECK_PAUSE, SIGN_IN_PAUSE = 0.02, 0.5


class Failed(Exception):
    """An expectation that was not met."""


def expect(truth: object, text: str) -> None:
    if not truth:
        raise Failed(text)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


# --- Docker ----------------------------------------------------------------------------------------------------------
def run(*command: str, check: bool = True, stdin: bytes | None = None, timeout: float = 900) -> str:
    """Returns the standard output of a command. If the command fails, the failure contains both outputs."""
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, timeout=timeout, check=False)
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if check and done.returncode:
        tail = "\n".join((out + err).strip().splitlines()[-25:])
        raise Failed(f"`{' '.join(command)}` exited with {done.returncode}:\n{tail}")
    return out if check else out + err


def fails(*command: str) -> str:
    """Runs a command that must fail, and returns its output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=900, check=False)
    said = (done.stdout + done.stderr).decode(errors="replace")
    expect(done.returncode, f"`{' '.join(command)}` succeeded:\n{said}")
    return said


def compose(*arguments: str, **options) -> str:
    return run("docker", "compose", "--ansi", "never", "--progress", "plain", *arguments, **options)


def container(service: str) -> str:
    found = compose("ps", "-aq", service).split()
    expect(len(found) == 1, f"{service} has {len(found)} containers")
    return found[0]


def up(*arguments: str) -> None:
    compose("up", "-d", "--no-build", "--wait", "--wait-timeout", "120", *arguments)


def down() -> None:
    command = ("docker", "compose", "--profile", "*", "down", "-v", "--remove-orphans", "-t", "1")
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=180, check=False)


def left_behind() -> str:
    label = f"label=com.docker.compose.project={os.environ['COMPOSE_PROJECT_NAME']}"
    kinds = (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q"))
    return " ".join(run("docker", *kind, "--filter", label).strip() for kind in kinds).strip()


def within(seconds: float, what: str, true) -> float:
    """Waits until `true()`, at most `seconds`, and returns how many seconds it took."""
    begin = time.monotonic()
    while not true():
        if time.monotonic() - begin > seconds:
            raise Failed(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - begin


def health(service: str) -> str:
    return run("docker", "inspect", "-f", "{{.State.Health.Status}}", container(service)).strip()


# --- Clients ---------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Answer:
    status: int  # 0: no answer
    body: dict
    headers: Mapping[str, str]
    error: str = ""

    def says(self) -> str:
        return self.error or f"{self.status} {self.body.get('code', '')}".strip()


class Client:
    """One keep-alive connection to nginx."""

    def __init__(self) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=40)

    def ask(self, method: str, path: str, body: dict | None = None, cookie: str = "", traceparent: str = "") -> Answer:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if traceparent:
            headers["traceparent"] = traceparent
        if cookie:
            headers["Cookie"] = cookie
        try:
            self.connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self.connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            return Answer(0, {}, {}, f"no answer ({type(error).__name__})")
        try:
            parsed = json.loads(data) if data else {}
        except ValueError:
            parsed = {"code": "not_json"}
        return Answer(response.status, parsed if isinstance(parsed, dict) else {}, response.headers)


@dataclasses.dataclass
class User:
    email: str
    password: str
    cookie: str = ""
    session_id: str = ""

    @classmethod
    def register(cls, name: str) -> User:
        user = cls(f"{name}-{secrets.token_hex(4)}@example.com", secrets.token_urlsafe(18))
        answer = Client().ask("POST", "/auth/register", {"email": user.email, "password": user.password})
        expect(answer.status == 201, f"registration: {answer.says()}")
        return user

    def sign_in(self, client: Client | None = None) -> Answer:
        answer = (client or Client()).ask("POST", "/auth/login", {"email": self.email, "password": self.password})
        if answer.status == 200:
            self.cookie = answer.headers["Set-Cookie"].split(";")[0]
            self.session_id = answer.body["session_id"]
        return answer


@dataclasses.dataclass
class Count:
    """The results of a stream of requests."""

    checks: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sign_ins: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    served_by: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    slowest: float = 0.0

    def failed(self, kind: collections.Counter) -> dict[str, int]:
        return {says: n for says, n in kind.items() if says != "200"}


class Stream:
    """Keeps checking sessions, signing in and signing out until it is closed."""

    def __init__(self, users: list[User]) -> None:
        self.users, self.count = users, Count()
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.check, daemon=True) for _ in range(CHECKERS)]
        self.threads.append(threading.Thread(target=self.sign_in, daemon=True))

    def __enter__(self) -> Count:
        for thread in self.threads:
            thread.start()
        time.sleep(1)
        return self.count

    def __exit__(self, *_) -> None:
        time.sleep(1)
        self.stop.set()
        for thread in self.threads:
            thread.join(60)

    def check(self) -> None:
        client = Client()
        while not self.stop.is_set():
            user = random.choice(self.users)
            begin = time.monotonic()
            answer = client.ask("GET", "/profile", cookie=user.cookie)
            taken = time.monotonic() - begin
            says = answer.says()
            if answer.status == 200 and answer.body["session"]["session_id"] != user.session_id:
                says = "200 about another session"
            with self.lock:
                self.count.checks[says] += 1
                self.count.slowest = max(self.count.slowest, taken)
                self.count.served_by[answer.headers.get("X-Served-By", "nobody")] += 1
            time.sleep(CHECK_PAUSE)

    def sign_in(self) -> None:
        user, client = dataclasses.replace(self.users[0]), Client()
        while not self.stop.is_set():
            answers = [user.sign_in(client)]
            if answers[0].status == 200:
                answers.append(client.ask("POST", "/auth/logout", {}, user.cookie))
            with self.lock:
                self.count.sign_ins.update(answer.says() for answer in answers)
            time.sleep(SIGN_IN_PAUSE)


def lost(users: list[User]) -> int:
    """How many sessions are no longer accepted."""
    client = Client()
    statuses = [client.ask("GET", "/profile", cookie=user.cookie).says() for user in users]
    strange = {says for says in statuses if says not in ("200", "401 session_invalid")}
    expect(not strange, f"after the drill some checks still fail: {strange}")
    return statuses.count("401 session_invalid")


# --- The table -------------------------------------------------------------------------------------------------------
ROWS: list[tuple[str, ...]] = [
    ("drill", "checks", "failed", "sign-ins/outs", "failed", "sessions lost", "slowest", "seen")
]


def judge(
    name: str, count: Count, users: list[User], seen: str, *, checks=(), sign_ins=(), sign_ins_at_most=None
) -> None:
    """Adds a row to the table. Fails if a request failed in an unexpected way, or if a session was lost."""
    bad_checks, bad_sign_ins = count.failed(count.checks), count.failed(count.sign_ins)
    gone = lost(users)
    total = [sum(kind.values()) for kind in (count.checks, bad_checks, count.sign_ins, bad_sign_ins)]
    ROWS.append((name, *map(str, total), f"{gone} of {len(users)}", f"{count.slowest:.1f} s", seen))
    expect(total[0] > 50, f"only {total[0]} checks were made")
    expect(set(bad_checks) <= set(checks), f"checks failed: {bad_checks}, expected only: {checks or 'none'}")
    expect(set(bad_sign_ins) <= set(sign_ins), f"sign-ins failed: {bad_sign_ins}, expected only: {sign_ins or 'none'}")
    if sign_ins_at_most is not None:
        expect(total[3] <= sign_ins_at_most, f"more than {sign_ins_at_most} sign-ins failed: {bad_sign_ins}")
    expect(gone == 0, f"{gone} sessions were lost")


def table() -> str:
    widths = [max(len(row[n]) for row in ROWS) for n in range(len(ROWS[0]))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in ROWS]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


# --- The drills ------------------------------------------------------------------------------------------------------
DOWN = ("503 store_unavailable", "503 upstream_unavailable")
# nginx never repeats a POST that a replica may have carried out.
CUT_OFF = ("503 upstream_unavailable", "401 session_invalid")


def image(_users: list[User]) -> None:
    """The image is small, unprivileged and labelled, and its tag is the crate's version."""
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    name = f"authfleet:{version}"
    expect(name in compose("config", "--images").split(), f"docker-compose.yml does not use {name}")
    spec = json.loads(run("docker", "image", "inspect", name))[0]
    base = re.search(r"^ARG RUN_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.M)[1]
    size = spec["Size"] - json.loads(run("docker", "image", "inspect", base))[0]["Size"]
    expect(size <= 40e6, f"the image is {size / 1e6:.1f} MB beyond its base")
    config = spec["Config"]
    expect(config["User"] == "10001:10001", f"the image's user is {config['User']}")
    expect(config["StopSignal"] == "SIGTERM", f"the stop signal is {config['StopSignal']}")
    expect(config["Healthcheck"]["Test"][1:] == ["authfleet", "healthcheck"], "the health check is another command")
    labels = config["Labels"]
    expect(labels["org.opencontainers.image.version"] == version, "the label version is not the crate's version")
    expect(labels["org.opencontainers.image.title"] == "authfleet", f"labels: {labels}")
    say(f"{name}: {size / 1e6:.1f} MB beyond its base")


def as_documented(_users: list[User]) -> None:
    """In every profile, each mounted file exists and each port is published on loopback only."""
    config = json.loads(compose("--profile", "*", "config", "--format", "json"))
    for name, service in config["services"].items():
        for mount in service.get("volumes", []):
            source = pathlib.Path(mount["source"])
            # If a bind mount's source doesn't exist, Docker creates an empty directory there.
            is_there = mount["type"] != "bind" or (any(source.iterdir()) if source.is_dir() else source.is_file())
            expect(is_there, f"{name} mounts {source}, which is missing or empty")
        for port in service.get("ports", []):
            expect(port["host_ip"] == "127.0.0.1", f"{name} publishes {port['target']} on {port['host_ip']}")
        expect(re.search(r":v?\d+\.\d+", service["image"]), f"{name} does not name a version of {service['image']}")
    for file in (ROOT / "deploy/grafana/provisioning").rglob("*.yml"):
        for name, port in re.findall(r"^ +url: http://([a-z-]+):(\d+)$", file.read_text(), re.M):
            ports = [published["target"] for published in config["services"].get(name, {}).get("ports", [])]
            expect(int(port) in ports, f"{file.name} names {name}:{port}")
        for path in re.findall(r"^ +path: (\S+)$", file.read_text(), re.M):
            targets = [mount["target"] for mount in config["services"]["grafana"]["volumes"]]
            expect(path in targets, f"{file.name} names {path}, where Grafana has nothing mounted")


def confined(service: str) -> None:
    spec = json.loads(run("docker", "inspect", container(service)))[0]
    host, user = spec["HostConfig"], spec["Config"]["User"]
    facts = {
        "runs as root": user in ("", "0", "root") or user.startswith("0:"),
        "has a writable root": not host["ReadonlyRootfs"],
        "keeps capabilities": host["CapDrop"] != ["ALL"] or host["CapAdd"],
        "may gain privileges": "no-new-privileges:true" not in host["SecurityOpt"],
        "has no memory limit": not host["Memory"],
        "has no limit on processes": not host["PidsLimit"],
        "has no log rotation": "max-size" not in host["LogConfig"]["Config"],
    }
    wrong = [fact for fact, is_so in facts.items() if is_so]
    expect(not wrong, f"{service} {', '.join(wrong)}")
    published = any(spec["NetworkSettings"]["Ports"].values())
    expect(published == (service in ("nginx", "prometheus", "jaeger")), f"{service}: a port is published: {published}")


def hardened(_users: list[User]) -> None:
    """Every container is confined, and only the replicas can use Redis."""
    for service in compose("ps", "--services").split():
        confined(service)
    stranger = compose("exec", "-T", "redis", "redis-cli", "ping", check=False)
    expect("NOAUTH" in stranger, f"Redis answers without a password: {stranger}")
    outside = compose("exec", "-T", "nginx", "curl", "-sS", "-m", "3", "telnet://redis:6379", check=False)
    expect("resolv" in outside.lower(), f"nginx can reach Redis: {outside}")
    own = compose("exec", "-T", "redis", "sh", "-c", "ls /run/authfleet /run/redis 2>&1; true")
    expect("session-secret" not in own, "Redis's container can read the key that signs cookies")


def missing_secret(_users: list[User]) -> None:
    """If a secret is missing, the server names it and doesn't start."""
    nothing = "SESSION_SECRET_FILE=/run/authfleet/nothing"
    out = compose("run", "--rm", "-T", "--no-deps", "-e", nothing, "replica-1", "serve", check=False)
    expect("SESSION_SECRET_FILE" in out and "/run/authfleet/nothing" in out, f"unclear: {out}")


def sharing(_users: list[User]) -> None:
    """k6 proves that sessions are shared, for each pair of replicas directly and through nginx."""
    out = compose("--profile", "loadtest", "run", "--rm", "-T", "-e", "SHORT=1", "k6", check=False)
    found = re.search(r"(\d+) sessions proved, (\d+) violations, (\d+) obstacles; (\d+) of (\d+) pairs.*", out)
    expect("sharing: passed" in out and found, "\n".join(out.splitlines()[-30:]))
    say(found[0])


def asked_again(count: Count, replica: str) -> float:
    """Waits until nginx passes a request to the replica, and returns the seconds."""
    before = count.served_by[replica]
    return within(15, f"{replica} gets requests again", lambda: count.served_by[replica] > before)


def replica_killed(users: list[User]) -> None:
    """When a replica is killed with kill -9, no session check fails."""
    with Stream(users) as count:
        compose("kill", "-s", "KILL", "replica-2")
        time.sleep(8)
        up("--no-deps", "replica-2")
        back = asked_again(count, "replica-2")
    # Only one client signs in, so at most two requests fail: the one in flight, and the sign-out that follows it.
    judge("replica killed", count, users, f"asked again after {back:.1f} s", sign_ins=CUT_OFF, sign_ins_at_most=2)


def replica_stopped(users: list[User]) -> None:
    """When a replica is stopped and started again, no request fails, because it drains first."""
    with Stream(users) as count:
        compose("stop", "replica-3")
        time.sleep(4)
        up("--no-deps", "replica-3")
        back = asked_again(count, "replica-3")
    judge("replica stopped, started", count, users, f"asked again after {back:.1f} s")


def redis_paused(users: list[User]) -> None:
    """While Redis is frozen for 6 s, answers are 503, never 401 or 200. Afterwards every session is valid again."""
    with Stream(users) as count:
        compose("pause", "redis")
        time.sleep(1.5)
        before = count.checks["200"]
        time.sleep(4.5)
        expect(count.checks["200"] == before, "checks were accepted while Redis was frozen")
        compose("unpause", "redis")
        back = within(10, "a session check succeeds again", lambda: count.checks["200"] > before)
        time.sleep(3)
        failures = sum(count.failed(count.checks).values())
        time.sleep(2)
        expect(sum(count.failed(count.checks).values()) == failures, "checks still fail 3 s after Redis continued")
    expect(count.failed(count.checks), "no check failed while Redis was frozen")
    judge("Redis frozen 6 s", count, users, f"first 200 after {back:.1f} s", checks=DOWN, sign_ins=DOWN)


def redis_killed(users: list[User]) -> None:
    """When Redis is killed with kill -9, it reads every session back from the AOF."""
    with Stream(users) as count:
        compose("kill", "-s", "KILL", "redis")
        time.sleep(3)
        before = count.checks["200"]
        up("--no-deps", "redis")
        back = within(15, "a session check succeeds again", lambda: count.checks["200"] > before)
        time.sleep(3)
    judge("Redis killed, started", count, users, f"first 200 after {back:.1f} s", checks=DOWN, sign_ins=DOWN)


def redis_restarted(users: list[User]) -> None:
    """A clean restart of Redis keeps every session."""
    with Stream(users) as count:
        compose("restart", "redis")
        within(15, "Redis is healthy", lambda: health("redis") == "healthy")
        time.sleep(2)
    judge("Redis restarted", count, users, "", checks=DOWN, sign_ins=DOWN)


def replica_cut_off(users: list[User]) -> None:
    """A replica that can't reach Redis answers 503, and the others serve its clients."""
    network, cut = f"{PROJECT}_store", container("replica-1")

    def directly(cookie: str) -> str:
        # Returns the status. A forged cookie is refused without asking Redis, so it gets a 401 during the outage too.
        return compose(
            *("exec", "-T", "nginx", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"),
            *("-H", f"Cookie: {cookie}", "http://replica-1:3000/profile"),
        )

    with Stream(users) as count:
        run("docker", "network", "disconnect", network, cut)
        within(15, "its health check fails", lambda: health("replica-1") == "unhealthy")
        alone = directly(users[0].cookie)
        expect(alone == "503", f"the replica without Redis answers a check with {alone}")
        nobody = directly("session=forged")
        expect(nobody == "401", f"the replica without Redis answers a forged cookie with {nobody}")
        run("docker", "network", "connect", "--alias", "replica-1", network, cut)
        back = within(15, "its health check succeeds", lambda: health("replica-1") == "healthy")
        alone = directly(users[0].cookie)
        expect(alone == "200", f"reconnected, the replica answers with {alone}")
    # nginx retries session checks on another replica. It never retries a sign-in, so the 503 reaches the client.
    seen = f"it answers 503; ready again after {back:.1f} s"
    judge("replica cut off from Redis", count, users, seen, sign_ins=DOWN, sign_ins_at_most=4)


def rolling_update(users: list[User]) -> None:
    """Two rollouts bring a new cookie key and a new Redis password, without a lost request or session."""
    before = [container(replica) for replica in REPLICAS]
    old_url = "cat /secrets/server/redis-url"
    read = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "sh", "secrets", "-c")
    password = compose(*read, old_url)
    with Stream(users) as count:
        compose("run", "--rm", "-T", "--no-deps", "secrets", "stage")
        run("deploy/compose/redis-cli", "ACL", "LOAD")
        run("deploy/compose/rollout")
        after = [container(replica) for replica in REPLICAS]
        expect(not set(before) & set(after), "not every replica was replaced")
    judge("rolling update", count, users, "3 of 3 replaced, and Redis's password")
    with Stream(users) as count:
        compose("run", "--rm", "-T", "--no-deps", "secrets", "promote")
        run("deploy/compose/rollout")
    judge("rolling update: new cookie key", count, users, "3 of 3 replaced")
    expect(compose(*read, old_url) != password, "Redis's password has not changed")
    again = compose("run", "--rm", "-T", "--no-deps", "secrets", "promote", check=False)
    expect("already promoted" in again, f"promoted twice: {again}")


def backup_restore(users: list[User]) -> None:
    """A backup made while the fleet runs is restored exactly. A damaged backup is refused and changes nothing."""
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory, "users.db")
        with Stream(users) as count:
            run("deploy/compose/backup", "users", str(file))
        judge("backup of users", count, users, f"{file.stat().st_size} bytes")
        expect(file.stat().st_mode & 0o077 == 0, "other users of the machine can read the backup")

        # The restore ends every session and removes a user registered after the backup. The others can sign in.
        late = User.register("late")
        run("deploy/compose/restore", "users", str(file))
        expect(lost(users) == len(users), "sessions outlived the restore of their users")
        answer = late.sign_in()
        expect(answer.status == 401, f"a user registered after the backup: {answer.says()}")
        for user in users:
            answer = user.sign_in()
            expect(answer.status == 200, f"a restored user: {answer.says()}")
        late = User.register("later")
        expect(late.sign_in().status == 200, "a user registered after the restore can't sign in")
        file.write_bytes(b"SQLite format 3\0" + b"?" * 4096)
        with Stream(users) as count:
            out = run("deploy/compose/restore", "users", str(file), check=False)
            expect("not a users' database" in out, f"a damaged backup was accepted: {out[-400:]}")
            expect(late.sign_in().status == 200, "a refused restore has changed something")
        judge("restore of a damaged backup", count, users, "refused")


def restore_refused(users: list[User]) -> None:
    """If Redis refuses to end the sessions, or a backup is truncated, the restore fails and changes nothing."""
    with tempfile.TemporaryDirectory() as directory:
        users_file, sessions_file = pathlib.Path(directory, "users.db"), pathlib.Path(directory, "sessions.rdb")
        run("deploy/compose/backup", "users", str(users_file))
        run("deploy/compose/backup", "sessions", str(sessions_file))
        late = User.register("late")
        # From here on Redis answers every write with NOREPLICAS.
        run("deploy/compose/redis-cli", "CONFIG", "SET", "min-replicas-to-write", "1")
        try:
            answer = fails("deploy/compose/redis-cli", "FLUSHDB")
            expect("NOREPLICAS" in answer, f"Redis did not refuse FLUSHDB: {answer}")
            out = fails("deploy/compose/restore", "users", str(users_file))
        finally:
            run("deploy/compose/redis-cli", "CONFIG", "SET", "min-replicas-to-write", "0")
        expect("NOREPLICAS" in out and "nothing was restored" in out, f"the restore does not say why: {out}")
        expect("are back" not in out, f"the restore claims to have succeeded: {out}")
        expect(late.sign_in().status == 200, "a failed restore removed a user registered after the backup")
        with Stream(users) as count:
            sessions_file.write_bytes(sessions_file.read_bytes()[:-9])
            out = fails("deploy/compose/restore", "sessions", str(sessions_file))
            expect("not a sound RDB file" in out, f"a truncated backup of the sessions was accepted: {out}")
    judge("restore that Redis refuses", count, users, "refused, users and sessions as they were")


def moved(users: list[User]) -> None:
    """Every session moves to another machine (here, another project), and ends there once the old key is retired."""
    with tempfile.TemporaryDirectory() as directory:
        users_file, sessions_file = f"{directory}/users.db", f"{directory}/sessions.rdb"
        compose("stop", "nginx")
        run("deploy/compose/backup", "users", users_file)
        run("deploy/compose/backup", "sessions", sessions_file)
        key = compose("run", "--rm", "-T", "--no-deps", "secrets", "export")
        with another_project():
            compose("run", "--rm", "-T", "--no-deps", "secrets", "import", stdin=key.encode())
            up()
            expect(lost(users) == len(users), "the new fleet knows sessions before they were restored")
            run("deploy/compose/restore", "users", users_file)
            run("deploy/compose/restore", "sessions", sessions_file)
            expect(lost(users) == 0, "sessions were lost in the move")
            answer = dataclasses.replace(users[0]).sign_in()
            expect(answer.status == 200, f"a user who moved: {answer.says()}")

            # As after a leak, all three steps at once. First finish a rotation that the old fleet may have begun.
            rotate = ("run", "--rm", "-T", "--no-deps", "secrets")
            compose(*rotate, "retire", check=False)
            for action in ("stage", "promote", "retire"):
                compose(*rotate, action)
            run("deploy/compose/redis-cli", "ACL", "LOAD")
            up("--no-deps", "--force-recreate", *REPLICAS)

            def refused() -> bool:
                client = Client()
                return all(client.ask("GET", "/profile", cookie=user.cookie).status == 401 for user in users)

            within(20, "cookies of the retired key are refused", refused)
            answer = dataclasses.replace(users[0]).sign_in()
            expect(answer.status == 200, f"sign-in with the new key: {answer.says()}")


def fourth_replica(users: list[User]) -> None:
    """A fourth replica, added as docs/operations.md says, gets requests."""
    upstream = (ROOT / "deploy/nginx/upstream/compose.conf").read_text()
    upstream = re.sub(r"^server replica-3(.*)$", r"\g<0>\nserver replica-4\1", upstream, flags=re.M)
    text = (ROOT / "docs/operations.md").read_text().partition("## A fourth replica")[2]
    override = re.search(r"^```yaml\n(.*?)^```", text, re.M | re.S)[1]
    with tempfile.TemporaryDirectory() as directory:
        pathlib.Path(directory, "upstream.conf").write_text(upstream)
        mount = f'  nginx:\n    volumes: ["{directory}/upstream.conf:/etc/nginx/upstream.conf:ro"]\n'
        pathlib.Path(directory, "override.yml").write_text(override + mount)
        files, os.environ["COMPOSE_FILE"] = os.environ["COMPOSE_FILE"], f"docker-compose.yml:{directory}/override.yml"
        try:
            up("replica-4")
            up("--force-recreate", "--no-deps", "nginx")
            with Stream(users) as count:
                within(15, "replica-4 answers", lambda: count.served_by["replica-4"] > 20)
            judge("a fourth replica", count, users, f"it answered {count.served_by['replica-4']} requests")
            compose("rm", "-sf", "replica-4")
        finally:
            os.environ["COMPOSE_FILE"] = files
            up("--force-recreate", "--no-deps", "nginx")


def disk_full(users: list[User]) -> None:
    """While the users' volume is full, only registrations fail, with 503. They work again once there is room."""
    ballast = ("exec", "-T", "volume-holder", "sh", "-c")
    with Stream(users) as count:
        compose(*ballast, "dd if=/dev/zero of=/data/ballast bs=64k 2>/dev/null; df /data | tail -n 1")
        client, answers = Client(), collections.Counter()
        for n in range(60):
            body = {"email": f"full-{n}@example.com", "password": secrets.token_urlsafe(18)}
            answer = client.ask("POST", "/auth/register", body)
            answers[answer.says()] += 1
            if answer.status == 503:
                expect("Retry-After" in answer.headers, "the 503 has no Retry-After")
            if answers["503 store_unavailable"] >= 9:
                break
            time.sleep(0.15)
        # A registration that fits into the last page may still succeed.
        expect(set(answers) <= {"201", "503 store_unavailable"}, f"registrations: {dict(answers)}")
        expect(answers["503 store_unavailable"] >= 9, f"registrations on a full disk: {dict(answers)}")
        compose(*ballast, "rm /data/ballast")
        back = within(10, "registration works again", registers)
    judge("users' volume full", count, users, f"registrations: {dict(answers)}; 201 after {back:.1f} s")


def get(port: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ[port]), timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def prometheus(path: str) -> dict:
    status, text = get("AUTHFLEET_PROMETHEUS_PORT", f"/api/v1/{path}")
    expect(status == 200, f"Prometheus answers /api/v1/{path} with {status}: {text[:200]}")
    return json.loads(text)["data"]


def observability(users: list[User]) -> None:
    """Profile observability: Prometheus scrapes each replica and evaluates each rule; all spans of a trace arrive."""
    with Stream(users) as count:
        up_profile = ("--profile", "observability", "up", "-d", "--no-build", "--wait", "--wait-timeout", "120")
        compose(*up_profile, "prometheus", "jaeger")
        confined("prometheus")

        def targets() -> dict[str, str]:
            active = prometheus("targets?state=active")["activeTargets"]
            return {t["labels"]["replica"]: t["health"] for t in active if t["scrapePool"] == "authfleet"}

        within(60, "every target is up", lambda: targets() == dict.fromkeys(REPLICAS, "up"))

        def rules() -> list[dict]:
            return [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]

        def evaluated() -> dict[str, str]:
            # Groups with an interval of a minute take too long here. promtool's tests cover them.
            groups = [group for group in prometheus("rules")["groups"] if group["interval"] <= 15]
            return {group["name"]: group["lastEvaluation"] for group in groups}

        # Wait for an evaluation that sees the series of every replica.
        before = evaluated().items()
        within(40, "every rule was evaluated", lambda: not before & evaluated().items())
        bad = {rule["name"]: rule["lastError"] for rule in rules() if rule["health"] == "err"}
        expect(not bad, f"rules fail: {bad}")
        texts = [file.read_text() for file in (ROOT / "deploy/prometheus/rules").glob("*.yml")]
        written = sum(len(re.findall(r"^ +- (?:alert|record):", text, re.M)) for text in texts)
        expect(len(rules()) == written > 0, f"{len(rules())} rules are loaded, {written} are written")
        found = prometheus("query?query=count%20by%20(replica)(authfleet_session_checks_total)")["result"]
        expect({row["metric"]["replica"] for row in found} == set(REPLICAS), f"series by replica: {found}")
        alerts = [rule for rule in rules() if rule["type"] == "alerting"]
        pages = {rule["annotations"]["runbook_url"].partition("#")[0] for rule in alerts}
        expect(pages == {"{{ $externalURL }}/consoles/runbook.html"}, f"alerts lead to {pages}")
        status, page = get("AUTHFLEET_PROMETHEUS_PORT", "/consoles/runbook.html")
        missing = [rule["name"] for rule in alerts if rule["name"] not in page]
        expect(status == 200 and not missing, f"the runbook's page has status {status} and lacks {missing}")

        # A trace that the caller began: a sign-in, then checks until a second replica has answered one.
        trace_id, parent, client = secrets.token_hex(16), secrets.token_hex(8), Client()
        traceparent, user = f"00-{trace_id}-{parent}-01", users[1]
        body = {"email": user.email, "password": user.password}
        answer = client.ask("POST", "/auth/login", body, traceparent=traceparent)
        expect(answer.status == 200, f"sign-in: {answer.says()}")
        cookie, served_by = answer.headers["Set-Cookie"].split(";")[0], {answer.headers["X-Served-By"]}
        while len(served_by) < 2:
            served_by.add(client.ask("GET", "/profile", None, cookie, traceparent).headers["X-Served-By"])

        def spans() -> list[tuple[str, Span]]:
            """The spans of this trace, each with the replica that sent it."""
            everything = TracesData.FromString(base64.b64decode(get("AUTHFLEET_JAEGER_PORT", "/")[1]))
            return [
                (next(a.value.string_value for a in sent.resource.attributes if a.key == "service.instance.id"), span)
                for sent in everything.resource_spans
                for scope in sent.scope_spans
                for span in scope.spans
                if span.trace_id.hex() == trace_id
            ]

        def senders() -> set[str]:
            return {replica for replica, _ in spans()}

        back = within(30, "both replicas' spans arrive", lambda: senders() == served_by)
        names = {span.name for _, span in spans()}
        expect({"POST /auth/login", "GET /profile"} <= names, f"spans: {sorted(names)}")
        known = {parent} | {span.span_id.hex() for _, span in spans()}
        torn = [span.name for _, span in spans() if span.parent_span_id.hex() not in known]
        expect(not torn, f"these spans lack their parent: {torn}")
    seen = f"{written} rules, {len(alerts)} of them alerts; {len(spans())} spans of 2 replicas after {back:.1f} s"
    judge("observability comes up", count, users, seen)


def registers() -> bool:
    body = {"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_urlsafe(18)}
    return Client().ask("POST", "/auth/register", body).status == 201


DRILLS = [
    as_documented,
    image,
    hardened,
    missing_secret,
    sharing,
    replica_killed,
    replica_stopped,
    redis_paused,
    redis_killed,
    redis_restarted,
    replica_cut_off,
    rolling_update,
    fourth_replica,
    backup_restore,
    restore_refused,
    moved,
]
# These need a second fleet with a small users' volume. It sends traces; until the second drill, nobody receives them.
SECOND_DRILLS = [disk_full, observability]
TRACES = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4318"}
FLEETS = [
    ("", ["docker-compose.yml"], {}, DRILLS),
    (" (small disk for users, traces)", ["docker-compose.yml", DISK_FULL, OBSERVABILITY], TRACES, SECOND_DRILLS),
]


# --- Running them --------------------------------------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def another_project():
    """A second fleet. It uses the port of the fleet under test, whose nginx must be stopped."""
    os.environ["COMPOSE_PROJECT_NAME"] = f"{PROJECT}-moved"
    os.environ["AUTHFLEET_SUBNET"] = "10.213.66.0/24"
    # This fleet has no clients that a drain would protect.
    os.environ["DRAIN_DELAY"] = "0s"
    try:
        yield
    finally:
        down()
        rest = left_behind()
        os.environ |= {"COMPOSE_PROJECT_NAME": PROJECT, "AUTHFLEET_SUBNET": SUBNET}
        del os.environ["DRAIN_DELAY"]
        expect(not rest, f"docker compose down -v left {rest}")


def perform(drills: list, results: list[bool]) -> None:
    """Runs the drills on the fleet that is up, with one set of users."""
    users: list[User] = []
    for drill in drills:
        begin = time.monotonic()
        try:
            if not users:
                users = [User.register("drill") for _ in range(SESSIONS)]
            for user in users:
                if not user.cookie or Client().ask("GET", "/profile", cookie=user.cookie).status != 200:
                    answer = user.sign_in()
                    expect(answer.status == 200, f"sign-in before the drill: {answer.says()}")
            drill(users)
        except (Failed, subprocess.TimeoutExpired) as error:
            print(f"FAILED {drill.__name__}: {error}", flush=True)
            results.append(False)
            with contextlib.suppress(Failed, subprocess.TimeoutExpired):
                said = compose("logs", "--since", "60s").splitlines()
                grave = [
                    line for line in said if re.search(r'"level":"(WARN|ERROR)"|"status":5|\[(error|crit)\]', line)
                ]
                say("\n".join(["warnings and errors in the logs:", *grave[-40:]]))
                # Restore the fleet for the next drill.
                compose("unpause", "redis", check=False)
                up()
        else:
            print(f"ok {drill.__name__} ({time.monotonic() - begin:.0f} s): {drill.__doc__}", flush=True)
            results.append(True)


def main() -> int:
    known = {drill.__name__.replace("_", "-"): drill for drill in [*DRILLS, *SECOND_DRILLS]}
    unknown = [name for name in sys.argv[1:] if name not in known]
    if unknown:
        print(f"unknown drills: {' '.join(unknown)}; known: {' '.join(known)}", file=sys.stderr)
        return 2
    wanted = [known[name] for name in sys.argv[1:]] or list(known.values())

    lock = open(__file__)  # noqa: SIM115  held until the end
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("tests/compose: another run is in progress", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(down)
    # Remove what a killed run left behind.
    down()

    results: list[bool] = []
    begin = time.monotonic()
    try:
        print("Building the image", flush=True)
        compose("build", "migrate", timeout=3600)
        say(f"built in {time.monotonic() - begin:.0f} s")
        for which, files, settings, drills in FLEETS:
            chosen = [drill for drill in drills if drill in wanted]
            if not chosen:
                continue
            os.environ |= {"COMPOSE_FILE": ":".join(files), **settings}
            begin = time.monotonic()
            up()
            print(f"docker compose up --wait{which}: ready in {time.monotonic() - begin:.1f} s", flush=True)
            perform(chosen, results)
            down()
            rest = left_behind()
            expect(not rest, f"docker compose down -v left {rest}")
    except (Failed, subprocess.TimeoutExpired) as error:
        print(f"FAILED: {error}", flush=True)
        with contextlib.suppress(Failed, subprocess.TimeoutExpired):
            say("logs:\n" + compose("logs", "--tail", "15"))
        results.append(False)
    if len(ROWS) > 1:
        print(f"\n{table()}\n")
    print(f"{results.count(True)} passed, {results.count(False)} failed", flush=True)
    return 0 if all(results) else 1


if __name__ == "__main__":
    published = ("AUTHFLEET_HTTP_PORT", "AUTHFLEET_GRAFANA_PORT", "AUTHFLEET_PROMETHEUS_PORT", "AUTHFLEET_JAEGER_PORT")
    os.environ |= {name: str(free_port()) for name in published}
    os.environ |= {"COMPOSE_PROJECT_NAME": PROJECT, "COMPOSE_FILE": "docker-compose.yml", "AUTHFLEET_SUBNET": SUBNET}
    PORT = int(os.environ["AUTHFLEET_HTTP_PORT"])
    try:
        code = main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\ntests/compose: interrupted, taking everything down", file=sys.stderr)
        code = 130
    sys.exit(code)
