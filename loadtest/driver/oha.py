"""Measures throughput with oha in a closed loop: /livez as the floor, one replica, the fleet through its balancer."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

from .targets import ROOT, Target

CONNECTIONS = 50


def run(target: Target, seconds: int) -> tuple[list[dict[str, object]], list[str], bool]:
    """Measures each address of the fleet. Returns a row for each, lines for the log, and whether it was interrupted."""
    binary = os.environ.get("OHA") or str(ROOT / ".tools" / "bin" / "oha")
    binary = binary if Path(binary).exists() else shutil.which("oha")
    if not binary:
        raise FileNotFoundError("oha is not installed; loadtest/install --oha installs it (or set OHA)")
    ways = []
    if target.ops:
        ways.append(("/livez, the floor", f"{target.ops[0]}/livez"))
    if target.replicas:
        ways.append(("session check, one replica", f"{target.replicas[0]}/profile"))
    if target.edge:
        ways.append(("session check, through the balancer", f"{target.edge}/profile"))
    account = Account((target.replicas or [target.edge])[0])
    rows, log = [], []
    try:
        for what, url in ways:
            print(f"    oha for {seconds} s: {what}", flush=True)
            rows.append({"what": what, **measure(binary, url, account.cookie, seconds)})
    except KeyboardInterrupt:
        return rows, log, True
    finally:
        if not account.remove():
            log.append(f"left behind: {account.email}")
    return rows, log, False


def measure(binary: str, url: str, cookie: str, seconds: int) -> dict[str, object]:
    command = [binary, "--no-tui", "--output-format", "json", "-z", f"{seconds}s", "-c", str(CONNECTIONS)]
    command += ["-H", f"Cookie: {cookie}", url]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=os.setpgrp)
    try:
        out, err = child.communicate(timeout=seconds + 60)
    except BaseException:
        child.send_signal(signal.SIGKILL)
        child.wait()
        raise
    if child.returncode:
        raise RuntimeError(f"oha {url}: exit code {child.returncode}: {err.strip()[-300:]}")
    found = json.loads(out)
    codes = found.get("statusCodeDistribution", {})
    # Requests in flight when the time is up don't count as failures.
    errors = {k: n for k, n in found.get("errorDistribution", {}).items() if "deadline" not in k}
    latency = found["latencyPercentiles"]
    return {
        "requests": sum(codes.values()),
        "others": sum(n for code, n in codes.items() if code != "200") + sum(errors.values()),
        "per_second": round(found["summary"]["requestsPerSec"]),
        "ms": {
            p: round(latency[p] * 1000, 2) for p in ("p50", "p90", "p95", "p99", "p99.9") if latency.get(p) is not None
        },
        "histogram": [[round(float(at) * 1000, 3), n] for at, n in found["responseTimeHistogram"].items()],
    }


class Account:
    """One user with one session."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.email, self.password = f"loadtest-{secrets.token_hex(6)}@example.com", secrets.token_urlsafe(18)
        who = {"email": self.email, "password": self.password}
        self._send("POST", "/auth/register", who)
        _, headers = self._send("POST", "/auth/login", who)
        self.cookie = headers["Set-Cookie"].split(";")[0]

    def _send(self, method: str, path: str, body: dict[str, str]) -> tuple[int, Message]:
        headers = {"Content-Type": "application/json", "Cookie": getattr(self, "cookie", "")}
        request = urllib.request.Request(self.base + path, json.dumps(body).encode(), headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers

    def remove(self) -> bool:
        """Deletes the account and its sessions. Returns whether it succeeded."""
        try:
            return self._send("DELETE", "/auth/account", {"password": self.password})[0] == 204
        except (OSError, urllib.error.URLError):
            return False
