"""A poller that waits (`wait=30s`): woken by what is committed, by nothing else, holding nothing meanwhile, and bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from service import siem_feed
from service.store import log, readers, tokens
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN
from tests.end_to_end.pulled import FEED, LONG, Pulled, emptied, opened, problem
from tests.end_to_end.running import until
from tests.make import make_receipt


@pytest.fixture
async def pulled(database_of_the_file: str) -> AsyncIterator[Pulled]:
    async with emptied(database_of_the_file) as made:
        yield made


async def test_who_waits_is_answered_as_soon_as_something_is_committed(pulled: Pulled) -> None:
    cursor = (await pulled.page())["next_cursor"]
    asking = asyncio.create_task(pulled.page(cursor=cursor, wait=LONG))
    await pulled.waiting()
    async with begin(pulled.runtime.engine) as conn:
        receipt = make_receipt()
        await log.accept(conn, [receipt])
        await asyncio.sleep(2 * siem_feed.LOOK_SECONDS)
        assert not asking.done()  # not yet committed
    began = time.monotonic()
    assert [item["id"] for item in (await asking)["items"]] == [receipt.id]
    assert time.monotonic() - began < 5
    assert not pulled.feed._waiters


async def test_what_is_there_is_answered_at_once_whatever_the_wait(pulled: Pulled) -> None:
    ids = await pulled.happened(2)
    began = time.monotonic()
    assert [item["id"] for item in (await pulled.page(wait="60s"))["items"]] == ids
    assert time.monotonic() - began < 5


async def test_nothing_all_the_time_is_an_empty_page_with_the_same_cursor(pulled: Pulled) -> None:
    cursor = (await pulled.page())["next_cursor"]
    began = time.monotonic()
    assert await pulled.page(cursor=cursor, wait="1s") == {"items": [], "next_cursor": cursor, "has_more": False}
    assert time.monotonic() - began >= 1


async def test_a_probe_wakes_nobody_and_is_not_read_twice(pulled: Pulled) -> None:
    cursor = (await pulled.page())["next_cursor"]
    asking = asyncio.create_task(pulled.page(cursor=cursor, wait=LONG))
    await pulled.waiting()
    [waiter] = pulled.feed._waiters
    await pulled.happened(origin="probe")

    async def it_waits_after_the_probe() -> bool:
        return any(other.position > waiter.position for other in pulled.feed._waiters)

    await until(it_waits_after_the_probe, 10)
    assert not asking.done()
    [event_id] = await pulled.happened()
    assert [item["id"] for item in (await asking)["items"]] == [event_id]


async def test_a_row_that_a_clock_hides_from_the_look_is_found_too(
    pulled: Pulled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siem_feed, "NET_SECONDS", 0.3)
    cursor = (await pulled.page())["next_cursor"]
    asking = asyncio.create_task(pulled.page(cursor=cursor, wait=LONG))
    await pulled.waiting()
    earlier = datetime.now(UTC) - timedelta(days=2)
    async with begin(pulled.runtime.engine) as conn:
        await conn.execute(text("SELECT ensure_partitions(CAST(:at AS date), 1)"), {"at": earlier})
        await conn.execute(
            text(
                "INSERT INTO events (id, source, origin, type, kind, occurred_at, received_at)"
                " VALUES (gen_random_uuid(), 's', 'webhook', 'audit', 'audit', :at, :at)"
            ),
            {"at": earlier},
        )
    assert len((await asking)["items"]) == 1


async def test_who_waits_holds_no_connection_to_the_database(pulled: Pulled) -> None:
    asking = [asyncio.create_task(pulled.page(wait=LONG)) for _ in range(30)]
    await pulled.waiting(30)

    async def all_are_free() -> bool:
        return not pulled.runtime.engine.pool.checkedout()  # type: ignore[attr-defined]

    await until(all_are_free, 10)
    [event_id] = await pulled.happened()
    for page in await asyncio.gather(*asking):
        assert [item["id"] for item in page["items"]] == [event_id]


async def test_too_many_that_wait_are_shed_and_the_others_are_still_answered(
    pulled: Pulled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siem_feed, "WAITING_MAX", 2)
    asking = [asyncio.create_task(pulled.page(wait=LONG)) for _ in range(2)]
    await pulled.waiting(2)
    refused = await pulled.client.get(FEED, params={"wait": LONG})
    problem(refused, 503, "feed_busy")
    assert int(refused.headers["retry-after"]) > 0
    assert (await pulled.page())["items"] == []
    monkeypatch.setattr(siem_feed, "REQUESTS_MAX", 2)
    problem(await pulled.client.get(FEED), 503, "feed_busy")
    await pulled.happened()
    await asyncio.gather(*asking)
    assert len((await pulled.page(wait=LONG))["items"]) == 1


async def test_pages_are_read_a_few_at_a_time(pulled: Pulled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siem_feed, "PAGE_WAIT_SECONDS", 0.05)
    async with pulled.feed.page(), pulled.feed.page(), pulled.feed.page(), pulled.feed.page():
        problem(await pulled.client.get(FEED), 503, "feed_busy")
    assert (await pulled.client.get(FEED)).status_code == 200


async def test_a_stop_of_the_process_ends_the_wait_with_an_answer(pulled: Pulled) -> None:
    asking = asyncio.create_task(pulled.page(wait=LONG))
    await pulled.waiting()
    pulled.feed.close()
    assert (await asking)["items"] == []


async def test_who_hangs_up_waits_no_more(pulled: Pulled) -> None:
    hung_up = asyncio.Event()
    query = f"wait={LONG}".encode()
    scope = {
        "type": "http",
        "method": "GET",
        "path": FEED,
        "raw_path": FEED.encode(),
        "query_string": query,
        "headers": [(b"authorization", f"Bearer {ADMIN_TOKEN}".encode())],
        "http_version": "1.1",
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("authwatch.test", 80),
        "root_path": "",
    }

    async def receive() -> dict[str, Any]:
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    asking = asyncio.create_task(pulled.app(scope, receive, send))
    await pulled.waiting()
    hung_up.set()
    async with asyncio.timeout(5):
        await asking
    assert not pulled.feed._waiters


async def test_a_token_revoked_while_it_waits_is_given_nothing_more(pulled: Pulled) -> None:
    token_id, headers = await pulled.token("siem")
    asking = asyncio.create_task(pulled.client.get(FEED, params={"wait": LONG}, headers=headers))
    await pulled.waiting()
    async with begin(pulled.runtime.engine) as conn:
        await tokens.revoke(conn, token_id)
    await pulled.happened()
    problem(await asking, 401, "token_unknown")


async def test_what_retention_takes_while_one_waits_is_410(database_url: str) -> None:
    async with opened(database_url) as pulled:
        asking = asyncio.create_task(pulled.client.get(FEED, params={"wait": LONG}))
        await pulled.waiting()
        async with begin(pulled.runtime.engine) as conn:
            await readers.lease(conn, readers.RETENTION, datetime.now(UTC), timedelta(0))
            await log.accept(conn, [make_receipt()])
            await readers.move(conn, readers.RETENTION, (await log.head(conn))[0])
        problem(await asking, 410, "cursor_expired")


async def test_a_wait_is_a_duration_of_at_most_a_minute(pulled: Pulled) -> None:
    for wait in ("61s", "2m", "1h", "-1s", "soon", "30", "1.5s", ""):
        assert "wait" in problem(await pulled.client.get(FEED, params={"wait": wait}), 400, "invalid_query")
    await pulled.happened()
    for wait in ("0s", "60s", "1m"):
        assert len((await pulled.page(wait=wait))["items"]) == 1
