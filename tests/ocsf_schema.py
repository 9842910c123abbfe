"""A strict check of one OCSF item against the compiled schema subset: no library validates the IAM classes we emit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "ocsf-iam-finding-subset.json").read_text())
YEAR_2000_MS, YEAR_2200_MS = 946_684_800_000, 7_258_118_400_000
OTHER = 99
# The text beside a number: its caption in the schema, or the source's own word beside 99.
SIBLINGS = {"activity_id": "activity_name", "class_uid": "class_name", "category_uid": "category_name"}


def problems(item: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the item; empty when it is valid."""
    by_uid = {definition["uid"]: definition for definition in SCHEMA["classes"].values()}
    definition = by_uid.get(item.get("class_uid"))
    if definition is None:
        return [f"class_uid: {item.get('class_uid')!r} is no class of the schema"]
    metadata = item.get("metadata")
    profiles = frozenset(metadata.get("profiles", ())) if isinstance(metadata, dict) else frozenset()
    found = _object("", item, definition, profiles)
    activity = item.get("activity_id")
    if isinstance(activity, int) and item.get("type_uid") != item["class_uid"] * 100 + activity:
        found.append("type_uid: is not class_uid * 100 + activity_id")
    return found


def _object(where: str, value: Mapping[str, Any], definition: dict[str, Any], profiles: frozenset[str]) -> list[str]:
    attributes = definition["attributes"]
    found = []
    for name, attribute in attributes.items():
        # The compiled classes call some attributes of unused profiles required.
        in_use = attribute.get("profile") is None or attribute["profile"] in profiles
        if attribute.get("requirement") == "required" and in_use and name not in value:
            found.append(f"{where}{name}: required")
        if name in value and not in_use:
            found.append(
                f"{where}{name}: belongs to profile {attribute['profile']}, which metadata.profiles does not name"
            )
    for name, inner in value.items():
        if name not in attributes:
            found.append(f"{where}{name}: unknown attribute")
        else:
            found += _attribute(f"{where}{name}", inner, attributes[name], profiles)
            found += _sibling(where, name, value, attributes[name])
    constraints = definition.get("constraints") or {}
    at_least_one, just_one = (constraints.get("at_least_one"), constraints.get("just_one"))
    if at_least_one and not any(name in value for name in at_least_one):
        found.append(f"{where}: at least one of {at_least_one}")
    if just_one and sum(name in value for name in just_one) != 1:
        found.append(f"{where}: just one of {just_one}")
    return found


def _sibling(where: str, name: str, holder: Mapping[str, Any], attribute: dict[str, Any]) -> list[str]:
    """99 must be named, and whatever else is named bears the schema's own caption."""
    beside = SIBLINGS.get(name, name.removesuffix("_id"))
    if "enum" not in attribute or beside == name:
        return []
    number, said = holder[name], holder.get(beside)
    if number == OTHER:
        return [] if said else [f"{where}{beside}: must say what {name} 99 is"]
    caption = attribute["enum"].get(str(number))
    return [] if said is None or said == caption else [f"{where}{beside}: {said!r} is not {caption!r}"]


def _attribute(where: str, value: Any, attribute: dict[str, Any], profiles: frozenset[str]) -> list[str]:
    if not attribute.get("is_array"):
        return _value(where, value, attribute, profiles)
    if not isinstance(value, list):
        return [f"{where}: not an array"]
    found = []
    for index, inner in enumerate(value):
        found += _value(f"{where}[{index}]", inner, attribute, profiles)
    return found


def _value(where: str, value: Any, attribute: dict[str, Any], profiles: frozenset[str]) -> list[str]:
    kind = attribute["type"]
    if not _has_type(value, kind):
        return [f"{where}: {value!r} is no {kind}"]
    if "enum" in attribute and str(value) not in attribute["enum"]:
        return [f"{where}: {value!r} is not in the enum"]
    if kind == "timestamp_t" and not YEAR_2000_MS <= value < YEAR_2200_MS:
        return [f"{where}: {value!r} is not in milliseconds"]
    if kind in SCHEMA["objects"]:
        return _object(f"{where}.", value, SCHEMA["objects"][kind], profiles)
    return []


def _has_type(value: Any, kind: str) -> bool:
    if kind == "json_t":
        return value is not None
    if kind == "boolean_t":
        return isinstance(value, bool)
    if kind in ("integer_t", "long_t", "timestamp_t", "port_t"):
        return isinstance(value, int) and not isinstance(value, bool)
    if kind.endswith("_t"):
        return isinstance(value, str) and value != ""
    return isinstance(value, dict)  # an object, also one that the subset does not spell out
