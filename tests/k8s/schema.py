"""Strict schemas of three Kubernetes minor versions, and of the custom resources in use."""

import json
from functools import cache
from pathlib import Path

import importlib_resources
import kubernetes_validate
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from fleet import label

VERSIONS = ("1.35.0", "1.36.0", "1.37.0")


@cache
def _validator(version: str, api_version: str, kind: str) -> Draft202012Validator | None:
    own = Path(__file__).parent / f"schemas/{kind.lower()}-{api_version.rpartition('/')[2]}.json"
    group, _, number = api_version.rpartition("/")
    if own.exists():
        schema = json.loads(own.read_text())
        fits = schema["properties"]["apiVersion"]["const"] == api_version
        return Draft202012Validator(schema) if fits else None
    # kubernetes_validate.validate() is not used: it parses all definitions again for each object, and falls back to an
    # older version's schemas.
    directory = importlib_resources.files(kubernetes_validate) / "kubernetes-json-schema" / f"v{version}-local-strict"
    file = directory / f"{kind.lower()}-{group.partition('.')[0] + '-' if group else ''}{number}.json"
    if not file.is_file():
        return None
    definitions = Resource.from_contents(json.loads((directory / "_definitions.json").read_text()))
    schema = Resource.from_contents(json.loads(file.read_text()))
    return Draft202012Validator(schema.contents, registry=schema @ (definitions @ Registry()))


@cache
def _problems(version: str, text: str) -> list[str]:
    thing = json.loads(text)
    api_version, kind = str(thing.get("apiVersion")), str(thing.get("kind"))
    validator = _validator(version, api_version, kind)
    if validator is None:
        return [f"{label(thing)}: Kubernetes {version} has no {kind} in {api_version}"]
    return [
        f"{label(thing)}: {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in validator.iter_errors(thing)
    ]


def problems(objects: list[dict]) -> list[str]:
    """What the schemas of each version refuse. An object without a schema is a problem too."""
    return [
        problem
        for version in VERSIONS
        for thing in objects
        for problem in _problems(version, json.dumps(thing, sort_keys=True))
    ]
