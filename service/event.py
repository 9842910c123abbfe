"""The words of the house as values: Event, Account identity, Alert as others see it. No I/O here."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

# contract.md, "Event": what a provider's event can mean to us, and what Authwatch itself decides, on one log.
PROVIDER_KINDS = (
    "account.created",
    "account.updated",
    "account.authorized",
    "account.reauth_started",
    "account.reauth_required",
    "account.disconnected",
    "account.deleted",
    "auth.failed",
    "auth.scope_changed",
    "token.refresh_succeeded",
    "token.refresh_failed",
    "tool_call.completed",
    "other",
)
DECISION_KINDS = (
    "alert.firing",
    "alert.acknowledged",
    "alert.resolved",
    "workflow.paused",
    "workflow.resumed",
    "audit",
    "quarantine",
)
KINDS = PROVIDER_KINDS + DECISION_KINDS
ORIGINS = ("webhook", "recovery", "report", "probe", "authwatch")

# Kinds that break an account: at the same instant they are ordered after a recovery (contract.md, "Time").
BREAK_KINDS = frozenset(
    {"account.reauth_required", "account.disconnected", "account.deleted", "auth.failed", "token.refresh_failed"}
)
WELL = "ACTIVE"  # contract.md: "Well means ACTIVE."

CLOCK_AHEAD_MAX = timedelta(minutes=5)
YEAR_MIN, YEAR_MAX = 2000, 2200
# An id or a name longer than this in UTF-8 is not one, and the event is quarantined. A source's name and three of them
# fit into the 2,704 bytes of an index entry, where dedup's key must.
TEXT_BYTES_MAX = 512


# Ids need no secrecy, and the operating system's randomness would be a system call for each.
_chance = Random()
os.register_at_fork(after_in_child=_chance.seed)


class AccountKey(NamedTuple):
    """An account is (source, environment, account id): development never pauses production.

    `environment_id` is "" where the provider has none. Written `source:environment_id:account_id`.
    """

    source: str
    environment_id: str
    account_id: str

    def __str__(self) -> str:
        return f"{self.source}:{self.environment_id}:{self.account_id}"


@dataclass(slots=True, kw_only=True)  # not frozen, which would make building one four times slower; nobody changes it
class ProviderEvent:
    """What a provider's adapter read out of one genuine request. Absent stays None; times are aware UTC.

    `account_status` is the status this event gives the account, None when it says nothing about it
    (contract.md, "Account status"). `details` holds small facts rules may ask for, such as `token_expires_at`.
    """

    event_id: str
    type: str
    kind: str
    account_id: str | None = None
    connection_id: str | None = None
    provider: str | None = None
    identifier: str | None = None
    organization_id: str | None = None
    environment_id: str | None = None
    status: str | None = None
    old_status: str | None = None
    account_status: str | None = None
    occurred_at: datetime | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)  # not frozen, for the speed of building one; nobody changes it
class Event:
    """One row of the log, as stored. `position` is its place in commit order."""

    id: str
    position: int
    source: str
    origin: str
    event_id: str | None
    type: str
    kind: str
    account_id: str | None
    connection_id: str | None
    provider: str | None
    identifier: str | None
    organization_id: str | None
    environment_id: str | None
    status: str | None
    old_status: str | None
    occurred_at: datetime
    received_at: datetime
    lag_seconds: float | None
    clock_suspect: bool
    account_status: str | None = None
    attempted_at: datetime | None = None
    details: Mapping[str, Any] | None = None

    @property
    def account(self) -> AccountKey | None:
        if self.account_id is None:
            return None
        return AccountKey(self.source, self.environment_id or "", self.account_id)

    @property
    def delivery_lag_seconds(self) -> float | None:
        """The lag that says something about delivery: what we fetched ourselves waited for us, not for its sender."""
        return None if self.origin == "recovery" else self.lag_seconds

    def to_json(self) -> dict[str, Any]:
        """The Event of contract.md: exactly its keys, what the provider did not say is null."""
        return {
            "id": self.id,
            "position": self.position,
            "source": self.source,
            "origin": self.origin,
            "event_id": self.event_id,
            "type": self.type,
            "kind": self.kind,
            "account_id": self.account_id,
            "connection_id": self.connection_id,
            "provider": self.provider,
            "identifier": self.identifier,
            "organization_id": self.organization_id,
            "environment_id": self.environment_id,
            "status": self.status,
            "old_status": self.old_status,
            "occurred_at": rfc3339(self.occurred_at),
            "received_at": rfc3339(self.received_at),
            "lag_seconds": self.lag_seconds,
            "clock_suspect": self.clock_suspect,
        }


def order_key(event: Event) -> tuple[datetime, int, str, str]:
    """The order of one account's events: by `occurred_at`, a break after a recovery, then by what the
    provider sent and never by how it arrived, so that any order of arrival gives the same story."""
    broken = event.kind in BREAK_KINDS or (event.account_status is not None and event.account_status != WELL)
    return (event.occurred_at, 1 if broken else 0, event.event_id or "", event.type)


def judge_clock(occurred_at: datetime | None, now: datetime) -> tuple[datetime | None, bool]:
    """`(occurred_at to store or None for "use received_at", clock_suspect)`, by contract.md, "Time"."""
    if occurred_at is None or not YEAR_MIN <= occurred_at.year < YEAR_MAX or occurred_at > now + CLOCK_AHEAD_MAX:
        return None, True
    return occurred_at, False


def rfc3339(at: datetime | None) -> str | None:
    """RFC 3339 in UTC with a `Z`, microseconds kept."""
    if at is None:
        return None
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def new_id() -> str:
    """A UUIDv7 (RFC 9562): ordered by the millisecond it was made in, so neighbours share index pages."""
    chance = _chance.getrandbits(74)
    value = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | (chance >> 62) << 64 | 0x2 << 62 | chance & (1 << 62) - 1
    digits = value.to_bytes(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
