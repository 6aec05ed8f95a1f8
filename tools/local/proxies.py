"""Starts the proxies of deploy/forward-auth on this machine, in front of two small applications and a fleet.

The files are used as they ship, except for addresses and paths. All hosts are reached at one port of 127.0.0.1, by
https with a certificate of our own.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fleet as fleets
from fleet import HOST, ROOT, FleetError

sys.path.insert(0, str(ROOT / "deploy" / "compose"))
import application

RECIPES = ROOT / "deploy" / "forward-auth"
PROXIES = ("nginx", "traefik", "caddy", "envoy", "haproxy")
LOGIN, APP1, APP2 = "login.example.org", "app1.example.org", "app2.example.org"
START_TIMEOUT = 60.0


def environment() -> dict[str, str]:
    """The variables of a fleet behind these proxies."""
    return {
        "PUBLIC_URL": f"https://{LOGIN}",
        "PROTECTED_HOSTS": f"{APP1},{APP2}",
        "COOKIE_SECURE": "true",
        "TRUSTED_PROXIES": f"{HOST}/32",
    }


def free_port() -> int:
    """A port below the range of outgoing connections, so that no client takes it meanwhile."""
    return fleets.private_ports(1, False).http


def certificate(directory: Path) -> Path:
    """Makes tls.crt, tls.key and, with both, tls.pem, for all three hosts."""
    directory.mkdir(parents=True, exist_ok=True)
    names = ",".join(f"DNS:{name}" for name in (LOGIN, APP1, APP2))
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-days", "2", "-subj", "/CN=example.org", "-addext", f"subjectAltName={names}"]
    made += ["-keyout", "tls.key", "-out", "tls.crt"]
    subprocess.run(made, cwd=directory, check=True, capture_output=True)
    (directory / "tls.pem").write_text((directory / "tls.crt").read_text() + (directory / "tls.key").read_text())
    return directory


@contextlib.contextmanager
def applications() -> Iterator[list[int]]:
    """Starts app1 and app2; yields their ports."""
    servers = [application.server(name, HOST, 0) for name in ("app1", "app2")]
    try:
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield [server.server_address[1] for server in servers]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@dataclass
class Proxy:
    """A running proxy."""

    name: str
    port: int
    pid: int
    log: Path


@contextlib.contextmanager
def started(
    name: str,
    directory: Path,
    tls: Path,
    replicas: list[int],
    apps: list[int],
    broken: dict[str, dict[str, str]] | None = None,
) -> Iterator[Proxy]:
    """Starts one of `PROXIES` in `directory`. `replicas` and `apps` are ports. `broken` has replacements by file, for
    tests of a recipe that somebody has spoiled."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "proxy.log"
    # HOME: Caddy keeps its data there.
    env = {**os.environ, **dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(directory))}
    for attempts_left in (4, 3, 2, 1, 0):
        port = free_port()
        command = COMMANDS[name](directory, tls, port, addresses(replicas, apps))
        for file, replace in (broken or {}).items():
            filled(directory / file, directory / file, replace)
        with open(log, "wb") as out:
            child = subprocess.Popen(command, cwd=directory, env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            if came_up(child, port):
                yield Proxy(name, port, child.pid, log)
                return
        finally:
            ended(child)
        said = log.read_text(errors="replace")
        # Somebody else took the port after free_port had found it free.
        if not attempts_left or not re.search("in use|cannot bind|bind\\(\\)", said):
            raise FleetError(f"{name} does not answer on port {port}; the end of its log:\n{fleets.tail(log)}")


def came_up(child: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until the proxy answers; false if it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT
    while child.poll() is None and time.monotonic() < deadline:
        if answers(port):
            return True
        time.sleep(0.05)
    return False


def ended(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def answers(port: int) -> bool:
    """Whether the proxy passes a request on to a replica."""
    context = ssl._create_unverified_context()
    try:
        plain = socket.create_connection((HOST, port), timeout=3)
        with context.wrap_socket(plain, server_hostname=LOGIN) as connection:
            asked = f"GET /openapi.json HTTP/1.1\r\nHost: {LOGIN}\r\nConnection: close\r\n\r\n"
            connection.sendall(asked.encode())
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def addresses(replicas: list[int], apps: list[int]) -> dict[str, str]:
    """The addresses in the recipes, and those to put in their place."""
    found = {f"replica-{n}:3000": f"{HOST}:{port}" for n, port in enumerate(replicas, 1)}
    return {**found, **{f"app{n}:8000": f"{HOST}:{port}" for n, port in enumerate(apps, 1)}}


def filled(source: Path, target: Path, replace: dict[str, str]) -> None:
    """Copies a file with other addresses. Each must be there."""
    text = source.read_text()
    for old, new in replace.items():
        if old not in text:
            raise FleetError(f"{source} has no {old!r}")
        text = text.replace(old, new)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def nginx(directory: Path, tls: Path, port: int, where: dict[str, str]) -> list[str]:
    recipe = RECIPES / "nginx"
    filled(
        recipe / "conf.d" / "authfleet.conf",
        directory / "conf.d" / "authfleet.conf",
        {**where, "/etc/nginx/tls": str(tls), "listen 443 ssl": f"listen {HOST}:{port} ssl"},
    )
    for part in ("proxy", "protect", "server"):
        filled(recipe / "authfleet" / f"{part}.conf", directory / "authfleet" / f"{part}.conf", {})
    # What nginx.conf of a distribution does: it includes conf.d/*.conf in http {}.
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    user = "user root;" if os.getuid() == 0 else ""
    (directory / "nginx.conf").write_text(
        f"{user} worker_processes 2; daemon off; pid {directory}/pid; error_log stderr; "
        "events { worker_connections 4096; }\n"
        f"http {{ access_log off; {temporary} include {directory}/conf.d/*.conf; }}\n"
    )
    return [fleets.tool("nginx"), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]


def traefik(directory: Path, tls: Path, port: int, where: dict[str, str]) -> list[str]:
    questions = f"{HOST}:{free_port()}"
    here = {"/etc/traefik/dynamic.yml": str(directory / "dynamic.yml"), "127.0.0.1:8404": questions}
    filled(RECIPES / "traefik" / "traefik.yml", directory / "traefik.yml", {**here, '":443"': f'"{HOST}:{port}"'})
    moved = {**where, "/etc/traefik/tls": str(tls), "127.0.0.1:8404": questions}
    filled(RECIPES / "traefik" / "dynamic.yml", directory / "dynamic.yml", moved)
    return [wheel("traefik"), f"--configFile={directory / 'traefik.yml'}"]


def caddy(directory: Path, tls: Path, port: int, where: dict[str, str]) -> list[str]:
    hosts = {f"{name} {{": f"https://{name}:{port} {{\n\tbind {HOST}" for name in (LOGIN, APP1, APP2)}
    filled(RECIPES / "caddy" / "Caddyfile", directory / "Caddyfile", {**where, **hosts, "/etc/caddy/tls": str(tls)})
    # No other instance's admin port, and no redirects on port 80.
    text = (directory / "Caddyfile").read_text()
    (directory / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
    return [wheel("caddy"), "run", "--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"]


def envoy(directory: Path, tls: Path, port: int, where: dict[str, str]) -> list[str]:
    split = {}
    for old, new in where.items():
        (name, number), (host, other) = old.split(":"), new.split(":")
        split[f"address: {name}, port_value: {number}"] = f"address: {host}, port_value: {other}"
    listen = {"address: 0.0.0.0, port_value: 443": f"address: {HOST}, port_value: {port}"}
    filled(RECIPES / "envoy" / "envoy.yaml", directory / "envoy.yaml", {**split, **listen, "/etc/envoy/tls": str(tls)})
    options = ["--concurrency", "2", "--log-level", "warning", "--base-id-path", str(directory / "base-id")]
    return [wheel("envoy"), "-c", str(directory / "envoy.yaml"), "--use-dynamic-base-id", *options]


def haproxy(directory: Path, tls: Path, port: int, where: dict[str, str]) -> list[str]:
    at = {"/run/haproxy/authfleet.sock": str(directory / "authfleet.sock")}
    moved = {"bind :443": f"bind {HOST}:{port}", "/etc/haproxy/tls": str(tls), **at}
    lua = {"/etc/haproxy/authfleet.lua": str(directory / "authfleet.lua")}
    filled(RECIPES / "haproxy" / "haproxy.cfg", directory / "haproxy.cfg", {**where, **moved, **lua})
    filled(RECIPES / "haproxy" / "authfleet.lua", directory / "authfleet.lua", at)
    return [fleets.tool("haproxy"), "-db", "-f", str(directory / "haproxy.cfg")]


COMMANDS = {"nginx": nginx, "traefik": traefik, "caddy": caddy, "envoy": envoy, "haproxy": haproxy}


def wheel(name: str) -> str:
    """The path of a program of tools/requirements/proxies.txt."""
    found = ROOT / ".tools" / "venv" / "proxies" / "bin" / name
    if not found.exists():
        raise FleetError(f"{name} is not installed; tools/venv proxies installs it")
    return str(found)
