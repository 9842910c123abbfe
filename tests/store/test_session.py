"""The wait for a database is bounded also where TCP itself notices nothing: a proxy or a server that has hung."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from service.errors import Unavailable
from service.store import session
from service.store.session import begin, open_engine
from tests.crash.wire import HOST, open_wire

DRIVER_SECONDS = 10.0  # psycopg asks the server to cancel, and waits a while for that


async def test_a_connection_on_which_nothing_is_heard_any_more_is_given_up_with_all_of_its_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(database_url)
    if parts.hostname not in (HOST, "localhost") or parts.port is None:
        pytest.skip("the wire leads to servers of this machine")
    async with open_wire(parts.port) as wire:
        engine = open_engine(database_url.replace(f":{parts.port}/", f":{wire.port}/"), connections_max=2)
        try:
            async with begin(engine) as first, begin(engine) as second:
                for conn in (first, second):
                    await conn.execute(text("SELECT 1"))
            wire.lose()
            began = time.monotonic()
            with monkeypatch.context() as shorter:  # around this one only: opening a connection counts too
                shorter.setattr(session, "TRANSACTION_SECONDS_MAX", 0.3)
                with pytest.raises(Unavailable):
                    async with begin(engine) as conn:
                        await conn.execute(text("SELECT 1"))
            assert time.monotonic() - began < DRIVER_SECONDS + 3
            began = time.monotonic()
            for _ in range(2):  # the other connection of that time is not tried
                async with begin(engine) as conn:
                    assert (await conn.execute(text("SELECT 1"))).scalar_one() == 1
            assert time.monotonic() - began < 2
        finally:
            await engine.dispose()


async def test_a_time_out_of_the_callers_own_stays_its_own(database_url: str) -> None:
    engine = open_engine(database_url, connections_max=1)
    try:
        with pytest.raises(TimeoutError):
            async with begin(engine):
                raise TimeoutError("the caller's")
    finally:
        await engine.dispose()
