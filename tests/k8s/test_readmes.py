"""Tests the commands in the READMEs: their paths and objects exist, and kustomize accepts their examples."""

import re
import shlex
import subprocess

import pytest
import yaml

from fleet import K8S, ROOT, full, label, named, render_own

READMES = sorted(K8S.rglob("README.md"))
KINDS = {"deployment": "Deployment", "statefulset": "StatefulSet", "service": "Service", "job": "Job"}


def blocks(language: str) -> list[str]:
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [block for file in READMES for block in fence.findall(file.read_text())]


def test_every_path_and_object_exists():
    known = {label(thing) for overlay in ("local", "scale-out") for thing in full(overlay)}
    seen = 0
    for block in blocks("sh"):
        for word in shlex.split(re.sub(r"<<'EOF'.*?^EOF$", "", block, flags=re.MULTILINE | re.DOTALL)):
            if word.startswith("k8s/"):
                assert (ROOT / word).exists(), word
                seen += 1
            kind, slash, name = word.partition("/")
            if slash and kind in KINDS:
                assert f"{KINDS[kind]}/{name}" in known, word
                seen += 1
    assert seen > 20


def test_links_lead_somewhere():
    for file in READMES:
        for target in re.findall(r"\]\((?!https:)([^)#]+)\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file}: {target}"


def test_the_example_of_an_own_kustomization_renders():
    examples = [
        found for block in blocks("sh") for found in re.findall(r"<<'EOF'\n(.*?)^EOF$", block, re.MULTILINE | re.DOTALL)
    ]
    assert len(examples) == 1
    assert "Job/authfleet-sharing" in map(label, render_own("readme", yaml.safe_load(examples[0])))


def test_the_pod_network_is_taken():
    own = yaml.safe_load(
        re.search(r"^```yaml\n(.*?)^```", (K8S / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    )
    objects = render_own("readme-pod-network", {"resources": ["../k8s/overlays/local"], **own})
    assert named(objects, "ConfigMap", "authfleet-server")["data"]["TRUSTED_PROXIES"] == "10.244.0.0/16"


@pytest.mark.parametrize("component", ["network-policies-scale-out", "monitoring", "tracing", "ingress"])
def test_the_patches_apply(component):
    text = (K8S / f"components/{component}/README.md").read_text()
    own = yaml.safe_load(re.search(r"^```yaml\n((?:(?!```).)*?^patches:.*?)^```", text, re.MULTILINE | re.DOTALL)[1])
    overlay = "scale-out" if "scale-out" in component else "local"
    chosen = {"ingress": ["ingress/ingress"], "tracing": ["network-policies", "tracing"]}.get(component, [component])
    paths = [f"../k8s/components/{path}" for path in chosen]
    base = {"resources": [f"../k8s/overlays/{overlay}"], "components": paths}
    if component == "tracing":
        render_own("readme-tracing-below", base)
        base = {"resources": ["../readme-tracing-below"]}
    changed = str(render_own(f"readme-{component}", {**base, **own}))
    for literal in own.get("configMapGenerator", [{"literals": []}])[0]["literals"]:
        assert "'{}': '{}'".format(*literal.split("=")) in changed
    assert {
        "network-policies-scale-out": "10.20.0.0/16",
        "monitoring": "kube-prometheus-stack",
        "tracing": "'kubernetes.io/metadata.name': 'telemetry'",
        "ingress": "auth.example.org",
    }[component] in changed


def test_the_rules_take_another_address_of_the_runbook():
    text = (K8S / "components/monitoring/README.md").read_text().partition("## The runbook's address")[2]
    command = re.search(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    own = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1])
    directory = ROOT / "target/k8s/rendered/readme-runbook"
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["sh", "-euc", command.replace("my-fleet", str(directory))], cwd=ROOT, check=True)
    components = ["../k8s/components/monitoring"]
    objects = render_own("readme-runbook", {"resources": ["../k8s/overlays/local"], "components": components, **own})
    rules = named(objects, "PrometheusRule", "authfleet")
    links = re.findall(r"'runbook_url': '([^']+)'", str(rules))
    assert links and all(link.startswith("https://wiki.example.org/authfleet#") for link in links)
    assert rules["metadata"]["labels"]["app.kubernetes.io/part-of"] == "authfleet"
