"""What may go wrong with one answer of a fake, whatever it answers otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import PlainTextResponse, Response

from tests.fakes.slack import BreakOff


class Weather:
    """The next answers, in order: a status of somebody's proxy before the work, one after it, or a connection cut."""

    def __init__(self) -> None:
        self.slow_seconds = 0.0
        self._next: list[tuple[Response, bool]] = []

    def answer_next(
        self, status: int, *, headers: Mapping[str, str] | None = None, body: str = "", after_the_work: bool = False
    ) -> None:
        """With `after_the_work` the effect is there all the same."""
        self._next.append((PlainTextResponse(body, status, headers=dict(headers or {})), after_the_work))

    def break_off_next(self) -> None:
        """The next call is done, and its answer never arrives whole."""
        self._next.append((BreakOff(), True))

    async def over(self, work: Callable[[], Awaitable[Response]]) -> Response:
        answer, after = self._next.pop(0) if self._next else (None, True)
        if answer is not None and not after:
            return answer
        done = await work()
        if self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        return answer or done
