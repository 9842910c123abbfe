"""What orchestrators are asked, one thing after another in a workflow's lane: what is taken back before it is sent, and
which pause of ours stands at a place (one orchestrator and one `ref` there)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
# Whether it was us or a person who paused it there cannot be told, so it is left as it is.
DOUBTFUL = "doubtful"
# Its credentials are no longer taken: nothing was done, and everything there waits until a person has mended it.
OF_CREDENTIALS = ("http_401", "http_403")
# What went wrong while an orchestrator was only asked how a workflow stands; these begin the code.
IN_STATE = "state_"
# After a 5xx to a pause it is asked at once how the workflow stands. These begin its code then: not paused, so it had no
# effect; or that could not be found out. Without either it is paused there, and by us.
UNHEEDED, IN_DOUBT = "unheeded_", "doubtful_"
TAKEN_BACK = "taken back before it was done: by then the opposite was wanted"
ASKS_READ_MAX = 50  # of one place, back from now; between them nothing has been put back
ASKS_SHOWN_MAX = 500

# Attempts that cannot have had an effect there: nothing was sent, it was only asked how it stands, or it was refused whole.
# All others may have, whatever came back: a 502 is a proxy's word.
WITHOUT_EFFECT = """(t.code LIKE 'http\\_4__' AND t.code <> 'http_408' OR t.code LIKE 'database\\_%'
    OR t.code LIKE 'state\\_%' OR t.code LIKE 'unheeded\\_%' OR t.code IN (
    'connect_failed', 'destination_unknown', 'gone', 'key_invalid', 'redirected', 'request_invalid', 'workflow_gone'))"""
HARMLESS = f"""
    (SELECT count(*) FROM attempts t WHERE t.action_id = a.id AND t.outcome IS NOT NULL
        AND t.outcome IN ('retry', 'failed') AND {WITHOUT_EFFECT})"""
# Counted against the row's own number, so that an attempt which this snapshot does not see counts as one with an effect.
MAY_HAVE_ARRIVED = f"a.attempts > {HARMLESS}"
DOUBTS = "(SELECT count(*) FROM attempts t WHERE t.action_id = a.id AND t.code LIKE 'doubtful\\_%')"
# All that may have arrived is in doubt: what is paused there by now may as well be a person's.
ALL_IN_DOUBT = f"({MAY_HAVE_ARRIVED} AND a.attempts <= {HARMLESS} + {DOUBTS})"


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
    with the resume. `was_paused`: by somebody else (None: it cannot be told). `ran`: this pause has itself seen it run, so that
    whatever we did there earlier is over."""

    as_found: Mapping[str, Any]
    was_paused: bool | None
    ran: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing that was asked at a place. `may_have_arrived`: some attempt may have had its effect there; `in_doubt`: and of
    none of those it can be told."""

    action: Action
    may_have_arrived: bool
    in_doubt: bool = False

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
    return read_found(found) if found else None


def read_found(kept: Mapping[str, Any]) -> Found:
    return Found(kept["as_found"], kept["was_paused"], kept.get("ran", False))


def found_now(paused: bool | None, as_found: Mapping[str, Any], own: Found | None, stands: Asked | None) -> Found:
    """The state before us, from how it stands there now. `own`: what this pause found at its first try; `stands`: the earlier
    pause of ours that does."""
    ran = paused is False or (own is not None and own.ran)
    if not ran and stands is not None and stands.found is not None and not stands.in_doubt:
        return replace(stands.found, ran=False)
    return Found(as_found, paused, ran)


def with_interrupted(
    as_found: Mapping[str, Any], seen: Sequence[Mapping[str, Any]], adds_up: Mapping[str, int]
) -> dict[str, Any]:
    """`as_found` with the lists that `adds_up` names whole: all of `seen`, the earliest first, as many as there is room for."""
    whole = dict(as_found)
    for name, most in adds_up.items():
        lists = [found[name] for found in seen if isinstance(found.get(name), list)]
        if lists:
            whole[name] = list(dict.fromkeys(one for found in lists for one in found))[:most]
    return whole


def standing(newest_first: Sequence[Asked], *, asks_first: bool = False) -> Standing:
    """The first pause that may have taken effect since a resume was last done: what it found is the state before us. A later
    one finds what we left there, unless it saw it run: then somebody had started it, and that is the state before us.

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
        if one.found is not None and (one.found.ran or one.found.was_paused is False):
            break
    return Standing(begun, bool(newest_first))


EARLIER = (
    text(
        f"""
    SELECT {", ".join(f"a.{one.name}" for one in actions.columns)}, {MAY_HAVE_ARRIVED} AS may_have_arrived,
        {ALL_IN_DOUBT} AS in_doubt
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
    .columns(*actions.columns, column("may_have_arrived", Boolean()), column("in_doubt", Boolean()))
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
    asked_before = [Asked(to_action(row), row.may_have_arrived, row.in_doubt) for row in rows]
    return standing(asked_before, asks_first=asks_first)


@dataclass(frozen=True, slots=True)
class Tries:
    """What the tries of a pause before this one were. `in_vain`: none can have had an effect there, so that what is paused
    there by now is a person's. `in_doubt`: of those that may have, none can be told."""

    in_vain: bool
    in_doubt: bool


TRIES = text(f"SELECT {HARMLESS} AS harmless, {DOUBTS} AS doubts FROM actions a WHERE a.id = :id").bindparams(
    bindparam("id", type_=Uuid(as_uuid=False))
)


async def tries_of(conn: AsyncConnection, action: Action) -> Tries:
    row = (await conn.execute(TRIES, {"id": action.id})).one_or_none()
    harmless, doubts = (row.harmless, row.doubts) if row is not None else (0, 0)
    in_vain = harmless >= action.attempts
    return Tries(in_vain, in_doubt=not in_vain and harmless + doubts >= action.attempts)


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
    all of those were in vain, or may have been, so this one counts."""
    asked = {"as_found": dict(found.as_found), "was_paused": found.was_paused, "ran": found.ran}
    row = (
        await conn.execute(RECORD_FOUND, {"id": action.id, "found": orjson.dumps(asked).decode(), "anew": anew})
    ).one()
    return read_found(row[0])


async def between(conn: AsyncConnection, workflow_id: str, since: datetime, until: datetime | None) -> list[Action]:
    """What a workflow's orchestrators were asked from `since` to `until` (None: now), oldest first; the newest of very many."""
    query = select(actions).where(
        actions.c.workflow_id == workflow_id, actions.c.kind.in_(KINDS), actions.c.created_at >= since
    )
    if until is not None:
        query = query.where(actions.c.created_at <= until)
    newest = query.order_by(actions.c.created_at.desc(), actions.c.id.desc()).limit(ASKS_SHOWN_MAX)
    return [to_action(row) for row in await conn.execute(newest)][::-1]
