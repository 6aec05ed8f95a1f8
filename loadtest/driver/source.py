"""Says which commit a measurement is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Files that loadtest/record writes, whose changes don't count.
WRITTEN = ["loadtest/results", "loadtest/README.md", "docs/capacity.md"]


def git(*arguments: str) -> str | None:
    """git's output. None if the tree is a copy without history, or git is missing."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> dict[str, object]:
    """`commit`: 40 hexadecimal digits, or None. `clean`: whether the tracked files are those of the commit."""
    head = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in WRITTEN))
    return {"commit": head, "clean": head is not None and changes == ""}


def words(facts: dict[str, object]) -> str:
    """The result of commit() as text."""
    if not facts.get("commit"):
        return "unknown commit"
    return f"commit {facts['commit']}" + ("" if facts["clean"] else ", with changes that are not committed")
