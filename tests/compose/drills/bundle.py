"""Drills without faults: what the image and docker-compose.yml promise about themselves."""

from __future__ import annotations

import json
import pathlib
import re

from clients import User
from engine import ROOT, compose, container, expect, run, say


def image(_users: list[User]) -> None:
    """The image is small, unprivileged and labelled, and its tag is the crate's version."""
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    name = f"authfleet:{version}"
    expect(name in compose("config", "--images").split(), f"docker-compose.yml does not use {name}")
    spec = json.loads(run("docker", "image", "inspect", name))[0]
    base = re.search(r"^ARG RUN_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.M)[1]
    size = spec["Size"] - json.loads(run("docker", "image", "inspect", base))[0]["Size"]
    expect(size <= 40e6, f"the image is {size / 1e6:.1f} MB beyond its base")
    config = spec["Config"]
    expect(config["User"] == "10001:10001", f"the image's user is {config['User']}")
    expect(config["StopSignal"] == "SIGTERM", f"the stop signal is {config['StopSignal']}")
    expect(config["Healthcheck"]["Test"][1:] == ["authfleet", "healthcheck"], "the health check is another command")
    labels = config["Labels"]
    expect(labels["org.opencontainers.image.version"] == version, "the label version is not the crate's version")
    expect(labels["org.opencontainers.image.title"] == "authfleet", f"labels: {labels}")
    say(f"{name}: {size / 1e6:.1f} MB beyond its base")


def as_documented(_users: list[User]) -> None:
    """In every profile, each mounted file exists and each port is published on loopback only."""
    config = json.loads(compose("--profile", "*", "config", "--format", "json"))
    for name, service in config["services"].items():
        for mount in service.get("volumes", []):
            source = pathlib.Path(mount["source"])
            # If a bind mount's source doesn't exist, Docker creates an empty directory there.
            is_there = mount["type"] != "bind" or (any(source.iterdir()) if source.is_dir() else source.is_file())
            expect(is_there, f"{name} mounts {source}, which is missing or empty")
        for port in service.get("ports", []):
            expect(port["host_ip"] == "127.0.0.1", f"{name} publishes {port['target']} on {port['host_ip']}")
        expect(re.search(r":v?\d+\.\d+", service["image"]), f"{name} does not name a version of {service['image']}")
    for file in (ROOT / "deploy/grafana/provisioning").rglob("*.yml"):
        for name, port in re.findall(r"^ +url: http://([a-z-]+):(\d+)$", file.read_text(), re.M):
            ports = [published["target"] for published in config["services"].get(name, {}).get("ports", [])]
            expect(int(port) in ports, f"{file.name} names {name}:{port}")
        for path in re.findall(r"^ +path: (\S+)$", file.read_text(), re.M):
            targets = [mount["target"] for mount in config["services"]["grafana"]["volumes"]]
            expect(path in targets, f"{file.name} names {path}, where Grafana has nothing mounted")


def confined(service: str) -> None:
    spec = json.loads(run("docker", "inspect", container(service)))[0]
    host, user = spec["HostConfig"], spec["Config"]["User"]
    facts = {
        "runs as root": user in ("", "0", "root") or user.startswith("0:"),
        "has a writable root": not host["ReadonlyRootfs"],
        "keeps capabilities": host["CapDrop"] != ["ALL"] or host["CapAdd"],
        "may gain privileges": "no-new-privileges:true" not in host["SecurityOpt"],
        "has no memory limit": not host["Memory"],
        "has no limit on processes": not host["PidsLimit"],
        "has no log rotation": "max-size" not in host["LogConfig"]["Config"],
    }
    wrong = [fact for fact, is_so in facts.items() if is_so]
    expect(not wrong, f"{service} {', '.join(wrong)}")
    published = any(spec["NetworkSettings"]["Ports"].values())
    expect(
        published == (service in ("nginx", "nginx-2", "prometheus", "jaeger")),
        f"{service}: a port is published: {published}",
    )


def hardened(_users: list[User]) -> None:
    """Every container is confined, and only the replicas can use Redis."""
    for service in compose("ps", "--services").split():
        confined(service)
    stranger = compose("exec", "-T", "redis", "redis-cli", "ping", check=False)
    expect("NOAUTH" in stranger, f"Redis answers without a password: {stranger}")
    outside = compose("exec", "-T", "nginx", "curl", "-sS", "-m", "3", "telnet://redis:6379", check=False)
    expect("resolv" in outside.lower(), f"nginx can reach Redis: {outside}")
    own = compose("exec", "-T", "redis", "sh", "-c", "ls /run/authfleet /run/redis 2>&1; true")
    expect("session-secret" not in own, "Redis's container can read the key that signs cookies")


def missing_secret(_users: list[User]) -> None:
    """If a secret is missing, the server names it and doesn't start."""
    nothing = "SESSION_SECRET_FILE=/run/authfleet/nothing"
    out = compose("run", "--rm", "-T", "--no-deps", "-e", nothing, "replica-1", "serve", check=False)
    expect("SESSION_SECRET_FILE" in out and "/run/authfleet/nothing" in out, f"unclear: {out}")


def sharing(_users: list[User]) -> None:
    """k6 proves that sessions are shared, for each pair of replicas directly and through nginx."""
    out = compose("--profile", "loadtest", "run", "--rm", "-T", "-e", "SHORT=1", "k6", check=False)
    found = re.search(r"(\d+) sessions proved, (\d+) violations, (\d+) obstacles; (\d+) of (\d+) pairs.*", out)
    expect("sharing: passed" in out and found, "\n".join(out.splitlines()[-30:]))
    say(found[0])
