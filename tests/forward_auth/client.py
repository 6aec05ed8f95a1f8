"""A browser at a proxy: requests as they are written here, byte for byte, and cookies by host."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "local"))
import fleet as fleets  # noqa: E402
import proxies  # noqa: E402

NAVIGATION = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Mode": "navigate"}
FETCH = {"Accept": "application/json", "Sec-Fetch-Mode": "cors"}
# Until something that was killed is back, or seen to be gone, on a busy machine.
SOON = 60.0


@dataclass
class Answer:
    """An answer; header names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def seen(self) -> dict[str, object]:
        """What the application got."""
        assert self.status == 200, self
        return json.loads(self.body)

    def got(self, name: str) -> list[str]:
        """The values that the application got for one of the identity headers, under any spelling of its name."""
        plain = lambda text: "".join(c for c in text.lower() if c.isalnum())  # noqa: E731
        return [value for key, value in self.seen["headers"] if plain(key) == plain(name)]


def exchange(
    port: int,
    method: str,
    target: str,
    host: str,
    headers: list[tuple[str, str]],
    body: bytes | None = None,
    tls: bool = True,
) -> Answer:
    """Sends one request on a connection of its own."""
    if tls:
        connection = http.client.HTTPSConnection(
            fleets.HOST, port, timeout=30, context=ssl._create_unverified_context()
        )
        # The name in the TLS handshake is that of the host, as Caddy and Envoy require.
        connection.connect = lambda: wrapped(connection, host)
    else:
        connection = http.client.HTTPConnection(fleets.HOST, port, timeout=30)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host)
        for name, value in headers:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        pairs = [(name.lower(), value) for name, value in answer.getheaders()]
        # After a 101 the server sends frames and closes.
        content = answer.fp.read() if answer.status == 101 and answer.fp else answer.read()
        return Answer(answer.status, pairs, content)
    finally:
        connection.close()


def wrapped(connection: http.client.HTTPSConnection, host: str) -> None:
    http.client.HTTPConnection.connect(connection)
    connection.sock = connection._context.wrap_socket(connection.sock, server_hostname=host.partition(":")[0])


@dataclass
class Browser:
    """Sends what a browser sends, to whatever host, through one proxy."""

    port: int
    cookies: dict[str, dict[str, str]] = field(default_factory=dict)
    # The hosts and paths that were asked for, in order.
    visited: list[str] = field(default_factory=list)

    def cookie(self, host: str) -> list[tuple[str, str]]:
        held = self.cookies.get(host, {})
        return [("Cookie", "; ".join(f"{name}={value}" for name, value in held.items()))] if held else []

    def send(
        self,
        host: str,
        target: str = "/",
        method: str = "GET",
        like: dict[str, str] = FETCH,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
    ) -> Answer:
        sent = [*like.items(), *self.cookie(host), *headers]
        answer = exchange(self.port, method, target, host, sent, body)
        for name, value in answer.headers:
            if name == "set-cookie":
                self.keep(host, value)
        return answer

    def keep(self, host: str, text: str) -> None:
        for name, morsel in SimpleCookie(text).items():
            # A browser takes a __Host- cookie only with these.
            assert morsel["secure"] and morsel["path"] == "/", text
            hosts = (proxies.LOGIN, proxies.APP1, proxies.APP2) if morsel["domain"] else (host,)
            for each in hosts:
                self.cookies.setdefault(each, {})[name] = morsel.value

    def opens(self, host: str, target: str = "/") -> Answer:
        """Opens a page, following redirects, as far as they go in this fleet."""
        for _ in range(10):
            self.visited.append(f"{host}{target.partition('?')[0]}")
            answer = self.send(host, target, like=NAVIGATION)
            if answer.status not in (302, 303):
                return answer
            url = urlsplit(answer.header("location"))
            assert url.scheme in ("https", ""), answer
            host, target = url.netloc or host, url.path + (f"?{url.query}" if url.query else "")
        raise AssertionError(f"too many redirects: {self.visited}")

    def registers(self) -> str:
        """Makes an account and signs in on the sign-in host; returns the username."""
        name = f"user-{secrets.token_hex(4)}"
        account = {"email": f"{name}@example.com", "username": name, "password": secrets.token_urlsafe(18)}
        kind = (("Content-Type", "application/json"),)
        made = self.send(proxies.LOGIN, "/auth/register", "POST", headers=kind, body=json.dumps(account).encode())
        assert made.status == 201, made
        del account["username"]
        signed_in = self.send(proxies.LOGIN, "/auth/login", "POST", headers=kind, body=json.dumps(account).encode())
        assert signed_in.status == 200, signed_in
        return name

    def signs_out(self) -> None:
        assert self.send(proxies.LOGIN, "/auth/logout", "POST").status == 200

    def websocket(self, host: str) -> Answer:
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        upgrade = (("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Key", key))
        like = {"Sec-Fetch-Mode": "websocket"}
        return self.send(host, "/socket", like=like, headers=(*upgrade, ("Sec-WebSocket-Version", "13")))


def until(what: str, holds: Callable[[], bool]) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline, f"after {SOON:.0f} s still not: {what}"
        time.sleep(0.05)
