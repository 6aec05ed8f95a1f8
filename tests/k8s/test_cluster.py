"""Server-side dry-run against the API server that KUBECONFIG names. Without one, tests/k8s/run leaves this file out.

A dry-run needs the namespace. If it doesn't exist, the tests create it and delete it afterwards.
"""

import subprocess

import pytest
import yaml

from fleet import combinations, label, named, renders


def kubectl(*arguments: str, given: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True)


@pytest.fixture(scope="module")
def namespace():
    exists = kubectl("get", "namespace", "authfleet").returncode == 0
    if not exists:
        made = kubectl("create", "-f", "-", given=yaml.safe_dump(named(renders()["local"], "Namespace", "authfleet")))
        # If somebody else has just created it, they will delete it.
        exists = "AlreadyExists" in made.stderr
        assert exists or made.returncode == 0, made.stderr
    yield
    if not exists:
        kubectl("delete", "namespace", "authfleet", "--wait=false")


def singles() -> list[str]:
    """Each overlay without components, and with each single component."""
    return [name for name, (_, chosen) in combinations().items() if len(chosen) < 2]


@pytest.mark.parametrize("name", singles())
def test_the_api_server_accepts(name, namespace):
    objects = renders()[name]
    groups = kubectl("api-versions").stdout.split()
    if missing := sorted({label(thing) for thing in objects if thing["apiVersion"] not in groups}):
        pytest.skip(f"NOT DONE: this API server lacks the custom resources of {', '.join(missing)}")
    text = "".join(f"---\n{yaml.safe_dump(thing)}" for thing in objects)
    # As field manager `kubectl` it would take over the fields that `kubectl apply` owns, and warn about it.
    as_a_test = ["--server-side", "--field-manager=authfleet-test", "--force-conflicts", "--dry-run=server"]
    done = kubectl("apply", *as_a_test, "--validate=strict", "--warnings-as-errors", "-f", "-", given=text)
    assert done.returncode == 0, done.stderr


def test_the_api_server_refuses_what_is_wrong(namespace):
    """Without this, the acceptance above would prove nothing."""
    wrong = yaml.safe_dump(named(renders()["local"], "Service", "authfleet")).replace("port: 80", "port: 80000")
    assert kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", given=wrong).returncode != 0
