"""Runs every query of every dashboard against a real Prometheus that scrapes a real fleet under load.

At first the fleet is healthy. Panels that show no data then must be in EMPTY_WHEN_WELL, with a reason. Then faults
follow, and in the end every query must have returned data at least once.
"""

from __future__ import annotations

import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import conftest
import load
import pytest
import queries
import yaml
from load import fleets
from queries import Asked

# Titles of panels and annotations that may be empty while the fleet is healthy, each with the reason.
EMPTY_WHEN_WELL = {
    "Alerts": "no alert is pending or fires",
    "Failing requests by route": "no request was answered with a 5xx",
}
# These are recorded every five minutes. The first value comes within a minute after the next full five minutes.
SLOW_SERIES = ("rate3d", "rate30d")
# Seconds within which every query that isn't slow must return data. The 6 h windows wait for the next full minute.
CALM = 150.0
# The same for all queries: six minutes for the slow ones, and two for the `for` of alerts.
PATIENCE = 480.0

SOURCE = yaml.safe_load((conftest.GRAFANA / "provisioning/datasources/authfleet.yml").read_text())["datasources"][0]
STEP = int(SOURCE["jsonData"]["timeInterval"].removesuffix("s"))


@dataclass
class Prometheus:
    url: str
    began: float

    def get(self, path: str, **params: str | list[str]) -> object:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(params, doseq=True)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            answer = json.load(response)
        assert answer["status"] == "success" and not answer.get("warnings"), answer
        return answer["data"]

    def ask(self, query: Asked, selected: dict[str, str]) -> list[dict]:
        """Sends the query as Grafana does with the shipped data source. Returns the series that have a finite value."""
        now = time.time()
        # As Grafana does: at most one point per scrape, and rates over at least four scrapes.
        expr = queries.interpolate(
            query.expr,
            {
                "__interval": f"{STEP}s",
                "__rate_interval": f"{max(STEP + STEP, 4 * STEP)}s",
                "__from": str(int(self.began * 1000)),
                **selected,
            },
        )
        try:
            if query.instant:
                series = self.get("query", query=expr, time=str(now))["result"]
            else:
                begin, end = (math.floor(at / STEP) * STEP for at in (self.began, now))
                series = self.get("query_range", query=expr, start=str(begin), end=str(end), step=str(STEP))["result"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{query}: {json.load(error)['error']}\n{expr}")
        return [each for each in series if any(map(finite, each.get("values") or [each["value"]]))]

    def label_values(self, query: str, selected: dict[str, str]) -> list[str]:
        """Evaluates Grafana's `label_values(selector, label)`."""
        selector, label = queries.interpolate(query, selected).removeprefix("label_values(").rstrip(")").rsplit(", ", 1)
        return self.get(f"label/{label}/values", **{"match[]": selector, "start": str(int(self.began))})


def finite(sample: list) -> bool:
    return math.isfinite(float(sample[1]))


@dataclass
class Live:
    fleet: fleets.Fleet
    prometheus: Prometheus
    selected: dict[str, str]
    # What each query returned while the fleet was healthy, and at any time. Queries without data are absent.
    calm: dict[Asked, list[dict]] = field(default_factory=dict)
    ever: dict[Asked, list[dict]] = field(default_factory=dict)


def every_query() -> list[Asked]:
    return [
        query
        for board in conftest.DASHBOARDS.values()
        for query in (*queries.panel_queries(board), *queries.annotation_queries(board))
    ]


def may_be_empty(query: Asked) -> bool:
    return query.panel in EMPTY_WHEN_WELL


def is_slow(query: Asked) -> bool:
    return any(name in query.expr for name in SLOW_SERIES)


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Iterator[Live]:
    def say(text: str) -> None:
        print(f"  {time.monotonic() - began:4.0f} s  {text}", flush=True)

    began = time.monotonic()
    # Nothing listens there, so that sending traces fails.
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "1000"}
    env |= load.with_applications(tmp_path_factory.mktemp("rules"))
    fleet = fleets.up(tmp_path_factory.mktemp("fleet"), auto_ports=True, prometheus=True, env=env)
    try:
        # The fleet's dashboards show all replicas. The dashboard of one replica shows the first, which is also flooded.
        selected = {"job": "authfleet", "namespace": ".*", "replica": ".*"}
        live = Live(fleet, Prometheus(fleet.prometheus_url, time.time() - STEP), selected)
        with load.People(fleet) as people:
            say("people use the fleet")
            live.calm = collect(live, {}, CALM, lambda query: may_be_empty(query) or is_slow(query))
            say(f"{people.visits} visits; {len(live.calm)} queries returned data")
            load.provoke(fleet, say)
            say("waiting until every query has returned data")
            live.ever = collect(live, live.calm, PATIENCE, lambda _: False)
            say(f"{people.visits} visits; {len(live.ever)} queries returned data")
            yield live
    finally:
        fleets.down(fleet)


def collect(live: Live, before: dict[Asked, list[dict]], patience: float, optional) -> dict[Asked, list[dict]]:
    """Repeats all queries until each but the optional ones has returned data, for 20 s to `patience` seconds."""
    found = dict(before)
    begin = time.monotonic()
    while True:
        for query in every_query():
            if query not in found and (series := live.prometheus.ask(query, selected(live, query))):
                found[query] = series
        waited = time.monotonic() - begin
        left = [query for query in every_query() if query not in found and not optional(query)]
        if waited > patience or (not left and waited > 20):
            return found
        time.sleep(2)


def selected(live: Live, query: Asked) -> dict[str, str]:
    one = {"replica": "replica-1"} if query.dashboard == "authfleet-replica" else {}
    return {**live.selected, **one}


def test_all_is_well_and_panels_show_it(live):
    empty = [query for query in every_query() if query not in live.calm and not is_slow(query)]
    assert [str(query) for query in empty if not may_be_empty(query)] == [], "returned no data"


def test_the_list_of_empty_panels_is_true(live):
    """A superfluous entry would hide a broken panel."""
    assert EMPTY_WHEN_WELL.keys() <= {query.panel for query in every_query()}
    # An alert may be justified: the machine that runs this may be slow or short of disk space.
    full = {query.panel for query in live.calm if may_be_empty(query)} - {"Alerts"}
    assert full == set(), "returned data while the fleet was healthy"


def test_every_query_returns_data(live):
    assert [str(query) for query in every_query() if query not in live.ever] == []


def test_series_have_the_labels_that_legends_and_columns_name(live):
    for query, series in live.ever.items():
        for each in series:
            labels = {name for name, value in each["metric"].items() if value}
            assert queries.legend_labels(query.legend) <= labels, f"{query}: {each['metric']}"


def test_tables_have_the_columns_that_they_show(live, dashboards):
    for board in dashboards.values():
        for panel in queries.panels(board):
            if panel["type"] != "table":
                continue
            columns = set(panel["transformations"][-1]["options"]["includeByName"])
            mine = [query for query in live.ever if (query.dashboard, query.panel) == (board["uid"], panel["title"])]
            values = {"Value"} if len(mine) == 1 else {f"Value #{query.ref}" for query in mine}
            # Not every alert has each label that the query groups by (replica, for example), so columns may be missing.
            asked = {label for query in mine for label in re.findall(r"\w+", by(query.expr))}
            labels = {label for query in mine for each in live.ever[query] for label in each["metric"]}
            assert columns <= values | asked and labels <= asked, panel["title"]


def by(expr: str) -> str:
    """The labels that the outermost aggregation keeps."""
    return re.search(r"\bby \(([^)]*)\)", expr)[1]


def test_lines_of_one_replica_can_be_clicked(live, dashboards):
    for board in dashboards.values():
        for panel in queries.panels(board):
            if "__field.labels.replica" not in json.dumps(panel["fieldConfig"]):
                continue
            # The first query shows replicas; the others show a limit or an expected value.
            first = (board["uid"], panel["title"], "A")
            found = [live.ever[query] for query in live.ever if (query.dashboard, query.panel, query.ref) == first]
            assert all("replica" in each["metric"] for each in found[0]), panel["title"]


def test_variables_list_what_there_is(live, dashboards):
    want = {"job": ["authfleet"], "namespace": [], "replica": ["replica-1", "replica-2", "replica-3"]}
    for board in dashboards.values():
        asked = {
            each["name"]: each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"
        }
        assert {name: live.prometheus.label_values(query, live.selected) for name, query in asked.items()} == want


@pytest.mark.parametrize("replica", ["replica-2", "(replica-1|replica-3)"])
def test_one_or_some_replicas_can_be_selected(live, replica):
    chosen = {**live.selected, "replica": replica}
    names = {"replica-2"} if replica == "replica-2" else {"replica-1", "replica-3"}
    for query in every_query():
        for each in live.prometheus.ask(query, chosen):
            assert each["metric"].get("replica", next(iter(names))) in names or "ALERTS" in query.expr, query


def test_namespaces_can_be_selected(live):
    """Gives the targets the label, as in Kubernetes. Then only series with it are shown."""
    file = live.fleet.path / "prometheus/targets.json"
    targets = json.loads(file.read_text())
    file.write_text(json.dumps([{**each, "labels": {**each["labels"], "namespace": "shop"}} for each in targets]))
    chosen = {**live.selected, "namespace": "shop"}
    stats = [query for query in every_query() if query.kind == "stat" and not is_slow(query)]
    left = stats
    deadline = time.monotonic() + 60
    while left and time.monotonic() < deadline:
        time.sleep(2)
        left = [
            query for query in left if not live.prometheus.ask(query, {**selected(live, query), "namespace": "shop"})
        ]
    assert [str(query) for query in left] == []
    query = 'label_values(authfleet_build_info{job=~"$job"}, namespace)'
    assert live.prometheus.label_values(query, chosen) == ["shop"]


def test_counts(live, dashboards):
    """Checks nothing. Prints the figures for readers of the log."""
    panels = [panel for board in dashboards.values() for panel in queries.panels(board)]
    of_panels = [query for query in every_query() if query.kind != "annotation"]
    print(
        f"\n  {len(dashboards)} dashboards, {len(panels)} panels, {len(of_panels)} queries of panels, "
        f"{len(every_query()) - len(of_panels)} of annotations\n"
        f"  returned data while healthy: {len(live.calm)}, in the end: {len(live.ever)} of {len(every_query())}\n"
        f"  panels that may be empty while the fleet is healthy: {len(EMPTY_WHEN_WELL)}"
    )
