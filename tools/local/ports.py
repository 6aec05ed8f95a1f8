"""Chooses the ports of a local fleet."""

from __future__ import annotations

import os
import random
import socket

from model import HOST, FleetError, Ports

# Variable, default, meaning. The other replicas take the ports that follow the first one's.
PORTS = {
    "http": ("AUTHFLEET_HTTP_PORT", 8080, "nginx"),
    "redis": ("AUTHFLEET_REDIS_PORT", 6390, "Redis"),
    "replica": ("AUTHFLEET_REPLICA_PORT", 3001, "the first replica"),
    "ops": ("AUTHFLEET_OPS_PORT", 9461, "the first replica's /readyz and /metrics"),
    "prometheus": ("AUTHFLEET_PROMETHEUS_PORT", 9090, "Prometheus"),
    "apps": ("AUTHFLEET_APPS_PORT", 8001, "the first application"),
}


def is_free(port: int) -> bool:
    # Binding to one address can succeed although something listens on all addresses, so try to connect first.
    with socket.socket() as knock:
        knock.settimeout(1)
        if knock.connect_ex((HOST, port)) == 0:
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def chosen_ports(replicas: int, prometheus: bool, apps: int = 0) -> Ports:
    """The ports from the variables. Raises FleetError, naming every port that is taken or invalid."""
    count = {"http": 1, "redis": 1, "replica": replicas, "ops": replicas, "prometheus": int(prometheus), "apps": apps}
    ports: dict[str, list[int]] = {}
    problems: list[str] = []
    for key, (variable, default, _) in PORTS.items():
        text = os.environ.get(variable) or str(default)
        first = int(text) if text.isdigit() else 0
        if count[key] and not 0 < first <= 65536 - count[key]:
            problems.append(f"{variable}={text} is not a usable port")
        ports[key] = [first + i for i in range(count[key])]
    if problems:
        raise FleetError("; ".join(problems))

    seen: dict[int, str] = {}
    for key, port in [(key, port) for key, several in ports.items() for port in several]:
        variable, _, meaning = PORTS[key]
        if port in seen:
            problems.append(f"port {port} would be used twice: set {seen[port]} or {variable} to another one")
        elif not is_free(port):
            problems.append(
                f"port {port} is taken: end what listens there, or set {variable} (for {meaning}) to another one"
            )
        seen[port] = variable
    if problems:
        raise FleetError("nothing was started:\n" + "\n".join(f"    {problem}" for problem in problems))
    scraper = ports["prometheus"][0] if prometheus else None
    return Ports(*ports["http"], *ports["redis"], ports["replica"], ports["ops"], scraper, ports["apps"])


def private_ports(replicas: int, prometheus: bool, apps: int = 0) -> Ports:
    """A random free block of ports, below the range that systems use for outgoing connections."""
    count = 2 + 2 * replicas + int(prometheus) + apps
    for _ in range(200):
        base = random.randrange(15000, 32000 - count)
        ports = list(range(base, base + count))
        if all(is_free(port) for port in ports):
            http_port, redis_port, *rest = ports
            serving, ops, more = rest[:replicas], rest[replicas : 2 * replicas], rest[2 * replicas :]
            return Ports(http_port, redis_port, serving, ops, more.pop(0) if prometheus else None, more)
    raise FleetError("no block of free ports between 15000 and 32000")
