"""The queries of a dashboard, as Grafana would send them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser as promql

# $name, ${name}, ${name:format}, [[name]]
VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?:\.[^:}]+)?(?::(\w+))?\}|\[\[(\w+)\]\]")


@dataclass(frozen=True)
class Asked:
    """One query of a panel or an annotation, before its variables are replaced."""

    dashboard: str
    panel: str
    ref: str
    kind: str
    expr: str
    legend: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel} ({self.ref})"


def panels(dashboard: dict) -> Iterator[dict]:
    """Every panel of a dashboard, without rows."""
    for panel in dashboard["panels"]:
        yield from panel.get("panels", [])
        if panel["type"] != "row":
            yield panel


def panel_queries(dashboard: dict) -> Iterator[Asked]:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield Asked(
                dashboard["uid"],
                panel["title"],
                target["refId"],
                panel["type"],
                target["expr"],
                target["legendFormat"].removeprefix("__auto"),
                target["instant"],
            )


def annotation_queries(dashboard: dict) -> Iterator[Asked]:
    for made in dashboard["annotations"]["list"]:
        target = made["target"]
        text = f"{made['titleFormat']} {made['textFormat']}"
        yield Asked(dashboard["uid"], made["name"], target["refId"], "annotation", target["expr"], text, False)


def variables(text: str) -> set[str]:
    """The names of the variables in a text. `${1}` is a group of a regular expression, which Grafana leaves alone."""
    names = {next(filter(None, found)) for found in ((m[1], m[2], m[4]) for m in VARIABLE.finditer(text))}
    return {name for name in names if not name.isdigit()}


def interpolate(text: str, values: dict[str, str]) -> str:
    def value(match: re.Match) -> str:
        name = match[1] or match[2] or match[4]
        return match[0] if name.isdigit() else values[name]

    return VARIABLE.sub(value, text)


def selectors(expr: str) -> Iterator[tuple[str, set[str], str]]:
    """Each metric in a query, the labels that its selector names, and the function around it ('' if there is none)."""

    def walk(node: object, function: str) -> Iterator[tuple[str, set[str], str]]:
        if isinstance(node, promql.VectorSelector):
            yield node.name, {matcher.name for matcher in node.matchers.matchers}, function
        elif isinstance(node, promql.MatrixSelector):
            yield from walk(node.vector_selector, function)
        elif isinstance(node, promql.Call):
            for argument in node.args:
                yield from walk(argument, node.func.name)
        else:
            for part in ("expr", "lhs", "rhs", "param"):
                if getattr(node, part, None) is not None:
                    yield from walk(getattr(node, part), function)

    yield from walk(parsed(expr), "")


def parsed(expr: str) -> object:
    """Parses a query with sample values for its variables. Raises ValueError if it is not valid PromQL."""
    standing_for = dict.fromkeys(variables(expr), "x") | {
        "__rate_interval": "1m",
        "__interval": "15s",
        "__range": "1h",
        "__from": "1700000000000",
    }
    return promql.parse(interpolate(expr, standing_for))


def legend_labels(text: str) -> set[str]:
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text))
