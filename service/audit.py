"""The audit chain: who or which rule did what, each entry sealed with the hash of the one before it. Pure: no I/O.

The hash is SHA-256 over the UTF-8 of one JSON object, keys sorted, no spaces: every field of the row that an auditor is
shown, `v` (the version of this form), `number` (1, 2, 3, ...) and `previous` (the hash of the entry before, 64 zeros for
the first). Times are RFC 3339 in UTC with six decimals; a whole number is written without a fraction, so that what
Postgres keeps as a number reads back the same. docs/audit.md says it for somebody who checks it without this program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import orjson

from service.event import Event

# Of Authwatch's own decisions those that say what was done to something. Alerts that fire and end by themselves are no
# entries: they are kept for another time, and many.
CHAINED = ("audit", "workflow.paused", "workflow.resumed")
CHAIN = "chain"  # the key in `details` that holds v, number, previous and hash
FORM = 1
START = "0" * 64
HASH_CHARS = 64
WHOLE_MIN, WHOLE_MAX = -(2.0**63), 2.0**64
UNSEALED_MAX = 10_000  # entries without a hash that wait, in one walk, for somebody's word that they are right
CUT, ADOPT = "audit.cut", "audit.adopt"  # actions of the chain's own entries
SHOWN = (  # in `details` goes what is not said here
    "id",
    "position",
    "source",
    "origin",
    "event_id",
    "type",
    "kind",
    "account_id",
    "connection_id",
    "provider",
    "identifier",
    "organization_id",
    "environment_id",
    "status",
    "old_status",
    "lag_seconds",
    "clock_suspect",
    "account_status",
)
TIMES = ("occurred_at", "received_at", "attempted_at")
shown, times = attrgetter(*SHOWN), attrgetter(*TIMES)


@dataclass(frozen=True, slots=True)
class Link:
    """An entry's place in the chain: its number and its hash."""

    number: int = 0
    hash: str = START


@dataclass(frozen=True, slots=True)
class Seal:
    """What an entry carries of the chain."""

    number: int
    previous: str
    hash: str

    def to_details(self) -> dict[str, Any]:
        return {"v": FORM, "number": self.number, "previous": self.previous, "hash": self.hash}


def canonical(event: Event, number: int, previous: str) -> bytes:
    """What is hashed. Whatever `details` says of the chain itself is left out of it."""
    said: dict[str, Any] = dict(zip(SHOWN, shown(event), strict=True))
    for name, at in zip(TIMES, times(event), strict=True):
        said[name] = instant(at)
    said["lag_seconds"] = plain(event.lag_seconds)
    details = {name: plain(value) for name, value in (event.details or {}).items() if name != CHAIN}
    said["details"] = details or None
    said["v"], said["number"], said["previous"] = FORM, number, previous
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)


def digest(event: Event, number: int, previous: str) -> str:
    return hashlib.sha256(canonical(event, number, previous)).hexdigest()


def plain(value: Any) -> Any:
    """JSON as it reads back: 2.0 is 2, whichever way a number came and went."""
    kind = value.__class__
    if kind is str or value is None:
        return value
    if kind is float:
        # What has more than 64 bits is read as a float again, and written as one; no number is written as null.
        return int(value) if WHOLE_MIN <= value < WHOLE_MAX and value.is_integer() else value
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def instant(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seal(event: Event, before: Link) -> Seal:
    """Of an entry that goes into the log after `before`; `event` has its position already."""
    number = before.number + 1
    return Seal(number, before.hash, digest(event, number, before.hash))


def seal_of(event: Event) -> Seal | None:
    """None where it has none, or something that cannot be one."""
    said = (event.details or {}).get(CHAIN)
    if not isinstance(said, Mapping) or said.get("v") != FORM:
        return None
    number, previous, own = said.get("number"), said.get("previous"), said.get("hash")
    if isinstance(number, bool) or not isinstance(number, int) or not is_hash(previous) or not is_hash(own):
        return None
    return Seal(number, str(previous), str(own))


def is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == HASH_CHARS and set(value) <= set("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The row beside the log: the newest entry, and the last one that retention took away (`anchor`, number 0: none).

    Every entry at or before `cut_position` may be gone.
    """

    newest: Link = field(default_factory=Link)
    newest_position: int = 0
    anchor: Link = field(default_factory=Link)
    anchor_position: int = 0
    cut_position: int = 0


@dataclass(frozen=True, slots=True)
class Broken:
    """The first thing that is wrong. `check` is a stable word; `position` and `at` are of the row where it shows, None
    where no row is there to show it."""

    check: str
    what: str
    position: int | None = None
    at: datetime | None = None


@dataclass(slots=True)
class Walk:
    """Checks entries one by one, in the order of positions, in bounded memory.

    `last` is the link that the first entry must follow; None takes the first one's word for what came before it, as a
    walk from the middle must.
    """

    last: Link | None
    cut_position: int = 0
    expect: str | None = None
    count: int = 0
    unchained: int = 0  # from before the chain began
    adopted: int = 0
    first: Event | None = None
    newest: Event | None = None
    met: bool = False  # the expected hash
    _cut: Link | None = None
    _unsealed: dict[int, tuple[str, datetime]] = field(default_factory=dict)

    def step(self, event: Event) -> Broken | None:
        own = seal_of(event)
        if own is None:
            return self._without(event)
        if self.last is not None and own.number != self.last.number + 1:
            return out_of_turn(event, own, self.last.number + 1)
        if digest(event, own.number, own.previous) != own.hash:
            return broken(
                event, "changed", f"entry {own.number} is not what was sealed: a field or its hash was changed"
            )
        if self.last is not None and own.previous != self.last.hash:
            return broken(
                event,
                "unlinked",
                f"entry {own.number} follows another entry {own.number - 1} than the one that is here",
            )
        self.last = Link(own.number, own.hash)
        self.count += 1
        self.first = self.first or event
        self.newest = event
        self.met = self.met or self.expect in (own.hash, own.previous)
        return self._word(event)

    def _without(self, event: Event) -> Broken | None:
        if self.first is None and (self.last is None or self.last.number == 0):
            self.unchained += 1
            return None
        if len(self._unsealed) >= UNSEALED_MAX:
            return broken(event, "unsealed", f"more than {UNSEALED_MAX} entries without a hash")
        self._unsealed[event.position] = (digest(event, 0, ""), event.received_at)
        return None

    def _word(self, event: Event) -> Broken | None:
        """What the chain's own entries say of others."""
        details = event.details or {}
        if details.get("action") == CUT and is_hash(details.get("hash")):
            self._cut = Link(int(details.get("number") or 0), str(details["hash"]))
        if details.get("action") != ADOPT:
            return None
        for one in details.get("adopted") or ():
            found = self._unsealed.pop(one["position"], None)
            if found is None:
                began = self.first.position if self.first is not None else 0
                if one["position"] <= max(self.cut_position, began):
                    continue  # gone in its time, or before where this walk began
                return broken(event, "missing", f"the entry at position {one['position']} that it vouches for is gone")
            if found[0] != one["sha256"]:
                return Broken("changed", "it is not what was vouched for later", one["position"], found[1])
            self.adopted += 1
        return None

    def finish(self, head: Head, *, whole: bool = True) -> Broken | None:
        """After the last entry there is. `whole`: the walk began where the chain does."""
        if self._unsealed:
            position, (_, received_at) = next(iter(self._unsealed.items()))
            return Broken(
                "unsealed",
                f"an entry without a hash ({len(self._unsealed)} in all): written by a process older than the chain that"
                " ran beside it, or by hand. `authwatch audit adopt` vouches for them, once somebody has looked",
                position,
                received_at,
            )
        last = self.last or Link()
        at = self.newest.received_at if self.newest is not None else None
        if last.number < head.newest.number:
            return Broken(
                "end_missing",
                f"the newest entries are gone: {last.number} is the last one here, and {head.newest.number} were written",
                head.newest_position,
                at,
            )
        if last != head.newest:
            return Broken(
                "end_differs",
                f"entry {last.number} is the newest here, and the record of the newest says {head.newest.number}"
                f" with the hash {head.newest.hash}",
                self.newest.position if self.newest is not None else None,
                at,
            )
        if whole and head.anchor.number and self._cut != head.anchor:
            return Broken("beginning_differs", "no entry says that the chain was cut where it now begins")
        if self.expect is not None and not self.met:
            return Broken("expected_missing", "no entry has the expected hash: the chain is another than it was then")
        return None


def out_of_turn(event: Event, own: Seal, due: int) -> Broken:
    if own.number > due:
        gone = f"{due}" if own.number == due + 1 else f"{due} to {own.number - 1}"
        return broken(
            event, "missing", f"entry {own.number} stands here and {due} is due: {gone} is gone, or was moved"
        )
    return broken(event, "out_of_order", f"entry {own.number} stands where {due} is due: a row was put in or moved")


def broken(event: Event, check: str, what: str) -> Broken:
    return Broken(check, what, event.position, event.received_at)


def words_of(event: Event) -> tuple[str, str, str, str]:
    """(actor, action, subject, reason) of an entry, for a line of a list."""
    said = event.details or {}
    if event.kind == "audit":
        return tuple(str(said.get(name) or "-") for name in ("actor", "action", "subject", "reason"))  # type: ignore[return-value]
    rules = ", ".join(f"rule:{name}" for name in said.get("rule_ids") or ())
    who = str(said.get("actor") or rules or "-")
    return who, event.kind, event.event_id or "-", str(said.get("reason") or "-")
