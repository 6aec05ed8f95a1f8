"""Tests deploy/forward-auth/gateway-api against schemas. Nothing here runs a gateway."""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

import schema
from fleet import K8S, ROOT

RECIPE = ROOT / "deploy/forward-auth/gateway-api"
FILES = {file.name: list(yaml.safe_load_all(file.read_text())) for file in RECIPE.glob("*.yaml")}
APPLICATIONS = {"app1": "app1.example.org", "app2": "app2.example.org"}
IDENTITY = ["remote-user", "remote-email", "remote-user-id", "remote-groups", "remote-session-id"]
VERIFIED = {"name": "authfleet-verify", "port": 3000}


@cache
def experimental() -> Draft202012Validator:
    """The schema of HTTPRoute with the one field of the experimental channel that the recipe uses."""
    schemas = Path(__file__).parent / "schemas"
    route = json.loads((schemas / "httproute-v1.json").read_text())
    filters = route["properties"]["spec"]["properties"]["rules"]["items"]["properties"]["filters"]["items"]
    filters["properties"]["type"]["enum"].append("ExternalAuth")
    filters["properties"]["externalAuth"] = json.loads((schemas / "httproute-v1-external-auth.json").read_text())
    return Draft202012Validator(route)


def problems(name: str, objects: list[dict]) -> list[str]:
    if name == "external-auth.yaml":
        return [error.message for thing in objects for error in experimental().iter_errors(thing)]
    return schema.problems(objects)


def routes(name: str) -> dict[str, dict]:
    return {thing["metadata"]["name"]: thing["spec"] for thing in FILES[name] if thing["kind"] == "HTTPRoute"}


def questions() -> dict[str, dict]:
    """How each of the two files asks: fields of the same meaning, by file."""
    [policy] = [thing["spec"] for thing in FILES["envoy-gateway.yaml"] if thing["kind"] == "SecurityPolicy"]
    filters = {
        name: spec["rules"][0]["filters"][-1]["externalAuth"] for name, spec in routes("external-auth.yaml").items()
    }
    assert filters["app1"] == filters["app2"]
    http, auth = filters["app1"]["http"], policy["extAuth"]
    return {
        "external-auth.yaml": {
            "path": http["path"],
            "asked": http["allowedHeaders"],
            "passed": http["allowedResponseHeaders"],
            "backends": [filters["app1"]["backendRef"]],
        },
        "envoy-gateway.yaml": {
            "path": auth["http"]["path"],
            "asked": auth["headersToExtAuth"],
            "passed": auth["http"]["headersToBackend"],
            "backends": auth["http"]["backendRefs"],
        },
    }


@pytest.mark.parametrize("name", FILES)
def test_schemas_accept_the_recipe(name):
    assert problems(name, FILES[name]) == []


@pytest.mark.parametrize(
    ("name", "path", "field"),
    [
        ("external-auth.yaml", "spec.rules.0.filters.1.externalAuth", "backendRefs"),
        ("external-auth.yaml", "spec.rules.0.filters.1.externalAuth.http", "headersToBackend"),
        ("external-auth.yaml", "spec.rules.0.filters.1", "extAuth"),
        ("envoy-gateway.yaml", "spec.extAuth", "failedOpen"),
        ("envoy-gateway.yaml", "spec.extAuth.http", "allowedHeaders"),
        ("gateway.yaml", "spec.listeners.0.tls", "certificates"),
    ],
)
def test_schemas_refuse_a_field_that_is_not_there(name, path, field):
    objects = copy.deepcopy(FILES[name])
    thing = objects[-1 if name == "envoy-gateway.yaml" else 0]
    for key in path.split("."):
        thing = thing[int(key) if key.isdigit() else key]
    thing[field] = True
    assert any(field in problem for problem in problems(name, objects))


def test_each_application_is_asked_about_with_every_request():
    for name in ("external-auth.yaml", "envoy-gateway.yaml"):
        assert {route: spec["hostnames"] for route, spec in routes(name).items()} == {
            route: [host] for route, host in APPLICATIONS.items()
        }
        for spec in routes(name).values():
            # One rule without a match, so for every path and method.
            assert [set(rule) for rule in spec["rules"]] == [{"filters", "backendRefs"}]
    for spec in routes("external-auth.yaml").values():
        assert [each["type"] for each in spec["rules"][0]["filters"]] == ["RequestHeaderModifier", "ExternalAuth"]
    [policy] = [thing["spec"] for thing in FILES["envoy-gateway.yaml"] if thing["kind"] == "SecurityPolicy"]
    assert {target["name"] for target in policy["targetRefs"]} == set(APPLICATIONS)
    # A part of a route that a sectionName chooses would leave the rest open.
    assert all("sectionName" not in target for target in policy["targetRefs"])
    assert policy["extAuth"]["failOpen"] is False


def test_both_ask_as_envoys_recipe_does():
    envoy = yaml.safe_load((ROOT / "deploy/forward-auth/envoy/envoy.yaml").read_text())
    [manager] = envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    [ext_authz] = [
        each["typed_config"]
        for each in manager["typed_config"]["http_filters"]
        if each["name"] == "envoy.filters.http.ext_authz"
    ]

    def names(patterns: dict) -> list[str]:
        return [pattern["exact"] for pattern in patterns["patterns"]]

    service = ext_authz["http_service"]
    expected = {
        "path": service["path_prefix"],
        "asked": names(ext_authz["allowed_headers"]),
        "passed": names(service["authorization_response"]["allowed_upstream_headers"]),
        "backends": [VERIFIED],
    }
    assert expected["passed"] == IDENTITY
    for name, asks in questions().items():
        assert asks == expected, name


def test_only_signing_in_is_not_asked_about():
    sign_in, login = routes("gateway.yaml")["applications-sign-in"], routes("gateway.yaml")["login"]
    assert set(sign_in["hostnames"]) == set(APPLICATIONS.values())
    [rule] = sign_in["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/.authfleet"}}]
    assert rule["backendRefs"] == [VERIFIED]
    # Nobody but the gateway reaches /auth/verify/: this rule has no backend.
    closed, rest = login["rules"]
    assert closed == {"matches": [{"path": {"type": "PathPrefix", "value": "/auth/verify"}}]}
    assert rest == {"backendRefs": [VERIFIED]}


def test_the_service_selects_the_replicas():
    [service] = [thing for thing in FILES["gateway.yaml"] if thing["kind"] == "Service"]
    shipped = [
        thing["spec"]
        for thing in yaml.safe_load_all((K8S / "base/server.yaml").read_text())
        if thing["kind"] == "Service" and thing["metadata"]["name"] == "authfleet-replicas"
    ]
    assert service["spec"]["selector"] == shipped[0]["selector"]
    assert service["spec"]["ports"] == shipped[0]["ports"]
    # Unlike nginx, a gateway isn't told about replicas that aren't ready.
    assert "publishNotReadyAddresses" not in service["spec"]
