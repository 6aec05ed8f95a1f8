#!/usr/bin/env python3
"""Prints the rules of deploy/prometheus/rules as a PrometheusRule. kustomize can't convert plain rules files.

    tools/generate/prometheus_rule.py >k8s/components/monitoring/rules.yaml

`make docs` runs it. tests/k8s fails if its result is not current.
"""

import pathlib
import sys

RULES = pathlib.Path(__file__).resolve().parents[2] / "deploy/prometheus/rules"
HEAD = """\
# Made by tools/generate/prometheus_rule.py from deploy/prometheus/rules: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: authfleet
  labels:
    app.kubernetes.io/name: authfleet
    app.kubernetes.io/component: server
spec:
  groups:
"""


def main() -> None:
    print(HEAD, end="")
    for file in sorted(RULES.glob("*.yml")):
        # Everything after `groups:`, indented one level deeper.
        _, found, groups = file.read_text().partition("\ngroups:\n")
        if not found:
            sys.exit(f"{file}: no line `groups:`")
        print(f"    # {file.name}")
        for line in groups.splitlines():
            print(f"  {line}" if line else "")


if __name__ == "__main__":
    main()
