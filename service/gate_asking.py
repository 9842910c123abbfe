"""Asks the database for the gate, and knows when it cannot: every question is answered within about a second.

While the connection stands, questions fly on it side by side. When it is lost, they wait for a new one, once. When that
fails too, or the database stays silent, it counts as away: questions are told so at once, and nobody waits, until a
connection stands again, which is tried all the while.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import psycopg
from sqlalchemy.ext.asyncio import AsyncEngine

from service import gate
from service.errors import Unavailable
from service.gate import Answer, Asked
from service.gate_lag import LagProof
from service.observe import log as logger
from service.store import gate as store
from service.store import log, tokens
from service.store.gate import Answered, Moved, Progress, Question, Questions, State
from service.store.pipeline import Outcome
from service.store.session import begin, unavailable
from service.store.tokens import Token

ANSWER_SECONDS = 1.0
WATCH_SECONDS = 0.05  # how much later than that a silent database is given up
RETRY_SECONDS = 0.25
FLYING_MAX = 2000
ATTEMPTS_MAX = 2  # a question that changes nothing may be asked again when its connection was lost
NOTING_MAX = 100

OnUnknown = Literal["deny", "allow"]


class Asker:
    """`state`, `moved` and `answer` from any request; `run` is the task that keeps the connection."""

    def __init__(self, engine: AsyncEngine, connect: Callable[[], Awaitable[Questions]]) -> None:
        self._engine = engine
        self._connect = connect
        self._questions: Questions | None = None
        self._opening: asyncio.Task[None] | None = None
        self._flying: deque[float] = deque()  # when each was asked, in the order of their answers
        self._away = False
        self._retry_at = 0.0
        self._lag = LagProof()
        self._looking: asyncio.Task[float] | None = None
        self._looking_from = 0
        self._noting: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            while True:
                now = time.monotonic()
                if self._flying and self._flying[0] < now - ANSWER_SECONDS and self._questions is not None:
                    self._gone("timeout")
                    self._questions.fail("timeout")
                if not self._stands() and now >= self._retry_at:
                    self._open()
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            if self._opening is not None:
                # One that is cut off half way stays with the server until that gives up on it, a minute later.
                await asyncio.wait([self._opening], timeout=ANSWER_SECONDS)
            tasks: list[asyncio.Task[Any]] = [
                task for task in (self._opening, self._looking, *self._noting.values()) if task is not None
            ]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._questions is not None:
                self._questions.fail("closing")

    async def state(self, question: Question) -> State:
        """Not older than the last commit. Raises `Unavailable` within about ANSWER_SECONDS."""
        return store.read_state(question, await self.row(*store.statement(question)))

    async def moved(self) -> Moved:
        """Raises `Unavailable` within about ANSWER_SECONDS."""
        return store.read_moved(await self.row(store.MOVED, []))

    async def answer(self, question: Question, state: State, on_unknown: OnUnknown) -> Answer:
        """Raises AmbiguousAccount, or `Unavailable` when it would depend on how far evaluation is and nobody can say."""
        account = state.account(question.account_id) if question.account_id else None

        def decided(lag_seconds: float) -> Answer:
            return gate.decide(
                Asked(
                    workflow_id=question.workflow_id,
                    workflow=state.workflow,
                    holds=state.holds,
                    account_id=question.account_id,
                    account=account,
                    alert_ids=account.alert_ids if account is not None else (),
                    on_unknown=on_unknown,
                    evaluation_lag_seconds=lag_seconds,
                )
            )

        bound = self._lag.bound(state.progress)
        if bound is not None:
            return decided(bound)
        answer = decided(0.0)
        if not answer.allow or on_unknown == "allow":
            return answer  # whatever the lag is
        return decided(await self._lag_seconds())

    def note_use(self, token: Token, noted: bool) -> None:
        """At most once a minute for each token, and not before its answer."""
        if not noted and token.id not in self._noting and len(self._noting) < NOTING_MAX:
            task = asyncio.get_running_loop().create_task(self._note(token.id), name="gate.note")
            self._noting[token.id] = task
            task.add_done_callback(lambda _: self._noting.pop(token.id, None))

    async def _note(self, token_id: str) -> None:
        with suppress(Unavailable):
            async with begin(self._engine) as conn:
                await tokens.used(conn, token_id)

    async def lag_seconds(self, progress: Progress) -> float:
        """An upper bound where evaluation is current, else the age of the oldest row that is not. Raises `Unavailable`."""
        bound = self._lag.bound(progress)
        return bound if bound is not None else await self._lag_seconds()

    async def _lag_seconds(self) -> float:
        """From today's oldest row where that is proven to be the oldest, else from the whole log; whoever wants to know
        meanwhile shares that search."""
        progress = store.read_progress(await self.row(store.OLDEST, []))
        if (seconds := self._lag.seconds(progress)) is not None:
            return seconds
        if self._looking is None or self._looking.done() or self._looking_from != progress.evaluated:
            self._looking = asyncio.create_task(self._look(progress), name="gate.lag")
            self._looking_from = progress.evaluated
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.shield(self._looking)
        except TimeoutError as exc:
            raise unavailable(exc) from exc

    async def _look(self, progress: Progress) -> float:
        async with begin(self._engine) as conn:
            oldest = await log.oldest_after(conn, progress.evaluated)
        if oldest is not None:
            return max(0.0, progress.at - oldest.timestamp())
        self._lag.nothing_waits(progress)
        return 0.0

    async def row(self, statement: bytes, values: Sequence[bytes | None]) -> list[bytes | None]:
        """The only row of a statement that the connection has prepared, as text. Raises `Unavailable`."""
        deadline = time.monotonic() + ANSWER_SECONDS
        for _ in range(ATTEMPTS_MAX):
            questions = await self._connection(deadline)
            if len(self._flying) >= FLYING_MAX:
                raise unavailable(OverflowError("too many questions wait"))
            future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            self._flying.append(time.monotonic())

            def done(outcome: Outcome, future: asyncio.Future[Outcome] = future) -> None:
                self._flying.popleft()
                if not future.done():
                    future.set_result(outcome)

            questions.ask(statement, values, done)
            outcome = await future
            if isinstance(outcome, Answered) and outcome.error is None:
                return outcome.values
            if outcome.sqlstate is not None and not outcome.sqlstate.startswith("57P"):  # not shutting down: refused
                raise unavailable(psycopg.OperationalError(outcome.sqlstate))
            if time.monotonic() >= deadline:
                break
        raise unavailable(ConnectionError("the connection was lost"))

    async def _connection(self, deadline: float) -> Questions:
        if self._away:
            raise unavailable(ConnectionError("the database is away"))
        while not self._stands():
            self._open()
            assert self._opening is not None
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await asyncio.shield(self._opening)
            except TimeoutError as exc:
                self._gone("timeout")
                raise unavailable(exc) from exc
            if self._away:
                raise unavailable(ConnectionError("the database is away"))
        assert self._questions is not None
        return self._questions

    def _stands(self) -> bool:
        return self._questions is not None and not self._questions.broken

    def _open(self) -> None:
        if self._opening is None or self._opening.done():
            self._opening = asyncio.get_running_loop().create_task(self._connected(), name="gate.connect")

    async def _connected(self) -> None:
        try:
            self._questions = await self._connect()
        except (psycopg.Error, OSError, TimeoutError) as exc:
            self._gone(type(exc).__name__)
        else:
            if self._away:
                logger.info("gate.back")
            self._away = False

    def _gone(self, why: str) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if not self._away:
            self._away = True
            logger.warning("gate.away", error=why)


@asynccontextmanager
async def opened(engine: AsyncEngine, database_url: str) -> AsyncIterator[Asker]:
    asker = Asker(engine, lambda: store.open_questions(database_url))
    task = asyncio.create_task(asker.run(), name="gate")
    try:
        yield asker
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
