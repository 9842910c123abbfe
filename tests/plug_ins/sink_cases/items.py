"""Events, as the sinks' tests send them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from service.event import Event

AT = datetime(2026, 11, 20, 10, 0, 0, 123_000, tzinfo=UTC)
WORD = "POISON-WORD"  # of an item that `refuse` makes the fake refuse


def an_event(number: int = 1, **changes: Any) -> Event:
    event = Event(
        id=f"019357f0-0000-7000-8000-{number:012d}",
        position=number,
        source="scalekit",
        origin="webhook",
        event_id=f"evt_{number}",
        type="connected_account.token_refresh_failed",
        kind="token.refresh_failed",
        account_id=f"ca_{number}",
        connection_id="conn_1",
        provider="GMAIL",
        identifier="john@acmecorp.com",
        organization_id=None,
        environment_id="env_1",
        status="ACTIVE",
        old_status=None,
        occurred_at=AT,
        received_at=AT,
        lag_seconds=0.5,
        clock_suspect=False,
    )
    return replace(event, **changes)


def events(count: int) -> list[Event]:
    return [an_event(number) for number in range(1, count + 1)]


def ids(items: list[Event]) -> list[str]:
    return [item.id for item in items]


def sized(number: int, size: int) -> Event:
    """An event of about so many bytes, in texts that redaction does not cut."""
    notes = ["some words " * 1000] * (size // 11_000) + ["some words " * (size % 11_000 // 11)]
    return an_event(number, details={"notes": notes})
