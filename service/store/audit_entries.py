"""The audit chain's entries, read from the log in order; and what is appended because retention or a person says so."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.audit import ADOPT, CHAINED, CUT, UNSEALED_MAX, digest, instant
from service.event import Event
from service.store import audit_chain, log
from service.store.audit_chain import Going
from service.store.log import SELECTED, Decision, to_event
from service.store.tables import events

ADOPTED_AT_ONCE_MAX = 500  # in one entry
# As the index has it: the planner sees that it fits only if the words are the same.
IS_ENTRY = text("kind IN ('audit', 'workflow.paused', 'workflow.resumed')")
assert all(f"'{kind}'" in IS_ENTRY.text for kind in CHAINED)


async def after(conn: AsyncConnection, position: int, limit: int) -> list[Event]:
    """The next entries in the order of the chain, sealed or not."""
    rows = await conn.execute(
        select(*SELECTED).where(IS_ENTRY, events.c.position > position).order_by(events.c.position).limit(limit)
    )
    return [to_event(row) for row in rows]


async def newest(conn: AsyncConnection, limit: int, *, since: datetime | None, subject: str | None) -> list[Event]:
    """Newest first. `subject` is what an entry is about: the id of a workflow, an alert, a token, a silence."""
    wanted = select(*SELECTED).where(IS_ENTRY).order_by(events.c.position.desc()).limit(limit)
    if since is not None:
        wanted = wanted.where(events.c.received_at >= since)
    if subject is not None:
        wanted = wanted.where(events.c.event_id == subject)
    return [to_event(row) for row in await conn.execute(wanted)]


async def position_before(conn: AsyncConnection, since: datetime) -> int | None:
    """The position before the first sealed entry received at that time or later; None: there is none."""
    first = (
        await conn.execute(
            select(func.min(events.c.position)).where(
                IS_ENTRY, events.c.received_at >= since, text("details->'chain'->>'hash' IS NOT NULL")
            )
        )
    ).scalar_one()
    return None if first is None else int(first) - 1


async def cut(conn: AsyncConnection, gone: Going | None, before: datetime, now: datetime) -> None:
    """Says in the chain where it begins now, in the transaction that takes its beginning away, as its last act."""
    if gone is None:
        return
    was = await audit_chain.head(conn)
    if gone.link.number <= was.anchor.number and gone.last_position <= was.cut_position:
        return
    if gone.link.number > was.anchor.number:
        await log.append(conn, [cut_entry(gone, before, now)])
    await audit_chain.anchor(conn, gone)


def cut_entry(gone: Going, before: datetime, now: datetime) -> Decision:
    return Decision(
        kind="audit",
        subject_id=f"audit:{gone.link.number}",
        occurred_at=now,
        details={
            "actor": "retention",
            "action": CUT,
            "subject": f"audit:{gone.link.number}",
            "reason": f"entries received before {instant(before)} are older than retention.audit",
            "number": gone.link.number,
            "hash": gone.link.hash,
        },
    )


async def unsealed(conn: AsyncConnection) -> list[Event]:
    """Entries without a hash among those of the chain that nobody has vouched for, oldest first; UNSEALED_MAX at most."""
    head = await audit_chain.head(conn)
    began = (
        await conn.execute(
            select(func.min(events.c.position)).where(
                IS_ENTRY,
                events.c.position > head.anchor_position,
                text("details->'chain'->>'hash' IS NOT NULL"),
            )
        )
    ).scalar_one()
    if began is None:
        return []
    rows = await conn.execute(
        select(*SELECTED)
        .where(IS_ENTRY, events.c.position > began, text("details->'chain'->>'hash' IS NULL"))
        .order_by(events.c.position)
        .limit(UNSEALED_MAX)
    )
    found = [to_event(row) for row in rows]
    adopted = {
        position
        for (position,) in await conn.execute(
            text(
                "SELECT (one->>'position')::bigint FROM events, jsonb_array_elements(details->'adopted') AS one"
                " WHERE kind IN ('audit', 'workflow.paused', 'workflow.resumed') AND kind = 'audit'"
                " AND details->>'action' = :action AND jsonb_typeof(details->'adopted') = 'array'"
            ),
            {"action": ADOPT},
        )
    }
    return [event for event in found if event.position not in adopted]


async def adopt(conn: AsyncConnection, entries: Sequence[Event], actor: str, reason: str, now: datetime) -> None:
    """Somebody looked at these and says that they are right: what they say now is in the chain from here on."""
    for start in range(0, len(entries), ADOPTED_AT_ONCE_MAX):
        part = entries[start : start + ADOPTED_AT_ONCE_MAX]
        adopted = [{"position": event.position, "sha256": digest(event, 0, "")} for event in part]
        decision = Decision(
            kind="audit",
            subject_id="audit",
            occurred_at=now,
            details={"actor": actor, "action": ADOPT, "subject": "audit", "reason": reason, "adopted": adopted},
        )
        await log.append(conn, [decision])
