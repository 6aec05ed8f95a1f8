"""Checks that the unit tests notice wrong alerts. Each alert is changed in one way at a time, and its tests must fail:
every threshold is halved and doubled, and `for` is made half shorter and half longer.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from rules import ALERTS, RECORDED, RULES, UNIT_TESTS, selectors

# A number after a comparison operator. It may be a product: `> 180 * 86400`.
THRESHOLD = re.compile(r"(?<=[<>=] )\d+(?:\.\d+)?(?: \* \d+)*")
SECONDS = {"m": 60, "h": 3600}


def mutants(rule: dict) -> Iterator[tuple[str, dict]]:
    for number in dict.fromkeys(THRESHOLD.findall(rule["expr"])):
        if number == "0":
            continue
        for factor in (0.5, 2):
            changed = re.sub(rf"(?<=[<>=] ){re.escape(number)}(?![\d.])", f"{number} * {factor}", rule["expr"])
            yield f"threshold {number} times {factor}", {**rule, "expr": changed}
    if "for" in rule:
        seconds = int(rule["for"][:-1]) * SECONDS[rule["for"][-1]]
        # A change of less than one evaluation would have no effect.
        for change in (-max(60, seconds // 2), max(60, seconds // 2)):
            yield f"for {rule['for']} {change:+} s", {**rule, "for": f"{seconds + change}s"}


def needed(expr: str) -> set[str]:
    """The recorded series that an expression reads, directly or through other recorded series."""
    names = {selector.name for selector in selectors(expr)} & RECORDED
    for name in list(names):
        for rule in RULES:
            if rule.get("record") == name:
                names |= needed(rule["expr"])
    return names


def is_about(figure: dict, rule: dict) -> bool:
    """Whether a recorded series can affect the rule. Those of other objectives can't, and only cost time."""
    objective = figure.get("labels", {}).get("slo")
    return objective is None or f'slo="{objective}"' in rule["expr"]


def notices(alert: str, rule: dict, directory: Path) -> bool:
    """Whether a unit test of the alert fails if this rule replaces the alert."""
    directory.mkdir(exist_ok=True)
    wanted = needed(rule["expr"])
    figures = [figure for figure in RULES if figure.get("record") in wanted and is_about(figure, rule)]
    rules = [{"name": "figures", "rules": figures}, {"name": "alert", "rules": [rule]}]
    (directory / "rules.yml").write_text(yaml.safe_dump({"groups": rules}))
    for file in {case.file for case in UNIT_TESTS if case.alert == alert}:
        # BaseLoader reads every value as text. In YAML 1.1, 0x20 would be a number.
        test = yaml.load(file.read_text(), yaml.BaseLoader)
        test["rule_files"] = ["rules.yml"]
        test["group_eval_order"] = ["figures", "alert"]
        kept = []
        for group in test["tests"]:
            group.pop("promql_expr_test", None)
            group["alert_rule_test"] = [case for case in group.get("alert_rule_test", []) if case["alertname"] == alert]
            if group["alert_rule_test"]:
                kept.append(group)
        test["tests"] = kept
        (directory / "test.yml").write_text(yaml.safe_dump(test, sort_keys=False))
        done = subprocess.run(
            ["promtool", "test", "rules", "test.yml"], cwd=directory, capture_output=True, text=True, check=False
        )
        assert "FAILED" in done.stdout + done.stderr or done.returncode == 0, done.stdout + done.stderr
        if done.returncode:
            return True
    return False


@pytest.fixture(scope="module")
def tally():
    counts = {"noticed": 0, "missed": 0}
    yield counts
    print(f"\nchanged alerts: {counts['noticed']} noticed by the unit tests, {counts['missed']} missed", end="")


@pytest.mark.parametrize("alert", ALERTS)
def test_the_unit_tests_notice_a_changed_alert(alert, tally, tmp_path):
    assert not notices(alert, ALERTS[alert], tmp_path), "its tests fail without a change"
    changes = dict(mutants(ALERTS[alert]))
    directories = [tmp_path / str(number) for number in range(len(changes))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        noticed = list(pool.map(lambda rule, directory: notices(alert, rule, directory), changes.values(), directories))
    missed = [change for change, is_noticed in zip(changes, noticed) if not is_noticed]
    tally["noticed"] += len(changes) - len(missed)
    tally["missed"] += len(missed)
    assert missed == []
