"""Writes down what became of attempts: those that end within a few milliseconds in one transaction.

What was done is known only here until it is written, so a database that is away meanwhile is waited for, and one outcome
that it will not take harms no other.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service.consequences import Consequences, notify
from service.errors import Unavailable
from service.notify.refusals import probe_after
from service.routing.grouping import REFUSED_RETRY
from service.runtime import LAST_WORDS_SECONDS, Runtime
from service.store import actions, asks, credentials, decisions, readers, refusals
from service.store.actions import NOTIFY, PEOPLE, Action, Outcome
from service.store.refusals import Refused
from service.store.session import begin
from service.together import message_id
from workers.attempt import Ended
from workers.persist import RECORD_RETRY_SECONDS, RECORD_SECONDS_MAX

GATHER_SECONDS = 0.004
BATCH_MAX = 200
FINAL = ("done", "failed")
BACKOFF_SECONDS = (1, 2, 5, 15, 30, 60, 120, 300)
GIVE_UP_AFTER = timedelta(hours=24)
# What an orchestrator refused for our credentials is asked again until somebody has mended them: about once a minute, so
# that no lock-out of theirs is kept up by us, and over a weekend.
CREDENTIALS_BACKOFF_SECONDS = (60, 60, 60, 120, 300)
CREDENTIALS_GIVE_UP_AFTER = timedelta(days=3)
# What was refused is due again at once, and lies where nothing is tried; until every process knows that.
REFUSED_SETTLES = timedelta(seconds=5)


@dataclass(slots=True, eq=False)
class Entry:
    ended: Ended
    written: asyncio.Future[None]
    until: float = field(default_factory=lambda: time.monotonic() + RECORD_SECONDS_MAX)


class Outcomes:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._waiting: list[Entry] = []
        self._writing: asyncio.Task[None] | None = None

    async def record(self, ended: Ended) -> None:
        """Back once it is committed. Raises what the database says of it, `Unavailable` after RECORD_SECONDS_MAX."""
        entry = Entry(ended, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="outcomes")
        await entry.written

    async def close(self) -> None:
        """What is known already is written yet, if that takes no longer than last words may."""
        if self._writing is not None:
            with suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await self._writing

    async def _write(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_SECONDS)
            # Orchestrators' answers lock what is pending of people's messages, so those are concluded by themselves:
            # the two in one transaction could wait for an evaluator that waits for them.
            told = self._waiting[0].ended.action.kind in PEOPLE
            batch = [entry for entry in self._waiting if (entry.ended.action.kind in PEOPLE) is told][:BATCH_MAX]
            settled: dict[Entry, Exception | None]
            try:
                await write(self._runtime, [entry.ended for entry in batch])
                settled = dict.fromkeys(batch)
            except Unavailable as exc:
                settled = {entry: exc for entry in batch if entry.until < time.monotonic()}
                await asyncio.sleep(RECORD_RETRY_SECONDS)
            except Exception as exc:  # noqa: BLE001 - one that cannot be written must not keep the others from it
                settled = {batch[0]: exc} if len(batch) == 1 else await self._one_by_one(batch)
            self._waiting = [entry for entry in self._waiting if entry not in settled]
            for entry, failure in settled.items():
                if entry.written.done():  # whoever waited for it was cancelled
                    continue
                if failure is None:
                    entry.written.set_result(None)
                else:
                    entry.written.set_exception(failure)

    async def _one_by_one(self, batch: Sequence[Entry]) -> dict[Entry, Exception | None]:
        settled: dict[Entry, Exception | None] = {}
        for entry in batch:
            try:
                await write(self._runtime, [entry.ended])
                settled[entry] = None
            except Unavailable:
                break
            except Exception as exc:  # noqa: BLE001 - whoever made the attempt logs it
                settled[entry] = exc
        return settled


async def write(runtime: Runtime, ended: Sequence[Ended]) -> None:
    """All that tell people or none of those: one transaction."""
    async with begin(runtime.engine) as conn:
        # What is done takes the clock of the statement that says so.
        over = all(one.outcome in FINAL and one.action.kind in PEOPLE for one in ended)
        now = None if over else await readers.clock(conn)
        old = [one.action.id for one in ended if now is not None and is_old_ask(one, now)]
        tried = await credentials.tried(conn, old) if old else {}
        outcomes = [outcome_of(one, now, tried.get(one.action.id)) for one in ended]
        sent = [one.message for one in ended if one.message is not None]
        failed = [one.action for one in outcomes if one.action.kind == NOTIFY and one.outcome == "failed"]
        if failed:
            await decisions.alone(conn)
        ours = await actions.conclude_many(conn, outcomes, now, sent)
        if replies := [one.reply for one in ended if one.reply is not None and one.action.id in ours]:
            await actions.add(conn, replies, now or await readers.clock(conn))
        await decisions.say_again(conn, [(message_id(a), a.destination) for a in failed if a.id in ours], REFUSED_RETRY)
        taken = await keep_refusals(conn, runtime, [one for one in ended if one.action.id in ours])
        # An orchestrator's final answer is told to people, and that it no longer takes our credentials.
        answered = {
            one.action.alert_id
            for one in outcomes
            if one.action.kind not in PEOPLE and one.action.id in ours and (one.outcome in FINAL or is_news(one))
        }
        if now is not None:
            await notify(conn, Consequences(), answered, list(runtime.notifiers), now)
    for destination in taken:
        runtime.refusing.taken(destination)


async def keep_refusals(conn: AsyncConnection, runtime: Runtime, ended: Sequence[Ended]) -> set[str]:
    """Which destinations take nothing from now on, and which do again: those. As nearly always it is none of either."""
    await refusals.refuse(
        conn,
        [
            Refused(
                destination=one.action.destination,
                code=one.code or "refused",
                detail=one.detail or "",
                probe_after=probe_after(one.code),
            )
            for one in ended
            if one.outcome == "refused"
        ],
    )
    standing = runtime.refusing.standing
    tried = [one.action.id for one in ended if one.reached and one.action.destination in standing]
    return await refusals.take(conn, tried)


def is_old_ask(ended: Ended, now: datetime) -> bool:
    """Whether it would be given up by its age, which may not be the time that it was tried for."""
    action = ended.action
    return action.kind in asks.KINDS and ended.outcome not in FINAL and now - action.created_at > GIVE_UP_AFTER


def outcome_of(ended: Ended, now: datetime | None, tried: tuple[datetime, datetime] | None = None) -> Outcome:
    """`now` may be missing where it needs no next try. `tried`: as service/store/credentials.py has it, of what is old."""
    action, outcome, detail, retry_at = ended.action, ended.outcome, ended.detail, None
    if now is not None and outcome not in FINAL:
        refused = outcome == "refused"
        retry_at = now + REFUSED_SETTLES if refused else next_try(action, now, ended)
        first, mended = tried or (action.created_at, action.created_at)
        # Three days of refusals must not leave what follows the mend, an orchestrator that starts yet, a single try.
        since, give_up = mended, GIVE_UP_AFTER
        if of_credentials(action, ended.code):
            since, give_up = first, CREDENTIALS_GIVE_UP_AFTER
        if now - since > give_up:
            outcome, detail, retry_at = "failed", f"gave up after {give_up}: {detail}", None
    return Outcome(
        action=action, outcome=outcome, code=ended.code, detail=detail, retry_at=retry_at, result=ended.result
    )


def of_credentials(action: Action, code: str | None) -> bool:
    return action.kind in asks.KINDS and code in asks.OF_CREDENTIALS


def is_news(one: Outcome) -> bool:
    """The first of the refusals in a row that are for our credentials."""
    return of_credentials(one.action, one.code) and one.action.last_code not in asks.OF_CREDENTIALS


def next_try(action: Action, now: datetime, ended: Ended) -> datetime:
    """What the other side asked for, else our own backoff with jitter; kept in Postgres, never in arq."""
    backoff = CREDENTIALS_BACKOFF_SECONDS if of_credentials(action, ended.code) else BACKOFF_SECONDS
    base = backoff[min(action.attempts, len(backoff) - 1)]
    asked = ended.retry_after_seconds
    return now + timedelta(seconds=asked if asked is not None else base * random.uniform(0.8, 1.2))
