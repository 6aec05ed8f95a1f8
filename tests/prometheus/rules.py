"""Reads the rules, their unit tests and the catalogue of metrics for the checks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import promql_parser as promql
import yaml

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TEST_FILES = sorted(TESTS.glob("*.yml"))
RUNBOOK = ROOT / "deploy" / "runbook.md"

# Labels that Prometheus adds to every scraped series, and `replica`, which the server adds.
TARGET_LABELS = {"job", "namespace", "instance", "replica"}
# Metrics of the process (from the crate metrics-process) and of Prometheus itself.
OTHER_METRICS = {"up", "process_start_time_seconds", "process_open_fds", "process_max_fds", "process_cpu_seconds_total"}


def groups(file: Path) -> list[dict]:
    return yaml.safe_load(file.read_text())["groups"]


RULES = [rule for file in RULE_FILES for group in groups(file) for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


@dataclass(frozen=True)
class UnitTest:
    """One `alert_rule_test` in a file of promtool tests."""

    file: Path
    group: str
    alert: str
    fires: bool


def unit_tests() -> Iterator[UnitTest]:
    for file in TEST_FILES:
        for group in yaml.safe_load(file.read_text())["tests"]:
            for case in group.get("alert_rule_test", []):
                yield UnitTest(file, group["name"], case["alertname"], bool(case.get("exp_alerts")))


UNIT_TESTS = list(unit_tests())


# Every series of the server, with the parts of histograms. Maps each label to its values; no values mean any value.
CATALOGUE: dict[str, dict[str, list[str]]] = {
    name: series["labels"] for name, series in json.loads((ROOT / "docs" / "metrics.json").read_text()).items()
}


def selectors(expr: str) -> list[promql.VectorSelector]:
    """Lists every selector in an expression."""
    found: list[promql.VectorSelector] = []

    def visit(node: object) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        elif isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql.BinaryExpr):
            visit(node.lhs)
            visit(node.rhs)
        elif isinstance(node, promql.Call):
            for argument in node.args:
                visit(argument)
        elif hasattr(node, "expr"):
            visit(node.expr)

    visit(promql.parse(expr))
    return found


def grouping_labels(expr: str) -> set[str]:
    """The labels in `by`, `without`, `on`, `ignoring`, `group_left`, `group_right`."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expr)
    return {label.strip() for listed in lists for label in listed.split(",") if label.strip()}


def with_files(config: str, targets: str) -> str:
    """Replaces discovery by the cluster with discovery by a file. All relabelling stays."""
    parsed = yaml.safe_load(config)
    for job in parsed["scrape_configs"]:
        if job.pop("kubernetes_sd_configs", None):
            job["file_sd_configs"] = [{"files": [targets]}]
    return yaml.safe_dump(parsed, sort_keys=False)
