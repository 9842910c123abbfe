"""What an edit of rules changes, and what becomes of the alerts that are open. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from pydantic import BaseModel

from service.rules.fields import UNIT_SECONDS
from service.rules.model import Rule

GO_ON = "condition unchanged: open alerts go on"
CLOSE = "condition changed: open alerts close as rule_changed"
GONE = "open alerts close as rule_changed"
LOUD = "no longer in shadow: what it recorded so far ends there, and what still holds fires anew, to be heard"
HUSHED = (
    "condition unchanged: open alerts go on and are told to their end; what fires anew is recorded alone, in shadow"
)
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Change:
    """One rule that is not what it was. `keys`: dotted key, its old value and its new one, as YAML would write them."""

    id: str
    what: Literal["added", "removed", "changed"]
    keys: tuple[tuple[str, str, str], ...]
    consequence: str


def differ(old: Sequence[Rule], new: Sequence[Rule]) -> list[Change]:
    """In the order of ids. Where a rule stands, and how it is written, makes no difference."""
    before, after = {rule.id: rule for rule in old}, {rule.id: rule for rule in new}
    return [change for id_ in sorted({*before, *after}) if (change := changed(id_, before.get(id_), after.get(id_)))]


def changed(id_: str, old: Rule | None, new: Rule | None) -> Change | None:
    if old is None:
        assert new is not None
        return Change(id_, "added", (), in_force(new))
    if new is None:
        return Change(id_, "removed", (), GONE)
    before, after = flat(old), flat(new)
    keys = tuple(
        (key, before.get(key, NOTHING), after.get(key, NOTHING))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    )
    if not keys:
        return None
    if new.enabled is False and old.enabled is not False:
        return Change(id_, "changed", keys, f"no longer in force: {GONE}")
    if old.enabled is False and new.enabled is not False:
        return Change(id_, "changed", keys, in_force(new))
    if old.condition_version == new.condition_version and old.shadow != new.shadow:
        return Change(id_, "changed", keys, LOUD if old.shadow else HUSHED)
    return Change(id_, "changed", keys, GO_ON if old.condition_version == new.condition_version else CLOSE)


def in_force(rule: Rule) -> str:
    if rule.enabled is False:
        return "not in force (enabled: false)"
    return "in force from now on, in shadow: records, sends nothing" if rule.shadow else "in force from now on"


def flat(rule: Rule) -> dict[str, str]:
    """Every key a rule says something by, with what it says; a default says nothing, written or not."""
    return dict(leaves(rule, ""))


def leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            inner = getattr(value, name)
            if inner is None or inner == field.get_default(call_default_factory=True):
                continue
            yield from leaves(inner, f"{path}.{field.alias or name}" if path else field.alias or name)
    elif isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping | BaseModel):
        yield from leaves(value[0], path)
    elif isinstance(value, list) and value and all(isinstance(item, Mapping | BaseModel) for item in value):
        for number, item in enumerate(value, 1):
            yield from leaves(item, f"{path}[{number}]")
    elif isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    else:
        yield path, written(value)


def written(value: Any) -> str:
    """As it is written in a rule file, on one line."""
    if isinstance(value, timedelta):
        return length(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return " ".join(str(value).split())


def length(value: timedelta) -> str:
    """In the largest unit that says it whole: 900 seconds are 15m."""
    seconds = int(value.total_seconds())
    unit = next((unit for unit in ("d", "h", "m") if seconds and seconds % UNIT_SECONDS[unit] == 0), "s")
    return f"{seconds // UNIT_SECONDS[unit]}{unit}"
