"""Each recipe of deploy/forward-auth with the real proxy: who reaches the applications, and what they are told."""

from __future__ import annotations

import itertools
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from client import FETCH, NAVIGATION, Browser, exchange, fleets, proxies, until
from conftest import Site, fleet_in
from proxies import APP1, APP2, LOGIN

IDENTITY = ("Remote-User", "Remote-Email", "Remote-User-Id", "Remote-Groups", "Remote-Session-Id")
OWN_COOKIES = ("__Host-authfleet", "__Host-authfleet-start", "__Secure-session")


@pytest.fixture
def person(site: Site) -> tuple[Browser, str]:
    """Somebody who has opened app1, and their name."""
    browser = site.browser()
    name = browser.registers()
    assert browser.opens(APP1).status == 200
    return browser, name


def test_somebody_signs_in_once_for_all_applications(site: Site) -> None:
    browser = site.browser()
    name = browser.registers()
    answer = browser.opens(APP1, "/a/b?c=1&d=%2F")
    assert browser.visited == [
        f"{APP1}/a/b",
        f"{APP1}/.authfleet/start",
        f"{LOGIN}/sign-in",
        f"{APP1}/.authfleet/callback",
        f"{APP1}/a/b",
    ]
    assert b"<h1>app1</h1>" in answer.body
    for host, application in ((APP1, "app1"), (APP2, "app2")):
        if host == APP2:
            browser.opens(host)
        seen = browser.send(host, "/a/b?c=1&d=%2F")
        assert (seen.seen["application"], seen.seen["target"]) == (application, "/a/b?c=1&d=%2F")
        assert seen.got("Remote-User") == [name]
        assert seen.got("Remote-Email") == [f"{name}@example.com"]
        assert all(
            len(seen.got(header)) == 1 and seen.got(header)[0] for header in ("Remote-User-Id", "Remote-Session-Id")
        )
        assert seen.got("Remote-Groups") in ([], [""])


def test_somebody_who_is_not_signed_in(site: Site) -> None:
    browser = site.browser()
    page = browser.send(APP1, "/x", like=NAVIGATION)
    assert page.status == 302
    assert page.header("location") == f"https://{APP1}/.authfleet/start?to=%2Fx"
    assert browser.send(APP1, "/x", "POST", like=NAVIGATION, body=b"a=1").status in (302, 303)
    for method in ("GET", "POST", "DELETE"):
        answer = browser.send(APP1, "/x", method, like=FETCH)
        assert (answer.status, answer.header("location")) == (401, None)
    # Made up, empty, of another host.
    for value in ("x", "", secrets.token_urlsafe(90)):
        assert browser.send(APP1, headers=(("Cookie", f"__Host-authfleet={value}"),)).status == 401


def test_a_cookie_of_one_host_opens_no_other(site: Site, person: tuple[Browser, str]) -> None:
    browser, _ = person
    assert browser.send(APP1).status == 200
    browser.cookies[APP2] = dict(browser.cookies[APP1])
    assert browser.send(APP2).status == 401
    browser.cookies[APP2] = dict(browser.cookies[LOGIN])
    assert browser.send(APP2).status == 401


def test_the_host_in_the_request_line_is_the_one_that_counts_for_all(site: Site, person: tuple[Browser, str]) -> None:
    browser, _ = person
    # Allowed at app1, not at app2: the one that answers must be the one that was asked about.
    for line, host in ((f"https://{APP2}/", APP1), (f"https://{APP1}/", APP2)):
        for cookies in (browser.cookie(APP1), []):
            answer = exchange(site.proxy.port, "GET", line, host, [*FETCH.items(), *cookies])
            assert answer.status != 200 or (cookies and answer.seen["application"] == "app1"), answer


def test_a_host_that_is_not_set_up_leads_nowhere(site: Site, person: tuple[Browser, str]) -> None:
    browser, _ = person
    try:
        answer = exchange(site.proxy.port, "GET", "/", "app3.example.org", [*FETCH.items(), *browser.cookie(APP1)])
    except ssl.SSLError:
        # Caddy has no certificate for it.
        return
    assert answer.status == 404, answer


def spellings(name: str) -> Iterator[str]:
    """Names that programs take for this one: CGI and WSGI make HTTP_REMOTE_USER of all of them."""
    words = name.split("-")
    for separators in itertools.product("-_.", repeat=len(words) - 1):
        joined = words[0] + "".join(s + w for s, w in zip(separators, words[1:]))
        yield from (joined, joined.lower(), joined.upper())


def test_what_a_client_says_about_its_identity_arrives_nowhere(site: Site, person: tuple[Browser, str]) -> None:
    """GHSA-7r4p-vjf4-gxv4, GHSA-f59h-q822-g45g, CVE-2025-64484, CVE-2026-39858."""
    browser, name = person
    smuggled = [(spelling, "smuggled") for header in IDENTITY for spelling in spellings(header)]
    assert len(smuggled) == 81
    for one in smuggled:
        seen = browser.send(APP1, headers=(one, one))
        assert "smuggled" not in str(seen.seen["headers"]), (one, seen)
        assert seen.got("Remote-User") == [name], (one, seen)
    for who, target in ((browser, "/"), (site.browser(), "/public/x")):
        seen = who.send(APP1, target, headers=tuple(smuggled))
        assert "smuggled" not in str(seen.seen["headers"]), seen
        assert seen.got("Remote-User") in ([[name]] if who is browser else [[], [""]])


def test_a_client_cannot_have_the_identity_taken_away_or_the_description_changed(
    site: Site, person: tuple[Browser, str]
) -> None:
    """CVE-2026-40575, CVE-2026-35051: headers that describe the request; CVE-2024-45410: names in Connection."""
    browser, name = person
    for header in (*IDENTITY, "X-Forwarded-Host", "X-Forwarded-Uri", "X-Forwarded-Method", "Cookie"):
        answer = browser.send(APP1, headers=(("Connection", f"close, {header}"),))
        assert answer.status in (400, 401, 503) or answer.got("Remote-User") == [name], (header, answer)
    lies = {
        "X-Forwarded-Uri": "/public/x",
        "X-Forwarded-Method": "OPTIONS",
        "X-Forwarded-Host": APP2,
        "X-Original-URL": f"https://{APP1}/public/x",
        "X-Original-Method": "OPTIONS",
        "X-Original-URI": "/public/x",
        "X-Rewrite-URL": "/public/x",
        "X-HTTP-Method-Override": "OPTIONS",
        "X-Forwarded-Proto": "http",
        "Forwarded": f"host={APP2};proto=http",
    }
    for header, value in lies.items():
        assert site.browser().send(APP1, "/x", headers=((header, value),)).status == 401, header
        assert browser.send(APP1, "/x", headers=((header, value),)).got("Remote-User") == [name], header
    assert site.browser().send(APP1, "/x", headers=tuple(lies.items())).status == 401


def test_rules_decide_about_the_path_that_the_application_gets(site: Site, person: tuple[Browser, str]) -> None:
    """GHSA-pxq7, GHSA-7rh7, CVE-2019-9901: paths that two programs read differently."""
    browser, _ = person
    assert site.browser().send(APP1, "/public/x").seen["target"] == "/public/x"
    assert browser.send(APP1, "/closed/x").status == 403
    assert browser.send(APP1, "/closed/x", like=NAVIGATION).status == 403
    for target in (
        "/public/..%2fclosed/x",
        "/public/../closed/x",
        "/public/%2e%2e/closed/x",
        "/public/..;/closed/x",
        "/public/..\\closed/x",
        "//closed/x",
        "/x/..//closed/x",
        "/%63losed/x",
        "/closed%2fx",
        "/public%2f..%2f..%2fclosed",
        "/CLOSED/x",
        "/closed/x?/public/x",
        "/closed/x#/public/x",
        "/public#/../closed/x",
    ):
        for who in (browser, site.browser()):
            answer = who.send(APP1, target)
            if answer.status == 200:
                assert answer.seen["target"].startswith("/public"), (target, answer)
                assert ".." not in answer.seen["target"] and "closed" not in answer.seen["target"], (target, answer)


def test_preflights_pass_by_rules_only(site: Site) -> None:
    """oauth2-proxy#735: a request isn't let in because it says that it is a preflight."""
    asked = (("Origin", "https://elsewhere.example"), ("Access-Control-Request-Method", "POST"))
    browser = site.browser()
    assert browser.send(APP1, "/x", "OPTIONS", headers=asked).seen["method"] == "OPTIONS"
    assert browser.send(APP2, "/x", "OPTIONS", headers=asked).status == 401
    assert browser.send(APP1, "/x", "GET", headers=asked).status == 401


def test_a_websocket_is_opened_only_with_a_session(site: Site, person: tuple[Browser, str]) -> None:
    browser, name = person
    opened = browser.websocket(APP1)
    assert opened.status == 101, opened
    assert name.encode() in opened.body
    assert site.browser().websocket(APP1).status == 401


def test_the_application_gets_its_own_cookies_only(site: Site, person: tuple[Browser, str]) -> None:
    browser, _ = person
    token = browser.cookies[APP1]["__Host-authfleet"]
    browser.cookies[APP1] = {"first": "1", **browser.cookies[APP1], "__Secure-session": "secret", "last": "2"}
    seen = browser.send(APP1)
    cookies = [value for name, value in seen.seen["headers"] if name.lower() == "cookie"]
    if site.proxy.name == "traefik":
        # Traefik can't take one cookie out; its README says what follows.
        assert cookies
        return
    assert [part.strip() for value in cookies for part in value.split(";") if part.strip()] == ["first=1", "last=2"]
    assert token not in str(seen.seen["headers"])
    # The same cookie twice, and cookies on several lines.
    twice = (("Cookie", "a=1; __Secure-session=x; __Secure-session=y"), ("Cookie", "__Host-authfleet=z"))
    answer = browser.send(APP1, headers=twice)
    assert answer.status in (400, 401) or not any(name in str(answer.seen) for name in OWN_COOKIES), answer
    assert browser.send(APP1).status == 200


def test_only_proxies_ask(site: Site, person: tuple[Browser, str]) -> None:
    browser, _ = person
    for path in ("/auth/verify/nginx", "/auth/verify/forward", "/auth/verify/envoy/x"):
        assert browser.send(LOGIN, path).status == 404


def test_a_sign_out_holds_for_the_next_request(site: Site, person: tuple[Browser, str]) -> None:
    browser, _ = person
    browser.opens(APP2)
    for _ in range(3):
        assert [browser.send(host).status for host in (APP1, APP2)] == [200, 200]
    browser.signs_out()
    for _ in range(6):
        assert [browser.send(host).status for host in (APP1, APP2)] == [401, 401]
    assert browser.websocket(APP1).status == 401


class Counter:
    """Listens in front of a replica, passes everything on, and counts the bytes that go to it."""

    def __init__(self, replica: int) -> None:
        self.replica, self.bytes = replica, 0
        self.listener = socket.create_server((fleets.HOST, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection((fleets.HOST, self.replica))
            threading.Thread(target=self.pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, False), daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket, count: bool) -> None:
        try:
            while data := source.recv(65536):
                self.bytes += len(data) * count
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()


@contextmanager
def counted(site: Site, directory: Path) -> Iterator[tuple[Browser, list[Counter]]]:
    """Another proxy of the same kind, whose questions are counted."""
    with ExitStack() as stack:
        counters = [Counter(port) for port in site.fleet.replica_ports]
        for counter in counters:
            stack.callback(counter.listener.close)
        ports = [counter.port for counter in counters]
        proxy = stack.enter_context(proxies.started(site.proxy.name, directory, site.tls, ports, site.apps))
        yield Browser(proxy.port), counters


def test_a_large_body_goes_to_the_application_and_not_to_authfleet(site: Site, tmp_path: Path) -> None:
    with counted(site, tmp_path) as (browser, counters):
        name = browser.registers()
        browser.opens(APP1)
        before = sum(counter.bytes for counter in counters)
        answer = browser.send(APP1, "/upload", "POST", body=b"x" * 5_000_000)
        assert (answer.seen["body"], answer.got("Remote-User")) == (5_000_000, [name])
        asked = sum(counter.bytes for counter in counters) - before
        assert 0 < asked < 50_000


def test_a_killed_replica_is_not_noticed(site: Site, person: tuple[Browser, str]) -> None:
    browser, _ = person
    fleets.stop(site.fleet, "replica-1", fleets.signal.SIGKILL)
    try:
        # The first requests may be those by which the proxy learns of it; then none fails.
        until("replica-1 is left out", lambda: all(browser.send(APP1).status == 200 for _ in range(12)))
        assert site.browser().send(APP1).status == 401
    finally:
        fleets.start(site.fleet, "replica-1")


def test_nobody_passes_while_authfleet_is_away(site: Site, person: tuple[Browser, str]) -> None:
    browser, _ = person
    for name in site.fleet.replicas:
        fleets.stop(site.fleet, name, fleets.signal.SIGKILL)
    try:
        for like in (FETCH, NAVIGATION):
            for who, target in ((browser, "/"), (site.browser(), "/"), (site.browser(), "/public/x")):
                assert who.send(APP1, target, like=like).status == 503
        assert browser.send(APP1, "/x", "POST", body=b"x").status == 503
        assert browser.websocket(APP1).status == 503
    finally:
        for name in site.fleet.replicas:
            fleets.start(site.fleet, name)
    until("somebody passes again", lambda: browser.send(APP1).status == 200)


def test_nobody_passes_while_redis_is_away(site: Site, person: tuple[Browser, str]) -> None:
    browser, _ = person
    fleets.stop(site.fleet, "redis", fleets.signal.SIGKILL)
    try:
        for like in (FETCH, NAVIGATION):
            assert browser.send(APP1, like=like).status == 503
        assert browser.websocket(APP1).status == 503
    finally:
        fleets.start(site.fleet, "redis")
        fleets.wait_ready(site.fleet, site.fleet.replicas)
    until("somebody passes again", lambda: browser.send(APP1).status == 200)


def test_one_cookie_for_a_whole_domain(
    site: Site, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """COOKIE_DOMAIN: the application never gets the key to all the others."""
    directory = tmp_path_factory.mktemp("domain")
    with ExitStack() as stack:
        binary = pytestconfig.getoption("binary")
        fleet = stack.enter_context(fleet_in(directory, binary, COOKIE_DOMAIN="example.org"))
        proxy = stack.enter_context(
            proxies.started(site.proxy.name, directory / "proxy", site.tls, fleet.replica_ports, site.apps)
        )
        browser = Browser(proxy.port)
        name = browser.registers()
        assert list(browser.cookies[APP1]) == ["__Secure-session"]
        for host in (APP1, APP2):
            seen = browser.send(host)
            assert seen.got("Remote-User") == [name]
            # Traefik can't take one cookie out; its README says what follows.
            if site.proxy.name != "traefik":
                assert browser.cookies[APP1]["__Secure-session"] not in str(seen.seen["headers"])
        assert browser.send(APP1, like=NAVIGATION).status == 200
        unknown = Browser(proxy.port).send(APP1, like=NAVIGATION)
        assert unknown.header("location").startswith(f"https://{LOGIN}/sign-in?to=")
        browser.signs_out()
        assert browser.send(APP1).status == 401
