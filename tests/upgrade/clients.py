"""Clients of the fleet: requests, and a load that counts every answer that is wrong."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass

from conftest import fleets

PASSWORD, CHANGED = "correct horse battery staple", "another horse battery staple"


class CutOff(Exception):
    """A POST that nginx couldn't repeat when the previous version's drain ended."""


@dataclass
class Answer:
    status: int
    cookie: str
    replica: str
    body: bytes


class Client:
    """One keep-alive connection, to nginx or to a replica."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection(fleets.HOST, port, timeout=30)

    def ask(self, method: str, path: str, body: dict | None = None, cookie: str = "") -> Answer:
        headers = {"Content-Type": "application/json", **({"Cookie": cookie} if cookie else {})}
        self.connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = self.connection.getresponse()
        found = re.match(r"[^;]+", answer.headers.get("Set-Cookie", ""))
        return Answer(answer.status, found[0] if found else "", answer.headers.get("X-Served-By", ""), answer.read())

    def register(self, email: str) -> Answer:
        return self.ask("POST", "/auth/register", {"email": email, "password": PASSWORD})

    def sign_in(self, email: str, password: str = PASSWORD) -> Answer:
        return self.ask("POST", "/auth/login", {"email": email, "password": password})

    def check(self, cookie: str) -> Answer:
        return self.ask("GET", "/profile", cookie=cookie)

    def change_password(self, cookie: str) -> Answer:
        return self.ask("POST", "/auth/password", {"current_password": PASSWORD, "new_password": CHANGED}, cookie)

    def sign_out(self, cookie: str) -> Answer:
        return self.ask("POST", "/auth/logout", cookie=cookie)


class Load:
    """Checks of sessions that must live, and visits from registration to sign-out, through nginx, until the end."""

    def __init__(self, port: int, living: dict[str, str]) -> None:
        self.port, self.living = port, living
        self.stop = threading.Event()
        # Answers by replica, and what was wrong.
        self.answers: Counter = Counter()
        self.wrong: list[str] = []
        # How often all living sessions have been checked.
        self.rounds = 0
        # At the end of its drain, a replica of the version before this one resets connections that it hasn't accepted.
        # If a POST is lost to that, it is counted apart. This version's drains excuse nothing.
        self.is_excused = False
        self.cut_off = 0
        self.threads = [threading.Thread(target=self.guarded, args=(work,)) for work in (self.checks, self.visits)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def guarded(self, work: object) -> None:
        while not self.stop.is_set():
            try:
                work()
            except CutOff:
                self.cut_off += 1
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(f"{work.__name__}: {error!r}")

    def expect(self, what: str, answer: Answer, status: int) -> Answer:
        self.answers[answer.replica] += 1
        if self.is_excused and answer.status == 503 and answer.replica == "nginx":
            raise CutOff
        if answer.status != status:
            self.wrong.append(f"{what} by {answer.replica}: {answer.status} instead of {status}: {answer.body[:200]}")
        return answer

    def checks(self) -> None:
        client = Client(self.port)
        while not self.stop.is_set():
            for email, cookie in list(self.living.items()):
                found = self.expect(f"check of {email}", client.check(cookie), 200)
                if found.status == 200 and email.encode() not in found.body:
                    self.wrong.append(f"check of {email}: {found.body}")
                time.sleep(0.002)
            self.rounds += 1

    def visits(self) -> None:
        client = Client(self.port)
        while not self.stop.is_set():
            email = f"visitor-{secrets.token_hex(8)}@example.org"
            self.expect("registration", client.register(email), 201)
            first = self.expect("login", client.sign_in(email), 200).cookie
            other = self.expect("login", client.sign_in(email), 200).cookie
            changed = self.expect("change of password", client.change_password(first), 200).cookie
            for ended in (first, other):
                self.expect("check after a change of password", client.check(ended), 401)
            self.expect("check", client.check(changed), 200)
            self.expect("sign-out", client.sign_out(changed), 200)
            self.expect("check after sign-out", client.check(changed), 401)

    def until_living_is_read_anew(self) -> None:
        """Waits until no session is checked that was taken out of `living` before this call."""
        before, deadline = self.rounds, time.monotonic() + 60
        while self.rounds < before + 2:
            assert time.monotonic() < deadline, f"{self.rounds} rounds"
            time.sleep(0.05)

    def until_each_answered(self, replicas: list[str]) -> None:
        """Waits until every replica has answered since this call, so that a phase isn't over before it began."""
        before, deadline = Counter(self.answers), time.monotonic() + 60
        while any(self.answers[name] < before[name] + 20 for name in replicas):
            assert time.monotonic() < deadline, f"{before} {self.answers}"
            time.sleep(0.05)
