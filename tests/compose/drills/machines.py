"""Drills on the fleet of deploy/compose/scale-out.yml: it moves there, and then machines are killed or cut off."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import os
import random
import re
import threading
import time

from bundle import confined
from clients import Answer, Client, User, lost
from engine import PROJECT, ROOT, compose, expect, run, say, within

# Another network than that of a fleet with the defaults.
STORE = "10.213.73"
MACHINES = {
    "machine-a": ["nginx", "replica-1", "redis", "sentinel-1", "postgres-2"],
    "machine-b": ["nginx-2", "replica-2", "redis-2", "sentinel-2", "postgres-1"],
    "machine-c": ["replica-3", "redis-3", "sentinel-3"],
}
# Where parts of different machines meet.
BETWEEN = ("fleet", "store")
PORTS = ("AUTHFLEET_HTTP_PORT", "AUTHFLEET_HTTP_PORT_2")
CHECKERS = 4
CHECK_PAUSE, SIGN_IN_PAUSE, REGISTER_PAUSE, ENDED_PAUSE = 0.03, 0.4, 0.5, 0.02
DOWN = ("503 store_unavailable", "503 upstream_unavailable", "503 overloaded")

HEAD = (
    "machine taken away, with, 503: checks, sign-ins, registrations, sessions lost, registrations lost, stale accepts"
)
ROWS: list[tuple[str, ...]] = [(*HEAD.split(", "), "new sessions lost", "seen")]


def documented(heading: str) -> list[str]:
    """The commands in the first block of code under a heading of docs/operations.md, without their comments."""
    text = (ROOT / "docs/operations.md").read_text().partition(f"# {heading}\n")[2]
    block = re.search(r"^```\n(.*?)^```", text, re.M | re.S)[1]
    return [line for line in (re.sub(r"\s+# .*|^# .*", "", line) for line in block.splitlines()) if line]


def perform(*lines: str) -> None:
    """Runs lines of the documentation. `NAME=value` is a line of .env, which the environment replaces here."""
    for line in lines:
        if found := re.fullmatch(r"(\w+)=(\S+)", line):
            os.environ[found[1]] = found[2]
        else:
            run("bash", "-c", line.replace("compose up ", "compose up --no-build ").replace("run --rm", "run -T --rm"))


# --- Which server is the primary --------------------------------------------------------------------------------------


def machine_of(service: str) -> str:
    return next(machine for machine, services in MACHINES.items() if service in services)


def named(service: str) -> str:
    """The name of a service's container. Asking compose for it takes much longer than most questions here."""
    return f"{PROJECT}-{service}-1"


def postgres_primary() -> str:
    return "postgres-1" if os.environ.get("AUTHFLEET_POSTGRES_1", "postgres") == "postgres" else "postgres-2"


def standby_of(primary: str) -> str:
    return "postgres-2" if primary == "postgres-1" else "postgres-1"


def redis_info(service: str) -> dict[str, str]:
    ask = (
        "REDISCLI_AUTH=$(cat /run/redis/operator-password) redis-cli --no-auth-warning --user operator info replication"
    )
    said = run("docker", "exec", named(service), "sh", "-c", ask, check=False)
    return dict(line.strip().split(":", 1) for line in said.splitlines() if ":" in line)


def redis_primary(among: list[str]) -> str | None:
    """The primary that has replicas, among these services."""
    for service in among:
        info = redis_info(service)
        if info.get("role") == "master" and info.get("connected_slaves") != "0":
            return service
    return None


REDIS = ["redis", "redis-2", "redis-3"]


# --- Load -------------------------------------------------------------------------------------------------------------


class TwoDoors:
    """A client of an address that leads to both nginx. If one is gone or finds no replica, the other one is asked."""

    def __init__(self, first: int) -> None:
        self.doors, self.at = [Client(int(os.environ[port]), 10) for port in PORTS], first % 2

    def ask(self, method: str, path: str, body: dict | None = None, cookie: str = "") -> Answer:
        answer = self.doors[self.at].ask(method, path, body, cookie)
        if answer.status and answer.body.get("code") != "upstream_unavailable":
            return answer
        self.at = 1 - self.at
        # A connection that was idle may have been closed.
        self.doors[self.at].connection.close()
        other = self.doors[self.at].ask(method, path, body, cookie)
        if other.status == 0 and answer.status == 0:
            other.error = f"{answer.error}, then {other.error}"
        return other if other.status or not answer.status else answer


@dataclasses.dataclass
class Request:
    begin: float
    end: float
    thread: str
    says: str


@dataclasses.dataclass
class Load:
    """Checks, sign-ins, sign-outs and registrations through both nginx, until the block ends."""

    users: list[User]
    requests: dict[str, list[Request]] = dataclasses.field(default_factory=dict)
    registered: list[User] = dataclasses.field(default_factory=list)
    # Sessions that were signed in and kept, and cookies of sessions whose sign-out was acknowledged.
    kept: list[User] = dataclasses.field(default_factory=list)
    ended: list[str] = dataclasses.field(default_factory=list)
    stale: list[str] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.stop, self.lock = threading.Event(), threading.Lock()
        # Not one of `users`, whose oldest session would end at SESSIONS_PER_USER.
        self.visitor = User.register("visitor")
        works = [self.check] * CHECKERS + [self.sign_in, self.register, self.ask_for_ended]
        self.threads = [
            threading.Thread(target=self.guarded, args=(work, number), daemon=True, name=f"{work.__name__} {number}")
            for number, work in enumerate(works)
        ]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        time.sleep(2)
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)

    def guarded(self, work, number: int) -> None:
        try:
            work(TwoDoors(number))
        except Exception as error:
            self.errors.append(f"{threading.current_thread().name}: {error!r}")

    def timed(self, kind: str, want: int, client: TwoDoors, *request) -> Answer:
        begin = time.monotonic()
        answer = client.ask(*request)
        says = "ok" if answer.status == want else answer.says()
        with self.lock:
            name = threading.current_thread().name
            self.requests.setdefault(kind, []).append(Request(begin, time.monotonic(), name, says))
        return answer

    def check(self, client: TwoDoors) -> None:
        while not self.stop.wait(CHECK_PAUSE):
            user = random.choice(self.users)
            answer = self.timed("checks", 200, client, "GET", "/profile", None, user.cookie)
            if answer.status == 200 and answer.body["session"]["session_id"] != user.session_id:
                self.errors.append("a check was answered about another session")

    def sign_in(self, client: TwoDoors) -> None:
        keep = False
        while not self.stop.wait(SIGN_IN_PAUSE):
            body = {"email": self.visitor.email, "password": self.visitor.password}
            answer = self.timed("sign-ins", 200, client, "POST", "/auth/login", body)
            if answer.status != 200:
                continue
            cookie = answer.headers["Set-Cookie"].split(";")[0]
            keep = not keep
            if keep:
                self.kept.append(dataclasses.replace(self.visitor, cookie=cookie))
            elif self.timed("sign-ins", 200, client, "POST", "/auth/logout", {}, cookie).status == 200:
                self.ended.append(cookie)

    def register(self, client: TwoDoors) -> None:
        while not self.stop.wait(REGISTER_PAUSE):
            user = User.new("machine")
            body = {"email": user.email, "password": user.password}
            if self.timed("registrations", 201, client, "POST", "/auth/register", body).status == 201:
                self.registered.append(user)

    def ask_for_ended(self, client: TwoDoors) -> None:
        while not self.stop.wait(ENDED_PAUSE):
            if self.ended:
                self.asked(random.choice(self.ended[-20:]), client)

    def asked(self, cookie: str, client: TwoDoors | Client) -> None:
        """Asks for a session whose end was acknowledged before."""
        answer = client.ask("GET", "/profile", None, cookie)
        if answer.status == 200:
            self.stale.append(answer.headers.get("X-Served-By", "nobody"))

    def away(self, kind: str) -> float:
        """For how many seconds a client got errors: from a failed request to the end of its next success."""
        spans, begun = [], {}
        for request in sorted(self.requests.get(kind, []), key=lambda request: request.begin):
            if request.says != "ok":
                begun.setdefault(request.thread, request.begin)
            elif request.thread in begun:
                spans.append((begun.pop(request.thread), request.end))
        expect(not begun, f"{kind} still fail at the end: {sorted(begun)}")
        total, until = 0.0, 0.0
        for begin, end in sorted(spans):
            total += max(0.0, end - max(begin, until))
            until = max(until, end)
        return total

    def works(self, kind: str, since: float) -> bool:
        with self.lock:
            return any(request.says == "ok" and request.begin > since for request in self.requests.get(kind, []))

    def strange(self) -> set[str]:
        # A session that was just created may be lost with Redis' primary; its sign-out then gets a 401. So does a
        # sign-out that is repeated because nginx was killed; a registration then gets a 409.
        known = {"ok", *DOWN, "sign-ins: 401 session_invalid", "registrations: 409 email_taken"}
        found = {(kind, request.says) for kind, requests in self.requests.items() for request in requests}
        return {f"{kind}: {says}" for kind, says in found if not known & {says, f"{kind}: {says}"}}


# --- Machines ---------------------------------------------------------------------------------------------------------


def each(act, things: list) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(things)) as pool:
        list(pool.map(act, things))


def attachments(services: list[str]) -> list[tuple[str, str, list[str]]]:
    """Where these parts meet other machines: network, container, and the options that attach it again."""
    found = []
    for service in services:
        name = named(service)
        settings = json.loads(run("docker", "inspect", name))[0]["NetworkSettings"]["Networks"]
        for network in (f"{PROJECT}_{between}" for between in BETWEEN):
            if network in settings:
                options = [
                    f"--alias={alias}"
                    for alias in settings[network]["Aliases"]
                    if alias == service or alias.startswith("postgres")
                ]
                options += (
                    [f"--ip={settings[network]['IPAMConfig']['IPv4Address']}"]
                    if settings[network]["IPAMConfig"]
                    else []
                )
                found.append((network, name, options))
    return found


def give_back_names(service: str) -> None:
    """Docker takes the names of a network that is disconnected out of the container's /etc/hosts, `extra_hosts` too,
    and doesn't put them back. A network that fails doesn't do that. A Sentinel without them waits for Docker's
    resolver and goes into TILT, so the loss of the next machine would find no majority."""
    found = json.loads(run("docker", "inspect", named(service)))[0]
    names = "".join("{1}\t{0}\n".format(*entry.split(":", 1)) for entry in found["HostConfig"]["ExtraHosts"] or [])
    image = run("docker", "inspect", "-f", "{{.Config.Image}}", named("redis")).strip()
    write = ("-v", f"{found['HostsPath']}:/hosts", "--entrypoint", "sh", image, "-c", 'printf %s "$1" >>/hosts', "sh")
    run("docker", "run", "--rm", "--network", "none", "--user", "0", *write, names)


class Isolated(threading.Thread):
    """Asks the replica of a machine that is cut off, as a client on its side of the network can."""

    def __init__(self, load: Load, machine: str) -> None:
        super().__init__(daemon=True)
        replica = next(service for service in MACHINES[machine] if service.startswith("replica-"))
        networks = json.loads(run("docker", "inspect", named(replica)))[0]["NetworkSettings"]["Networks"]
        self.address = networks[f"{PROJECT}_{machine}"]["IPAddress"]
        self.load, self.stop, self.accepted_until, self.asked = load, threading.Event(), 0.0, 0

    def run(self) -> None:
        client, begin = Client(3000, 5, self.address), time.monotonic()
        while not self.stop.wait(0.05):
            if client.ask("GET", "/profile", cookie=self.load.users[0].cookie).status == 200:
                self.accepted_until = time.monotonic() - begin
            for cookie in self.load.ended[-10:]:
                self.load.asked(cookie, client)
                self.asked += 1


@dataclasses.dataclass
class Machine:
    """A machine that is taken away, with what an operator does about it: the documented commands."""

    name: str
    cut: bool

    def __post_init__(self) -> None:
        self.parts = MACHINES[self.name]
        self.database, sessions = postgres_primary(), redis_primary(REDIS)
        expect(sessions, "no Redis server is a primary with replicas")
        self.has_database, self.has_sessions = self.database in self.parts, sessions in self.parts
        self.has_standby = standby_of(self.database) in self.parts
        self.wires = attachments(self.parts)
        self.whole = True

    def holds(self) -> str:
        found = [part for part in self.parts if part.split("-")[0] in ("nginx", "replica")]
        found += ["PostgreSQL's primary"] * self.has_database + ["PostgreSQL's standby"] * self.has_standby
        return ", ".join([*found, "Redis' primary" if self.has_sessions else "a Redis replica"])

    def commands(self, heading: str) -> list[str]:
        lines = documented(f"Compose: {heading}")
        return lines if self.database == "postgres-1" else [exchanged(line) for line in lines]

    def take_away(self) -> None:
        self.whole = False
        if self.cut:
            each(lambda wire: run("docker", "network", "disconnect", wire[0], wire[1]), self.wires)
            each(give_back_names, self.parts)
        else:
            run("docker", "kill", *map(named, self.parts))

    def do_without(self) -> None:
        """Until everything works on the other machines."""
        fence, *promote = self.commands("PostgreSQL's primary is lost")
        if self.has_database:
            # A server that is out of reach can't be told to stop.
            perform(*promote) if self.cut else perform(fence, *promote)
        elif self.has_standby:
            perform(*self.commands("PostgreSQL's standby is lost"))

    def bring_back(self) -> None:
        """PostgreSQL's old primary comes back last, as a standby."""
        if self.cut:
            if self.has_database:
                perform(self.commands("PostgreSQL's primary is lost")[0])
            wires = [wire for wire in self.wires if not self.has_database or wire[1] != named(self.database)]
            each(lambda wire: run("docker", "network", "connect", *wire[2], wire[0], wire[1]), wires)
        else:
            run("docker", "start", *(named(part) for part in self.parts if part != self.database))
        if self.has_database:
            perform(*self.commands("the old primary comes back"))
        elif self.has_standby:
            perform(*self.commands("the standby comes back"))
        within(90, "every part is healthy", healthy)
        within(90, "two replicas follow Redis' primary", sessions_are_whole)
        self.whole = True

    def repair(self) -> None:
        """After a drill that failed: as far as possible, the machine is there for the next one."""
        for network, name, options in [] if self.whole else self.wires:
            run("docker", "network", "connect", *options, network, name, check=False)
        if not self.whole:
            run("docker", "start", *map(named, self.parts), check=False)


def taken_away(users: list[User], name: str, *, cut: bool) -> None:
    """Takes a machine away under load, does without it, and brings it back."""
    machine, seen = Machine(name, cut), []
    try:
        with Load(users) as load:
            isolated = Isolated(load, name) if cut else None
            begin = time.monotonic()
            machine.take_away()
            if isolated:
                isolated.start()
            machine.do_without()
            if machine.has_database:
                seen.append(f"promoted after {time.monotonic() - begin:.1f} s")
            now = time.monotonic()
            for kind in ("checks", "sign-ins", "registrations"):
                within(120, f"{kind} work without {name}", lambda kind=kind: load.works(kind, now))
            if isolated:
                # Long enough for sessions to end elsewhere that the isolated side still knows.
                time.sleep(4)
                isolated.stop.set()
                isolated.join(20)
                expect(isolated.asked > 0, "nobody asked the isolated replica for ended sessions")
                seen.append(f"its own side accepted sessions for {isolated.accepted_until:.1f} s")
            machine.bring_back()
            time.sleep(2)
    finally:
        machine.repair()
    judge(f"{name} {'cut off' if cut else 'killed'}", machine.holds(), load, "; ".join(seen))


def healthy() -> bool:
    names = [named(part) for parts in MACHINES.values() for part in parts]
    return set(run("docker", "inspect", "-f", "{{.State.Health.Status}}", *names).split()) == {"healthy"}


def exchanged(line: str) -> str:
    """The same command with the PostgreSQL servers exchanged."""
    return re.sub(r"(postgres[-_]|POSTGRES_)([12])", lambda m: m[1] + ("2" if m[2] == "1" else "1"), line)


def sessions_are_whole() -> bool:
    primary = redis_primary(REDIS)
    return primary is not None and redis_info(primary).get("connected_slaves") == "2"


def judge(name: str, parts: str, load: Load, seen: str) -> None:
    """Adds a row to the table. Fails if something was lost, a stale session was accepted, or an answer was strange."""
    for kind, requests in load.requests.items():
        failed = collections.Counter(request.says for request in requests if request.says != "ok")
        say(f"{name}: {len(requests)} {kind}, failed: {dict(failed) or 'none'}")
    gone, client = lost(load.users), TwoDoors(0)
    asked = ", ".join(f"('{user.email}')" for user in load.registered)
    missing = f"SELECT email FROM (VALUES {asked}) AS acknowledged(email) WHERE email NOT IN (SELECT email FROM users)"
    command = ("psql", "-AtXd", "authfleet", "-c", missing)
    unknown = run("docker", "exec", named(postgres_primary()), *command).split()
    new = sum(client.ask("GET", "/profile", None, user.cookie).status != 200 for user in load.kept)
    ROWS.append(
        (
            *(name, parts),
            *(f"{load.away(kind):.1f} s" for kind in ("checks", "sign-ins", "registrations")),
            f"{gone} of {len(load.users)}",
            f"{len(unknown)} of {len(load.registered)}",
            f"{len(load.stale)}",
            f"{new} of {len(load.kept)}",
            seen,
        )
    )
    expect(not load.errors, f"errors: {load.errors[:3]}")
    expect(len(load.requests["checks"]) > 100 and load.registered and load.ended, "there was too little load")
    expect(not load.strange(), f"answers that no loss explains: {load.strange()}")
    expect(gone == 0, f"{gone} sessions were lost")
    answer = load.registered[-1].sign_in()
    expect(answer.status == 200, f"the user who registered last: {answer.says()}")
    expect(not unknown, f"acknowledged registrations were lost: {unknown[:3]}")
    expect(not load.stale, f"ended sessions were accepted by {load.stale[:5]}")


# --- The drills -------------------------------------------------------------------------------------------------------


def grown(users: list[User]) -> None:
    """A fleet on one machine becomes one on three. Everybody stays signed in, and can sign in again."""
    begin = time.monotonic()
    perform(*documented("The move, with compose"))
    taken = time.monotonic() - begin
    expect(lost(users) == 0, "sessions were lost in the move")
    for user in users:
        answer = dataclasses.replace(user).sign_in()
        expect(answer.status == 200, f"a user who moved: {answer.says()}")
    within(60, "two replicas follow Redis' primary", sessions_are_whole)
    ROWS.append(
        ("(the move to three machines)", "", "", "", "", f"0 of {len(users)}", "", "", "", f"took {taken:.0f} s")
    )


def nothing_shared(_users: list[User]) -> None:
    """The replicas share no volume. Every container is confined, and only the two nginx are published."""
    for service in compose("ps", "--services").split():
        confined(service)
    mounts = [
        {mount["Name"] for mount in json.loads(run("docker", "inspect", named(replica)))[0]["Mounts"]}
        for replica in ("replica-1", "replica-2", "replica-3")
    ]
    expect(all(mounts) and len(set.union(*mounts)) == sum(map(len, mounts)), f"volumes: {mounts}")


def redis_machine_killed(users: list[User]) -> None:
    """The machine of Redis' primary is killed: nothing acknowledged is lost, nothing ended is accepted."""
    taken_away(users, machine_of(redis_primary(REDIS)), cut=False)


def postgres_machine_killed(users: list[User]) -> None:
    """The machine of PostgreSQL's primary is killed: nothing acknowledged is lost, nothing ended is accepted."""
    taken_away(users, machine_of(postgres_primary()), cut=False)


def redis_machine_cut_off(users: list[User]) -> None:
    """The machine of Redis' primary is cut off. Its own side refuses sessions before another primary accepts them."""
    taken_away(users, machine_of(redis_primary(REDIS)), cut=True)


def postgres_machine_cut_off(users: list[User]) -> None:
    """The machine of PostgreSQL's primary is cut off: the isolated primary acknowledges nothing more."""
    taken_away(users, machine_of(postgres_primary()), cut=True)


def other_machine() -> str:
    """A machine without a primary."""
    primaries = {machine_of(redis_primary(REDIS)), machine_of(postgres_primary())}
    return next(machine for machine in reversed(MACHINES) if machine not in primaries)


def other_machine_killed(users: list[User]) -> None:
    """A machine without a primary is killed."""
    taken_away(users, other_machine(), cut=False)


def other_machine_cut_off(users: list[User]) -> None:
    """A machine without a primary is cut off."""
    taken_away(users, other_machine(), cut=True)


DRILLS = [
    grown,
    nothing_shared,
    redis_machine_killed,
    postgres_machine_killed,
    redis_machine_cut_off,
    postgres_machine_cut_off,
    other_machine_killed,
    other_machine_cut_off,
]
