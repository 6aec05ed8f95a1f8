"""Writes the report: one self-contained HTML file with inline SVG plots."""

from __future__ import annotations

import html
import math

from . import source

COLOURS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e"]
BAD = "#d62728"
STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .15rem .8rem .15rem 0; text-align: left; font-variant-numeric: tabular-nums; vertical-align: top; }
.ok { color: #3ca951; } .bad { color: #d62728; font-weight: 600; }
svg { display: block; margin: .6rem 0; overflow: visible; } svg text { font-size: 11px; fill: currentColor; }
pre { overflow-x: auto; font-size: 12px; }
figcaption, .quiet { opacity: .75; font-size: 13px; } figure { margin: 1rem 0; }
"""
WIDTH, HEIGHT, LEFT = 860, 190, 56
# The position of the horizontal axis, and the height of plots above it.
FLOOR, HIGH = HEIGHT - 22, HEIGHT - 42


def text(value: object) -> str:
    return html.escape(str(value))


def page(whole: dict) -> str:
    """The HTML page. `whole` is the content of report.json."""
    scenarios = whole["scenarios"]
    rows = "".join(
        f"<tr><td><a href='#{text(s['scenario'])}'>{text(s['scenario'])}</a><td>{verdict(s)}<td>{s['seconds']:.0f} s"
        f"<td>{count(s, 'http_reqs')}<td>{count(s, 'authfleet_failed')}<td>{count(s, 'authfleet_unavailable')}"
        f"<td>{count(s, 'authfleet_shed')}<td>{ms(s, 'med')}<td>{ms(s, 'p(95)')}<td>{ms(s, 'p(99)')}"
        for s in scenarios
    )
    rows += "".join(
        f"<tr><td>{text(n)}<td class=quiet>skipped<td colspan=8>{text(why)}" for n, why in whole["skipped"].items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>authfleet load test, {text(whole['time'])}</title><style>{STYLE}</style>"
        f"<h1>authfleet load test</h1><p>{text(whole['time'])}, target {text(whole['target'])}, "
        f"{len(whole['replicas'])} replicas{', short form' if whole['short'] else ''}<br>"
        f"{text(source.words(whole))}<br>"
        f"<span class=quiet>load generated on: {text(whole['machine'])}</span>"
        "<table><tr><th>scenario<th>result<th>took<th>requests<th>failed<th>503<th>shed<th>p50<th>p95"
        "<th>p99 of checks, ms"
        f"{rows}</table>{''.join(section(s) for s in scenarios)}</html>\n"
    )


def verdict(s: dict) -> str:
    word = "passed" if s["passed"] else "interrupted" if s["interrupted"] else "FAILED"
    return f"<span class={'ok' if s['passed'] else 'bad'}>{word}</span>"


def count(s: dict, metric: str) -> int:
    return int(s["summary"].get(metric, {}).get("count", 0))


def ms(s: dict, field: str) -> str:
    value = s["summary"].get("authfleet_check_ms", {}).get(field)
    return "-" if value is None else f"{value:.1f}"


def section(s: dict) -> str:
    parts = [f"<h2 id='{text(s['scenario'])}'>{text(s['scenario'])}: {verdict(s)}</h2>"]
    if s["thresholds"]:
        rows = "".join(
            f"<tr><td class={'ok' if t['ok'] else 'bad'}>{'held' if t['ok'] else 'missed'}"
            f"<td>{text(t['name'])}<td>{text(t['found'])}"
            for t in s["thresholds"]
        )
        parts.append(f"<table><tr><th><th>threshold<th>found{rows}</table>")
    parts.append(proof(s["extra"]) if "accepted" in s["extra"] else "")
    if len(s["series"]) > 2:
        parts.append(latency(s))
        parts.append(by_replica(s))
    parts.append(percentiles(s["summary"]))
    parts += [throughput(row) for row in s["extra"].get("oha", [])]
    if s["log"]:
        parts.append(f"<details><summary>k6's log</summary><pre>{text(chr(10).join(s['log'][:60]))}</pre></details>")
    return "".join(parts)


# --- Plots --------------------------------------------------------------------------------------------------------


def label(x: float, y: float, what: object, anchor: str = "start") -> str:
    return f"<text x={x:.1f} y={y:.1f} text-anchor={anchor}>{text(what)}</text>"


def box(x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> str:
    size = f"width={width:.2f} height={height:.1f}"
    return f"<rect x={x:.1f} y={y:.1f} {size} fill='{colour}' fill-opacity={opacity:.2f} />"


def line(x1: float, x2: float, y1: float, y2: float, more: str) -> str:
    return f"<line x1={x1:.1f} x2={x2:.1f} y1={y1:.1f} y2={y2:.1f} stroke='currentColor' {more} />"


def figure(title: str, body: str, *, width: int = WIDTH, height: int = HEIGHT) -> str:
    svg = f"<svg role=img viewBox='0 0 {width} {height}' width='100%' style='max-width:{width}px'>{body}</svg>"
    return f"<figure><figcaption>{text(title)}</figcaption>{svg}</figure>"


def axes(top: float, seconds: float, unit: str) -> str:
    """Horizontal lines with their values, and seconds below."""
    out = []
    for step in range(5):
        y = FLOOR - step / 4 * HIGH
        out.append(line(LEFT, WIDTH, y, y, "stroke-opacity=.15"))
        out.append(label(LEFT - 6, y + 4, short(top * step / 4) + (unit if step == 4 else ""), "end"))
    for step in range(7):
        x = LEFT + step / 6 * (WIDTH - LEFT)
        out.append(label(x, HEIGHT - 4, f"{short(seconds * step / 6)} s", "end" if step == 6 else "middle"))
    return "".join(out)


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def ceiling(value: float) -> float:
    """Rounds up to 1, 2, 4, 8 or 10 times a power of ten."""
    power = 10 ** math.floor(math.log10(max(value, 0.01)))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value * 0.999)


def legend(names: list[tuple[str, str]]) -> str:
    places = [LEFT + at * 130 for at in range(6)]
    pairs = zip(places, names, strict=False)
    return "".join(box(x, 0, 10, 10, colour) + label(x + 14, 9, name) for x, (name, colour) in pairs)


def latency(s: dict) -> str:
    rows = s["series"]
    span = max(1, rows[-1]["t"])
    top = ceiling(max((row["p99"] or 0 for row in rows), default=1))

    def x(t: float) -> float:
        return LEFT + t / span * (WIDTH - LEFT)

    def y(value: float) -> float:
        return FLOOR - min(1, value / top) * HIGH

    curves = list(zip(("p50", "p95", "p99"), COLOURS, strict=False))
    body = axes(top, span, " ms") + legend([*curves, ("not ok", BAD)])
    for name, colour in curves:
        points = " ".join(f"{x(row['t']):.1f},{y(row[name]):.1f}" for row in rows if row[name] is not None)
        body += f"<polyline points='{points}' fill=none stroke='{colour}' stroke-width=1.6 />"
    for row in rows:
        bad = row["failed"] + row["unavailable"] + row["shed"]
        if bad:
            title = f"<title>{bad} not ok at {row['t']} s</title>"
            body += f"<circle cx={x(row['t']):.1f} cy={FLOOR} r=3 fill='{BAD}'>{title}</circle>"
    for at, (t, event) in enumerate(s["events"]):
        place = x(min(max(t, 0), span))
        body += line(place, place, 18, FLOOR, "stroke-dasharray='3 3' stroke-opacity=.6")
        body += label(place + 3, 28 + at % 3 * 12, event)
    return figure("latency of session checks over time", body)


def by_replica(s: dict) -> str:
    rows = s["series"]
    names = sorted({name for row in rows for name in row["replicas"]})
    colours = {name: BAD if name == "none" else COLOURS[at % len(COLOURS)] for at, name in enumerate(names)}
    span = max(1, rows[-1]["t"])
    top = ceiling(max(row["requests"] for row in rows) or 1)
    body = axes(top, span, "/s") + legend(list(colours.items()))
    wide = (WIDTH - LEFT) / (span + 1)
    for row in rows:
        below = FLOOR
        for name, colour in colours.items():
            high = row["replicas"].get(name, 0) / top * HIGH
            below -= high
            if high:
                body += box(LEFT + row["t"] * wide, below, wide, high, colour)
    return figure("requests per second by replica (none: nobody answered)", body)


def bars(title: str, rows: list[tuple[str, float, str]], left: int) -> str:
    """A bar per row, with its name on the left and its value as text on the right."""
    most = max((value for _, value, _ in rows), default=0) or 1
    body = ""
    for at, (name, value, words) in enumerate(rows):
        wide = value / most * (WIDTH - left - 90)
        body += label(left - 8, at * 16 + 11, name, "end") + box(left, at * 16 + 2, wide, 11, COLOURS[0])
        body += label(left + 6 + wide, at * 16 + 11, words)
    return figure(title, body, height=len(rows) * 16 + 4)


def percentiles(summary: dict) -> str:
    phases = {"": "session checks", "{phase:calm}": "without logins", "{phase:storm}": "with the flood"}
    rows = []
    for phase, name in phases.items():
        values = summary.get(f"authfleet_check_ms{phase}") or {}
        for field in ("min", "med", "p(90)", "p(95)", "p(99)", "p(99.9)"):
            value = values.get(field)
            if value is not None and values.get("count", 1):
                rows.append((f"{name} {field.replace('med', 'p(50)')}", value, f"{value:.2f} ms"))
    return bars("percentiles of session checks", rows, 180) if rows else ""


def throughput(row: dict) -> str:
    numbers = ", ".join(f"{p} {v} ms" for p, v in row["ms"].items())
    rows = [(f"{upto:.2f} ms", n, str(n)) for upto, n in row["histogram"]]
    return bars(f"{row['what']}: {row['per_second']} requests per second; {numbers}", rows, 100)


def proof(extra: dict) -> str:
    """The matrices of the sharing proof as heat maps."""
    meanings = "".join(
        f"<li class=bad>{text(kind)}, {times} times: {text(extra['meanings'][kind])}"
        for kind, times in extra["kinds"].items()
    )
    shown, via = extra["triples"], extra.get("via")
    through = f"an application behind {via}" if via else f"{extra['edge_sessions']} sessions through the balancer"
    made = f"made on i (row), let into the application by {via}, which asks j (column)" if via else ""
    ended = f"ended on k (row), refused by {via}, which asks j (column)" if via else ""
    return (
        f"<p>{extra['sessions']} sessions passed every step, {extra['violations']} violations, "
        f"{extra['obstacles']} obstacles; {shown['shown']} of {shown['of']} triples; "
        f"{through}.</p>"
        f"<ul>{meanings}</ul><div style='display:flex;gap:2rem;flex-wrap:wrap'>"
        f"{matrix(made or 'made on i (row), accepted by j (column)', extra['accepted'], extra['violated'])}"
        f"{matrix(ended or 'ended on k (row), refused by j (column)', extra['refused'], extra['violated'])}</div>"
    )


def matrix(title: str, cells: list[list[int]], violated: list[list[int]]) -> str:
    side = 46
    most = max((n for row in cells for n in row), default=1) or 1
    body = ""
    for i, row in enumerate(cells):
        body += label(20, 30 + i * side + side / 2, i + 1, "middle") + label(
            40 + i * side + side / 2, 20, i + 1, "middle"
        )
        for j, n in enumerate(row):
            bad = violated[i][j] or not n
            colour, opacity = (BAD, 1) if bad else ("#3ca951", 0.25 + 0.6 * n / most)
            body += box(40 + j * side, 26 + i * side, side - 3, side - 3, colour, opacity)
            words = f"{n} / {violated[i][j]}!" if violated[i][j] else n
            body += label(40 + j * side + side / 2 - 2, 30 + i * side + side / 2, words, "middle")
    size = max(280, 44 + len(cells) * side)
    return figure(f"{title}; red: violations", body, width=size, height=44 + len(cells) * side)
