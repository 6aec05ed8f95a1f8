"""Simulates people who use the fleet, and faults of the fleet."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import socket
import sqlite3
import sys
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/local"))

import fleet as fleets  # noqa: E402

PASSWORD = "correct horse battery staple"
# An application behind a proxy that asks the fleet.
APPLICATION = "app.example.test"
RULES = """
[[rule]]
name = "assets"
paths = ["/static/*"]
allow = "anyone"

[[rule]]
name = "rest"
allow = "signed-in"
"""
numbers = itertools.count(1)


def with_applications(directory: Path) -> dict[str, str]:
    """The settings of a fleet that answers for an application. Writes its access rules."""
    rules = directory / "rules.toml"
    rules.write_text(RULES)
    return {"PUBLIC_URL": "http://login.example.test", "PROTECTED_HOSTS": APPLICATION, "ACCESS_RULES": str(rules)}


def call(
    base: str,
    method: str,
    path: str,
    body: dict | None = None,
    cookie: str = "",
    address: str = "",
    more: dict[str, str] | None = None,
):
    """Sends a request. Returns the status (0 if there was no answer) and the session cookie if one was set, else ''."""
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    # Each request has its own address, so that nobody is throttled because of others.
    headers = {"X-Forwarded-For": address or f"10.{random.randrange(256)}.{random.randrange(256)}.1"}
    headers.update(more or {})
    if cookie:
        headers["Cookie"] = cookie
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        response.read()
        return response.status, (response.getheader("Set-Cookie") or "").partition(";")[0]
    except OSError:
        # The replica is restarting.
        return 0, ""
    finally:
        connection.close()


def ask(base: str, target: str) -> int:
    """Asks as nginx does about somebody's request for the application."""
    described = {"X-Original-Method": "GET", "X-Original-URL": f"http://{APPLICATION}{target}"}
    return call(base, "GET", "/auth/verify/nginx", more=described)[0]


def account() -> dict[str, str]:
    return {"email": f"person-{next(numbers)}-{random.randrange(10**9)}@example.org", "password": PASSWORD}


class People:
    """Until closed, a few people at a time register, sign in, visit all replicas, make mistakes, and sign out."""

    def __init__(self, fleet: fleets.Fleet, count: int = 3) -> None:
        self.bases = [fleet.replica_url(name) for name in fleet.replicas]
        self.nginx = f"http://127.0.0.1:{fleet.http_port}"
        self.enough = threading.Event()
        self.visits = 0
        self.threads = [threading.Thread(target=self.visit_on, daemon=True) for _ in range(count)]

    def __enter__(self) -> People:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        for thread in self.threads:
            thread.join(timeout=60)

    def visit_on(self) -> None:
        while not self.enough.is_set():
            self.visit(rarities=self.visits % 40 == 0)
            self.visits += 1
            self.enough.wait(0.5)

    def visit(self, rarities: bool) -> None:
        here, there, elsewhere = random.sample(self.bases, 3)
        person = account()
        call(here, "POST", "/auth/register", person)
        _, cookie = call(here, "POST", "/auth/login", person)
        for base in (here, there, elsewhere, self.nginx) * 5:
            call(base, "GET", "/profile", cookie=cookie)
        call(there, "POST", "/auth/login", {**person, "password": "not this one"})
        call(there, "GET", "/profile")
        for target in ("/static/style.css", "/page"):
            ask(there, target)
        _, cookie = call(elsewhere, "POST", "/auth/login", person, cookie)
        if rarities:
            # These are rare, because frequent ones would cause alerts.
            _, other = call(here, "POST", "/auth/login", person)
            call(elsewhere, "GET", "/auth/sessions", cookie=cookie)
            call(elsewhere, "DELETE", "/auth/sessions?keep=current", cookie=cookie)
            call(here, "GET", "/profile", cookie=other)
            call(there, "GET", "/profile", cookie="session=forged.by-nobody")
            call(there, "GET", "/no-such-path")
            call(there, "POST", "/auth/register", person)
            call(here, "POST", "/auth/register", {**person, "password": "short"})
            change = {"current_password": PASSWORD, "new_password": PASSWORD + " 2"}
            _, cookie = call(there, "POST", "/auth/password", change, cookie)
        call(self.nginx, "POST", "/auth/logout", cookie=cookie)


def provoke(fleet: fleets.Fleet, say) -> None:
    """Causes every kind of trouble that the dashboards show, each for a few seconds."""
    bases = [fleet.replica_url(name) for name in fleet.replicas]
    person = account()
    call(bases[0], "POST", "/auth/register", person)

    say("somebody guesses a password")
    for number in range(14):
        call(bases[number % 3], "POST", "/auth/login", {**person, "password": f"guess {number}"}, address="10.1.2.3")

    say("more logins than can be hashed; some clients don't wait for the answer")
    person = account()
    call(bases[0], "POST", "/auth/register", person)
    with ThreadPoolExecutor(60) as crowd:
        for _ in range(240):
            crowd.submit(call, bases[0], "POST", "/auth/login", person)
        for _ in range(20):
            crowd.submit(ask_and_leave, fleet.replica_ports[0], person)

    say("the users' database is locked for longer than a registration waits")
    lock = sqlite3.connect(fleet.path / "data/authfleet.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(6) as crowd:
        for base in bases * 2:
            crowd.submit(call, base, "POST", "/auth/register", account())
    lock.execute("ROLLBACK")
    lock.close()

    say("a replica restarts")
    fleets.stop(fleet, "replica-3")
    time.sleep(3)
    fleets.start(fleet, "replica-3")

    say("Redis is down for 15 s")
    _, cookie = call(bases[1], "POST", "/auth/login", person)
    fleets.stop(fleet, "redis")
    end = time.monotonic() + 15
    with ThreadPoolExecutor(6) as crowd:
        for base in bases * 2:
            crowd.submit(come_back_until, end, base, person, cookie)
    fleets.start(fleet, "redis")


def ask_and_leave(port: int, person: dict[str, str]) -> None:
    body = json.dumps(person).encode()
    head = (
        f"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        time.sleep(0.05)


def come_back_until(end: float, base: str, person: dict[str, str], cookie: str) -> None:
    while time.monotonic() < end:
        call(base, "GET", "/profile", cookie=cookie)
        call(base, "POST", "/auth/login", person)
        time.sleep(0.02)
