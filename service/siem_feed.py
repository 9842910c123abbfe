"""What the requests of the pull feed share in one process: a bounded number of them, few at the database at once, and one
look at the log for all that wait.

It looks rather than listens, as `gate_stream.py` does and by the same question: nobody who commits has to say so, and who
waits holds no transaction and no connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from service.errors import Unavailable
from service.gate_asking import Asker
from service.observe import log as logger
from service.store.gate import Moved

FEED = "siem_feed"  # where the lifespan leaves it in the app's state
REQUESTS_MAX = 200  # of one process, those that wait among them
WAITING_MAX = 100
PAGES_AT_ONCE_MAX = 4  # the receivers and the gate need the other connections
PAGE_WAIT_SECONDS = 5.0
LOOK_SECONDS = 0.25
NET_SECONDS = 5.0  # a row that a clock which was put back hides from the look is found at least this often
RETRY_AFTER_SECONDS = 5


@dataclass(eq=False, slots=True)
class Waiter:
    position: int
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Feed:
    """`place` for a request, `page` around its reading, `waiting` around a wait and `after` in it; `run` is the task that
    looks; `close` ends every wait."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._requests = 0
        self._waits = 0
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE_MAX)
        self._waiters: set[Waiter] = set()
        self._wanted = asyncio.Event()
        self._net_at = 0.0
        self._blind = False
        self.closed = False

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises Unavailable when there are too many already."""
        if self._requests >= REQUESTS_MAX:
            raise shed(f"this process answers no more than {REQUESTS_MAX} requests for the feed at once")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For all of a wait, however often it is woken in vain. Raises Unavailable when too many wait already."""
        if self._waits >= WAITING_MAX:
            raise shed(f"no more than {WAITING_MAX} requests can wait here at once; ask without wait")
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1

    @asynccontextmanager
    async def page(self) -> AsyncIterator[None]:
        """Raises Unavailable when its turn does not come in time."""
        try:
            async with asyncio.timeout(PAGE_WAIT_SECONDS):
                await self._pages.acquire()
        except TimeoutError:
            raise shed("other readers of the feed keep this process busy") from None
        try:
            yield
        finally:
            self._pages.release()

    async def after(self, position: int, deadline: float) -> None:
        """Returns once there may be something after it, at the deadline of the monotonic clock, or when the process stops."""
        if self.closed:
            return
        waiter = Waiter(position)
        self._waiters.add(waiter)
        self._wanted.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline - time.monotonic()):
                    await waiter.wake.wait()
        finally:
            self._waiters.discard(waiter)

    async def run(self) -> None:
        try:
            while True:
                await self._wanted.wait()
                try:
                    self._tell(await self._asker.moved())
                    self._blind = False
                except Unavailable as exc:  # who waits is told so at the end of the wait
                    if not self._blind:
                        logger.warning("feed.blind", error=exc.code)
                    self._blind = True
                if not self._waiters:
                    self._wanted.clear()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self.close()

    def close(self) -> None:
        self.closed = True
        for waiter in self._waiters:
            waiter.wake.set()

    def _tell(self, moved: Moved) -> None:
        newest = moved.newest or 0
        if net := time.monotonic() >= self._net_at:
            self._net_at = time.monotonic() + NET_SECONDS
        for waiter in self._waiters:
            if newest > waiter.position or (net and moved.progress.given > waiter.position):
                waiter.wake.set()


def shed(why: str) -> Unavailable:
    return Unavailable(why, code="feed_busy", retry_after_seconds=RETRY_AFTER_SECONDS)


@asynccontextmanager
async def opened(asker: Asker) -> AsyncIterator[Feed]:
    feed = Feed(asker)
    task = asyncio.create_task(feed.run(), name="siem.feed")
    try:
        yield feed
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
