"""Clients of the fleet: single requests through nginx, users, and a steady stream of requests."""

from __future__ import annotations

import collections
import dataclasses
import http.client
import json
import os
import random
import secrets
import threading
import time
from collections.abc import Mapping

from engine import expect

CHECKERS = 4
# Pause between two checks of one checker, and between two sign-ins, in seconds.
CHECK_PAUSE, SIGN_IN_PAUSE = 0.02, 0.5


@dataclasses.dataclass
class Answer:
    status: int  # 0: no answer
    body: dict
    headers: Mapping[str, str]
    error: str = ""

    def says(self) -> str:
        return self.error or f"{self.status} {self.body.get('code', '')}".strip()


class Client:
    """One keep-alive connection, to nginx unless another port and host are given."""

    def __init__(self, port: int | None = None, timeout: float = 40, host: str = "127.0.0.1") -> None:
        port = port or int(os.environ["AUTHFLEET_HTTP_PORT"])
        self.connection = http.client.HTTPConnection(host, port, timeout=timeout)

    def ask(self, method: str, path: str, body: dict | None = None, cookie: str = "", traceparent: str = "") -> Answer:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if traceparent:
            headers["traceparent"] = traceparent
        if cookie:
            headers["Cookie"] = cookie
        try:
            self.connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self.connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            return Answer(0, {}, {}, f"no answer ({type(error).__name__})")
        try:
            parsed = json.loads(data) if data else {}
        except ValueError:
            parsed = {"code": "not_json"}
        return Answer(response.status, parsed if isinstance(parsed, dict) else {}, response.headers)


@dataclasses.dataclass
class User:
    email: str
    password: str
    cookie: str = ""
    session_id: str = ""

    @classmethod
    def new(cls, name: str) -> User:
        return cls(f"{name}-{secrets.token_hex(4)}@example.com", secrets.token_urlsafe(18))

    @classmethod
    def register(cls, name: str) -> User:
        user = cls.new(name)
        answer = Client().ask("POST", "/auth/register", {"email": user.email, "password": user.password})
        expect(answer.status == 201, f"registration: {answer.says()}")
        return user

    def sign_in(self, client: Client | None = None) -> Answer:
        answer = (client or Client()).ask("POST", "/auth/login", {"email": self.email, "password": self.password})
        if answer.status == 200:
            self.cookie = answer.headers["Set-Cookie"].split(";")[0]
            self.session_id = answer.body["session_id"]
        return answer


@dataclasses.dataclass
class Count:
    """The results of a stream of requests."""

    checks: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sign_ins: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    served_by: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    slowest: float = 0.0

    def failed(self, kind: collections.Counter) -> dict[str, int]:
        return {says: n for says, n in kind.items() if says != "200"}


class Stream:
    """Keeps checking sessions, signing in and signing out until it is closed."""

    def __init__(self, users: list[User]) -> None:
        self.users, self.count = users, Count()
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.check, daemon=True) for _ in range(CHECKERS)]
        self.threads.append(threading.Thread(target=self.sign_in, daemon=True))

    def __enter__(self) -> Count:
        for thread in self.threads:
            thread.start()
        time.sleep(1)
        return self.count

    def __exit__(self, *_) -> None:
        time.sleep(1)
        self.stop.set()
        for thread in self.threads:
            thread.join(60)

    def check(self) -> None:
        client = Client()
        while not self.stop.is_set():
            user = random.choice(self.users)
            begin = time.monotonic()
            answer = client.ask("GET", "/profile", cookie=user.cookie)
            taken = time.monotonic() - begin
            says = answer.says()
            if answer.status == 200 and answer.body["session"]["session_id"] != user.session_id:
                says = "200 about another session"
            with self.lock:
                self.count.checks[says] += 1
                self.count.slowest = max(self.count.slowest, taken)
                self.count.served_by[answer.headers.get("X-Served-By", "nobody")] += 1
            time.sleep(CHECK_PAUSE)

    def sign_in(self) -> None:
        user, client = dataclasses.replace(self.users[0]), Client()
        while not self.stop.is_set():
            answers = [user.sign_in(client)]
            if answers[0].status == 200:
                answers.append(client.ask("POST", "/auth/logout", {}, user.cookie))
            with self.lock:
                self.count.sign_ins.update(answer.says() for answer in answers)
            time.sleep(SIGN_IN_PAUSE)


def lost(users: list[User]) -> int:
    """How many sessions are no longer accepted."""
    client = Client()
    statuses = [client.ask("GET", "/profile", cookie=user.cookie).says() for user in users]
    strange = {says for says in statuses if says not in ("200", "401 session_invalid")}
    expect(not strange, f"after the drill some checks still fail: {strange}")
    return statuses.count("401 session_invalid")


def registers() -> bool:
    body = {"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_urlsafe(18)}
    return Client().ask("POST", "/auth/register", body).status == 201
