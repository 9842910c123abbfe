"""Reads the log on from a position and says which answers of the gate changed, for the stream (service/gate_stream.py).

What Authwatch decided holds from its own commit; what a provider's event says of an account holds once it is evaluated.
So events wait in memory for the evaluator, in order, while decisions behind them are told. `cursor` is the position up to
which everything has been told: the id of the stream, from which another reader, in another process, misses nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from service import gate_changes
from service.event import WELL, AccountKey, Event
from service.gate import Answer
from service.gate_changes import Change, Subject, Told, Touch
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import dependents as dependent_store
from service.store import log
from service.store import workflows as workflow_store
from service.store.accounts import Account
from service.store.tables import dependencies
from service.store.workflows import Hold

PAGE_ROWS = 250  # a page is worked off in one turn of the loop, and webhooks wait for it
# Behind so many events that wait for the evaluator nothing is read: the gate says `evaluation_behind` anyway.
PENDING_MAX = 50_000
ACCOUNTS_OF_WORKFLOW_MAX, WORKFLOWS_OF_ACCOUNT_MAX = 100, 100
JUDGED_ORIGINS = ("webhook", "recovery", "report")


@dataclass(slots=True)
class Step:
    """`more`: the page was full, read on at once."""

    changes: list[Change]
    more: bool


@dataclass(slots=True)
class Reader:
    read: int  # up to this position rows have been read
    pending: deque[Event] = field(default_factory=deque)
    told: Told = field(default_factory=Told)

    @property
    def cursor(self) -> int:
        return self.pending[0].position - 1 if self.pending else self.read

    async def step(self, conn: AsyncConnection, evaluated: int, asked: Collection[Subject] = ()) -> Step:
        """`evaluated`: up to where the log was, before this transaction began. `asked`: pairs that somebody asked about
        though the workflow may not depend on the account."""
        rows = await log.read_after(conn, self.read, PAGE_ROWS) if len(self.pending) < PENDING_MAX else []
        touched: list[Touch] = []
        waiting: list[Event] = []
        for row in rows:
            if row.origin == "authwatch":
                touched += gate_changes.touches(row)
            elif row.account_status is not None and row.account is not None and row.origin in JUDGED_ORIGINS:
                waiting.append(row)
        released = list(takewhile(lambda event: event.position <= evaluated, chain(self.pending, waiting)))
        found = await self._changes(conn, touched, released, asked)
        # Only now that nothing can fail any more: a step that fails is taken again.
        self.pending.extend(waiting)
        for _ in released:
            self.pending.popleft()
        if rows:
            self.read = rows[-1].position
        return Step(found, len(rows) == PAGE_ROWS)

    async def _changes(
        self, conn: AsyncConnection, touched: list[Touch], released: Sequence[Event], asked: Collection[Subject]
    ) -> list[Change]:
        rows = await account_store.load(conn, {event.account for event in released if event.account is not None})
        touched = sorted([*touched, *of_accounts(released, rows)], key=lambda touch: touch.position)
        if not touched:
            return []
        workflow_ids = {touch.part.workflow_id for touch in touched if touch.part.workflow_id is not None}
        changed = {touch.part.account for touch in touched if touch.part.workflow_id is None} - {None}
        subjects = await self._subjects(
            conn, workflow_ids, {key: rows[key].connection_id for key in changed if key in rows}, asked
        )
        holds = await workflow_store.open_holds(conn, workflow_ids=workflow_ids)
        touched = [more for touch in touched for more in with_holds(touch, holds)]
        for touch in touched:
            own = subjects.setdefault(touch.part, [])
            if touch.part not in own:
                own.insert(0, touch.part)
        needed = {part for of_part in subjects.values() for one in of_part for part in gate_changes.parts_of(one)}
        return gate_changes.changes(touched, await state_of(conn, needed), subjects, self.told)

    async def _subjects(
        self,
        conn: AsyncConnection,
        workflow_ids: Collection[str],
        accounts: dict[AccountKey, str | None],
        asked: Collection[Subject],
    ) -> dict[Subject, list[Subject]]:
        """By part that changes, the pairs whose answer it is part of: as the workflows depend, and as somebody asked."""
        found: dict[Subject, list[Subject]] = {}
        for workflow_id, key in await bound_accounts(conn, workflow_ids):
            of_workflow = found.setdefault(Subject(workflow_id, None), [])
            if len(of_workflow) < ACCOUNTS_OF_WORKFLOW_MAX:
                of_workflow.append(Subject(workflow_id, key))
        for key, workflows in (await dependent_store.dependents(conn, accounts)).items():
            found[Subject(None, key)] = [Subject(one.workflow_id, key) for one in workflows[:WORKFLOWS_OF_ACCOUNT_MAX]]
        for subject in asked:
            for part in gate_changes.parts_of(subject)[:2]:
                if part.workflow_id in workflow_ids or part.account in accounts:
                    pairs = found.setdefault(part, [])
                    if subject not in pairs:
                        pairs.append(subject)
        return found


def of_accounts(released: Sequence[Event], rows: dict[AccountKey, Account]) -> list[Touch]:
    """Those that may have changed a status: nearly every event only repeats that the account is well."""
    newest: dict[AccountKey, Event] = {}
    found: list[Touch] = []
    for event in released:
        key = event.account
        row = rows.get(key) if key is not None else None
        if key is None or row is None:
            continue
        if event.account_status == WELL and (row.status_since is None or row.status_since < event.occurred_at):
            continue
        if key in newest and event.occurred_at < newest[key].occurred_at:
            continue  # came late, and what it says was over already
        newest[key] = event
        found.append(gate_changes.touched_account(event))
    return found


def with_holds(touch: Touch, holds: Sequence[Hold]) -> Iterable[Touch]:
    """A workflow that was put anew may hold for one account what it held as a whole, or the other way round."""
    yield touch
    if not touch.told and touch.part.account is None:
        for hold in holds:
            if hold.workflow_id == touch.part.workflow_id and hold.account is not None:
                yield touch._replace(part=Subject(hold.workflow_id, hold.account))


async def bound_accounts(conn: AsyncConnection, workflow_ids: Collection[str]) -> list[tuple[str, AccountKey]]:
    """The accounts that these workflows name and that have been seen."""
    if not workflow_ids:
        return []
    rows = await conn.execute(
        select(dependencies)
        .where(
            dependencies.c.workflow_id.in_(list(workflow_ids)),
            dependencies.c.kind == "account",
            dependencies.c.source.is_not(None),
        )
        .order_by(dependencies.c.workflow_id, dependencies.c.written)
    )
    return [(row.workflow_id, AccountKey(row.source, row.environment_id or "", row.target_id)) for row in rows]


async def state_of(conn: AsyncConnection, parts: Collection[Subject]) -> dict[Subject, Answer | None]:
    """What each part says now."""
    workflow_ids = {part.workflow_id for part in parts if part.workflow_id is not None}
    keys = {part.account for part in parts if part.account is not None}
    workflows = await workflow_store.load_many(conn, workflow_ids)
    rows = await account_store.load(conn, keys)
    broken = [key for key, row in rows.items() if row.status != WELL]
    alerts = await alert_store.unresolved_of(conn, broken)
    held: dict[str, list[Hold]] = {}
    for hold in await workflow_store.open_holds(conn, workflow_ids=workflow_ids):
        held.setdefault(hold.workflow_id, []).append(hold)
    found: dict[Subject, Answer | None] = {}
    for part in parts:
        workflow_id, key = part
        holds = held.get(workflow_id or "", [])
        if key is None:
            assert workflow_id is not None
            found[part] = gate_changes.of_workflow(workflow_id, workflows.get(workflow_id), holds)
        elif workflow_id is None:
            alert_ids = [alert.id for alert in alerts.get(key, ())]
            found[part] = gate_changes.of_account(key, rows.get(key), alert_ids)
        else:
            found[part] = gate_changes.of_hold(key, holds)
    return found
