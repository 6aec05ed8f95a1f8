"""Tests k8s/credentials.py: its Secrets have every mounted key, and the old secret stays valid during a rotation."""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import schema
from fleet import K8S, STORES, label, pods, renders


def run(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, K8S / "credentials.py", *arguments],
        input=given,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **environment},
    )


def credentials(*arguments: str, given: str = "", **environment: str) -> str:
    done = run(*arguments, given=given, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def decoded(text: str) -> dict[str, dict[str, str]]:
    given = json.loads(text)
    return {
        item["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in item["data"].items()}
        for item in given["items"]
    }


def outside() -> str:
    return credentials("new", "--outside", DATABASE_URL="postgres://db/authfleet", REDIS_URL="rediss://cache")


def cluster() -> str:
    """The Secrets of components/redis-cluster."""
    return credentials("new", "--redis-cluster", DATABASE_URL="postgres://db/authfleet")


def postgres() -> str:
    """The Secrets of components/postgres-cnpg."""
    return credentials("new", "--postgres-cnpg", REDIS_URL="rediss://cache")


def own_stores() -> str:
    """The Secrets of both components, which need nothing from the environment."""
    return credentials("new", "--redis-cluster", "--postgres-cnpg")


def test_kubernetes_takes_the_secrets():
    for text in (credentials("new"), outside(), cluster(), postgres(), own_stores()):
        assert schema.problems(json.loads(text)["items"]) == []
        # kubectl must be able to read it, as in the README's command.
        with tempfile.TemporaryDirectory() as directory:
            own = Path(directory)
            (own / "secrets.json").write_text(text)
            (own / "kustomization.yaml").write_text("resources: [secrets.json]\n")
            subprocess.run(["kubectl", "kustomize", own], check=True, capture_output=True)


def test_every_mounted_key_is_made():
    made = {
        "local": decoded(credentials("new")),
        "scale-out": decoded(outside()),
        "scale-out+redis-cluster": decoded(cluster()),
        "scale-out+postgres-cnpg": decoded(postgres()),
        "scale-out+redis-cluster+postgres-cnpg": decoded(own_stores()),
    }
    for name, objects in renders().items():
        overlay, *components = name.split("+")
        kind = "+".join([overlay, *(store for store in STORES[overlay] if store in components)])
        for thing, _, spec in pods(objects):
            for secret in [volume["secret"] for volume in spec.get("volumes", []) if "secret" in volume]:
                # The operator makes this one, and only the certificate may be mounted: the other key is a private one.
                if secret["secretName"] == "authfleet-postgres-ca":
                    assert [item["key"] for item in secret["items"]] == ["ca.crt"], f"{name}: {label(thing)}"
                    continue
                keys = {item["key"] for item in secret["items"]}
                assert keys <= set(made[kind][secret["secretName"]]), f"{name}: {label(thing)}"


def test_the_operator_and_the_replicas_have_one_password():
    for text in (postgres(), own_stores()):
        items = {item["metadata"]["name"]: item for item in json.loads(text)["items"]}
        assert items["authfleet-postgres-app"]["type"] == "kubernetes.io/basic-auth"
        made = decoded(text)
        url = urlsplit(made["authfleet-server"]["DATABASE_URL"])
        assert {"username": url.username, "password": url.password} == made["authfleet-postgres-app"]
    assert decoded(postgres())["authfleet-server"]["REDIS_URL"] == "rediss://cache"


def test_no_password_is_in_the_acl_file_and_none_is_made_twice():
    first, second = decoded(credentials("new")), decoded(credentials("new"))
    assert not set(first["authfleet-server"].values()) & set(second["authfleet-server"].values())
    assert ">" not in first["authfleet-redis"]["users.acl"]
    password = re.search(r":([0-9a-f]{64})@", first["authfleet-server"]["REDIS_URL"])[1]
    assert password not in str(first["authfleet-redis"])


def test_rotating_the_session_secret():
    begin = credentials("new")
    old = decoded(begin)["authfleet-server"]["SESSION_SECRET"]
    between = credentials("rotate", "session", given=begin)
    # First every replica accepts the new key, then they sign with it.
    kept, new = decoded(between)["authfleet-server"]["SESSION_SECRET"].split(",")
    assert kept == old != new and len(new) >= 32
    switched = credentials("switch", "session", given=between)
    assert decoded(switched)["authfleet-server"]["SESSION_SECRET"] == f"{new},{old}"
    assert "rotate first" in run("switch", "session", given=begin).stderr
    # Nothing else changes.
    assert decoded(between)["authfleet-redis"] == decoded(begin)["authfleet-redis"]
    assert "finish it first" in run("rotate", "session", given=between).stderr
    assert decoded(credentials("finish", "session", given=switched))["authfleet-server"]["SESSION_SECRET"] == new


def test_one_secret_by_itself_as_kubectl_gives_it():
    server = json.loads(credentials("new"))["items"][0]
    server["metadata"]["resourceVersion"] = "42"
    rotated = json.loads(credentials("rotate", "session", given=json.dumps(server)))["items"]
    # with it, `kubectl replace` refuses to overwrite somebody else's change
    assert [item["metadata"]["resourceVersion"] for item in rotated] == ["42"]


def test_private_authorities_are_mounted_and_named(tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n")
    urls = {"DATABASE_URL": "postgres://db/authfleet", "REDIS_URL": "rediss-cluster://cache"}
    both = {"DATABASE_CA_FILE": str(ca), "REDIS_CA_FILE": str(ca)}
    server, certificates = json.loads(credentials("new", "--outside", **urls, **both))["items"]
    assert schema.problems([server, certificates]) == []
    assert (certificates["kind"], certificates["metadata"]["name"]) == ("ConfigMap", "authfleet-certificates")
    assert certificates["data"] == {
        "database-ca.pem": ca.read_text(),
        "redis-ca.pem": ca.read_text(),
        "REDIS_CA_FILE": "/run/certificates/redis-ca.pem",
    }
    root = "sslrootcert=/run/certificates/database-ca.pem"
    for url, made in (
        ("postgres://db/a", f"postgres://db/a?sslmode=verify-full&{root}"),
        ("postgres://db/a?sslmode=verify-ca", f"postgres://db/a?sslmode=verify-ca&{root}"),
    ):
        text = credentials("new", "--outside", **{**urls, "DATABASE_URL": url}, DATABASE_CA_FILE=str(ca))
        assert base64.b64decode(json.loads(text)["items"][0]["data"]["DATABASE_URL"]).decode() == made
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    for changed, words in (
        ({"DATABASE_URL": "postgres://db/a?sslmode=require"}, "verifies nothing"),
        ({"DATABASE_URL": "postgres://db/a?sslrootcert=/x"}, "leave sslrootcert out"),
        ({"REDIS_URL": "redis://cache"}, "REDIS_URL has no TLS"),
        ({"REDIS_CA_FILE": str(tmp_path / "key.pem")}, "and no key"),
        ({"DATABASE_CA_FILE": str(tmp_path / "none.pem")}, "No such file"),
    ):
        done = run("new", "--outside", **{**urls, **both, **changed})
        assert done.returncode and not done.stdout and words in done.stderr and "Traceback" not in done.stderr


def test_rotating_the_password_of_a_cluster_keeps_its_url():
    begin = cluster()
    before, between = decoded(begin), decoded(credentials("rotate", "redis", given=begin))
    pattern = r"redis-cluster://authfleet:([0-9a-f]{64})@authfleet-redis-cluster-0\."
    old, new = (re.match(pattern, made["authfleet-server"]["REDIS_URL"])[1] for made in (before, between))
    assert old != new
    assert before["authfleet-server"]["REDIS_URL"].replace(old, new) == between["authfleet-server"]["REDIS_URL"]
    assert before["authfleet-redis"]["replication.conf"] == between["authfleet-redis"]["replication.conf"]


def test_wrong_input_is_named():
    for arguments, given, words in (
        (("rotate", "session"), "", "kubectl get secret"),
        (("rotate", "session"), "[]", "kubectl get secret"),
        (("rotate", "session"), outside().replace("SESSION_SECRET", "OTHER"), "SESSION_SECRET"),
        (("rotate", "redis"), outside(), "authfleet-redis"),
        (("new", "--outside"), "", "DATABASE_URL, REDIS_URL"),
        (("new", "--redis-cluster"), "", "environment: DATABASE_URL\n"),
        (("new", "--postgres-cnpg"), "", "environment: REDIS_URL\n"),
    ):
        done = run(*arguments, given=given)
        assert done.returncode and not done.stdout and words in done.stderr and "Traceback" not in done.stderr
