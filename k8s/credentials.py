#!/usr/bin/env python3
"""Makes and rotates the Secrets of the fleet, as JSON for kubectl. Never prints to a terminal.

    k8s/credentials.py new | kubectl create -f -
    REDIS_URL=... DATABASE_URL=... k8s/credentials.py new --outside | kubectl create -f -
    k8s/credentials.py new --redis-cluster --postgres-cnpg | kubectl create -f -
    kubectl -n authfleet get secret authfleet-server -o json | k8s/credentials.py rotate session | kubectl replace -f -
    kubectl -n authfleet get secret authfleet-redis -o json | k8s/credentials.py acl |
        kubectl -n authfleet exec -i authfleet-redis-0 -- redis-cli

`rotate` adds a new secret beside the old one, and `finish` removes the old one. In between both are valid, so that
nobody is signed out. `session` has a step `switch` in the middle, because a replica may sign with the new key only when
all replicas accept it. `session` needs the Secret authfleet-server, `redis` the Secrets authfleet-server and
authfleet-redis. `acl` prints the commands that give a running Redis the passwords of its Secret, without a restart.

`--outside` takes the URLs of both stores from the environment. `--redis-cluster` is for components/redis-cluster, and
`--postgres-cnpg` for components/postgres-cnpg; with one of them alone, only the other store's URL is taken. For private
authorities, DATABASE_CA_FILE and REDIS_CA_FILE name files with certificates (PEM), which go into the ConfigMap
authfleet-certificates; the URL of PostgreSQL then gets sslmode and sslrootcert.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import secrets
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SERVER, REDIS, POSTGRES = "authfleet-server", "authfleet-redis", "authfleet-postgres-app"
# probe is for the pod's probes. authfleet, for the replicas, can do everything except administration. operator is for
# using redis-cli by hand.
ACL = """\
user default reset off ~* &* +@all
user probe on nopass resetkeys resetchannels -@all +ping
user authfleet on {fleet} ~* &* +@all -@admin -@dangerous +info +config|get
user operator on {operator} ~* &* +@all
"""
# For the replicas in a cluster: with it they can copy all data, but run no other command.
REPLICATION = "user replication on {replication} resetkeys resetchannels -@all +psync +replconf +ping\n"
# Where overlays/scale-out mounts the ConfigMap.
CERTIFICATES, MOUNTED = "authfleet-certificates", "/run/certificates"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="print the Secrets of a new fleet")
    kind = new.add_mutually_exclusive_group()
    kind.add_argument("--outside", action="store_true", help="take REDIS_URL and DATABASE_URL from the environment")
    kind.add_argument("--redis-cluster", action="store_true", help="Redis is components/redis-cluster")
    new.add_argument("--postgres-cnpg", action="store_true", help="PostgreSQL is components/postgres-cnpg")
    for name, choices in (("rotate", ["session", "redis"]), ("switch", ["session"]), ("finish", ["session", "redis"])):
        command = commands.add_parser(name, help="read Secrets from standard input, print the changed ones")
        command.add_argument("what", choices=choices)
    commands.add_parser("acl", help="print commands for redis-cli, from the Secret authfleet-redis")
    arguments = parser.parse_args()
    if sys.stdout.isatty():
        sys.exit("this prints secrets: pipe it into kubectl")
    if arguments.command == "acl":
        print(acl_commands(read()[1]))
        return
    if arguments.command == "new":
        if arguments.outside or arguments.redis_cluster or arguments.postgres_cnpg:
            made, certificates = scale_out(arguments.redis_cluster, arguments.postgres_cnpg)
        else:
            made, certificates = inside(), {}
        items = [manifest(name, data) for name, data in made.items()]
        if certificates:
            items.append(config(CERTIFICATES, certificates))
        listed = {"apiVersion": "v1", "kind": "List", "items": items}
    else:
        listed, found = read()
        {
            ("rotate", "session"): rotate_session,
            ("switch", "session"): switch_session,
            ("finish", "session"): finish_session,
            ("rotate", "redis"): rotate_redis,
            ("finish", "redis"): finish_redis,
        }[arguments.command, arguments.what](found)
        for item in listed["items"]:
            item["data"] = encoded(found[item["metadata"]["name"]])
    json.dump(listed, sys.stdout, indent=2)
    print()


def inside() -> dict[str, dict[str, str]]:
    """Secrets for a fleet with its own Redis."""
    password, operator = secrets.token_hex(32), secrets.token_hex(32)
    return {
        SERVER: {"REDIS_URL": redis_url(password), "SESSION_SECRET": secrets.token_hex(32)},
        REDIS: {"users.acl": ACL.format(fleet=digest(password), operator=digest(operator)), "operator": operator},
    }


def scale_out(has_redis: bool, has_postgres: bool) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Secrets and certificates for overlays/scale-out. Stores that are no component of it are outside."""
    names = [name for name, has in (("DATABASE_URL", has_postgres), ("REDIS_URL", has_redis)) if not has]
    server = {name: os.environ.get(name, "") for name in names}
    if missing := [name for name, value in server.items() if not value]:
        sys.exit(f"not set in the environment: {', '.join(missing)}")
    made, certificates = {SERVER: server}, {}
    if text := certificate("DATABASE_CA_FILE"):
        if has_postgres:
            sys.exit("DATABASE_CA_FILE is set, but the operator makes the authority of components/postgres-cnpg")
        certificates["database-ca.pem"] = text
        server["DATABASE_URL"] = with_certificate(server["DATABASE_URL"])
    if text := certificate("REDIS_CA_FILE"):
        if has_redis:
            sys.exit("REDIS_CA_FILE is set, but components/redis-cluster has no TLS")
        if not server["REDIS_URL"].startswith("rediss"):
            sys.exit("REDIS_CA_FILE is set, but REDIS_URL has no TLS: it must begin with rediss")
        certificates |= {"redis-ca.pem": text, "REDIS_CA_FILE": f"{MOUNTED}/redis-ca.pem"}
    if has_postgres:
        password = secrets.token_hex(32)
        server["DATABASE_URL"] = postgres_url(password)
        made[POSTGRES] = {"username": "authfleet", "password": password}
    if has_redis:
        password, operator, replication = (secrets.token_hex(32) for _ in range(3))
        server["REDIS_URL"] = cluster_url(password)
        acl = ACL + REPLICATION
        made[REDIS] = {
            "users.acl": acl.format(fleet=digest(password), operator=digest(operator), replication=digest(replication)),
            "operator": operator,
            "replication.conf": f"masteruser replication\nmasterauth {replication}\n",
        }
    server["SESSION_SECRET"] = secrets.token_hex(32)
    return made, certificates


def certificate(name: str) -> str | None:
    """The text of the PEM file that an environment variable names, if it is set."""
    if not (path := os.environ.get(name)):
        return None
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{name}: {error}")
    if "-----BEGIN CERTIFICATE-----" not in text or "PRIVATE KEY" in text:
        sys.exit(f"{name}: {path} must have certificates (PEM), and no key")
    return text


def with_certificate(url: str) -> str:
    """DATABASE_URL with the mounted certificate, and sslmode=verify-full unless it has an sslmode that verifies."""
    options = parse_qs(urlsplit(url).query)
    if "sslrootcert" in options or options.get("sslmode", ["verify-full"])[0] not in ("verify-ca", "verify-full"):
        sys.exit(
            "DATABASE_CA_FILE is set: leave sslrootcert out of DATABASE_URL, and any sslmode that verifies nothing"
        )
    mode = "" if "sslmode" in options else "sslmode=verify-full&"
    return f"{url}{'&' if options else '?'}{mode}sslrootcert={MOUNTED}/database-ca.pem"


def rotate_session(found: dict[str, dict[str, str]]) -> None:
    """Adds a key in second place: the first key signs, and all are accepted."""
    old = entry(found, SERVER, "SESSION_SECRET")
    if "," in old:
        sys.exit("a rotation is under way: finish it first")
    found[SERVER]["SESSION_SECRET"] = f"{old},{secrets.token_hex(32)}"


def switch_session(found: dict[str, dict[str, str]]) -> None:
    """Makes the new key sign; the old one is still accepted."""
    old, comma, new = entry(found, SERVER, "SESSION_SECRET").partition(",")
    if not comma:
        sys.exit("no rotation is under way: rotate first")
    found[SERVER]["SESSION_SECRET"] = f"{new},{old}"


def finish_session(found: dict[str, dict[str, str]]) -> None:
    """Keeps only the first key."""
    found[SERVER]["SESSION_SECRET"] = entry(found, SERVER, "SESSION_SECRET").split(",")[0]


def rotate_redis(found: dict[str, dict[str, str]]) -> None:
    """Makes Redis accept the old and the new password, and the replicas use the new one."""
    acl, password = entry(found, REDIS, "users.acl"), secrets.token_hex(32)
    if len(fleet_digests(acl)) > 1:
        sys.exit("a rotation is under way: finish it first")
    both = f"{fleet_digests(acl)[0]} {digest(password)}"
    found[REDIS]["users.acl"] = acl.replace(fleet_digests(acl)[0], both)
    url = entry(found, SERVER, "REDIS_URL")
    if not (old := urlsplit(url).password):
        sys.exit(f"{SERVER}: REDIS_URL has no password")
    found[SERVER]["REDIS_URL"] = url.replace(f":{old}@", f":{password}@")


def finish_redis(found: dict[str, dict[str, str]]) -> None:
    """Makes Redis accept only the password that the replicas use."""
    acl = entry(found, REDIS, "users.acl")
    now = digest(urlsplit(entry(found, SERVER, "REDIS_URL")).password or "")
    if now not in fleet_digests(acl):
        sys.exit(f"{REDIS} does not have the password in {SERVER}")
    found[REDIS]["users.acl"] = acl.replace(" ".join(fleet_digests(acl)), now)


def acl_commands(found: dict[str, dict[str, str]]) -> str:
    """Commands that set the passwords. ACL LOAD would end the fleet's connections, and would read the pod's file, which
    follows the Secret up to two minutes later."""
    passwords = " ".join(fleet_digests(entry(found, REDIS, "users.acl")))
    return f"AUTH operator {entry(found, REDIS, 'operator')}\nACL SETUSER authfleet resetpass {passwords}"


def fleet_digests(acl: str) -> list[str]:
    line = re.search(r"^user authfleet on (.*)$", acl, re.MULTILINE)
    if not line:
        sys.exit(f"{REDIS}: users.acl has no user authfleet")
    return [word for word in line[1].split() if word.startswith("#")]


def redis_url(password: str) -> str:
    return f"redis://authfleet:{password}@authfleet-redis.authfleet.svc.cluster.local:6379/0"


def cluster_url(password: str) -> str:
    """Names three members, which know the others."""
    name = "authfleet-redis-cluster"
    hosts = ",".join(f"{name}-{member}.{name}.authfleet.svc.cluster.local:6379" for member in range(3))
    return f"redis-cluster://authfleet:{password}@{hosts}"


def postgres_url(password: str) -> str:
    """The operator's Service, which leads to the primary, and where components/postgres-cnpg mounts its authority."""
    host = "authfleet-postgres-rw.authfleet.svc.cluster.local"
    return f"postgres://authfleet:{password}@{host}:5432/authfleet?sslmode=verify-full&sslrootcert=/run/postgres/ca.crt"


def digest(password: str) -> str:
    """The hash of a password for Redis's ACL files, so that they don't contain the password itself."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def manifest(name: str, data: dict[str, str]) -> dict:
    # CloudNativePG takes only this type.
    kind = "kubernetes.io/basic-auth" if name == POSTGRES else "Opaque"
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata(name), "type": kind, "data": encoded(data)}


def config(name: str, data: dict[str, str]) -> dict:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(name), "data": data}


def metadata(name: str) -> dict:
    labels = {f"app.kubernetes.io/{key}": "authfleet" for key in ("name", "instance", "part-of")}
    return {"name": name, "namespace": "authfleet", "labels": labels}


def encoded(data: dict[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}


def read() -> tuple[dict, dict[str, dict[str, str]]]:
    """The Secrets from standard input, as read and decoded."""
    try:
        given = json.load(sys.stdin)
        listed = given if given["kind"] == "List" else {"apiVersion": "v1", "kind": "List", "items": [given]}
        found = {
            item["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in item["data"].items()}
            for item in listed["items"]
        }
    except (ValueError, KeyError, TypeError):
        sys.exit("standard input is not what `kubectl get secret … -o json` prints")
    return listed, found


def entry(found: dict[str, dict[str, str]], name: str, key: str) -> str:
    try:
        return found[name][key]
    except KeyError:
        sys.exit(f"the Secret {name} with the key {key} is missing on standard input")


if __name__ == "__main__":
    main()
