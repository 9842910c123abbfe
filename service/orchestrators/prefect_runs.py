"""Prefect's running work, for `stop_running`: what is running is suspended with the pause, and started again with the resume.

Seen on 3.8.8: a suspended run ends where its next task would begin, and once resumed it starts from the beginning of its flow,
with only those tasks skipped whose results were persisted. So this is for flows that may be begun twice, and off by default.
What runs is recorded before anything is changed; a run of ours is told from a person's by the message of its state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from service.errors import DeliveryFailed

RUNS_MAX = 50  # of one deployment at a time: their ids are recorded, in at most 4,000 characters
AT_ONCE = 5
MARK = "suspended by Authwatch"
UNDER_WAY = ("RUNNING", "PENDING")
# Prefect fails a suspended run after this time; a hold may be long.
NEVER = "2200-01-01T00:00:00Z"
NOT_THERE = 404

Ask = Callable[[str, str, Mapping[str, Any] | None], Awaitable[Any]]
"""(method, path, body) -> the JSON answered to it; raises `DeliveryFailed`."""


async def under_way(ask: Ask, deployment_id: str) -> list[str]:
    """Ids of its runs that work now or are about to, `RUNS_MAX` at most. Without subflows, which go with what called them."""
    asked = {
        "deployments": {"id": {"any_": [deployment_id]}},
        "flow_runs": {"state": {"type": {"any_": list(UNDER_WAY)}}, "parent_task_run_id": {"is_null_": True}},
        "limit": RUNS_MAX,
    }
    rows = await ask("POST", "/flow_runs/filter", asked)
    found = [row.get("id") for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    return known_ids(found)


async def suspend(ask: Ask, deployment_id: str, ids: Sequence[str], reason: str) -> int:
    """How many of its runs are under way all the same: they began meanwhile, or are about to. Those that have ended, or that
    somebody suspended, are refused by Prefect and stay as they are. It comes after the pause, so that no failure here is
    without effect."""
    state = {
        "type": "PAUSED",
        "name": "Suspended",
        "message": f"{MARK}: {reason}"[:500],
        "state_details": {"pause_reschedule": True, "pause_timeout": NEVER},
    }
    try:
        await each(ids, lambda id_: ask("POST", f"/flow_runs/{id_}/set_state", {"state": state}))
        return len(await under_way(ask, deployment_id))
    except DeliveryFailed as exc:
        raise DeliveryFailed(
            f"it is paused there, but what runs could not all be suspended: {exc}",
            code=exc.code,
            ambiguous=True,
            retry_after_seconds=exc.retry_after_seconds,
            status=exc.status,
        ) from None


async def resume(ask: Ask, ids: Sequence[str]) -> int:
    """Those that are still suspended by us; how many that were. Where one is refused it is tried again: the others go on."""

    async def one(id_: str) -> bool:
        run = await ask("GET", f"/flow_runs/{id_}", None)
        state = run.get("state") if isinstance(run, Mapping) else None
        if not isinstance(state, Mapping) or state.get("type") != "PAUSED":
            return False
        if not str(state.get("message")).startswith(MARK):
            return False
        await ask("POST", f"/flow_runs/{id_}/resume", {})
        return True

    try:
        return sum(await each(ids, one))
    except DeliveryFailed as exc:
        raise DeliveryFailed(
            f"it schedules again, but what we suspended could not all be resumed: {exc}",
            code=exc.code,
            ambiguous=True,
            retry_after_seconds=exc.retry_after_seconds,
            status=exc.status,
        ) from None


async def each(ids: Sequence[str], call: Callable[[str], Awaitable[Any]]) -> list[Any]:
    """A few at a time; one that is not there any more is passed over. All are tried before the first failure is raised."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(id_: str) -> Any:
        async with room:
            try:
                return await call(id_)
            except DeliveryFailed as exc:
                if exc.status == NOT_THERE:
                    return False
                raise

    said = await asyncio.gather(*(one(id_) for id_ in ids), return_exceptions=True)
    for answer in said:
        if isinstance(answer, BaseException):
            raise answer
    return said


def known_ids(said: Any) -> list[str]:
    """Of what was recorded, or answered: what is no id goes into no address."""
    found = []
    for id_ in said if isinstance(said, list) else []:
        try:
            found.append(str(UUID(id_)))
        except (ValueError, TypeError, AttributeError):
            continue
    return found[:RUNS_MAX]
