"""Keeps what is registered in step with what orchestrators run, where the config file asks for it (`imports`).

One worker at a time, every few minutes each, for so long at most; nothing that is registered is touched, and nothing is
deleted. One that cannot be registered keeps no other from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.exc import DBAPIError

from service import queue
from service.errors import AuthwatchError, Unavailable
from service.import_settings import ImportSettings
from service.importing import look, put
from service.observe import log as logger
from service.orchestrators.proposals import Proposal, Wanted
from service.runtime import Runtime
from service.store import readers, telemetry
from service.store.session import begin

ACTOR = "import"
PUTS_MAX = 100  # of one turn; the rest follows at the next
AGAIN = timedelta(seconds=10)  # when there is more to put than that
# Of one turn: until an orchestrator has listed what it runs, and until the last PUT begins.
LOOK_SECONDS_MAX = 60.0
TURN_SECONDS_MAX = 120.0
NAMED_MAX = 20  # in one line of the log


@dataclass(slots=True)
class Importing:
    """What this process has said already, by the number of the import; nothing here is truth. `failed`: refs whose PUT failed
    when it was last tried: they come after the others."""

    gone: dict[int, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    more: set[int] = field(default_factory=set)
    failed: dict[int, set[str]] = field(default_factory=dict)

    async def step(self, runtime: Runtime) -> None:
        for number, one in enumerate(runtime.settings.imports):
            await self._turn(runtime, number, one)

    async def _turn(self, runtime: Runtime, number: int, one: ImportSettings) -> None:
        every = AGAIN if number in self.more else one.every
        async with begin(runtime.engine) as conn:
            now = await readers.clock(conn)
            if not await telemetry.take_turn(conn, f"import:{number}", now, every):
                return
        wanted = Wanted(
            orchestrator=one.orchestrator,
            tag=one.tag,
            name=one.name,
            account_ids=one.account_ids,
            connection_ids=one.connection_ids,
        )
        until = asyncio.get_running_loop().time() + TURN_SECONDS_MAX
        try:
            async with asyncio.timeout(LOOK_SECONDS_MAX):
                plan = await look(runtime, wanted)
        except TimeoutError:
            said = f"{one.orchestrator} did not list what it runs within {LOOK_SECONDS_MAX:g} s"
            logger.error("import.failed", number=number, orchestrator=one.orchestrator, code="timeout", said=said)
            return
        except AuthwatchError as exc:
            logger.error("import.failed", number=number, orchestrator=one.orchestrator, code=exc.code, said=str(exc))
            return
        done = await self._put(runtime, number, wanted, plan.new, until)
        if done:
            names = [put.workflow_id for put in done[:NAMED_MAX]]
            logger.info("import.registered", orchestrator=one.orchestrator, count=len(done), workflows=names)
            for job in (queue.ACT, queue.EVALUATE, queue.SHIP):
                runtime.nudger.nudge(job)
        if plan.gone != self.gone.get(number, ()):
            self.gone[number] = plan.gone
            names = [workflow_id for workflow_id, _ in plan.gone[:NAMED_MAX]]
            logger.warning("import.gone", orchestrator=one.orchestrator, count=len(plan.gone), workflows=names)

    async def _put(
        self, runtime: Runtime, number: int, wanted: Wanted, new: Sequence[Proposal], until: float
    ) -> list[Proposal]:
        """Those that were put. `until`: a time of the event loop's clock."""
        late = self.failed.get(number, set())
        ordered = sorted(new, key=lambda one: one.ref in late)
        done, failed, tried = list[Proposal](), dict[str, Exception](), 0
        for one in ordered[:PUTS_MAX]:
            if asyncio.get_running_loop().time() > until:
                break
            tried += 1
            try:
                if await put(runtime, wanted, one, ACTOR):
                    done.append(one)
            except (AuthwatchError, DBAPIError) as exc:
                failed[one.ref] = exc
                if isinstance(exc, Unavailable):  # the others would fare no better
                    break
        left = {one.ref for one in ordered[tried:]}
        (self.more.add if left - late else self.more.discard)(number)
        self.failed[number] = (late & left) | failed.keys()
        if failed:
            tell_failed(wanted, failed)
        return done


def tell_failed(wanted: Wanted, failed: dict[str, Exception]) -> None:
    """In one line, the first of them with its reason."""
    first = next(iter(failed.values()))
    code = first.code if isinstance(first, AuthwatchError) else type(first).__name__
    logger.error(
        "import.put_failed",
        orchestrator=wanted.orchestrator,
        count=len(failed),
        refs=list(failed)[:NAMED_MAX],
        code=code,
        said=str(first) if isinstance(first, AuthwatchError) else "the database did not take it",
    )
