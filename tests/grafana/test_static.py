"""Checks the dashboards' files: the generator wrote them, Grafana's schema accepts them, and what they name exists."""

import copy
import itertools
import json
import re
import shutil
import subprocess
import sys

import pytest
import queries
import schema
import yaml
from conftest import GRAFANA, ROOT
from grafana_foundation_sdk.models import units

RULES = [
    rule
    for file in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"] for rule in RULES if "alert" in rule}
# Headings of the page that Prometheus serves, which links to the runbook lead to.
ANCHORS = set(re.findall(r'<h\d id="([^"]+)"', (ROOT / "deploy/prometheus/consoles/runbook.html").read_text()))
UNITS = {value for value in vars(units).values() if isinstance(value, str)}


def catalogue() -> dict[str, tuple[str, set[str]]]:
    """Maps the name of every possible series to its type and labels."""
    target = {"job", "namespace", "instance", "replica"}
    series = json.loads((ROOT / "docs/metrics.json").read_text())
    known = {name: (of["type"].capitalize(), target | set(of["labels"])) for name, of in series.items()}
    for rule in RULES:
        if "record" in rule:
            level = set(rule["record"].split(":")[0].split("_"))
            known[rule["record"]] = ("Gauge", level | {"namespace"} | set(rule.get("labels", {})))
    known["up"] = ("Gauge", target)
    known["ALERTS"] = ("Gauge", target | {"alertname", "alertstate", "severity"})
    # Metrics of the process, from the crate metrics-process.
    known["process_cpu_seconds_total"] = ("Counter", target)
    for name in ("start_time_seconds", "resident_memory_bytes", "open_fds", "max_fds", "threads"):
        known[f"process_{name}"] = ("Gauge", target)
    return known


KNOWN = catalogue()


# --- The files ----------------------------------------------------------------------------------------------------


def test_the_catalogue_was_read():
    assert len([name for name in KNOWN if name.startswith("authfleet_")]) > 40
    assert KNOWN["authfleet_redis_errors_total"] == (
        "Counter",
        {"job", "namespace", "instance", "replica", "operation"},
    )


def test_committed_files_are_what_the_generator_writes(tmp_path):
    generator = "tools/generate/dashboards"
    shutil.copytree(ROOT / generator, tmp_path / generator)
    shutil.copytree(GRAFANA / "dashboards", tmp_path / "deploy/grafana/dashboards")

    def check() -> subprocess.CompletedProcess:
        command = [sys.executable, "-B", tmp_path / generator, "--check"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert check().returncode == 0, check().stderr
    # The check fails for a file that was changed by hand, one left over, and one missing.
    overview = tmp_path / "deploy/grafana/dashboards/overview.json"
    overview.write_text(overview.read_text().replace("now-1h", "now-2h"))
    (tmp_path / "deploy/grafana/dashboards/old.json").write_text("{}")
    (tmp_path / "deploy/grafana/dashboards/slo.json").unlink()
    done = check()
    assert done.returncode == 1
    assert re.findall(r"(\w+)\.json is not current", done.stderr) == ["old", "overview", "slo"]


def test_files_and_dashboards_have_one_name_each(dashboards):
    assert [board["uid"] for board in dashboards.values()] == [f"authfleet-{stem}" for stem in dashboards]
    assert len({board["title"] for board in dashboards.values()}) == len(dashboards)
    # Grafana assigns these. In the files, they would change with every import.
    assert all("id" not in board and "version" not in board for board in dashboards.values())


# --- Grafana's schema ---------------------------------------------------------------------------------------------


def test_schema_knows_every_field(dashboard):
    assert schema.problems(dashboard) == []


def first(board, kind):
    return next(panel for panel in board["panels"] if panel["type"] == kind)


# What is wrong → how to make it wrong, and words that the message must contain.
MUTANTS = {
    "a field of the dashboard": (lambda b: b.update(titel="x"), "dashboard.titel"),
    "a field of a panel": (lambda b: first(b, "stat").update(colour="red"), ".colour"),
    "a field of a row": (lambda b: first(b, "row").update(height=3), ".height"),
    "an option of a panel": (lambda b: first(b, "stat")["options"].update(legend={}), ".options.legend"),
    "an option of an option": (
        lambda b: first(b, "timeseries")["options"]["legend"].update(show=True),
        ".options.legend.show",
    ),
    "a field of a query": (lambda b: first(b, "stat")["targets"][0].update(query="up"), ".targets[0].query"),
    "a field of the field configuration": (
        lambda b: first(b, "stat")["fieldConfig"]["defaults"].update(units="s"),
        ".defaults.units",
    ),
    "a custom field": (
        lambda b: first(b, "timeseries")["fieldConfig"]["defaults"]["custom"].update(lineWith=1),
        ".custom.lineWith",
    ),
    "custom fields where there are none": (
        lambda b: first(b, "stat")["fieldConfig"]["defaults"].update(custom={"lineWidth": 1}),
        "type stat have none",
    ),
    "an override": (
        lambda b: first(b, "table")["fieldConfig"]["overrides"][0]["properties"].append({"id": "untt", "value": "s"}),
        ".untt",
    ),
    "an override of a custom field": (
        lambda b: first(b, "table")["fieldConfig"]["overrides"][0]["properties"].append(
            {"id": "custom.lineWidth", "value": 1}
        ),
        ".custom.lineWidth",
    ),
    "a field of a threshold": (
        lambda b: first(b, "stat")["fieldConfig"]["defaults"]["thresholds"]["steps"][0].update(state="x"),
        ".steps[0].state",
    ),
    "a field of a link": (lambda b: first(b, "stat")["links"][0].update(href="x"), ".links[0].href"),
    "a field of a variable": (lambda b: b["templating"]["list"][1].update(definitions="x"), ".definitions"),
    "a field of an annotation": (lambda b: b["annotations"]["list"][0].update(titelFormat="x"), ".titelFormat"),
    "a field of a transformation": (
        lambda b: first(b, "table")["transformations"][0]["options"].update(keep=True),
        ".options.keep",
    ),
    "a type of panel": (lambda b: first(b, "stat").update(type="stats"), "'stats' is not a type of panel"),
    "a transformation": (lambda b: first(b, "table")["transformations"][0].update(id="organise"), "'organise'"),
    "a text for a number": (lambda b: first(b, "stat")["gridPos"].update(w="4"), ".gridPos.w is not of type int"),
    "a number for a text": (lambda b: first(b, "stat").update(title=4), ".title is not of type str"),
    "true for a number": (lambda b: first(b, "stat").update(id=True), ".id is not of type int"),
    "an object for a list": (lambda b: b.update(tags={}), "dashboard.tags is not a list"),
    "a text that the enumeration lacks": (
        lambda b: first(b, "timeseries")["options"]["tooltip"].update(mode="all"),
        ".tooltip.mode is 'all'",
    ),
    "a number that the enumeration lacks": (lambda b: b.update(graphTooltip=3), "dashboard.graphTooltip is 3"),
    "null for a list": (lambda b: first(b, "stat").update(targets=[None]), ".targets[0] is not an object"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_schema_refuses(dashboards, name):
    mutate, want = MUTANTS[name]
    mutant = copy.deepcopy(dashboards["overview"])
    mutate(mutant)
    found = schema.problems(mutant)
    assert any(want in problem for problem in found), found


# --- What a person sees -------------------------------------------------------------------------------------------


def test_panels_say_what_they_show(dashboard):
    every = list(queries.panels(dashboard))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len({panel["title"] for panel in every}) == len(every)
    for panel in every:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS, f"{panel['title']}: {unit} is not a unit of Grafana"
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        # Without a legend Grafana shows {le="+Inf", …}.
        if panel["type"] in ("timeseries", "state-timeline"):
            assert all(target["legendFormat"] != "__auto" for target in panel["targets"]), panel["title"]


def test_panels_fill_their_rows_without_overlap(dashboard):
    taken = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["w"] > 0 and at["h"] > 0 and at["x"] + at["w"] <= 24, panel["title"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken.keys(), (panel["title"], {taken[cell] for cell in cells & taken.keys()})
        taken |= dict.fromkeys(cells, panel["title"])
    assert len(taken) == 24 * (max(y for _, y in taken) + 1), "the grid has holes"


def test_first_row_holds_the_figures_for_a_hurry(dashboard):
    row, *below = dashboard["panels"]
    assert row["type"] == "row"
    assert [panel["type"] for panel in below[:4]] == ["stat"] * 4


def links(dashboard):
    yield from dashboard["links"]
    for panel in queries.panels(dashboard):
        yield from panel.get("links", [])
        yield from panel["fieldConfig"]["defaults"].get("links", [])
        for override in panel["fieldConfig"]["overrides"]:
            for each in override["properties"]:
                if each["id"] == "links":
                    yield from each["value"]


def test_links_lead_somewhere(dashboard, dashboards):
    uids = {board["uid"] for board in dashboards.values()}
    tags = set(itertools.chain.from_iterable(board["tags"] for board in dashboards.values()))
    for link in links(dashboard):
        url = link.get("url", "")
        if link.get("type") == "dashboards":
            assert set(link["tags"]) <= tags
        elif url.startswith("/d/"):
            assert url.split("?")[0].removeprefix("/d/") in uids, url
        elif "#" in url:
            base, anchor = url.split("#")
            assert base == "${runbook:raw}" and anchor in ANCHORS, url
        else:
            assert url == "${runbook:raw}", url


def test_every_alert_has_a_panel_that_links_to_its_heading(dashboards):
    linked = {link.get("url", "").partition("#")[2] for board in dashboards.values() for link in links(board)} - {""}
    assert linked == {alert.lower() for alert in ALERTS}


def test_variables_are_defined(dashboard):
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    builtin = {"__rate_interval", "__interval", "__from", "__url_time_range", "__field", "__value"}
    used = queries.variables(json.dumps({**dashboard, "templating": None}))
    assert used <= defined | builtin
    assert defined == {"datasource", "job", "namespace", "replica", "runbook"}


# --- The queries --------------------------------------------------------------------------------------------------


def asked(dashboard):
    return [*queries.panel_queries(dashboard), *queries.annotation_queries(dashboard)]


def query_problems(expr):
    for metric, labels, function in queries.selectors(expr):
        if metric not in KNOWN:
            yield f"{metric} is neither a metric nor a recorded series nor a series of Prometheus"
            continue
        kind, known = KNOWN[metric]
        if labels - known:
            yield f"{metric} has no label {labels - known}"
        # Counters need a rate, because they grow for as long as the process runs. A rate of a gauge means nothing.
        if (function in ("rate", "increase")) != (kind == "Counter"):
            yield f"{function or 'no function'} over the {kind} {metric}"
        # The selection at the top of the dashboard must apply, so far as the series has these labels.
        wanted = {"job", "namespace", "replica"} & known - ({"replica"} if ":" in metric else set())
        if metric not in ("ALERTS", "slo:authfleet_objective:ratio", "authfleet_build_info") and wanted - labels:
            yield f"{metric} ignores the selected {wanted - labels}"
    for window in set(re.findall(r"\[([^\]]+)\]", expr)) - {"$__rate_interval"}:
        yield f"a rate over {window}, which ignores the scrape interval"
    if "histogram_quantile" in expr and not re.search(r"by \((\w+, )*le\)", expr):
        yield "a quantile without le"


def test_queries_are_about_what_exists_and_is_selected(dashboard):
    for query in asked(dashboard):
        assert list(query_problems(query.expr)) == [], query


SELECTED = 'job=~"$job", namespace=~"$namespace", replica=~"$replica"'


@pytest.mark.parametrize(
    ("expr", "want"),
    {
        "sum(rate(authfleet_http_request_total{@}[$__rate_interval]))": "neither a metric",
        "sum(rate(authfleet_logins_total{@, outcome='success'}[$__rate_interval]))": "no label {'outcome'}",
        "sum(authfleet_logins_total{@})": "no function over the Counter",
        "sum(rate(authfleet_ready{@}[$__rate_interval]))": "rate over the Gauge",
        "sum(authfleet_ready)": "ignores the selected",
        "sum(rate(authfleet_logins_total{@}[5m]))": "over 5m",
        "histogram_quantile(0.9, sum(rate(authfleet_hash_duration_seconds_bucket{@}[$__rate_interval])))": "without le",
    }.items(),
)
def test_wrong_queries_are_found(expr, want):
    assert any(want in problem for problem in query_problems(expr.replace("{@", "{" + SELECTED)))


def test_lines_stand_at_the_objectives(dashboards):
    """The lines are at the bucket bounds that the rules use for the latency objectives."""
    bounds = {
        rule["labels"]["slo"]: float(re.search(r'le=~?"([0-9.]+)', rule["expr"])[1])
        for rule in RULES
        if rule.get("record") == "job_slo:authfleet_bad_events:rate5m" and "_bucket" in rule["expr"]
    }
    drawn = {
        (board["uid"], panel["title"]): panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
        for board in dashboards.values()
        for panel in queries.panels(board)
        if "thresholds" in panel["fieldConfig"]["defaults"]
    }
    assert drawn["authfleet-overview", "Session checks"] == bounds["session_check_latency"]
    assert drawn["authfleet-overview", "Session checks, p99"] == bounds["session_check_latency"]
    assert drawn["authfleet-logins", "How long a login takes"] == bounds["login_latency"]


# --- How Grafana gets them ----------------------------------------------------------------------------------------


def test_kustomization_has_every_dashboard():
    made = yaml.safe_load((GRAFANA / "kustomization.yaml").read_text())
    files = {entry["files"][0]: entry for entry in made["configMapGenerator"]}
    assert set(files) == {f"dashboards/{file.name}" for file in (GRAFANA / "dashboards").glob("*.json")}
    # The sidecar of Grafana's Helm chart looks for this label.
    assert all(entry["options"]["labels"]["grafana_dashboard"] == "1" for entry in files.values())
    for name in files:
        # `kubectl apply` stores a copy in an annotation, and all annotations together may have 256 KiB.
        assert len(json.dumps((GRAFANA / name).read_text())) < 200 * 1024, name


def test_provisioning_finds_data_source_and_dashboards():
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/authfleet.yml").read_text())["datasources"]
    assert {source["type"]: source["url"] for source in sources} == {
        "prometheus": "http://prometheus:9090",
        "jaeger": "http://jaeger:16686",
    }
    assert [source["uid"] for source in sources if source["isDefault"]] == ["prometheus"]
    # Grafana derives $__rate_interval from it, so it must be the scrape interval.
    scrapes = yaml.safe_load((ROOT / "deploy/prometheus/compose.yml").read_text())["global"]["scrape_interval"]
    assert sources[0]["jsonData"]["timeInterval"] == scrapes
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/authfleet.yml").read_text())["providers"]
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
