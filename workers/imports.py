"""Keeps what is registered in step with what orchestrators run, where the config file asks for it (`imports`).

One worker at a time, every few minutes each; nothing that is registered is touched, and nothing is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from service import queue
from service.errors import AuthwatchError
from service.import_settings import ImportSettings
from service.importing import apply, look
from service.observe import log as logger
from service.orchestrators.proposals import Wanted
from service.runtime import Runtime
from service.store import readers, telemetry
from service.store.session import begin

ACTOR = "import"
PUTS_MAX = 100  # of one turn; the rest follows at the next
AGAIN = timedelta(seconds=10)  # when there is more to put than that
NAMED_MAX = 20  # in one line of the log


@dataclass(slots=True)
class Importing:
    """What this process has said already, by the number of the import; nothing here is truth."""

    gone: dict[int, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    more: set[int] = field(default_factory=set)

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
        try:
            plan = await look(runtime, wanted)
            done = await apply(runtime, wanted, plan.new[:PUTS_MAX], ACTOR)
        except AuthwatchError as exc:
            logger.error("import.failed", number=number, orchestrator=one.orchestrator, code=exc.code, said=str(exc))
            return
        (self.more.add if len(plan.new) > PUTS_MAX else self.more.discard)(number)
        if done:
            names = [put.workflow_id for put in done[:NAMED_MAX]]
            logger.info("import.registered", orchestrator=one.orchestrator, count=len(done), workflows=names)
            for job in (queue.ACT, queue.EVALUATE, queue.SHIP):
                runtime.nudger.nudge(job)
        if plan.gone != self.gone.get(number, ()):
            self.gone[number] = plan.gone
            names = [workflow_id for workflow_id, _ in plan.gone[:NAMED_MAX]]
            logger.warning("import.gone", orchestrator=one.orchestrator, count=len(plan.gone), workflows=names)
