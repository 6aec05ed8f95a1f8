"""Checks a dashboard's JSON against Grafana's schema, using the classes of Grafana's foundation SDK.

The SDK's own `from_json` ignores unknown fields and accepts any type. So this module reads the SDK's classes as a
schema: each class declares a type for every attribute, and its `to_json` gives the attribute's name in JSON.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
import warnings

warnings.filterwarnings("ignore", category=DeprecationWarning, module="grafana_foundation_sdk")

from grafana_foundation_sdk.cog import runtime  # noqa: E402
from grafana_foundation_sdk.cog.plugins import register_default_plugins  # noqa: E402
from grafana_foundation_sdk.cog.variants import Dataquery  # noqa: E402
from grafana_foundation_sdk.models import dashboard, prometheus  # noqa: E402

register_default_plugins()

# The SDK has no types for the options of transformations. These are the ones in use, with the fields of Grafana.
TRANSFORMATIONS = {
    "joinByField": {"byField", "mode"},
    "organize": {"includeByName", "indexByName", "renameByName", "excludeByName"},
    "merge": set(),
}


def problems(tree: object) -> list[str]:
    """Lists unknown fields and values of a wrong type, each with its place. Empty if the dashboard is valid."""
    found = list(mismatches(tree, dashboard.Dashboard, "dashboard"))
    if not found:
        # Every field is known, so from_json loses nothing. It must also accept the dashboard.
        dashboard.Dashboard.from_json(tree)
    return found


@functools.cache
def fields(cls: type) -> dict[str, object]:
    """Maps the JSON name of each attribute of an SDK class to its type."""
    hints = typing.get_type_hints(cls)
    probe = cls.__new__(cls)
    for attribute in hints:
        setattr(probe, attribute, attribute)
    return {name: hints[attribute] for name, attribute in probe.to_json().items()}


def mismatches(value: object, want: object, path: str) -> typing.Iterator[str]:
    origin, args = typing.get_origin(want), typing.get_args(want)
    if want in (object, typing.Any):
        return
    if origin in (typing.Union, types.UnionType):
        # Report the problems of the alternative that fits best.
        args = [one for one in args if one is not type(None) or value is None]
        each = [list(mismatches(value, one, path)) for one in args]
        yield from min(each, key=len)
    elif origin is typing.Literal:
        if value not in args:
            yield f"{path} is {value!r}, not one of {args}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{path} is not a list"
            return
        for index, item in enumerate(value):
            yield from mismatches(item, args[0], f"{path}[{index}]")
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"{path} is not an object"
            return
        for key, item in value.items():
            yield from mismatches(item, args[1], f"{path}.{key}")
    elif isinstance(want, type) and issubclass(want, enum.Enum):
        if value not in [member.value for member in want]:
            yield f"{path} is {value!r}, not one of {[member.value for member in want]}"
    elif want is Dataquery:
        yield from object_mismatches(value, prometheus.Dataquery, path)
    elif hasattr(want, "to_json"):
        yield from object_mismatches(value, want, path)
    elif want is type(None):
        if value is not None:
            yield f"{path} is not null"
    elif want is float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            yield f"{path} is not a number: {value!r}"
    elif not isinstance(value, want) or (want is int and isinstance(value, bool)):
        yield f"{path} is not of type {want.__name__}: {value!r}"


def object_mismatches(value: object, cls: type, path: str) -> typing.Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path} is not an object"
        return
    known = fields(cls)
    for name, item in value.items():
        if name not in known:
            yield f"{path}.{name} is not a field of {cls.__module__.rsplit('.', 1)[1]}.{cls.__name__}"
        elif not (cls is dashboard.Panel and name in ("options", "fieldConfig")):
            yield from mismatches(item, known[name], f"{path}.{name}")
    if cls is dashboard.Panel:
        yield from panel_mismatches(value, path)
    if cls is dashboard.DataTransformerConfig:
        allowed = TRANSFORMATIONS.get(value.get("id"))
        if allowed is None:
            yield f"{path}.id: {value.get('id')!r} is not a transformation that this check knows"
        else:
            yield from (f"{path}.options.{name} is not a field of it" for name in value["options"].keys() - allowed)


def panel_mismatches(panel: dict, path: str) -> typing.Iterator[str]:
    """Checks what depends on the type of panel: its options, and its custom fields in defaults and overrides."""
    plugin = runtime.panelcfg_config(panel.get("type", ""))
    if plugin is None:
        yield f"{path}.type: {panel.get('type')!r} is not a type of panel"
        return
    if panel.get("datasource", {}).get("type") != "prometheus":
        yield f"{path}.datasource is not of type prometheus"
    yield from object_mismatches(panel.get("options", {}), owner(plugin.options_from_json_hook), f"{path}.options")

    def custom_mismatches(field: dict, where: str) -> typing.Iterator[str]:
        if "custom" in field and plugin.field_config_from_json_hook is None:
            yield f"{where}.custom: panels of type {panel['type']} have none"
        elif "custom" in field:
            yield from object_mismatches(field["custom"], owner(plugin.field_config_from_json_hook), f"{where}.custom")

    config, path = panel.get("fieldConfig", {}), f"{path}.fieldConfig"
    yield from mismatches(config, dashboard.FieldConfigSource, path)
    yield from custom_mismatches(config.get("defaults", {}), f"{path}.defaults")
    for number, override in enumerate(config.get("overrides", [])):
        for each in override.get("properties", []):
            # Check it like a default: {"id": "custom.lineWidth", "value": 2} becomes {"custom": {"lineWidth": 2}}.
            name, _, inner = each["id"].partition(".")
            field = {name: {inner: each["value"]} if inner else each["value"]}
            yield from object_mismatches(field, dashboard.FieldConfig, f"{path}.overrides[{number}]")
            yield from custom_mismatches(field, f"{path}.overrides[{number}]")


def owner(hook: typing.Callable) -> type:
    """The class that a bound `from_json` belongs to."""
    return hook.__self__
