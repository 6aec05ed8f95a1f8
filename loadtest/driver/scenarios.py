"""The scenarios: faults during the load, and thresholds that k6 can't express."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from . import k6, oha
from .targets import Target

# While logins flood the fleet, the p99 of checks may be this many times as high.
STORM_RATIO = 2.0
# Seconds after Redis's return within which the fleet must answer again: the contract's two, and one for rounding.
RECOVERY = 3.0


@dataclass
class Threshold:
    """A condition, the value found, and whether the condition is met."""

    name: str
    found: object
    ok: bool


@dataclass
class Outcome:
    """Everything that the report shows about one scenario."""

    scenario: str
    seconds: float
    thresholds: list[Threshold]
    interrupted: bool = False
    summary: dict[str, object] = field(default_factory=dict)
    series: list[dict[str, object]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    extra: dict[str, object] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.interrupted and bool(self.thresholds) and all(t.ok for t in self.thresholds)


class Chaos(threading.Thread):
    """Runs a fault in the fleet once the load has begun. Records the times of events, and whether it finished."""

    def __init__(self, act: Callable[[Chaos], None], recording: k6.Recording) -> None:
        super().__init__(daemon=True)
        self.act, self.recording = act, recording
        self.events: list[tuple[float, str]] = []
        self.error: str | None = None
        self.done = False
        self.cancelled = threading.Event()

    def run(self) -> None:
        while not self.recording.began.wait(0.2):
            if self.cancelled.is_set():
                return
        try:
            self.pause(2)
            self.act(self)
            self.done = True
        except Cancelled:
            pass
        except Exception as error:
            self.error = str(error)

    def say(self, text: str) -> None:
        self.events.append((time.time(), text))

    def pause(self, seconds: float) -> None:
        if self.cancelled.wait(seconds):
            raise Cancelled


class Cancelled(Exception):
    """The run ended before the fault did."""


def restart_all(target: Target, short: bool) -> Callable[[Chaos], None]:
    def act(chaos: Chaos) -> None:
        for number in range(len(target.replicas)):
            chaos.say(f"restart {number + 1}")
            target.restart(number)
            chaos.say(f"{number + 1} ready")
            chaos.pause(1 if short else 4)

    return act


def kill_some(target: Target, short: bool) -> Callable[[Chaos], None]:
    def act(chaos: Chaos) -> None:
        numbers = range(len(target.replicas))
        for number in list(numbers)[: 2 if short else None]:
            chaos.say(f"kill {number + 1}")
            target.kill(number)
            try:
                chaos.pause(2)
            finally:
                # Leave the fleet as it was found.
                target.start(number)
            chaos.say(f"{number + 1} ready")
            # nginx uses the replica again only after its fail_timeout.
            chaos.pause(2 if short else 6)

    return act


def redis_away(target: Target, short: bool) -> Callable[[Chaos], None]:
    def act(chaos: Chaos) -> None:
        chaos.say("kill Redis")
        target.kill_redis()
        try:
            chaos.pause(3 if short else 6)
        finally:
            target.start_redis()
        chaos.say("Redis ready")

    return act


STORES = ("Redis", "PostgreSQL")


def fail_over(target: Target, short: bool) -> Callable[[Chaos], None]:
    def act(chaos: Chaos) -> None:
        # PostgreSQL twice, so that the same server is its primary afterwards: only one is started under that name.
        for store in (*STORES, STORES[-1]):
            chaos.say(f"kill {store}'s primary")
            target.kill_primary(store)
            target.replace_primary(store)
            chaos.say(f"{store} has another primary")
            try:
                chaos.pause(3 if short else 5)
            finally:
                target.bring_back(store)
            chaos.say(f"{store} is whole")
            chaos.pause(3 if short else 5)

    return act


@dataclass(frozen=True)
class Scenario:
    """A k6 script (or oha), what it shows, and what it needs of the target."""

    name: str
    shows: str
    needs: frozenset[str] = frozenset()
    chaos: Callable[[Target, bool], Callable[[Chaos], None]] | None = None
    # Time limit in seconds, to which --duration is added.
    bound: float = 400
    # The script in loadtest/k6, if it has another name: steady.js takes the scenario's name as its profile.
    script: str = ""
    # Whether k6 goes before other processes, because what is compared is latency.
    ahead: bool = False


SCENARIOS = {
    s.name: s
    for s in (
        Scenario(
            "sharing",
            "proof of sharing: log in on i, check on j, log out on k, refused by all",
            frozenset({"replicas"}),
            bound=900,
        ),
        Scenario("smoke", "each API call once, with valid and invalid input"),
        Scenario("average", "an ordinary load: checks at a constant rate, some visits", script="steady"),
        Scenario("stress", "up to eight times the rate in steps: its limit, and how it refuses requests"),
        Scenario("spike", "up to eight times the rate within two seconds, and back"),
        Scenario("login-storm", "latency of session checks while logins flood the fleet", ahead=True),
        Scenario(
            "rolling-restart",
            "replicas restarted one by one under load: no failed request",
            frozenset({"restart"}),
            restart_all,
            500,
            "steady",
        ),
        Scenario(
            "replica-kill", "replicas killed under load: no failed check", frozenset({"kill", "edge"}), kill_some, 500
        ),
        Scenario(
            "redis-restart",
            "Redis killed and restarted: 503 only during the outage, sessions kept",
            frozenset({"redis"}),
            redis_away,
            500,
        ),
        Scenario(
            "failover",
            "the primaries of Redis and PostgreSQL killed: 503 only until others have replaced them",
            frozenset({"failover"}),
            fail_over,
            600,
        ),
        Scenario("throughput", "oha, closed loop: one replica, the fleet through nginx, /livez as the floor"),
        Scenario("soak", "the average load for half an hour", bound=2400, script="steady"),
    )
}


def missing(scenario: Scenario, target: Target) -> str | None:
    """Why the scenario can't run on this target. None if it can."""
    if target.via and scenario.name != "sharing":
        return "doesn't go through a proxy: only sharing takes --via"
    if "replicas" in scenario.needs and len(target.replicas) < 2:
        return "needs the URLs of at least two replicas"
    if "edge" in scenario.needs and not target.edge:
        return "needs --edge, the URL of the balancer"
    if "failover" in scenario.needs - target.can():
        return "needs stores that fail over: --target compose-scale-out"
    if scenario.needs & {"restart", "kill", "redis"} and not scenario.needs & target.can():
        return "needs --hook, a command that restarts and kills parts of this fleet"
    return None


def run(
    scenario: Scenario, target: Target, env: dict[str, str], short: bool, tick: Callable[[k6.Recording], None]
) -> Outcome:
    """Runs one scenario on the target."""
    if scenario.name == "throughput":
        return throughput(target, short)
    env = {**env, "EDGE": target.edge or "", "TARGETS": ",".join(target.replicas)}
    if scenario.chaos and not target.stable and target.edge:
        env["TARGETS"] = ""
    if short:
        env["SHORT"] = "1"
    script = scenario.script or scenario.name
    if scenario.script:
        env["PROFILE"] = scenario.name
    if target.via:
        script = "applications"
        env |= {"VIA": target.via, "PROXIES": ",".join(map(str, target.proxy_ports))}
    recording = k6.Recording()
    chaos = Chaos(scenario.chaos(target, short), recording) if scenario.chaos else None
    if chaos:
        chaos.start()
    bound = scenario.bound + seconds(env.get("DURATION", "0s"))
    try:
        done = k6.run(script, env, bound, tick, recording, scenario.ahead)
    finally:
        if chaos:
            chaos.cancelled.set()
            chaos.join(150)

    thresholds = list(from_k6(done))
    if chaos:
        thresholds.append(Threshold("all faults happened under load", chaos.error or chaos.done, chaos.done))
    extra = dict(done.summary.get("extra", {}))
    if scenario.name == "login-storm" and extra:
        extra["ahead"] = done.ahead
        ratio = extra.get("ratio")
        thresholds.append(
            Threshold(
                f"p99 of checks under the flood at most {STORM_RATIO:g}-fold",
                ratio and round(ratio, 2),
                bool(ratio) and ratio <= STORM_RATIO,
            )
        )
    if scenario.name == "redis-restart" and chaos:
        thresholds += while_gone(chaos, recording)
    if scenario.name == "failover" and chaos:
        thresholds += while_replaced(chaos, recording)
    if scenario.name == "sharing" and (shared := target.shared_volumes()) is not None:
        thresholds.append(Threshold("volumes that replicas share", ", ".join(sorted(shared)) or 0, not shared))
    begin = recording.start()
    return Outcome(
        scenario.name,
        round(done.seconds, 1),
        thresholds,
        done.interrupted,
        {
            name: metric.get("values", {})
            for name, metric in done.summary.get("metrics", {}).items()
            if "{" not in name or "phase" in name
        },
        recording.series(),
        [(round(at - begin, 2), text) for at, text in (chaos.events if chaos else [])],
        done.log,
        extra,
    )


def from_k6(done: k6.Run) -> Iterator[Threshold]:
    """k6's thresholds, except those that only make k6 report the values of a tag separately."""
    if done.code not in (0, 99, k6.INTERRUPTED) or not done.summary:
        yield Threshold("k6 ran to its end", f"exit code {done.code}; {'; '.join(done.log[-3:])}", False)
        return
    grouped: dict[str, list[bool]] = {}
    for name, metric in sorted(done.summary["metrics"].items()):
        values = metric.get("values", {})
        for condition, verdict in metric.get("thresholds", {}).items():
            if condition in ("count>=0", "p(99)>=0"):
                continue
            if "{" in name and verdict["ok"]:
                # All pairs or triples that are met share one line.
                grouped.setdefault(
                    f"{name.split('{')[0]} by {name.split('{')[1].split(':')[0]}: {condition}", []
                ).append(True)
                continue
            found = values.get("count", values.get("rate", values.get("p(99)")))
            yield Threshold(f"{name}: {condition}", found, verdict["ok"])
    for name, oks in grouped.items():
        yield Threshold(name, f"{len(oks)} of {len(oks)}", True)


def while_gone(chaos: Chaos, recording: k6.Recording) -> Iterator[Threshold]:
    """Answers are 503 while Redis is down, and only then."""
    when = dict((text, at) for at, text in chaos.events)
    begin, back = when.get("kill Redis"), when.get("Redis ready")
    if begin is None or back is None:
        return
    refused = [at for at, outcome, _ in recording.troubles if outcome == "unavailable"]
    outside = [at for at in refused if not begin - 0.1 <= at <= back + RECOVERY]
    yield Threshold("503 while Redis was down", len(refused), bool(refused))
    yield Threshold(f"503 before or {RECOVERY:g} s after", len(outside), not outside)


def while_replaced(chaos: Chaos, recording: k6.Recording) -> Iterator[Threshold]:
    """Answers are 503 while a primary is being replaced, and only then. Session checks don't need PostgreSQL."""
    spans: dict[str, list[tuple[float, float]]] = {store: [] for store in STORES}
    for (begin, text), (end, _) in zip(chaos.events, chaos.events[1:]):
        for store in STORES:
            if text == f"kill {store}'s primary":
                spans[store].append((begin - 0.1, end + RECOVERY))
    refused = [(at, op) for at, outcome, op in recording.troubles if outcome == "unavailable"]

    def within(at: float, stores: tuple[str, ...]) -> bool:
        return any(begin <= at <= end for store in stores for begin, end in spans[store])

    for store in STORES:
        found = sum(within(at, (store,)) for at, _ in refused)
        yield Threshold(f"503 while {store}'s primary was replaced", found, found > 0)
    outside = sum(not within(at, STORES) for at, _ in refused)
    yield Threshold(f"503 before or {RECOVERY:g} s after", outside, outside == 0)
    checks = sum(op == "check" and within(at, ("PostgreSQL",)) and not within(at, ("Redis",)) for at, op in refused)
    yield Threshold("session checks that failed for lack of PostgreSQL", checks, checks == 0)


def seconds(text: str) -> float:
    return float(text[:-1] or 0) * {"s": 1, "m": 60, "h": 3600}.get(text[-1], 0) if text else 0


def throughput(target: Target, short: bool) -> Outcome:
    began = time.monotonic()
    rows, log, interrupted = oha.run(target, 3 if short else 10)
    thresholds = [
        Threshold(f"{row['what']}: answers other than 200", row["others"], row["others"] == 0 and row["requests"] > 0)
        for row in rows
    ]
    return Outcome(
        "throughput", round(time.monotonic() - began, 1), thresholds, interrupted, log=log, extra={"oha": rows}
    )
