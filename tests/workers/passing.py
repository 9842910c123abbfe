"""Time that passes while nobody is there, and a process that begins with nothing in its memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from service.runtime import open_runtime
from tests.workers.house import House

# What is judged by. When a row came to be received stays: partitions go by it.
INSTANTS = {
    "events": ("occurred_at",),
    "accounts": ("status_since", "last_status_at", "last_event_at", "last_refresh_at"),
    "armed": ("armed_at", "due_at"),
    "deadlines": ("due_at",),
    "alerts": ("opened_at", "fired_at", "condition_ended_at", "resolved_at"),
    "actions": ("created_at", "next_attempt_at", "lease_until", "finished_at"),
}


async def let_pass(house: House, seconds: float) -> None:
    """As if all that is stored had happened so much earlier."""
    for table, columns in INSTANTS.items():
        moved = ", ".join(f"{column} = {column} - interval '{seconds} seconds'" for column in columns)
        await house.run(f"UPDATE {table} SET {moved}")
    await house.run(
        "UPDATE accounts SET not_well = (SELECT jsonb_object_agg(status, since::timestamptz - interval"
        f" '{seconds} seconds') FROM jsonb_each_text(not_well) AS _(status, since)) WHERE not_well <> '{{}}'"
    )


@asynccontextmanager
async def started_anew(house: House) -> AsyncIterator[House]:
    """What follows a kill -9: another process on the same database, which remembers nothing."""
    async with open_runtime(house.runtime.settings, connections_max=8) as runtime:
        yield replace(house, runtime=runtime)
