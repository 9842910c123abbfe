"""What orchestrators are asked, one thing after another in a workflow's lane: what is taken back before it is sent, and
which pause of ours stands at a place (one orchestrator and one `ref` there)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import ARRAY, Boolean, DateTime, Text, Uuid, bindparam, column, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.actions import PAUSE, RESUME, Action, to_action
from service.store.keys import any_id
from service.store.tables import actions

KINDS = (PAUSE, RESUME)
SUPERSEDED = "superseded"
# Statuses of an ask that changed nothing there; others have the orchestrator's own word for what it did.
NOT_PAUSED, LEFT, ALREADY, GONE = "not_paused", "left", "already_paused", "workflow_gone"
# Its credentials are no longer taken: nothing was done, and everything there waits until a person has mended it.
OF_CREDENTIALS = ("http_401", "http_403")
# What went wrong while an orchestrator was only asked how a workflow stands; these begin the code.
IN_STATE = "state_"
TAKEN_BACK = "taken back before it was done: by then the opposite was wanted"
ASKS_READ_MAX = 50  # of one place, back from now; between them nothing has been put back
ASKS_SHOWN_MAX = 500

# Attempts that cannot have had an effect there: nothing was sent, it was only asked how it stands, or it was refused whole.
# All others may have, whatever came back: a 502 is a proxy's word.
WITHOUT_EFFECT = """(t.code LIKE 'http\\_4__' AND t.code <> 'http_408' OR t.code LIKE 'database\\_%'
    OR t.code LIKE 'state\\_%' OR t.code IN (
    'connect_failed', 'destination_unknown', 'gone', 'key_invalid', 'redirected', 'request_invalid', 'workflow_gone'))"""
HARMLESS = f"""
    (SELECT count(*) FROM attempts t WHERE t.action_id = a.id AND t.outcome IS NOT NULL
        AND t.outcome IN ('retry', 'failed') AND {WITHOUT_EFFECT})"""
# Counted against the row's own number, so that an attempt which this snapshot does not see counts as one with an effect.
MAY_HAVE_ARRIVED = f"a.attempts > {HARMLESS}"


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
class Found:
    """How a workflow stood before us, as its orchestrator said before our first pause there: `as_found` is given back to it
    with the resume. `was_paused`: by somebody else (None: it cannot be told)."""

    as_found: Mapping[str, Any]
    was_paused: bool | None


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing that was asked at a place. `may_have_arrived`: some attempt may have had its effect there."""

    action: Action
    may_have_arrived: bool

    @property
    def found(self) -> Found | None:
        return found_of(self.action)


@dataclass(frozen=True, slots=True)
class Standing:
    """What of ours stands at a place: the pause that began it, None where none ever took effect. `known`: there is a record
    of what was asked; where it is gone with its age, nothing says that nothing was paused."""

    pause: Asked | None
    known: bool


def found_of(action: Action) -> Found | None:
    """What was recorded before a pause was sent; None where that was never asked, or not yet."""
    found = action.payload.get("found")
    return Found(found["as_found"], found["was_paused"]) if found else None


def standing(newest_first: Sequence[Asked], *, asks_first: bool = False) -> Standing:
    """The first pause that may have taken effect since a resume was last done: what it found is the state before us. A later
    one finds what we left there, unless it found it running: then somebody had started it, and that is the state before us.

    `asks_first`: of an orchestrator whose state is recorded before a pause is sent, so that one without never was.
    """
    begun: Asked | None = None
    for one in newest_first:
        action = one.action
        if action.kind == RESUME and action.state == "done":
            break
        took = action.state == "done" or (one.may_have_arrived and (one.found is not None or not asks_first))
        if action.kind != PAUSE or not took:
            continue
        begun = one
        if one.found is not None and one.found.was_paused is False:
            break
    return Standing(begun, bool(newest_first))


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


async def standing_before(conn: AsyncConnection, action: Action, *, asks_first: bool = False) -> Standing:
    """What stands where this action is to be done, from all that was asked there before it; `asks_first` as `standing` has
    it."""
    asked = {
        "workflow_id": action.workflow_id,
        "destination": action.destination,
        "ref": str(action.payload["ref"]),
        "at": action.created_at,
        "id": action.id,
    }
    rows = await conn.execute(EARLIER, asked)
    return standing([Asked(to_action(row), row.may_have_arrived) for row in rows], asks_first=asks_first)


TRIED_IN_VAIN = text(f"SELECT {HARMLESS} >= :tries FROM actions a WHERE a.id = :id").bindparams(
    bindparam("id", type_=Uuid(as_uuid=False))
)


async def tried_in_vain(conn: AsyncConnection, action: Action) -> bool:
    """Whether none of the tries before this one can have had an effect there, so that what is paused there by now is a
    person's."""
    asked = {"id": action.id, "tries": action.attempts}
    return bool((await conn.execute(TRIED_IN_VAIN, asked)).scalar_one_or_none())


# What was recorded first stays, once anything may have been sent: it was asked before that.
RECORD_FOUND = text(
    """
    UPDATE actions SET payload = CASE WHEN payload ? 'found' AND NOT :anew THEN payload
        ELSE payload || jsonb_build_object('found', CAST(:found AS jsonb)) END
    WHERE id = :id RETURNING payload -> 'found'
    """
).bindparams(bindparam("id", type_=Uuid(as_uuid=False)), bindparam("anew", type_=Boolean()))


async def record_found(conn: AsyncConnection, action: Action, found: Found, *, anew: bool = False) -> Found:
    """Before the first pause is sent; answers what is recorded, which is what an earlier try found if there was one. `anew`:
    all of those were in vain, so this one counts."""
    asked = {"as_found": dict(found.as_found), "was_paused": found.was_paused}
    row = (
        await conn.execute(RECORD_FOUND, {"id": action.id, "found": orjson.dumps(asked).decode(), "anew": anew})
    ).one()
    return Found(row[0]["as_found"], row[0]["was_paused"])


async def between(conn: AsyncConnection, workflow_id: str, since: datetime, until: datetime | None) -> list[Action]:
    """What a workflow's orchestrators were asked from `since` to `until` (None: now), oldest first; the newest of very many."""
    query = select(actions).where(
        actions.c.workflow_id == workflow_id, actions.c.kind.in_(KINDS), actions.c.created_at >= since
    )
    if until is not None:
        query = query.where(actions.c.created_at <= until)
    newest = query.order_by(actions.c.created_at.desc(), actions.c.id.desc()).limit(ASKS_SHOWN_MAX)
    return [to_action(row) for row in await conn.execute(newest)][::-1]
