"""Runs the Job's script with an nslookup that prints what busybox's does, and a k6 that prints its arguments."""

import os
import subprocess

import pytest

from fleet import full, named

HEAD = "Server:\t\t10.96.0.10\nAddress:\t10.96.0.10:53\n\n"
NAME = "Name:\tauthfleet-replicas.authfleet.svc.cluster.local\n"


@pytest.mark.parametrize(
    ("answer", "targets"),
    [
        (
            f"{HEAD}{NAME}Address: 10.244.0.7\n{NAME}Address: 10.244.0.5\n",
            "http://10.244.0.5:3000,http://10.244.0.7:3000",
        ),
        (f"{HEAD}{NAME}Address: fd00::5\n{NAME}Address: fd00::7\n", "http://[fd00::5]:3000,http://[fd00::7]:3000"),
        (f"{HEAD}** server can't find it: NXDOMAIN\n", ""),
    ],
)
def test_every_replica_is_a_target(answer, targets, tmp_path):
    container = named(full("local"), "Job", "authfleet-sharing")["spec"]["template"]["spec"]["containers"][0]
    (tmp_path / "answer").write_text(answer)
    for name, script in (("nslookup", f"cat {tmp_path}/answer"), ("k6", 'echo "k6 $* TARGETS=$TARGETS EDGE=$EDGE"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    done = subprocess.run(
        [*container["command"], *container["args"]],
        capture_output=True,
        text=True,
        env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"replicas: {targets}\n"
        f"k6 run /scripts/sharing.js TARGETS={targets} EDGE=http://authfleet.authfleet.svc.cluster.local\n"
    )
