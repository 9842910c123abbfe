"""What orchestrators are asked, one thing after another in a workflow's lane: what is taken back before it is sent, and
which pause of ours stands at a place (one orchestrator and one `ref` there)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ARRAY, Boolean, DateTime, Text, Uuid, bindparam, column, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.actions import PAUSE, RESUME, Action, to_action
from service.store.keys import any_id
from service.store.tables import actions

KINDS = (PAUSE, RESUME)
SUPERSEDED = "superseded"
# The status of a resume that was not sent, where others have the orchestrator's own word for what it did.
NOT_PAUSED, LEFT = "not_paused", "left"
TAKEN_BACK = "taken back before it was done: by then the opposite was wanted"
ASKS_READ_MAX = 50  # of one place, back from now; between them nothing has been put back
ASKS_SHOWN_MAX = 500

# Attempts that cannot have had an effect there: nothing was sent, or it was refused whole. All others may have, whatever
# came back: a 502 is a proxy's word.
WITHOUT_EFFECT = """(t.code LIKE 'http\\_4__' AND t.code <> 'http_408' OR t.code LIKE 'database\\_%' OR t.code IN (
    'connect_failed', 'destination_unknown', 'gone', 'key_invalid', 'redirected', 'request_invalid'))"""
# Counted against the row's own number, so that an attempt which this snapshot does not see counts as one with an effect.
MAY_HAVE_ARRIVED = f"""
    a.attempts > (SELECT count(*) FROM attempts t WHERE t.action_id = a.id AND t.outcome IS NOT NULL
        AND t.outcome IN ('retry', 'failed') AND {WITHOUT_EFFECT})"""


class Place(NamedTuple):
    """Where one workflow is paused and resumed."""

    lane: str
    destination: str
    ref: str


# Locked in the order of lanes, as whoever adds and concludes does.
WAITING = text(
    f"""
    SELECT a.id::text, a.kind, a.lane, a.destination, a.payload ->> 'ref', {MAY_HAVE_ARRIVED}
    FROM actions a WHERE a.lane = ANY(:lanes) AND a.state = 'pending' AND a.kind = ANY(:kinds)
    ORDER BY a.lane, a.id FOR UPDATE OF a
    """
).bindparams(bindparam("lanes", type_=ARRAY(Text())), bindparam("kinds", list(KINDS), type_=ARRAY(Text())))


async def take_back(conn: AsyncConnection, wanted: Mapping[Place, str], now: datetime) -> None:
    """What waits at these places and is the opposite of what is wanted there now (PAUSE or RESUME) is not sent any more.

    A pause that may have arrived stays: only its answer tells what there was before. A resume goes in any case: done after
    what is wanted now, it would start what is held.
    """
    rows = await conn.execute(WAITING, {"lanes": sorted({place.lane for place in wanted})})
    gone = [
        row[0] for row in rows if wanted.get(Place(*row[2:5]), row[1]) != row[1] and (row[1] == RESUME or not row[5])
    ]
    if gone:
        await conn.execute(
            actions.update()
            .where(actions.c.id == any_id(gone))
            .values(state=SUPERSEDED, finished_at=now, last_error=TAKEN_BACK)
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing that was asked at a place. `may_have_arrived`: some attempt may have had its effect there."""

    action: Action
    may_have_arrived: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What of ours stands at a place: the pause that began it, None where none ever took effect. `known`: there is a record
    of what was asked; where it is gone with its age, nothing says that nothing was paused."""

    pause: Asked | None
    known: bool


def standing(newest_first: Sequence[Asked]) -> Standing:
    """The first pause that may have taken effect since a resume was last done: what it found is the state before us. A later
    one finds what we left there."""
    found: Asked | None = None
    for one in newest_first:
        if one.action.kind == RESUME and one.action.state == "done":
            break
        if one.action.kind == PAUSE and (one.action.state == "done" or one.may_have_arrived):
            found = one
    return Standing(found, bool(newest_first))


EARLIER = (
    text(
        f"""
    SELECT {", ".join(f"a.{one.name}" for one in actions.columns)}, {MAY_HAVE_ARRIVED} AS may_have_arrived
    FROM actions a WHERE a.workflow_id = :workflow_id AND a.kind = ANY(:kinds) AND a.destination = :destination
        AND a.payload ->> 'ref' = :ref AND (a.created_at, a.id) < (:at, :id)
    ORDER BY a.created_at DESC, a.id DESC LIMIT {ASKS_READ_MAX}
    """
    )
    .bindparams(
        bindparam("kinds", list(KINDS), type_=ARRAY(Text())),
        bindparam("at", type_=DateTime(timezone=True)),
        bindparam("id", type_=Uuid(as_uuid=False)),
    )
    .columns(*actions.columns, column("may_have_arrived", Boolean()))
)


async def standing_before(conn: AsyncConnection, action: Action) -> Standing:
    """What stands where this action is to be done, from all that was asked there before it."""
    asked = {
        "workflow_id": action.workflow_id,
        "destination": action.destination,
        "ref": str(action.payload["ref"]),
        "at": action.created_at,
        "id": action.id,
    }
    rows = await conn.execute(EARLIER, asked)
    return standing([Asked(to_action(row), row.may_have_arrived) for row in rows])


async def between(conn: AsyncConnection, workflow_id: str, since: datetime, until: datetime | None) -> list[Action]:
    """What a workflow's orchestrators were asked from `since` to `until` (None: now), oldest first; the newest of very many."""
    query = select(actions).where(
        actions.c.workflow_id == workflow_id, actions.c.kind.in_(KINDS), actions.c.created_at >= since
    )
    if until is not None:
        query = query.where(actions.c.created_at <= until)
    newest = query.order_by(actions.c.created_at.desc(), actions.c.id.desc()).limit(ASKS_SHOWN_MAX)
    return [to_action(row) for row in await conn.execute(newest)][::-1]
