"""Checks configurations, rules, their unit tests, the runbook and the objectives without starting anything."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from rules import (
    ALERTS,
    CATALOGUE,
    OTHER_METRICS,
    PROMETHEUS,
    RECORDED,
    ROOT,
    RULE_FILES,
    RULES,
    RUNBOOK,
    TARGET_LABELS,
    TEST_FILES,
    TESTS,
    UNIT_TESTS,
    grouping_labels,
    groups,
    selectors,
    with_files,
)

sys.path.insert(0, str(ROOT / "tools" / "generate"))
import runbook

SEVERITIES = {"critical", "warning", "info"}
# These already look at an increase over some minutes.
WITHOUT_FOR = {
    "AuthfleetReplicaRestarting",
    "AuthfleetInternalErrors",
    "AuthfleetLogLinesLost",
    "AuthfleetRedisEvicting",
}


def promtool(*arguments: str, cwd: Path = PROMETHEUS) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"promtool {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def knows_kubernetes() -> bool:
    """Debian 12 builds Prometheus without Kubernetes; later releases and the published image have it."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write("scrape_configs: [{job_name: pods, kubernetes_sd_configs: [{role: pod}]}]\n")
        file.flush()
        command = ["promtool", "check", "config", file.name]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


KNOWS_KUBERNETES = knows_kubernetes()


# By the environment that each file is for.
CONFIGURATIONS = {
    "local": ROOT / "tools" / "local" / "prometheus.yml",
    "compose": PROMETHEUS / "compose.yml",
    "kubernetes": PROMETHEUS / "kubernetes.yml",
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration_loads_as_it_is_mounted(name, tmp_path):
    text = CONFIGURATIONS[name].read_text()
    if name == "kubernetes" and not KNOWS_KUBERNETES:
        print("\nthis promtool lacks Kubernetes: kubernetes.yml is checked with discovery by files", end="")
        text = with_files(text, "targets.json")
    (tmp_path / "prometheus.yml").write_text(text)
    (tmp_path / "rules").symlink_to(PROMETHEUS / "rules")
    (tmp_path / "targets.json").write_text('[{"targets": ["127.0.0.1:9461"], "labels": {"replica": "replica-1"}}]')
    said = promtool("check", "config", "prometheus.yml", cwd=tmp_path)
    assert f"SUCCESS: {len(RULE_FILES)} rule files found" in said
    assert "WARNING" not in said


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_replicas_are_scraped_by_their_own_names(name):
    jobs = {job["job_name"]: job for job in yaml.safe_load(CONFIGURATIONS[name].read_text())["scrape_configs"]}
    assert jobs["authfleet"]["honor_labels"] is True


def test_rules_load():
    said = promtool("check", "rules", *[str(file) for file in RULE_FILES])
    print(f"\n{len(ALERTS)} alerts, {len(RULES) - len(ALERTS)} recording rules in {len(RULE_FILES)} files", end="")
    assert said.count("SUCCESS") == len(RULE_FILES)


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.stem)
def test_unit_tests_pass(file):
    said = promtool("test", "rules", str(file))
    firing = sum(case.fires for case in UNIT_TESTS if case.file == file)
    silent = sum(not case.fires for case in UNIT_TESTS if case.file == file)
    cases = yaml.safe_load(file.read_text())["tests"]
    figures = sum(len(group.get("promql_expr_test", [])) for group in cases)
    print(f"\n{file.name}: alerts fire in {firing} cases and not in {silent}; {figures} expressions: ", end="")
    print(said.split()[-1], end="")
    assert "SUCCESS" in said


def test_every_group_of_rules_is_evaluated_in_order_by_the_unit_tests():
    for file in TEST_FILES:
        test = yaml.safe_load(file.read_text())
        read = [path for pattern in test["rule_files"] for path in (file.parent.glob(pattern))]
        assert read, f"{file.name} reads no rules"
        names = {group["name"] for path in read for group in groups(path)}
        assert set(test["group_eval_order"]) == names, file.name


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tested_both_ways(alert):
    cases = [case for case in UNIT_TESTS if case.alert == alert]
    assert any(case.fires for case in cases), f"in no unit test does {alert} fire"
    assert any(not case.fires for case in cases), f"in no unit test does {alert} stay silent"


def test_no_unit_test_is_about_an_alert_that_does_not_exist():
    # promtool treats an unknown name like an alert that doesn't fire.
    assert {case.alert for case in UNIT_TESTS} <= set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_says_what_it_is(alert):
    rule = ALERTS[alert]
    assert re.fullmatch(r"Authfleet([A-Z][a-z0-9]+)+", alert)
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in SEVERITIES
    assert ("for" in rule) == (alert not in WITHOUT_FOR)
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    # Mails are grouped and searched by their summary, so it must always be the same.
    assert "{{" not in notes["summary"]
    assert not notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == f"{{{{ $externalURL }}}}/consoles/runbook.html#{alert.lower()}"


def test_alert_names_are_unique():
    names = [rule["alert"] for rule in RULES if "alert" in rule]
    assert sorted(names) == sorted(ALERTS)


def values_of(name: str, label: str) -> set[str] | None:
    """The possible values of a label of this series. Empty: any value. None: the series lacks this label."""
    if name in CATALOGUE:
        values = CATALOGUE[name].get(label)
        return None if values is None else set(values)
    found = [rule["labels"][label] for rule in RULES if rule.get("record") == name and label in rule.get("labels", {})]
    if found:
        return set(found)
    # A recorded series gets the values of the series in its expression.
    made_from = {
        selector.name for rule in RULES if rule.get("record") == name for selector in selectors(rule["expr"])
    } - {name}
    possible = [values for values in (values_of(origin, label) for origin in made_from) if values is not None]
    return set().union(*possible) if possible else None


def test_rules_are_about_metrics_that_exist():
    for rule in RULES:
        name = rule.get("alert") or rule["record"]
        for selector in selectors(rule["expr"]):
            assert selector.name in RECORDED | set(CATALOGUE) | OTHER_METRICS, f"{name}: {selector.name}"
            for matcher in selector.matchers.matchers:
                if matcher.name in TARGET_LABELS:
                    continue
                values = values_of(selector.name, matcher.name)
                assert values is not None, f"{name}: {selector.name} has no label {matcher.name}"
                for value in matcher.value.split("|") if values else []:
                    assert value in values, f"{name}: {matcher.name} of {selector.name} is never {value}"


def test_rules_group_by_labels_that_exist():
    known = TARGET_LABELS | {"slo"} | {label for labels in CATALOGUE.values() for label in labels}
    for rule in RULES:
        assert grouping_labels(rule["expr"]) <= known, rule.get("alert") or rule["record"]


def test_recorded_names_say_their_level():
    for rule in RULES:
        if "record" not in rule:
            continue
        level, metric, operation = rule["record"].split(":")
        assert metric.startswith("authfleet_") and operation
        # The last `by` in the expression is the outermost. Rules that only read other rules have none.
        by = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
        if by and "slo" not in level.split("_"):
            assert level == "_".join(label for label in by[0].split(", ") if label != "namespace"), rule["record"]


def test_every_recorded_figure_is_read_by_somebody():
    read = "".join(str(rule["expr"]) for rule in RULES)
    for place in [ROOT / "docs", ROOT / "deploy" / "grafana", RUNBOOK]:
        files = [place] if place.is_file() else [file for file in place.rglob("*") if file.suffix in (".md", ".json")]
        read += "".join(file.read_text() for file in files)
    assert {name for name in RECORDED if name not in read} == set()


def test_the_healthy_fleet_of_the_unit_tests_has_every_metric():
    # Without its metric, an alert would stay silent for lack of data.
    healthy = (TESTS / "healthy.yml").read_text()
    asked = {selector.name for rule in RULES for selector in selectors(rule["expr"])} - RECORDED
    assert {name for name in asked if f"'{name}{{" not in healthy} == set()


# --- The runbook ------------------------------------------------------------------------------------------------------


def sections() -> dict[str, str]:
    parts = re.split(r"^## (\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return {name: text for name, text in zip(parts[1::2], parts[2::2]) if name.startswith("Authfleet")}


def test_the_runbook_has_a_heading_per_alert_and_no_other():
    assert set(sections()) == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_the_runbook_says_what_to_do(alert):
    text = sections()[alert]
    places = [text.find(f"**{part}:**") for part in ("Means", "Confirm", "Do", "Don't")]
    assert -1 not in places and places == sorted(places), f"{alert} must have Means, Confirm, Do, Don't in this order"
    assert text.strip().startswith(f"*{ALERTS[alert]['labels']['severity']}.*")


def test_the_page_that_prometheus_serves_is_current():
    assert runbook.TARGET.read_text() == runbook.rendered(), "run tools/generate/runbook.py"


def test_every_link_into_the_runbook_arrives():
    page = runbook.TARGET.read_text()
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert {alert.lower() for alert in ALERTS} <= anchors
    assert set(re.findall(r'href="#([^"]+)"', page)) <= anchors


# --- Figures that stand in two places ---------------------------------------------------------------------------------


def test_the_objectives_of_the_rules_are_those_of_the_document():
    written = dict(re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\| ([\d.]+) %", (ROOT / "docs" / "slo.md").read_text(), re.M))
    kept = {
        rule["labels"]["slo"]: f"{100 * float(re.fullmatch(r'vector[(](.*)[)]', rule['expr'])[1]):g}"
        for rule in RULES
        if rule.get("record") == "slo:authfleet_objective:ratio"
    }
    assert written == kept


def test_the_memory_of_redis_is_that_of_its_container():
    rule = next(rule for rule in RULES if rule.get("record") == "job:authfleet_redis_memory_limit:bytes")
    assert "512 * 1024 * 1024" in rule["expr"]
    manifests = yaml.safe_load_all((ROOT / "k8s" / "base" / "redis.yaml").read_text())
    redis = next(manifest for manifest in manifests if manifest["kind"] == "StatefulSet")
    assert redis["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "512Mi"
    # Compose allows at least the limit that the alerts assume.
    assert yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["redis"]["mem_limit"] == "1g"
