"""Where the audit chain stands, and the seals of what is appended to it: under the log's lock, for audit entries alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import bindparam, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.audit import CHAIN, CHAINED, Head, Link, seal
from service.event import Event
from service.store.audit_tables import audit_chain
from service.store.tables import alerts

NAME = "audit"
# The newest link, and as many positions: a position is hashed too, so it must be known before the row is written.
NEXT = text(
    """
    SELECT (SELECT number FROM audit_chain WHERE name = 'audit') AS number,
        (SELECT hash FROM audit_chain WHERE name = 'audit') AS hash,
        ARRAY(SELECT nextval('log_position') FROM generate_series(1, :rows)) AS positions
    """
)
MOVED = insert(audit_chain)
# A row that somebody took away is made again: the service goes on, and `authwatch audit verify` finds what was done.
MOVE = MOVED.values(
    name=NAME,
    number=bindparam("to_number"),
    position=bindparam("to_position"),
    hash=bindparam("to_hash"),
    at=bindparam("to_at"),
).on_conflict_do_update(
    index_elements=("name",),
    set_={name: MOVED.excluded[name] for name in ("number", "position", "hash", "at")},
)


def is_chained(kind: str) -> bool:
    return kind in CHAINED


async def place(conn: AsyncConnection, rows: Sequence[dict[str, Any]], at: datetime) -> list[dict[str, Any]]:
    """The rows with their positions, and audit entries among them with their seals. The log's lock must be held: it is
    what makes the entry before the one before. `at` is the rows' `received_at`."""
    found = (await conn.execute(NEXT, {"rows": len(rows)})).one()
    last = Link(found.number, found.hash) if found.number is not None else Link()
    placed: list[dict[str, Any]] = []
    newest_position = 0
    for row, position in zip(rows, sorted(found.positions), strict=True):
        if not is_chained(row["kind"]):
            placed.append({**row, "position": position})
            continue
        details = orjson.loads(orjson.dumps(row["details"] or {}))  # as it reads back
        own = seal(to_event({**row, "position": position, "details": details}), last)
        last, newest_position = Link(own.number, own.hash), position
        placed.append({**row, "position": position, "details": {**details, CHAIN: own.to_details()}})
    await conn.execute(
        MOVE, {"to_number": last.number, "to_position": newest_position, "to_hash": last.hash, "to_at": at}
    )
    return placed


def to_event(row: Mapping[str, Any]) -> Event:
    """As the row reads back, before it is written: what is not given is null."""
    given: dict[str, Any] = {name: row.get(name) for name in Event.__slots__}
    return Event(**given | {"clock_suspect": False})


async def head(conn: AsyncConnection) -> Head:
    row = (await conn.execute(select(audit_chain).where(audit_chain.c.name == NAME))).first()
    if row is None:
        return Head()
    return Head(
        newest=Link(row.number, row.hash),
        newest_position=row.position,
        anchor=Link(row.anchor_number, row.anchor_hash),
        anchor_position=row.anchor_position,
        cut_position=row.cut_position,
    )


@dataclass(frozen=True, slots=True)
class Going:
    """What retention is about to take away: the newest entry that has a seal, with its position, and the last position."""

    link: Link
    position: int
    last_position: int


async def going(conn: AsyncConnection, table: str, *, floor: int, before: datetime) -> Going | None:
    """Of the audit entries of this table up to position `floor` that were received before then; None: none goes.

    `table` is a day's partition or `events_kept`, by a name that was checked."""
    if (await conn.execute(text("SELECT to_regclass(CAST(:name AS text))"), {"name": table})).scalar_one() is None:
        return None
    row = (
        await conn.execute(
            text(
                "WITH going AS MATERIALIZED ("
                f" SELECT position, details FROM {table} WHERE kind = ANY(CAST(:kinds AS text[])) AND origin = 'authwatch'"
                " AND position <= :floor AND received_at < :before)"
                " SELECT max(position) AS last, (SELECT jsonb_build_object('position', position, 'chain', details->'chain')"
                " FROM going WHERE details->'chain'->>'hash' IS NOT NULL ORDER BY position DESC LIMIT 1) AS sealed FROM going"
            ),
            {"kinds": list(CHAINED), "floor": floor, "before": before},
        )
    ).one()
    if row.last is None:
        return None
    sealed = row.sealed
    if sealed is None:
        return Going(Link(), 0, row.last)
    return Going(Link(int(sealed["chain"]["number"]), str(sealed["chain"]["hash"])), sealed["position"], row.last)


async def anchor(conn: AsyncConnection, gone: Going) -> None:
    """The chain begins after these from now on. Under the log's lock; never back."""
    row = audit_chain.c
    await conn.execute(
        audit_chain.update()
        .where(row.name == NAME, row.cut_position < gone.last_position)
        .values(cut_position=gone.last_position)
    )
    if gone.link.number:
        await conn.execute(
            audit_chain.update()
            .where(row.name == NAME, row.anchor_number < gone.link.number)
            .values(anchor_number=gone.link.number, anchor_hash=gone.link.hash, anchor_position=gone.position)
        )


async def rules_of(conn: AsyncConnection, alert_ids: Sequence[str]) -> dict[str, str]:
    """The rule of each of these alerts."""
    if not alert_ids:
        return {}
    rows = await conn.execute(select(alerts.c.id, alerts.c.rule_id).where(alerts.c.id.in_(alert_ids)))
    return {row.id: row.rule_id for row in rows}
