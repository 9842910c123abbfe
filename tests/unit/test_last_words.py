"""A stop is bounded, whatever the database does."""

from __future__ import annotations

import asyncio
import time

import pytest

from service import runtime
from service.runtime import Pace, last_words


async def test_what_cannot_be_written_in_time_does_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "LAST_WORDS_SECONDS", 0.05)
    began = time.monotonic()
    await last_words(asyncio.sleep(30))
    assert time.monotonic() - began < 5


async def test_what_can_be_written_is_waited_for() -> None:
    written: list[int] = []

    async def write() -> None:
        await asyncio.sleep(0.01)
        written.append(1)

    await last_words(write())
    assert written == [1]


def test_a_batch_that_failed_comes_again_smaller_and_one_that_is_quick_grows() -> None:
    pace = Pace(400)
    with pytest.raises(ZeroDivisionError), pace.kept(1.0, 50, 2000):
        raise ZeroDivisionError
    assert pace.events == 200
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), pace.kept(1.0, 50, 2000):
            raise ZeroDivisionError
    assert pace.events == 50
    for _ in range(10):
        with pace.kept(1.0, 50, 2000):
            pass
    assert pace.events == 2000
    with pace.kept(-1.0, 50, 2000):
        pass
    assert pace.events == 1000, "it took longer than it may"
