"""The parts of a local fleet: their programs, arguments, environments and files."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from model import DEPLOY, HERE, HOST, Fleet, FleetError


def command_of(fleet: Fleet, name: str) -> tuple[list[str], dict[str, str]]:
    if name == "redis":
        redis_dir = fleet.path / "redis"
        redis_dir.mkdir(exist_ok=True)
        command = [tool("redis-server"), str(DEPLOY / "redis" / "redis.conf")]
        return [*command, "--bind", HOST, "--port", str(fleet.redis_port), "--dir", str(redis_dir)], dict(os.environ)
    if name == "nginx":
        return nginx_command(fleet, "-g", "daemon off;"), dict(os.environ)
    if name == "prometheus":
        return prometheus_command(fleet), dict(os.environ)
    if name in fleet.apps:
        port = fleet.app_ports[fleet.apps.index(name)]
        command = [sys.executable, "-B", str(DEPLOY / "compose" / "application.py"), name, HOST, str(port)]
        return command, dict(os.environ)
    return [fleet.binary, "serve"], replica_env(fleet, name)


def replica_env(fleet: Fleet, name: str) -> dict[str, str]:
    number = fleet.replicas.index(name)
    own = {
        "REPLICA_ID": name,
        "LISTEN_ADDR": f"{HOST}:{fleet.replica_ports[number]}",
        "OPS_ADDR": f"{HOST}:{fleet.ops_ports[number]}",
        "REDIS_URL": f"redis://{HOST}:{fleet.redis_port}",
        "DATABASE_URL": f"sqlite://{fleet.path}/data/authfleet.db",
        "SESSION_SECRET_FILE": str(fleet.path / "secret"),
        "COOKIE_SECURE": "false",  # Plain http on loopback.
        "TRUSTED_PROXIES": f"{HOST}/32",
        **applications_env(fleet),
        **fleet.env,
    }
    # Replicas inherit variables such as RUST_LOG and OTEL_*, except those that are set here, as NAME or NAME_FILE.
    stems = {key.removesuffix("_FILE") for key in own}
    inherited = {key: value for key, value in os.environ.items() if key.removesuffix("_FILE") not in stems}
    # All replicas together shouldn't hash on more threads than this machine has cores.
    hashing = str(max(1, (os.cpu_count() or 1) // len(fleet.replicas)))
    return {"DRAIN_DELAY": "1s", "HASH_CONCURRENCY": hashing, **inherited, **own}


def applications_env(fleet: Fleet) -> dict[str, str]:
    """The variables of replicas that nginx asks about the applications."""
    if not fleet.apps:
        return {}
    hosts = ",".join(fleet.app_url(name).removeprefix("http://") for name in fleet.apps)
    return {"PUBLIC_URL": fleet.url, "PROTECTED_HOSTS": hosts}


def nginx_command(fleet: Fleet, *more: str) -> list[str]:
    prefix = fleet.path / "nginx"
    command = [tool("nginx"), "-p", str(prefix), "-c", str(prefix / "conf" / "nginx.conf")]
    # -e needs nginx 1.19.5 (Ubuntu 22.04 has 1.18). Without it, nginx first tries to open the system's error log.
    shown = subprocess.run([command[0], "-v"], capture_output=True, text=True, check=True).stderr
    version = tuple(int(part) for part in re.findall(r"\d+", shown)[:3])
    return command + (["-e", "stderr"] if version >= (1, 19, 5) else []) + list(more)


def prometheus_command(fleet: Fleet) -> list[str]:
    home = fleet.path / "prometheus"
    return [
        tool("prometheus"),
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        # The objectives in docs/slo.md cover 30 days.
        "--storage.tsdb.retention.time=40d",
        f"--web.listen-address={HOST}:{fleet.prometheus_port}",
        # Links in alerts to the runbook begin with this address.
        f"--web.external-url={fleet.prometheus_url}",
        f"--web.console.templates={DEPLOY / 'prometheus' / 'consoles'}",
    ]


def tool(name: str) -> str:
    """The path of a program. Also looks in /usr/sbin, where Debian puts nginx, because only root's PATH includes it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin:/usr/local/bin")
    if not found:
        option = " --bundle" if name == "prometheus" else ""
        raise FleetError(f"{name} is not installed; tools/local/install.sh{option} installs it")
    return found


def write_secret(path: Path) -> None:
    """Writes a new secret, unless the directory has one from an earlier start (sessions are kept too)."""
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")


def write_nginx_conf(fleet: Fleet, limits: Path | None) -> None:
    """Links to the shipped files, except for the addresses of this fleet."""
    conf = fleet.path / "nginx" / "conf"
    for old in conf.iterdir():
        old.unlink()
    for shipped in (DEPLOY / "nginx").glob("*.conf"):
        (conf / shipped.name).symlink_to(shipped)
    # Drains are shorter here than in the product (see replica_env), so idle connections end sooner too.
    shipped = (DEPLOY / "nginx" / "nginx.conf").read_text()
    idle = "        keepalive_timeout 3s;\n"
    if shipped.count(idle) != 1:
        raise FleetError(
            "deploy/nginx/nginx.conf: the time after which idle connections to replicas are closed is not 3 s"
        )
    (conf / "nginx.conf").unlink()
    (conf / "nginx.conf").write_text(shipped.replace(idle, "        keepalive_timeout 500ms;\n"))
    if limits:
        (conf / "limits.conf").unlink()
        (conf / "limits.conf").symlink_to(limits.absolute())
    (conf / "listen.conf").unlink()
    (conf / "listen.conf").write_text(f"listen {HOST}:{fleet.http_port};\n")
    (conf / "upstream.conf").write_text(upstream_conf(fleet.replica_ports))
    if fleet.apps:
        (conf / "apps-servers.conf").symlink_to(DEPLOY / "nginx" / "apps" / "servers.conf")
        (conf / "authfleet").symlink_to(DEPLOY / "forward-auth" / "nginx" / "authfleet")
        hosts = " ".join(f"{name}.localhost {HOST}:{port};" for name, port in zip(fleet.apps, fleet.app_ports))
        (conf / "apps-local.conf").write_text(f"map $host $application {{ {hosts} }}\n")


def upstream_conf(ports: list[int]) -> str:
    """The local counterpart of deploy/nginx/upstream/*.conf. Each replica is listed twice. After a failure nginx skips
    the first entry for 5 s. It never skips the second entry, but uses it only if all first entries are skipped, so even
    then a replica answers the client."""
    servers = [f"server {HOST}:{port} max_fails=1 fail_timeout=5s;" for port in ports]
    servers += [f"server {HOST}:{port} max_fails=0 backup;" for port in ports]
    return "\n".join(servers) + "\n"


def write_prometheus_conf(fleet: Fleet) -> None:
    """Links to the shipped files, and writes the targets of this fleet."""
    home = fleet.path / "prometheus"
    home.mkdir(exist_ok=True)
    for name, shipped in (("prometheus.yml", HERE / "prometheus.yml"), ("rules", DEPLOY / "prometheus" / "rules")):
        (home / name).unlink(missing_ok=True)
        (home / name).symlink_to(shipped)
    targets = [
        {"targets": [f"{HOST}:{port}"], "labels": {"replica": name}}
        for name, port in zip(fleet.replicas, fleet.ops_ports)
    ]
    (home / "targets.json").write_text(json.dumps(targets, indent=2) + "\n")
