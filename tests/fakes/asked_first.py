"""An orchestrator that knows no idempotency keys, in the process itself: it is asked how a workflow stands, paused and
resumed by what was found. It refuses whatever breaks that protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Listed, State, Stops

STOPS = Stops(scheduled_starts=True, manual_starts=False)


@dataclass
class Flow:
    """`version`: what a resume has to bring back beside that it runs."""

    paused: bool = False
    version: int = 1


class FakeAskedFirst:
    """`calls`: every ask that reached it; `before`: awaited with the verb before each is done."""

    kind = "asked_first"
    asks_first = True
    at_once: int | None = None
    stops = STOPS

    def __init__(self, name: str = "flows", *refs: str) -> None:
        self.name = name
        self.flows = {ref: Flow() for ref in refs or ("f1",)}
        self.calls: list[tuple[str, str]] = []
        self.takes_us = True
        self.before: Callable[[str], Awaitable[None]] | None = None
        self.never_answers: set[str] = set()  # verbs whose work is done, and whose caller waits for ever
        self._weather: dict[str, list[tuple[DeliveryFailed, bool]]] = {}

    def fail_next(self, verb: str, failure: DeliveryFailed, *, after_the_work: bool = False, times: int = 1) -> None:
        self._weather.setdefault(verb, []).extend([(failure, after_the_work)] * times)

    def made(self, verb: str) -> int:
        return sum(called == verb for called, _ in self.calls)

    async def state(self, *, ref: str) -> State:
        flow = await self._reach("state", ref)
        await self._answer("state")
        return State(paused=flow.paused, as_found={"version": flow.version}, detail="as it stands")

    async def pause(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        found: Mapping[str, Any] | None = None,
    ) -> Answer:
        assert found is not None, "asked first, it is told what was found"
        flow = await self._reach("pause", ref)
        flow.paused, flow.version = True, 0
        await self._answer("pause")
        return Answer(status="paused", detail=f"{ref} takes no new runs")

    async def resume(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        prior_state: Mapping[str, Any] | None = None,
    ) -> Answer:
        flow = await self._reach("resume", ref)
        assert prior_state is not None, "it is told what to put back"
        if not flow.paused:
            await self._answer("resume")
            return Answer(status="left", detail=f"{ref} runs already")
        flow.paused, flow.version = False, prior_state["version"]
        await self._answer("resume")
        return Answer(status="resumed", detail=f"{ref} runs again")

    async def list_workflows(self, *, limit: int) -> Sequence[Listed]:
        self._let_in()
        return [Listed(ref=ref, name=ref, paused=flow.paused) for ref, flow in sorted(self.flows.items())][:limit]

    async def check(self) -> str:
        self._let_in()
        return f"{self.name} takes our key"

    def _let_in(self) -> None:
        if not self.takes_us:
            raise DeliveryFailed("401: the key is no longer valid; make a new one", code="http_401", permanent=True)

    async def _reach(self, verb: str, ref: str) -> Flow:
        self.calls.append((verb, ref))
        if self.before is not None:
            await self.before(verb)
        self._let_in()
        weather = self._weather.get(verb, [])
        if weather and not weather[0][1]:
            raise weather.pop(0)[0]
        if ref not in self.flows:
            raise DeliveryFailed(
                f"{self.name} has no {ref} any more; register its new ref", code="workflow_gone", permanent=True
            )
        return self.flows[ref]

    async def _answer(self, verb: str) -> None:
        if verb in self.never_answers:
            await asyncio.Event().wait()
        weather = self._weather.get(verb, [])
        if weather:
            raise weather.pop(0)[0]
