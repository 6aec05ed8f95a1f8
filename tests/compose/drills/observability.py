"""The drill of the profile observability."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import secrets

from bundle import confined
from clients import Client, Stream, User
from engine import REPLICAS, ROOT, compose, expect, within
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData
from table import judge


def get(port: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ[port]), timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def prometheus(path: str) -> dict:
    status, text = get("AUTHFLEET_PROMETHEUS_PORT", f"/api/v1/{path}")
    expect(status == 200, f"Prometheus answers /api/v1/{path} with {status}: {text[:200]}")
    return json.loads(text)["data"]


def observability(users: list[User]) -> None:
    """Profile observability: Prometheus scrapes each replica and evaluates each rule; all spans of a trace arrive."""
    with Stream(users) as count:
        up_profile = ("--profile", "observability", "up", "-d", "--no-build", "--wait", "--wait-timeout", "120")
        compose(*up_profile, "prometheus", "jaeger")
        confined("prometheus")

        def targets() -> dict[str, str]:
            active = prometheus("targets?state=active")["activeTargets"]
            return {t["labels"]["replica"]: t["health"] for t in active if t["scrapePool"] == "authfleet"}

        within(60, "every target is up", lambda: targets() == dict.fromkeys(REPLICAS, "up"))

        def rules() -> list[dict]:
            return [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]

        def evaluated() -> dict[str, str]:
            # Groups with an interval of a minute take too long here. promtool's tests cover them.
            groups = [group for group in prometheus("rules")["groups"] if group["interval"] <= 15]
            return {group["name"]: group["lastEvaluation"] for group in groups}

        # Wait for an evaluation that sees the series of every replica.
        before = evaluated().items()
        within(40, "every rule was evaluated", lambda: not before & evaluated().items())
        bad = {rule["name"]: rule["lastError"] for rule in rules() if rule["health"] == "err"}
        expect(not bad, f"rules fail: {bad}")
        texts = [file.read_text() for file in (ROOT / "deploy/prometheus/rules").glob("*.yml")]
        written = sum(len(re.findall(r"^ +- (?:alert|record):", text, re.M)) for text in texts)
        expect(len(rules()) == written > 0, f"{len(rules())} rules are loaded, {written} are written")
        found = prometheus("query?query=count%20by%20(replica)(authfleet_session_checks_total)")["result"]
        expect({row["metric"]["replica"] for row in found} == set(REPLICAS), f"series by replica: {found}")
        alerts = [rule for rule in rules() if rule["type"] == "alerting"]
        pages = {rule["annotations"]["runbook_url"].partition("#")[0] for rule in alerts}
        expect(pages == {"{{ $externalURL }}/consoles/runbook.html"}, f"alerts lead to {pages}")
        status, page = get("AUTHFLEET_PROMETHEUS_PORT", "/consoles/runbook.html")
        missing = [rule["name"] for rule in alerts if rule["name"] not in page]
        expect(status == 200 and not missing, f"the runbook's page has status {status} and lacks {missing}")

        # A trace that the caller began: a sign-in, then checks until a second replica has answered one.
        trace_id, parent, client = secrets.token_hex(16), secrets.token_hex(8), Client()
        traceparent, user = f"00-{trace_id}-{parent}-01", users[1]
        body = {"email": user.email, "password": user.password}
        answer = client.ask("POST", "/auth/login", body, traceparent=traceparent)
        expect(answer.status == 200, f"sign-in: {answer.says()}")
        cookie, served_by = answer.headers["Set-Cookie"].split(";")[0], {answer.headers["X-Served-By"]}
        while len(served_by) < 2:
            served_by.add(client.ask("GET", "/profile", None, cookie, traceparent).headers["X-Served-By"])

        def spans() -> list[tuple[str, Span]]:
            """The spans of this trace, each with the replica that sent it."""
            everything = TracesData.FromString(base64.b64decode(get("AUTHFLEET_JAEGER_PORT", "/")[1]))
            return [
                (next(a.value.string_value for a in sent.resource.attributes if a.key == "service.instance.id"), span)
                for sent in everything.resource_spans
                for scope in sent.scope_spans
                for span in scope.spans
                if span.trace_id.hex() == trace_id
            ]

        def senders() -> set[str]:
            return {replica for replica, _ in spans()}

        back = within(30, "both replicas' spans arrive", lambda: senders() == served_by)
        names = {span.name for _, span in spans()}
        expect({"POST /auth/login", "GET /profile"} <= names, f"spans: {sorted(names)}")
        known = {parent} | {span.span_id.hex() for _, span in spans()}
        torn = [span.name for _, span in spans() if span.parent_span_id.hex() not in known]
        expect(not torn, f"these spans lack their parent: {torn}")
    seen = f"{written} rules, {len(alerts)} of them alerts; {len(spans())} spans of 2 replicas after {back:.1f} s"
    judge("observability comes up", count, users, seen)
