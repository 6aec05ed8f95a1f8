"""The command line of loadtest/run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

from . import k6, report, source
from .scenarios import SCENARIOS, Outcome, Threshold, missing, run
from .targets import ROOT, Target, TargetError, fleets, opened, proxies


def parse(doc: str, arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"list, all, or: {', '.join(SCENARIOS)}")
    parser.add_argument(
        "--target", default="local", help="local, compose, compose-scale-out, k8s, or URLs of replicas (default: local)"
    )
    parser.add_argument("--edge", type=lambda url: url.rstrip("/"), help="URL of the balancer")
    parser.add_argument(
        "--hook", metavar="COMMAND", help="with URLs: COMMAND restart|kill|start N, COMMAND kill|start redis"
    )
    parser.add_argument("--fleet", type=Path, metavar="DIR", help="with local: a running fleet of fleet.py")
    parser.add_argument("--binary", type=Path, help="with local: the server (default: target/release/authfleet)")
    parser.add_argument(
        "--via",
        choices=proxies.PROXIES,
        help="sharing: through applications behind this proxy, with a fleet of its own (deploy/forward-auth)",
    )
    parser.add_argument("--short", action="store_true", help="run the scenarios in their short form, for test suites")
    parser.add_argument("--rate", type=int, help="session checks per second")
    parser.add_argument("--login-rate", type=int, help="visits (login, check, logout) per second")
    parser.add_argument("--duration", help="duration of each scenario: 30s, 5m, 1h")
    parser.add_argument("--repeats", type=int, help="sharing: sessions per triple of replicas")
    parser.add_argument("--out", type=Path, help="directory of the report (default: target/loadtest/TIME)")
    args = parser.parse_args(arguments)
    known = {"list", "all", *SCENARIOS}
    for name in args.scenarios:
        if name not in known:
            parser.error(f"unknown scenario {name}; known: {', '.join(SCENARIOS)}")
    if args.via and (args.target != "local" or args.fleet):
        parser.error("--via starts a local fleet of its own: leave out --target and --fleet")
    if args.duration and not re.fullmatch(r"\d+[smh]", args.duration):
        parser.error(f"--duration must look like 30s, 5m or 1h, not {args.duration}")
    for flag in ("rate", "login_rate", "repeats"):
        if (value := getattr(args, flag)) is not None and value < 1:
            parser.error(f"--{flag.replace('_', '-')} must be at least 1")
    return args


def main(doc: str, arguments: list[str] | None = None) -> int:
    fleets.reach_without_proxy()
    args = parse(doc, arguments)
    if not args.scenarios or "list" in args.scenarios:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:<16} {scenario.shows}")
        return 0
    everything = "all" in args.scenarios
    # soak takes half an hour, so it must be named.
    names = [name for name in SCENARIOS if name != "soak"] if everything else args.scenarios
    out = (args.out or ROOT / "target" / "loadtest" / time.strftime("%Y-%m-%d-%H%M%S")).absolute()
    try:
        with opened(
            args.target, edge=args.edge, hook=args.hook, fleet_dir=args.fleet, binary=args.binary, via=args.via
        ) as target:
            print(
                f"target {args.target}: {len(target.replicas)} replicas, balancer {target.edge or 'none'}", flush=True
            )
            outcomes, skipped = series(names, target, args, everything)
            facts = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                # The commit of these scripts, and of the fleet if it was built from this tree.
                **source.commit(),
                "target": args.target,
                "replicas": target.replicas,
                "edge": target.edge,
                "via": target.via,
                "short": args.short,
                "machine": machine(),
            }
    except (TargetError, fleets.FleetError, FileNotFoundError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"\n{source.words(facts)}")
    write(out, facts, outcomes, skipped)
    print(table(outcomes, skipped))
    print(f"report: {out / 'report.html'}")
    if any(outcome.interrupted for outcome in outcomes):
        return 130
    return 0 if outcomes and all(outcome.passed for outcome in outcomes) else 1


def series(
    names: list[str], target: Target, args: argparse.Namespace, everything: bool
) -> tuple[list[Outcome], dict[str, str]]:
    env = {
        name: str(value)
        for name, value in (
            ("RATE", args.rate),
            ("LOGIN_RATE", args.login_rate),
            ("DURATION", args.duration),
            ("REPEATS", args.repeats),
        )
        if value is not None
    }
    outcomes, skipped = [], {}
    for name in names:
        scenario = SCENARIOS[name]
        reason = missing(scenario, target)
        if reason and everything:
            skipped[name] = reason
            continue
        if reason:
            raise TargetError(f"{name} {reason}")
        print(f"\n{name}: {scenario.shows}", flush=True)
        try:
            outcome = run(scenario, target, env, args.short, Progress())
        except RuntimeError as error:
            outcome = Outcome(name, 0, [Threshold("the scenario ran to its end", str(error), False)])
        outcomes.append(outcome)
        for threshold in outcome.thresholds:
            if not threshold.ok:
                print(f"  missed: {threshold.name}: {threshold.found}", flush=True)
        for line in [] if outcome.passed else outcome.log[:10]:
            print(f"    {line}", flush=True)
        print(f"  {'passed' if outcome.passed else 'interrupted' if outcome.interrupted else 'FAILED'}", flush=True)
        if outcome.interrupted:
            break
    return outcomes, skipped


class Progress:
    """Prints a line of progress: every second on a terminal, otherwise every ten seconds."""

    def __init__(self) -> None:
        self.began = self.said = time.monotonic()
        self.live = sys.stderr.isatty()

    def __call__(self, recording: k6.Recording) -> None:
        now = time.monotonic()
        if now - self.said < (1 if self.live else 10):
            return
        self.said = now
        total = recording.total
        bad = ", ".join(f"{total[name]} {name}" for name in k6.OUTCOMES)
        line = f"  {now - self.began:5.0f} s  {sum(total.values())} requests, {bad}"
        print(f"\r{line}\033[K" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)


def table(outcomes: list[Outcome], skipped: dict[str, str]) -> str:
    lines = [
        "",
        f"{'scenario':<16} {'result':<12} {'requests':>9} {'failed':>7} {'503':>6} {'shed':>6} "
        f"{'p50 ms':>8} {'p99 ms':>8}  notes",
    ]
    for outcome in outcomes:
        count = lambda name, o=outcome: int(o.summary.get(name, {}).get("count", 0))  # noqa: E731
        check = outcome.summary.get("authfleet_check_ms", {})
        shown = [f"{check[p]:8.1f}" if check.get(p) is not None else f"{'-':>8}" for p in ("med", "p(99)")]
        result = "passed" if outcome.passed else "interrupted" if outcome.interrupted else "FAILED"
        lines.append(
            f"{outcome.scenario:<16} {result:<12} {count('http_reqs'):>9} {count('authfleet_failed'):>7} "
            f"{count('authfleet_unavailable'):>6} {count('authfleet_shed'):>6} {' '.join(shown)}  {note(outcome)}"
        )
    lines += [f"{name:<16} {'skipped':<12} {reason}" for name, reason in skipped.items()]
    return "\n".join(lines)


def note(outcome: Outcome) -> str:
    extra = outcome.extra
    if "violations" in extra:
        through = f"through {extra['via']}: " if "via" in extra else ""
        return f"{through}{extra['sessions']} sessions proved, {extra['violations']} violations" + "".join(
            f", {kind}" for kind in extra["kinds"]
        )
    if extra.get("ratio"):
        calm, storm = extra["p99_calm_ms"], extra["p99_storm_ms"]
        counted = "" if extra["ahead"] else " (with k6's own waiting; root leaves it out)"
        return f"p99 {calm:.1f} ms calm, {storm:.1f} ms under logins: {extra['ratio']:.2f}-fold{counted}"
    if "oha" in extra:
        return "; ".join(f"{row['what']}: {row['per_second']}/s" for row in extra["oha"])
    return ""


def write(out: Path, facts: dict[str, object], outcomes: list[Outcome], skipped: dict[str, str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    whole = {**facts, "skipped": skipped, "scenarios": [{**asdict(o), "passed": o.passed} for o in outcomes]}
    (out / "report.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "report.html").write_text(report.page(whole))


def machine() -> str:
    """The processor, cores, memory and system, on which the figures depend."""
    model = platform.machine()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found.group(1) if found else model
    except OSError:
        pass
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()} {platform.release()}"
