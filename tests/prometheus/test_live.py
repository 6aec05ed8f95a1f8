"""Checks the alerts on a real fleet that a real Prometheus scrapes, first healthy, then with one fault after another.
The tests run in the order of this file, and each leaves the fleet as it found it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from rules import ALERTS, PROMETHEUS, RECORDED, ROOT, RULE_FILES, RULES, RUNBOOK, with_files

sys.path.insert(0, str(ROOT / "tools" / "local"))
import fleet as fleets

REPLICAS = ["replica-1", "replica-2", "replica-3"]
# Prometheus scrapes and evaluates every two seconds here; this leaves room for a busy machine.
SOON = 60.0
# For groups of rules that are evaluated once a minute.
A_MINUTE_AND_MORE = 100.0


class Prometheus:
    """A client of Prometheus's HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return answer.read().decode()

    def api(self, path: str, **query: str) -> dict:
        try:
            return json.loads(self.get(f"/api/v1/{path}", **query))["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {query}: {error.read().decode()}") from None

    def query(self, expr: str) -> list[dict]:
        return self.api("query", query=expr)["result"]

    def value(self, expr: str) -> float | None:
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def alerts(self, state: str) -> dict[str, dict]:
        """Maps the name of each alert in this state to the alert."""
        return {
            alert["labels"]["alertname"]: alert for alert in self.api("alerts")["alerts"] if alert["state"] == state
        }


def wait(what: str, truth: Callable[[], object], timeout: float = SOON) -> object:
    deadline = time.monotonic() + timeout
    while not (found := truth()):
        assert time.monotonic() < deadline, f"not after {timeout:.0f} s: {what}"
        time.sleep(0.5)
    return found


@contextlib.contextmanager
def running(directory: Path, **env: str) -> Iterator[fleets.Fleet]:
    """A fleet with Prometheus. If a test fails, its logs are shown."""
    up = fleets.up(directory, auto_ports=True, prometheus=True, env={"RUST_LOG": "warn", **env})
    try:
        yield up
    except BaseException:
        for name in up.parts:
            print(f"the end of {up.log(name)}:\n{fleets.tail(up.log(name))}", file=sys.stderr)
        raise
    finally:
        fleets.down(up)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[fleets.Fleet]:
    with running(tmp_path_factory.mktemp("fleet")) as up:
        yield up


@pytest.fixture(scope="module")
def prometheus(fleet) -> Prometheus:
    return Prometheus(fleet.prometheus_url)


class Client:
    """Acts like a browser. Opens a connection per call, because nginx closes idle ones during the waits."""

    def __init__(self, fleet: fleets.Fleet) -> None:
        self.port = fleet.http_port
        self.cookie = ""

    def call(self, method: str, path: str, body: dict | None = None) -> int:
        headers = {"Cookie": self.cookie} if self.cookie else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        with contextlib.closing(http.client.HTTPConnection(fleets.HOST, self.port, timeout=10)) as connection:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            answer.read()
        if (cookie := answer.getheader("Set-Cookie", "")).startswith("session="):
            self.cookie = cookie.split(";")[0]
        return answer.status


def traffic(fleet: fleets.Fleet, name: str, seconds: float) -> None:
    """A user who registers, signs in, looks at the profile again and again, and signs out."""
    account = {"email": f"{name}@example.org", "password": "correct horse battery"}
    client = Client(fleet)
    assert client.call("POST", "/auth/register", account) == 201
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert client.call("POST", "/auth/login", account) == 200
        for _ in range(100):
            assert client.call("GET", "/profile") == 200
            time.sleep(0.005)
        assert client.call("POST", "/auth/logout") == 200
        assert client.call("GET", "/profile") == 401


def test_live_every_replica_is_scraped_under_its_own_name(fleet, prometheus):
    def targets() -> dict[str, str]:
        found = prometheus.api("targets", state="active")["activeTargets"]
        return {target["labels"]["replica"]: target["health"] for target in found}

    wait("all targets are up", lambda: targets() == dict.fromkeys(REPLICAS, "up"))
    # The server's own name (label replica) must be the name of the target.
    ports = {f"{fleets.HOST}:{port}": name for name, port in zip(REPLICAS, fleet.ops_ports)}
    wait("each replica has a series", lambda: len(prometheus.query("authfleet_build_info")) == 3)
    for expr in ("up", "authfleet_build_info", "process_start_time_seconds"):
        for series in prometheus.query(f'{expr}{{job="authfleet"}}'):
            assert series["metric"]["replica"] == ports[series["metric"]["instance"]], series
    assert prometheus.query('{exported_replica!=""}') == []


def test_live_metrics_are_as_prometheus_wants_them(fleet):
    for name in REPLICAS:
        with urllib.request.urlopen(f"{fleet.ops_url(name)}/metrics", timeout=5) as answer:
            text = answer.read()
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), name


def test_live_a_healthy_fleet_raises_no_alert(fleet, prometheus):
    traffic(fleet, "ada", 20)

    def unhealthy() -> list[tuple[str, str]]:
        rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
        assert len(rules) == len(RULES)
        return [(rule["name"], rule.get("lastError", "")) for rule in rules if rule["health"] != "ok"]

    wait("every rule was evaluated without an error", lambda: not unhealthy(), A_MINUTE_AND_MORE)
    assert prometheus.api("alerts")["alerts"] == []
    # No alert has fired at any time since the start, either.
    assert prometheus.query('max_over_time(ALERTS{alertstate="firing"}[10m])') == []


def test_live_every_recorded_figure_has_a_value(prometheus):
    absent = set(RECORDED)

    def all_there() -> bool:
        absent.difference_update([name for name in absent if prometheus.query(name)])
        return not absent

    # Some are recorded once a minute.
    wait(f"values of {absent}", all_there, A_MINUTE_AND_MORE)
    assert prometheus.value("job:authfleet_replicas_ready:sum") == 3
    assert prometheus.value("job:authfleet_replicas_expected:count") == 3
    objectives = {series["metric"]["slo"] for series in prometheus.query("slo:authfleet_objective:ratio")}
    burning = {series["metric"]["slo"] for series in prometheus.query("job_slo:authfleet_burn_rate:ratio_rate5m")}
    assert burning == objectives and len(objectives) == 4
    assert prometheus.value('job_slo:authfleet_burn_rate:ratio_rate5m{slo="availability"}') == 0
    print(f"\n{len(RECORDED)} recorded figures have values", end="")


def test_live_the_runbook_is_served_and_its_expressions_work(prometheus):
    page = prometheus.get("/consoles/runbook.html")
    links = [rule["annotations"]["runbook_url"].replace("{{ $externalURL }}", "") for rule in ALERTS.values()]
    for link in links:
        path, anchor = link.split("#")
        assert path == "/consoles/runbook.html" and f'<h2 id="{anchor}">' in page
    # The page is a template of Prometheus. Braces of other templates must appear unchanged.
    assert "'{{.State.ExitCode}}" in page
    fences = [RUNBOOK.read_text(), (ROOT / "docs" / "slo.md").read_text()]
    expressions = [expr for text in fences for expr in re.findall(r"```promql\n(.*?)```", text, re.DOTALL)]
    for expr in expressions:
        prometheus.query(expr)
    print(f"\n{len(links)} links lead into the runbook, {len(expressions)} expressions are valid", end="")


def shortened(fleet: fleets.Fleet) -> None:
    """Loads the same rules with `for` shortened to a second."""
    rules = fleet.path / "prometheus" / "rules"
    rules.unlink()
    rules.mkdir()
    for file in RULE_FILES:
        parsed = yaml.safe_load(file.read_text())
        for group in parsed["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "1s"
        (rules / file.name).write_text(yaml.safe_dump(parsed, sort_keys=False))
    fleets.send(fleet, "prometheus", fleets.signal.SIGHUP)


def fires(prometheus: Prometheus, *names: str) -> dict[str, dict]:
    """Waits until all of these fire."""
    return wait(
        f"{', '.join(names)} fire", lambda: (found := prometheus.alerts("firing")).keys() >= set(names) and found
    )


def test_live_a_killed_replica_is_noticed(fleet, prometheus):
    fleets.stop(fleet, "replica-3", fleets.signal.SIGKILL)
    pending = wait("AuthfleetReplicaDown is pending", lambda: prometheus.alerts("pending").get("AuthfleetReplicaDown"))
    assert pending["labels"]["replica"] == "replica-3"
    wait("two of three are ready", lambda: prometheus.value("job:authfleet_replicas_ready:sum") == 2)
    # The shipped rule waits for five minutes. From here on alerts wait for a second.
    shortened(fleet)
    firing = fires(prometheus, "AuthfleetReplicaDown")
    assert set(firing) == {"AuthfleetReplicaDown"}
    notes = firing["AuthfleetReplicaDown"]["annotations"]
    assert notes["description"].startswith(f"replica-3 ({fleets.HOST}:{fleet.ops_ports[2]}) ")
    assert notes["runbook_url"] == f"{prometheus.url}/consoles/runbook.html#authfleetreplicadown"
    fleets.start(fleet, "replica-3")
    wait("nothing fires any more", lambda: not prometheus.alerts("firing"))


def test_live_a_restart_of_each_replica_in_turn_is_no_alert(fleet, prometheus):
    begin = time.time()
    for name in REPLICAS:
        fleets.stop(fleet, name)
        fleets.start(fleet, name)
        # Wait as deploy/compose/rollout does, until nginx uses the replica again.
        time.sleep(6)
    # With a `for` of one second these two may fire between two scrapes. Alerts about the whole fleet must not.
    seconds = int(time.time() - begin) + 5
    fired = prometheus.query(f'max_over_time(ALERTS{{alertstate="firing"}}[{seconds}s])')
    assert {series["metric"]["alertname"] for series in fired} <= {"AuthfleetReplicaDown", "AuthfleetReplicaNotReady"}
    wait("nothing fires any more", lambda: not prometheus.alerts("firing"))


def test_live_redis_that_is_gone_is_noticed_and_named(fleet, prometheus):
    fleets.stop(fleet, "redis", fleets.signal.SIGKILL)
    wait("readiness fails", lambda: prometheus.value("job:authfleet_replicas_ready:sum") == 0)
    firing = fires(prometheus, "AuthfleetRedisDown", "AuthfleetNoReplicaReady", "AuthfleetReplicaNotReady")
    assert firing["AuthfleetRedisDown"]["labels"]["severity"] == "critical"
    # Missing figures of a Redis that is down must not cause further alerts.
    allowed = {"AuthfleetRedisDown", "AuthfleetNoReplicaReady", "AuthfleetReplicaNotReady", "AuthfleetRedisErrors"}
    assert set(firing) <= allowed
    fleets.start(fleet, "redis")
    wait("Redis is back", lambda: "AuthfleetRedisDown" not in prometheus.alerts("firing"))
    wait("all are ready", lambda: prometheus.value("job:authfleet_replicas_ready:sum") == 3)


def test_live_failing_requests_burn_the_budget(fleet, prometheus):
    account = {"email": "grace@example.org", "password": "correct horse battery"}
    client = Client(fleet)
    assert client.call("POST", "/auth/register", account) == 201
    assert client.call("POST", "/auth/login", account) == 200
    fleets.stop(fleet, "redis", fleets.signal.SIGKILL)
    # Few requests, so that no other budget burns. Every replica that nginx asks counts each of them.
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert client.call("GET", "/profile") == 503
        time.sleep(0.1)
    firing = fires(prometheus, "AuthfleetAvailabilityBurn")
    assert firing["AuthfleetAvailabilityBurn"]["labels"]["slo"] == "availability"
    fleets.start(fleet, "redis")
    assert wait("checks succeed again", lambda: client.call("GET", "/profile") == 200)


def test_live_a_replica_with_another_secret_is_noticed(fleet, prometheus):
    own = fleet.path / "another-secret"
    own.write_text("another-" * 8 + "\n")
    fleets.stop(fleet, "replica-2")
    fleets.start(dataclasses.replace(fleet, env={**fleet.env, "SESSION_SECRET_FILE": str(own)}), "replica-2")
    fires(prometheus, "AuthfleetConfigDrift")
    # The query that the runbook gives for this alert.
    shown = prometheus.query("count by (fingerprint, replica) (authfleet_config_info)")
    prints = {series["metric"]["replica"]: series["metric"]["fingerprint"] for series in shown}
    assert prints["replica-1"] == prints["replica-3"] != prints["replica-2"]
    fleets.stop(fleet, "replica-2")
    fleets.start(fleet, "replica-2")
    wait("they agree again", lambda: "AuthfleetConfigDrift" not in prometheus.alerts("firing"))


def test_live_without_targets_the_absence_is_noticed(fleet, prometheus):
    targets = fleet.path / "prometheus" / "targets.json"
    kept = targets.read_text()
    targets.write_text("[]\n")
    firing = fires(prometheus, "AuthfleetAbsent")
    assert firing["AuthfleetAbsent"]["labels"] == {"alertname": "AuthfleetAbsent", "severity": "critical"}
    targets.write_text(kept)
    wait("they are scraped again", lambda: "AuthfleetAbsent" not in prometheus.alerts("firing"))


def test_live_in_kubernetes_the_ops_ports_of_running_replicas_are_scraped_and_nothing_else(fleet, tmp_path):
    """Uses kubernetes.yml with one change: the labels that the cluster's discovery would give come from a file."""

    def pod(name: str, port: str, address: str, component: str = "server", phase: str = "Running") -> dict:
        return {
            "targets": [address],
            "labels": {
                "__meta_kubernetes_namespace": "authfleet",
                "__meta_kubernetes_pod_name": name,
                "__meta_kubernetes_pod_phase": phase,
                "__meta_kubernetes_pod_label_app_kubernetes_io_instance": "authfleet",
                "__meta_kubernetes_pod_label_app_kubernetes_io_component": component,
                "__meta_kubernetes_pod_container_port_name": port,
            },
        }

    ops = [f"{fleets.HOST}:{port}" for port in fleet.ops_ports]
    http_ = [f"{fleets.HOST}:{port}" for port in fleet.replica_ports]
    found = [pod(name, "ops", address) for name, address in zip(REPLICAS, ops)]
    found += [pod(name, "http", address) for name, address in zip(REPLICAS, http_)]
    found += [
        pod("replica-0", "ops", f"{fleets.HOST}:1", phase="Succeeded"),
        pod("authfleet-nginx-0", "http", f"{fleets.HOST}:{fleet.http_port}", component="edge"),
    ]
    (tmp_path / "targets.json").write_text(json.dumps(found))
    config = with_files((PROMETHEUS / "kubernetes.yml").read_text(), "targets.json")
    (tmp_path / "prometheus.yml").write_text(config.replace("15s", "2s"))
    (tmp_path / "rules").symlink_to(PROMETHEUS / "rules")
    port = fleets.private_ports(1, False).http
    log = tmp_path / "prometheus.log"
    command = [shutil.which("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={fleets.HOST}:{port}"]
    with open(log, "ab") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait("Prometheus is ready", lambda: fleets.answers(port, "/-/ready", lambda status: status == 200))
        prometheus = Prometheus(f"http://{fleets.HOST}:{port}")
        wait("three targets are up", lambda: prometheus.value('sum(up{job="authfleet"})') == 3)
        labels = [target["labels"] for target in prometheus.api("targets", state="active")["activeTargets"]]
        wanted = [
            {"job": "authfleet", "namespace": "authfleet", "instance": address, "replica": name}
            for name, address in zip(REPLICAS, ops)
        ]
        assert sorted(labels, key=str) == sorted(wanted, key=str)
        wait("rules see them", lambda: prometheus.value('job:authfleet_replicas_ready:sum{namespace="authfleet"}') == 3)
    except BaseException:
        print(f"the end of its log:\n{fleets.tail(Path(log))}", file=sys.stderr)
        raise
    finally:
        child.terminate()
        child.wait(10)
