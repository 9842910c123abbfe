"""The audit chain gone through from its beginning, or from a time on, in bounded memory and short transactions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from service.audit import Broken, Head, Walk
from service.store import audit_chain, audit_entries
from service.store.session import begin

BATCH_ENTRIES = 2_000
AGAIN_MAX = 3  # times that retention may cut the beginning away under a walk


@dataclass(frozen=True, slots=True)
class Verdict:
    """`broken` None: what was gone through is sound. `unchained` entries are from before the chain, and are not checked."""

    walk: Walk
    head: Head
    broken: Broken | None


async def verify(
    engine: AsyncEngine,
    *,
    since: datetime | None = None,
    expect: str | None = None,
    progress: Callable[[Walk], None] = lambda walk: None,
) -> Verdict:
    """`since`: from the first entry received then or later on, whose word for what came before is taken. `expect`: a
    hash that was noted before and must be among those gone through. Raises Unavailable."""
    for _ in range(AGAIN_MAX):
        verdict = await go_through(engine, since, expect, progress)
        if verdict.broken is None:
            break
        async with begin(engine) as conn:
            now = await audit_chain.head(conn)
        if now.cut_position == verdict.head.cut_position:
            break  # nothing was taken away meanwhile: it is as it looks
    return verdict


async def go_through(
    engine: AsyncEngine, since: datetime | None, expect: str | None, progress: Callable[[Walk], None]
) -> Verdict:
    async with begin(engine) as conn:
        head = await audit_chain.head(conn)
        start = await audit_entries.position_before(conn, since) if since is not None else None
    whole = since is None or start is None or start <= head.anchor_position
    walk = Walk(last=head.anchor if whole else None, cut_position=head.cut_position, expect=expect)
    walk.met = expect == head.anchor.hash and bool(head.anchor.number)
    position = head.anchor_position if whole or start is None else start
    first_head = head
    while True:
        async with begin(engine) as conn:
            # The head first: every entry it knows of is there by then.
            head = await audit_chain.head(conn)
            entries = await audit_entries.after(conn, position, BATCH_ENTRIES)
        for event in entries:
            if (found := walk.step(event)) is not None:
                return Verdict(walk, first_head, found)
        if not entries:
            return Verdict(walk, first_head, walk.finish(head, whole=whole))
        position = entries[-1].position
        progress(walk)
