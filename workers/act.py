"""The acting story: claim with a lease what there is room for, attempt each action with no transaction open, record what
became of it, and claim again as places get free.

Each destination has its own places, so one that is slow or dead delays no other, and attempts never wait for each other
but in their lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from service import silencing, tell
from service.notify.refusals import PROBE_EVERY
from service.observe import log
from service.routing.elsewhere import NOTIFIER_REFUSED
from service.runtime import Runtime
from service.store import actions, refusals
from service.store.actions import NOTIFY, PEOPLE, Action
from service.store.asks import KINDS
from service.store.session import begin
from service.together import ToTell
from workers.attempt import EFFECT_SECONDS_MAX, Ended, attempt, read
from workers.decide import ROUNDS_MAX
from workers.outcomes import Outcomes
from workers.refusals import learn

# An attempt may take EFFECT_SECONDS_MAX from its claim: with what recording it may take that is well inside the lease,
# and nobody else starts while we may still be sending.
LEASE = timedelta(seconds=60)
PLACES_MAX = 64  # attempts of one kind under way at one destination
# While much comes in to be judged, whose pauses are real at commit: a message takes as much processor time as a verdict.
PLACES_MAX_MEANWHILE = 4
QUIET_SECONDS_MAX = 60.0
# So many different actions in a row that got no answer, or a 5xx: what waits there is not tried in its turn any more but one
# at a time, a second apart. A pile at who is dead would else take the processor time that the others wait for.
DEAD_AFTER = 8
DEAD_SECONDS = 1.0


@dataclass(slots=True)
class Places:
    """Of one kind at one destination. One that asks for less is left alone for as long as it says, one that seems dead for
    DEAD_SECONDS; then it is tried with one, and with each that goes well with one more."""

    taken: int = 0
    most: int = PLACES_MAX
    quiet_until: float = 0.0
    failed: set[str] = field(default_factory=set)  # the actions since one went well; no more than DEAD_AFTER of them

    def free(self, now: float, most: int = PLACES_MAX) -> int:
        return 0 if now < self.quiet_until else max(0, min(self.most, most) - self.taken)

    def heard(self, ended: Ended, now: float) -> None:
        if ended.outcome == "done":
            self.failed.clear()
            self.most = min(PLACES_MAX, self.most + 1)
        elif ended.outcome == "retry" and ended.retry_after_seconds is not None:
            self.most = 1
            self.quiet_until = now + min(ended.retry_after_seconds, QUIET_SECONDS_MAX)
        elif ended.outcome in ("retry", "ambiguous") and not ours(ended.code):
            if len(self.failed) < DEAD_AFTER:
                self.failed.add(ended.action.id)
            if len(self.failed) >= DEAD_AFTER:
                self.most = 1
                self.quiet_until = max(self.quiet_until, now + DEAD_SECONDS)


def ours(code: str | None) -> bool:
    """Whether it was our database that was away, which says nothing of the destination."""
    return code is not None and code.startswith("database_")


class Acting:
    """The attempts under way in this process. `changed` is called when there is something new to look for."""

    def __init__(self, runtime: Runtime, changed: Callable[[], None]) -> None:
        self._runtime = runtime
        self._changed = changed
        self._outcomes = Outcomes(runtime)
        self._places: dict[tuple[str, str], Places] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    async def step(self) -> bool:
        """Claims what there is room for and starts it; whether there was any. It waits for none of it.

        What there is to do comes first, so that no pause waits for whom to tell, and none is lost where that fails."""
        if not self._runtime.caught_up.is_set() and not self._runtime.refusing.known:
            await self._who_refuses()
        started, undecided = await self._next(deciding=False)
        if not self._runtime.caught_up.is_set():
            undecided = await self._catch_up() or undecided
        for _ in range(ROUNDS_MAX):
            if not undecided:
                break
            more, undecided = await self._next(deciding=True)
            started = started or more
        return started

    async def _next(self, *, deciding: bool) -> tuple[bool, bool]:
        """(whether anything was claimed and started, whether there is more to decide than nobody else is at). What is
        decided is claimed by the transaction that decides it: it is done as soon as it may be."""
        now = asyncio.get_running_loop().time()
        most = PLACES_MAX_MEANWHILE if self._runtime.pace.many else PLACES_MAX
        rooms = {key: places.free(now, most) for key, places in self._places.items()}
        for name, orchestrator in self._runtime.orchestrators.items():
            if orchestrator.at_once is not None:
                rooms |= self._rooms_at(name, orchestrator.at_once, rooms, most)
        refusing = self._runtime.refusing
        for name in refusing.standing:
            rooms[name, NOTIFY] = refusing.room(name, rooms.get((name, NOTIFY), most))
        routing = self._runtime.settings.routing
        async with begin(self._runtime.engine) as conn:
            if deciding and not await tell.decide(conn, routing, self._of_one_incident()):
                return False, False
            claimed = await actions.claim_and_look(conn, None, lease=LEASE, limit=most, rooms=rooms)
        if claimed.actions:
            refusing.probed({action.destination for action, _died in claimed.actions if action.kind == NOTIFY})
            self.start([action for action, _died in claimed.actions], now)
        declared = silencing.declared_ids(routing, claimed.at)
        return bool(claimed.actions), claimed.undecided or claimed.declared != declared

    def _rooms_at(
        self, name: str, at_once: int, rooms: Mapping[tuple[str, str], int], most: int
    ) -> dict[tuple[str, str], int]:
        """Of an orchestrator that takes few at a time: what waits for its turn there would be given up for it. Pauses and
        resumes have their places together; begun in one moment, they may be twice as many."""
        keys = [(name, kind) for kind in KINDS]
        left = max(0, at_once - sum(self._places[key].taken for key in keys if key in self._places))
        return {key: min(left, rooms.get(key, most)) for key in keys}

    def _of_one_incident(self) -> frozenset[str]:
        return frozenset(name for name, notifier in self._runtime.notifiers.items() if notifier.one_incident)

    async def _who_refuses(self) -> None:
        """Once in the life of a process: a start may be what mended them, so each is tried with one message now."""
        async with begin(self._runtime.engine) as conn:
            names = self._runtime.notifiers
            rows = await refusals.look(conn, names, NOTIFIER_REFUSED, again=PROBE_EVERY, anew=True)
        learn(self._runtime, rows)

    async def _catch_up(self) -> bool:
        """Once in the life of a process: whether what stands is to be told to somebody whom only this config names."""
        async with begin(self._runtime.engine) as conn:
            found = await tell.catch_up(conn, self._runtime.settings.routing)
        self._runtime.caught_up.set()
        return found

    def start(self, claimed: Sequence[Action], now: float) -> None:
        """`now`: a moment before they were claimed, by the event loop's clock."""
        told = [action for action in claimed if action.kind in PEOPLE]
        reading = asyncio.create_task(read(self._runtime, told)) if told else None
        for action in claimed:
            places = self._places.setdefault((action.destination, action.kind), Places())
            places.taken += 1
            task = asyncio.create_task(self._one(action, places, reading, now + EFFECT_SECONDS_MAX))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed()

    async def _one(
        self, action: Action, places: Places, reading: asyncio.Task[dict[str, ToTell]] | None, until: float
    ) -> None:
        try:
            # One that runs out of time takes the reading from no other.
            ended = await attempt(self._runtime, action, asyncio.shield(reading) if reading else None, until)
            places.heard(ended, asyncio.get_running_loop().time())
            if ended.outcome == "refused":
                self._runtime.refusing.refused(action.destination)
            elif not ended.reached and action.kind == NOTIFY:
                self._runtime.refusing.unused(action.destination)
            await self._outcomes.record(ended)
        except Exception as exc:  # noqa: BLE001 - its lease will end, and it is then of unknown fate
            log.error("action.crashed", action=action.id, kind=action.kind, error=type(exc).__name__, exc_info=exc)
            return
        finally:
            places.taken -= 1
        log.info(
            "action.attempted",
            action=action.id,
            kind=action.kind,
            destination=action.destination,
            outcome=ended.outcome,
            code=ended.code,
        )

    async def close(self) -> None:
        """What is under way is of unknown fate from here on; what has ended is still recorded."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._outcomes.close()


async def act(runtime: Runtime) -> bool:
    """All that is due, to its end; whether anything was done."""
    news = asyncio.Event()
    acting = Acting(runtime, news.set)
    done = False
    try:
        while await acting.step() or acting.busy:
            done = True
            await news.wait()
            news.clear()
    finally:
        await acting.close()
    return done
