"""Writes deploy/grafana/dashboards/*.json. With --check, only reports the files that are not current."""

import argparse
import sys
from pathlib import Path

import logins
import overview
import replica
import slo
import stores
from board import RUNBOOK, finished

DASHBOARDS = Path(__file__).resolve().parents[3] / "deploy/grafana/dashboards"
MODULES = (overview, logins, stores, replica, slo)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/venv grafana python tools/generate/dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is not current")
    parser.add_argument("--runbook", metavar="URL", default=RUNBOOK, help="the runbook's address (%(default)s)")
    args = parser.parse_args()

    made = {
        f"{module.__name__}.json": finished(module.dashboard()).replace(RUNBOOK, args.runbook) for module in MODULES
    }
    there = {file.name: file.read_text() for file in DASHBOARDS.glob("*.json")}
    if args.check:
        stale = sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
        for name in stale:
            print(f"deploy/grafana/dashboards/{name} is not current: run make docs", file=sys.stderr)
        return 1 if stale else 0

    DASHBOARDS.mkdir(exist_ok=True)
    for name in there.keys() - made.keys():
        (DASHBOARDS / name).unlink()
    for name, text in made.items():
        (DASHBOARDS / name).write_text(text)
        print(f"  deploy/grafana/dashboards/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
