"""What time does to a notifier that refuses, without waiting for it."""

from __future__ import annotations

from tests.workers.house import House
from workers.act import act
from workers.refusals import keep_refusals


async def minutes_later(house: House) -> None:
    """One message may be tried again; what came of that is known, and said."""
    await house.run("UPDATE notifier_refusals SET probe_at = now() - interval '1 second'")
    await house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
    await keep_refusals(house.runtime)
    await act(house.runtime)
    await keep_refusals(house.runtime)
    await act(house.runtime)


async def mended(house: House) -> None:
    """Somebody mended it: the one that is tried is taken, and the others follow."""
    await minutes_later(house)
    await house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
    await act(house.runtime)
