"""Runs checkov on each overlay with all components. checkov.yaml lists the skipped checks with reasons."""

import json
import subprocess

import yaml

from fleet import OVERLAYS, ROOT, full

CHECKOV = ROOT / ".tools/venv/checkov/bin/checkov"
CONFIG = ROOT / "tests/k8s/checkov.yaml"


def scan(path) -> dict:
    done = subprocess.run(
        [
            CHECKOV,
            "--config-file",
            CONFIG,
            "--file",
            path,
            "--framework",
            "kubernetes",
            "--skip-download",
            "-o",
            "json",
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("{"), done.stderr
    return json.loads(done.stdout)


def test_nothing_is_found(tmp_path):
    file = tmp_path / "rendered.yaml"
    file.write_text("".join(f"---\n{yaml.safe_dump(thing)}" for overlay in OVERLAYS for thing in full(overlay)))
    found = scan(file)
    assert found["summary"]["passed"] > 300
    assert [
        f"{check['check_id']} {check['check_name']}: {check['resource']}" for check in found["results"]["failed_checks"]
    ] == []


def test_a_privileged_container_is_found(tmp_path):
    file = tmp_path / "rendered.yaml"
    objects = full("local")
    text = yaml.safe_dump_all(objects).replace("readOnlyRootFilesystem: true", "privileged: true")
    file.write_text(text)
    assert "CKV_K8S_16" in {check["check_id"] for check in scan(file)["results"]["failed_checks"]}
