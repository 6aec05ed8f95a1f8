"""Renders k8s/: each overlay with each set of components that fits it, by the oldest and the newest kubectl."""

import itertools
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = {"local": "network-policies", "scale-out": "network-policies-scale-out"}
# tests/k8s/run puts the newest kubectl first into PATH, and names the oldest one if this machine can run it.
NEWEST = "kubectl"
OLDEST = os.environ.get("OLDEST_KUBECTL")
# The stores that only one overlay can have. Each brings network policies of its own.
STORES = {"local": [], "scale-out": ["redis-cluster", "postgres-cnpg"]}
COMPONENTS = ["monitoring", "tracing", "autoscaling", "ingress/ingress", "ingress/gateway", "loadtest"]


def combinations() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every overlay with every subset of its components, by name."""
    return {
        "+".join((overlay, *chosen)): (overlay, chosen)
        for overlay, policies in OVERLAYS.items()
        for size in range(len(COMPONENTS) + len(STORES[overlay]) + 2)
        for chosen in itertools.combinations([policies, *STORES[overlay], *COMPONENTS], size)
    }


def with_policies(components: tuple[str, ...]) -> list[str]:
    """The components and, if network policies are among them, those of their stores, which follow at once."""
    if components[:1] not in [(policies,) for policies in OVERLAYS.values()]:
        return list(components)
    added = [f"{store}/network-policies" for store in components if store in STORES["scale-out"]]
    return [components[0], *added, *components[1:]]


def kustomize(kubectl: str, directory: Path) -> str:
    """Renders a kustomization with one kubectl. Fails if kubectl prints a warning."""
    # There are hundreds of short runs, and each is faster without garbage collection.
    environment = {**os.environ, "GOGC": "off"}
    done = subprocess.run([kubectl, "kustomize", directory], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, f"{kubectl} {directory.name}: {done.stderr[:2000]}"
    return done.stdout


def render(name: str) -> list[dict]:
    """Renders one combination and returns its objects."""
    overlay, components = combinations()[name]
    paths = [f"../k8s/components/{component}" for component in with_policies(components)]
    return render_own(name.replace("/", "_"), {"resources": [f"../k8s/overlays/{overlay}"], "components": paths})


def render_own(name: str, kustomization: dict) -> list[dict]:
    """Renders a user's kustomization as if it were in a directory beside k8s/. Both kubectls must render the same."""
    directory = rendered(name)
    directory.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(kustomization).replace("../k8s/", "../../../../k8s/")
    (directory / "kustomization.yaml").write_text(text)
    text = kustomize(NEWEST, directory)
    (directory / "rendered.yaml").write_text(text)
    assert OLDEST is None or kustomize(OLDEST, directory) == text, f"{name}: {OLDEST} renders it differently"
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def rendered(name: str) -> Path:
    """The directory of a combination's kustomization and of its rendered objects."""
    return ROOT / "target/k8s/rendered" / name.replace("/", "_")


def unreadable(objects: list[dict]) -> str:
    """kubectl's messages about values that its own types refuse and the schemas allow, such as bad quantities."""
    custom = ("monitoring.coreos.com/", "gateway.networking.k8s.io/", "postgresql.cnpg.io/")
    builtin = [thing for thing in objects if not thing["apiVersion"].startswith(custom)]
    return subprocess.run(
        [NEWEST, "set", "env", "--local", "--list", "--filename", "-"],
        input="".join(f"---\n{yaml.safe_dump(thing)}" for thing in builtin),
        env={**os.environ, "KUBECONFIG": os.devnull},
        capture_output=True,
        text=True,
    ).stderr


@cache
def renders() -> dict[str, list[dict]]:
    """Maps the name of every combination to its objects."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(combinations(), pool.map(render, combinations()), strict=True))


def full_name(overlay: str) -> str:
    return "+".join((overlay, OVERLAYS[overlay], *STORES[overlay], *COMPONENTS))


def full(overlay: str) -> list[dict]:
    """The objects of the overlay with all of its components."""
    return renders()[full_name(overlay)]


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
    """The containers of a pod, init containers first."""
    return [*spec.get("initContainers", []), *spec["containers"]]
