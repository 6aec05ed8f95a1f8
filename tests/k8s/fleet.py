"""Renders k8s/: each overlay with each set of components that fits it."""

import itertools
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = {"local": "network-policies", "scale-out": "network-policies-scale-out"}
COMPONENTS = ["monitoring", "tracing", "autoscaling", "ingress/ingress", "ingress/gateway", "loadtest"]


def combinations() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every overlay with every subset of its components, by name."""
    return {
        "+".join((overlay, *chosen)): (overlay, chosen)
        for overlay, policies in OVERLAYS.items()
        for size in range(len(COMPONENTS) + 2)
        for chosen in itertools.combinations([policies, *COMPONENTS], size)
    }


def render(name: str) -> list[dict]:
    """The objects of one combination."""
    overlay, components = combinations()[name]
    paths = [f"../k8s/components/{component}" for component in components]
    return render_own(name.replace("/", "_"), {"resources": [f"../k8s/overlays/{overlay}"], "components": paths})


def render_own(name: str, kustomization: dict) -> list[dict]:
    """The objects of a user's own kustomization, as if in a directory beside k8s/."""
    directory = ROOT / "target/k8s/rendered" / name
    directory.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(kustomization).replace("../k8s/", "../../../../k8s/")
    (directory / "kustomization.yaml").write_text(text)
    done = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, f"{name}: {done.stderr}"
    (directory / "rendered.yaml").write_text(done.stdout)
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@cache
def renders() -> dict[str, list[dict]]:
    """Every combination's objects."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(combinations(), pool.map(render, combinations()), strict=True))


def full(overlay: str) -> list[dict]:
    """The overlay with all of its components."""
    return renders()["+".join((overlay, OVERLAYS[overlay], *COMPONENTS))]


def label(thing: dict) -> str:
    """An object's kind and name, for messages."""
    return f"{thing.get('kind')}/{thing.get('metadata', {}).get('name')}"


def of_kind(objects: list[dict], *kinds: str) -> list[dict]:
    """The objects of these kinds."""
    return [thing for thing in objects if thing.get("kind") in kinds]


def named(objects: list[dict], kind: str, name: str) -> dict:
    """The one object of this kind and name; generated names are given without their hash."""
    found = [
        thing
        for thing in of_kind(objects, kind)
        if thing["metadata"]["name"] == name
        or (kind == "ConfigMap" and thing["metadata"]["name"].rpartition("-")[0] == name)
    ]
    assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
    return found[0]


WORKLOADS = ("Deployment", "StatefulSet", "Job")


def pods(objects: list[dict]) -> list[tuple[dict, dict, dict]]:
    """Each workload with its pods' labels and specification."""
    return [
        (thing, thing["spec"]["template"]["metadata"].get("labels", {}), thing["spec"]["template"]["spec"])
        for thing in of_kind(objects, *WORKLOADS)
    ]


def containers(spec: dict) -> list[dict]:
    """The containers of a pod, those before it included."""
    return [*spec.get("initContainers", []), *spec["containers"]]
