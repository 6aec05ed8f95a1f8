"""The committed results in loadtest/results, and every figure that the documents take from them.

`report.json` is the run's report without time series and logs, `report.html` the whole report, `bench.json` the
benchmark's figures. All three must be of one commit. The text between `<!-- results -->` and `<!-- end of results -->`
in the documents is made from them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import source

ROOT = source.ROOT
RESULTS = ROOT / "loadtest" / "results"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def keep(whole: dict) -> dict:
    """The part of report.json that is committed."""
    scenarios = []
    for s in whole["scenarios"]:
        extra = {k: v for k, v in s["extra"].items() if not isinstance(v, (list, dict)) or k in ("oha", "kinds")}
        if "oha" in extra:
            extra["oha"] = [{k: v for k, v in row.items() if k != "histogram"} for row in extra["oha"]]
        wanted = {k: v for k, v in s["summary"].items() if k.startswith(("http_reqs", "authfleet_", "dropped"))}
        kept = {k: s[k] for k in ("scenario", "passed", "interrupted", "seconds", "thresholds")}
        scenarios.append({**kept, "summary": wanted, "extra": extra})
    return {**{k: v for k, v in whole.items() if k not in ("replicas", "edge")}, "scenarios": scenarios}


def load(directory: Path = RESULTS) -> tuple[dict, dict, str] | None:
    """The run, the benchmark and the HTML page. None if nothing is recorded. Raises if one of the files is missing."""
    if not directory.exists():
        return None
    run, bench = (json.loads((directory / f"{name}.json").read_text()) for name in ("report", "bench"))
    return run, bench, (directory / "report.html").read_text()


def disagreements(run: dict, bench: dict, page: str) -> Iterator[str]:
    """The reasons why the three files are not results of one commit."""
    for name, facts in (("report.json", run), ("bench.json", bench)):
        if not re.fullmatch("[0-9a-f]{40}", str(facts.get("commit"))) or not facts.get("clean"):
            yield f"{name} is of {source.words(facts)}"
    if run.get("commit") != bench.get("commit"):
        yield f"report.json is of {run.get('commit')}, bench.json of {bench.get('commit')}"
    if source.words(run) not in page:
        yield f"report.html does not name {source.words(run)}"
    verdicts = dict(re.findall(r"<h2 id='([a-z-]+)'>[^<]*: <span class=(ok|bad)>", page))
    expected = {s["scenario"]: "ok" if s["passed"] else "bad" for s in run["scenarios"]}
    if verdicts != expected:
        yield f"report.html says {verdicts}, report.json {expected}"
    if run["short"] or bench["quick"]:
        yield "a short run can't be recorded"


def documents(loaded: tuple[dict, dict, str] | None) -> dict[str, str]:
    """Maps each document to the text of its block."""
    if loaded is None:
        return dict.fromkeys(("loadtest/README.md", "docs/capacity.md"), "None are recorded: `loadtest/record`.\n")
    run, bench, _ = loaded
    return {"loadtest/README.md": of_the_load_tests(run, bench), "docs/capacity.md": of_the_capacity(bench)}


def stale(loaded: tuple[dict, dict, str] | None) -> Iterator[str]:
    """Yields a message for each document that disagrees with the results."""
    for name, block in documents(loaded).items():
        text = (ROOT / name).read_text()
        if replaced(text, block) != text:
            yield f"{name} disagrees with loadtest/results: run loadtest/record --documents"


def replaced(text: str, block: str) -> str:
    """The document's text with its block replaced."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"no block between {BEGIN.strip()} and {END.strip()}"
    return f"{before}{BEGIN}{block}{END}{after}"


def measured(facts: dict) -> str:
    return f"{facts['time'][:10]}, commit `{str(facts['commit'])[:12]}`, {facts['machine']}"


def table(head: list[str], rows: list[list[str]], numbers: int = 0) -> str:
    """A Markdown table. The last `numbers` columns are aligned to the right."""
    line = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, line, *rows])


def found(s: dict) -> str:
    """The result of one scenario in words."""
    number = lambda name: int(s["summary"].get(name, {}).get("count", 0))  # noqa: E731
    requests, failed = number("http_reqs"), number("authfleet_failed")
    checks, extra = s["summary"].get("authfleet_check_ms", {}), s["extra"]
    if "violations" in extra:
        return f"{extra['violations']} violations in {extra['sessions']} sessions"
    if extra.get("ratio"):
        calm, storm = extra["p99_calm_ms"], extra["p99_storm_ms"]
        return f"p99 of session checks {calm:.1f} ms without, {storm:.1f} ms with the flood: {extra['ratio']:.1f}-fold"
    said = [f"{requests} requests", f"{failed} failed"]
    for name, words in (("authfleet_unavailable", "503"), ("authfleet_shed", "shed")):
        said += [f"{number(name)} {words}"] if number(name) else []
    dropped = number("dropped_iterations")
    said += [f"{dropped} more that k6 had no free virtual user for"] if dropped else []
    said += [f"p50 {checks['med']:.1f} ms, p99 {checks['p(99)']:.1f} ms"] if checks.get("med") is not None else []
    return ", ".join(said)


def of_the_load_tests(run: dict, bench: dict) -> str:
    rows = []
    for s in run["scenarios"]:
        verdict = (
            "passed" if s["passed"] else "**FAILED**: " + "; ".join(t["name"] for t in s["thresholds"] if not t["ok"])
        )
        for row in s["extra"].get("oha", []):
            times = ", ".join(f"{p} {ms} ms" for p, ms in row["ms"].items() if p in ("p50", "p99"))
            rows.append(
                [f"`{s['scenario']}`: {row['what']}", verdict, f"{row['per_second']} requests per second, {times}"]
            )
        if "oha" not in s["extra"]:
            rows.append([f"`{s['scenario']}`", verdict, found(s)])
    rows += [[f"`{name}`", "skipped", why] for name, why in run["skipped"].items()]
    arms = bench["checks"]["arms"]
    # The bare handler, or the smaller of the two.
    *_, floor = arms.values()
    whole = lambda arm: arm["server"] + arm["redis"]  # noqa: E731
    costs = []
    for name, arm in [*arms.items(), ("authfleet, shipped persistence", bench["persistent"])]:
        # Only arms on the same Redis as the bare handler are compared with it.
        ratio = f"{whole(arm) / whole(floor):.2f}" if name in arms else ""
        each = [f"{arm['server']:.1f}", f"{arm['redis']:.1f}", f"{whole(arm):.1f}"]
        costs.append([name, *each, ratio, f"{arm['per_second']:.0f}"])
    for name, each in bench["checks"]["redis_benchmark"].items():
        costs.append([f"redis-benchmark, {name}, in pairs", "", f"{each:.1f}", "", "", ""])
    calls = ", ".join(f"{n:.0f} {name.upper()}" for name, n in bench["checks"]["commands_per_check"].items())
    storm = bench["storm"]
    return (
        f"{measured(run)}; Redis {bench['redis_version']}.\n\n"
        + table(["what", "result", "found"], rows)
        + "\n`loadtest/bench`, microseconds of CPU per session check, medians of alternating rounds:\n\n"
        + table(["", "server", "Redis", "both", "ratio", "per second"], costs, 5)
        + f"\nRedis commands per check: {calls}. Login: {bench['login']['server_ms']:.1f} ms of CPU. Resident memory:"
        f" {bench['idle_mib']:.1f} MiB at the start,\n{storm['peak_mib']:.1f} MiB at most under 32 clients logging in,"
        f" {storm['after_mib']:.1f} MiB afterwards. Ready after {bench['ready_ms']:.0f} ms.\n"
    )


def of_the_capacity(bench: dict) -> str:
    each, login, largest, storm = bench["persistent"], bench["login"], bench["sizes"][-1], bench["storm"]
    # Sessions of the default format come last. Before there were others, it had no name.
    formats = {s.get("format", "classic"): s["bytes_per_session"] for s in bench["sizes"]}
    by_redis = 0.6e6 / each["redis"]
    command = [sys.executable, "-B", str(ROOT / "loadtest" / "capacity"), "--bench", "/dev/stdin"]
    loads = subprocess.run(command, input=json.dumps(bench), capture_output=True, text=True, check=True).stdout
    thousand = lambda n: f"{n:,.0f}".replace(",", " ")  # noqa: E731
    figures = [
        ["CPU of the server per session check", f"{each['server']:.1f} µs", "authfleet, shipped persistence: server"],
        ["CPU of Redis per session check", f"{each['redis']:.1f} µs", "authfleet, shipped persistence: Redis"],
        ["CPU of the server per login (Argon2id, 19 MiB, two passes)", f"{login['server_ms']:.1f} ms", "login"],
        *(
            [f"memory of Redis per session, one per user, {name}", f"{each} bytes", "the largest size"]
            for name, each in formats.items()
        ),
        ["session checks for the CPU of one login", thousand(login["server_ms"] * 1e3 / each["server"]), "calculated"],
        ["server's CPU per check, divided by Redis's", f"{each['server'] / each['redis']:.1f}", "calculated"],
        ["checks per second at 60 % of one Redis", thousand(by_redis // 1000 * 1000), "calculated"],
        [
            "sessions in 24 GiB, with half as much memory again kept free",
            f"{24 * 2**30 / 1.5 / largest['bytes_per_session'] / 1e6:.0f} million",
            "calculated",
        ],
        ["memory of a replica at the start", f"{bench['idle_mib']:.1f} MiB", "resident memory"],
        ["memory of a replica with 32 clients logging in, at most", f"{storm['peak_mib']:.1f} MiB", "resident memory"],
        ["memory of a replica afterwards", f"{storm['after_mib']:.1f} MiB", "resident memory"],
        *(
            [
                f"a session with a long user agent, `hash-max-listpack-value {limit}`",
                f"{v['bytes']} bytes, {v['redis']:.1f} µs",
                "HMGET + PEXPIRE",
            ]
            for limit, v in bench["by_listpack_limit"].items()
        ),
    ]
    sizes = [
        [
            thousand(s["sessions"]),
            s.get("format", "classic"),
            str(s["bytes_per_session"]),
            f"{s['server']:.1f}",
            f"{s['redis']:.1f}",
        ]
        for s in bench["sizes"]
    ]
    head = ["sessions in Redis", "format", "bytes per session", "server, µs per check", "Redis, µs per check"]
    return (
        f"{measured(bench)}; Redis {bench['redis_version']}.\n\n"
        + table(["figure", "here", "in `loadtest/bench`"], figures)
        + f"\nWhat a load needs, calculated by `loadtest/capacity`:\n\n{loads}\n"
        + "How the cost of a check depends on the number of sessions, without persistence:\n\n"
        + table(head, sizes, 5)
    )
