"""Runs docker compose and waits for what it does."""

from __future__ import annotations

import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROJECT = "authfleet-test"
SUBNET = "10.213.65.0/24"
REPLICAS = ["replica-1", "replica-2", "replica-3"]


class Failed(Exception):
    """An expectation that was not met."""


def expect(truth: object, text: str) -> None:
    if not truth:
        raise Failed(text)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def run(*command: str, check: bool = True, stdin: bytes | None = None, timeout: float = 900) -> str:
    """Returns the standard output of a command. If the command fails, the failure contains both outputs."""
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, timeout=timeout, check=False)
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if check and done.returncode:
        tail = "\n".join((out + err).strip().splitlines()[-25:])
        raise Failed(f"`{' '.join(command)}` exited with {done.returncode}:\n{tail}")
    return out if check else out + err


def fails(*command: str) -> str:
    """Runs a command that must fail, and returns its output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=900, check=False)
    said = (done.stdout + done.stderr).decode(errors="replace")
    expect(done.returncode, f"`{' '.join(command)}` succeeded:\n{said}")
    return said


def compose(*arguments: str, **options) -> str:
    return run("docker", "compose", "--ansi", "never", "--progress", "plain", *arguments, **options)


def container(service: str) -> str:
    found = compose("ps", "-aq", service).split()
    expect(len(found) == 1, f"{service} has {len(found)} containers")
    return found[0]


def health(service: str) -> str:
    return run("docker", "inspect", "-f", "{{.State.Health.Status}}", container(service)).strip()


def up(*arguments: str) -> None:
    compose("up", "-d", "--no-build", "--wait", "--wait-timeout", "120", *arguments)


def down() -> None:
    command = ("docker", "compose", "--profile", "*", "down", "-v", "--remove-orphans", "-t", "1")
    # The larger of the fleets, so that its volumes go too.
    every = os.environ | {"COMPOSE_FILE": "docker-compose.yml:deploy/compose/scale-out.yml"}
    subprocess.run(command, cwd=ROOT, env=every, capture_output=True, timeout=180, check=False)


def left_behind() -> str:
    label = f"label=com.docker.compose.project={os.environ['COMPOSE_PROJECT_NAME']}"
    kinds = (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q"))
    return " ".join(run("docker", *kind, "--filter", label).strip() for kind in kinds).strip()


def within(seconds: float, what: str, true) -> float:
    """Waits until `true()`, at most `seconds`, and returns how many seconds it took."""
    begin = time.monotonic()
    while not true():
        if time.monotonic() - begin > seconds:
            raise Failed(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - begin
