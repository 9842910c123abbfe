"""The pull feed as a SIEM's poller sees it: types and encodings, waits, tokens, writers and retention meanwhile."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.applications import Starlette

from service import siem_feed
from service.api import siem
from service.api.answering import GZIP_BYTES_MIN, wants_ndjson, weights
from service.app import create_app
from service.retain import retain
from service.runtime import Runtime
from service.settings import RetentionSettings, load_settings
from service.siem_feed import Feed
from service.store import events, log, pollers, readers, tokens
from service.store.log import Decision
from service.store.session import begin, open_engine
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import until
from tests.make import make_receipt

FEED = "/v1/siem/events"
NDJSON = {"Accept": "application/x-ndjson"}
LONG = "20s"  # no test waits for its end


@dataclass
class Pulled:
    app: Starlette
    client: httpx.AsyncClient

    @property
    def runtime(self) -> Runtime:
        runtime: Runtime = self.app.state.runtime
        return runtime

    @property
    def feed(self) -> Feed:
        feed: Feed = self.app.state.siem_feed
        return feed

    async def happened(self, count: int = 1, **receipt: Any) -> list[str]:
        """The ids of so many new events."""
        receipts = [make_receipt(**receipt) for _ in range(count)]
        async with begin(self.runtime.engine) as conn:
            await log.accept(conn, receipts)
        return [one.id for one in receipts]

    async def token(self, *scopes: str) -> tuple[str, dict[str, str]]:
        async with begin(self.runtime.engine) as conn:
            token, made = await tokens.create(conn, "poller", frozenset(scopes))
        return token.id, {"Authorization": f"Bearer {made}"}

    async def page(self, **params: Any) -> Any:
        answer = await self.client.get(FEED, params={"format": "raw", **params})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def waiting(self, count: int = 1) -> None:
        async def they_do() -> bool:
            return len(self.feed._waiters) == count

        await until(they_do, 10)


@pytest.fixture
async def pulled(database_of_the_file: str) -> AsyncIterator[Pulled]:
    """An empty log, in the database that the tests of this file share."""
    async with opened(database_of_the_file) as made:
        async with begin(made.runtime.engine) as conn:
            for table in ("events", "receipts", "tokens", "siem_pollers"):
                await conn.execute(text(f"DELETE FROM {table}"))
        yield made


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Pulled]:
    settings = load_settings(
        {"DATABASE_URL": database_url, "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN, "SCALEKIT_WEBHOOK_SECRET": SECRET}
    )
    app = create_app(settings)
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept-Encoding": "identity"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://authwatch.test", headers=headers, timeout=60
        ) as client,
    ):
        yield Pulled(app, client)


def problem(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return str(answer.json()["detail"])


# Who may ask.


async def test_the_scope_siem_is_enough_and_nothing_less_is(pulled: Pulled) -> None:
    token_id, headers = await pulled.token("siem")
    assert (await pulled.client.get(FEED, headers=headers)).status_code == 200
    for scopes in (("read",), ("read", "write", "telemetry")):
        _, others = await pulled.token(*scopes)
        assert '"siem"' in problem(await pulled.client.get(FEED, headers=others), 403, "scope_missing")
    problem(await pulled.client.get(FEED, headers={"Authorization": "Bearer aw_nobody"}), 401, "token_unknown")
    problem(await pulled.client.get(FEED, headers={"Authorization": "x"}), 401, "unauthorized")
    async with begin(pulled.runtime.engine) as conn:
        assert [poller.token_id for poller in await pollers.live(conn)] == [token_id]


async def test_who_asks_in_vain_has_asked_all_the_same(pulled: Pulled) -> None:
    """A poller with a cursor that is too old is not one that stopped."""
    token_id, headers = await pulled.token("siem")
    problem(await pulled.client.get(f"{FEED}?cursor=x", headers=headers), 400, "invalid_cursor")
    async with begin(pulled.runtime.engine) as conn:
        assert [poller.token_id for poller in await pollers.live(conn)] == [token_id]


# Cursors.


def written(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


async def test_a_cursor_of_another_version_or_kind_is_refused_in_plain_words(pulled: Pulled) -> None:
    for cursor in (written("v0", "siem", 1), written("v2", "siem", 1), written("v1", "events", 1), "garbage", "."):
        said = problem(await pulled.client.get(FEED, params={"cursor": cursor}), 400, "invalid_cursor")
        assert "start again without it" in said


async def test_a_cursor_ahead_of_the_log_is_410_and_never_skips_in_silence(pulled: Pulled) -> None:
    await pulled.happened()
    async with begin(pulled.runtime.engine) as conn:
        end = (await log.head(conn))[0]
    assert (await pulled.page(cursor=written("v1", "siem", end)))["items"] == []
    ahead = written("v1", "siem", end + 1)  # as after a restore from a backup
    assert "backup" in problem(await pulled.client.get(FEED, params={"cursor": ahead}), 410, "cursor_ahead")


async def test_since_does_not_pass_over_what_is_committed_while_it_looks(pulled: Pulled) -> None:
    await pulled.happened()
    since = datetime.now(UTC)
    others = open_engine(pulled.runtime.settings.database_url.get_secret_value(), connections_max=1)

    class Overtaken:
        """A connection whose first look is followed by somebody's commit."""

        def __init__(self, conn: AsyncConnection) -> None:
            self.conn, self.looks = conn, 0

        async def execute(self, *statement: Any) -> Any:
            found = await self.conn.execute(*statement)
            self.looks += 1
            if self.looks == 1:
                async with begin(others) as other:
                    await log.accept(other, [make_receipt()])
            return found

    try:
        async with begin(pulled.runtime.engine) as conn:
            position = await events.position_since(Overtaken(conn), since)  # type: ignore[arg-type]
            assert len(await log.read_after(conn, position, 10)) == 1
    finally:
        await others.dispose()


# Types and encodings.


async def test_ndjson_is_one_item_a_line_and_the_headers_say_where_it_goes_on(pulled: Pulled) -> None:
    ids = await pulled.happened(3)
    answer = await pulled.client.get(FEED, params={"format": "raw", "limit": 2, "wait": "5s"}, headers=NDJSON)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["id"] for line in answer.text.splitlines()] == ids[:2]
    assert answer.text.endswith("}\n")
    assert answer.headers["authwatch-has-more"] == "true"
    link = answer.headers["link"].removeprefix("<").removesuffix('>; rel="next"')
    assert dict(httpx.URL(link).params) == {
        "cursor": answer.headers["authwatch-next-cursor"],
        "limit": "2",
        "format": "raw",
        "wait": "5s",
    }
    rest = await pulled.client.get(link, headers=NDJSON)
    assert [json.loads(line)["id"] for line in rest.text.splitlines()] == ids[2:]
    page = await pulled.client.get(FEED, params={"format": "raw", "limit": 2})
    assert (
        page.headers["authwatch-next-cursor"] == page.json()["next_cursor"] == answer.headers["authwatch-next-cursor"]
    )
    assert (page.headers["authwatch-has-more"], page.json()["has_more"]) == ("true", True)
    nothing = await pulled.client.get(FEED, params={"cursor": rest.headers["authwatch-next-cursor"]}, headers=NDJSON)
    assert (nothing.content, nothing.headers["authwatch-has-more"]) == (b"", "false")
    assert nothing.headers["authwatch-next-cursor"] == rest.headers["authwatch-next-cursor"]
    assert 'rel="next"' in nothing.headers["link"]


@pytest.mark.parametrize(
    ("accept", "lines"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/x-ndjson", True),
        ("Application/X-NDJSON; charset=utf-8", True),
        ("application/ndjson, */*;q=0.1", True),
        ("application/x-ndjson, application/json", True),
        ("application/json, application/x-ndjson;q=0.5", False),
        ("application/x-ndjson;q=0", False),
        ("application/x-ndjson;q=nan", False),
        ("application/x-ndjson;q=x", False),
        (",;=,", False),
    ],
)
def test_who_names_ndjson_gets_it(accept: str, lines: bool) -> None:
    assert wants_ndjson(accept) is lines


async def test_a_long_answer_is_compressed_for_who_takes_it_and_a_short_one_never(pulled: Pulled) -> None:
    ids = await pulled.happened(20)

    async def got(accept_encoding: str, **params: Any) -> tuple[str | None, bytes]:
        headers = {"Accept-Encoding": accept_encoding}
        async with pulled.client.stream("GET", FEED, params={"format": "raw", **params}, headers=headers) as answer:
            raw = b"".join([chunk async for chunk in answer.aiter_raw()])
        assert int(answer.headers["content-length"]) == len(raw)
        assert answer.headers["vary"] == "Accept, Accept-Encoding"
        return answer.headers.get("content-encoding"), raw

    _, plain = await got("identity")
    for takes in ("gzip", "gzip, deflate, br", "br;q=1.0, GZIP;q=0.5", "*", "x-gzip"):
        encoding, raw = await got(takes)
        assert (encoding, gzip.decompress(raw)) == ("gzip", plain)
        assert len(raw) < len(plain) / 3
    for refuses in ("", "br", "gzip;q=0", "gzip;q=0, *;q=1", "gzip;q=x", "identity"):
        assert await got(refuses) == (None, plain)
    assert [item["id"] for item in json.loads(plain)["items"]] == ids
    encoding, raw = await got("gzip", since="2190-01-01T00:00:00Z")
    assert encoding is None
    assert len(raw) < GZIP_BYTES_MIN


def test_a_header_without_end_is_read_for_a_bounded_time() -> None:
    assert len(weights(",".join(f"a/{n}" for n in range(100_000)))) == 50


async def test_a_page_of_long_items_ends_before_its_limit_and_loses_none(
    pulled: Pulled, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await pulled.happened(7)
    monkeypatch.setattr(siem, "PAGE_BYTES_MAX", 1500)
    seen: list[str] = []
    params: dict[str, str] = {}
    for _ in range(20):
        page = await pulled.page(**params)
        assert len(page["items"]) < 7
        seen += [item["id"] for item in page["items"]]
        params = {"cursor": page["next_cursor"]}
        if not page["has_more"]:
            break
    assert seen == ids


async def test_a_number_that_is_too_long_for_most_is_still_told(pulled: Pulled) -> None:
    await pulled.happened(details={"n": 2**70})
    [item] = (await pulled.page(format="ocsf"))["items"]
    assert str(2**70)[:10] in json.dumps(item).replace(".", "")


# Waiting.


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


# Writers and retention meanwhile.

DAYS, A_DAY = 6, 30


async def test_who_reads_while_retention_removes_misses_nothing_without_being_told(
    database_url: str, engine: AsyncEngine
) -> None:
    async with begin(engine) as conn:
        for days_ago in range(90 + DAYS, 90, -1):
            at = datetime.now(UTC) - timedelta(days=days_ago)
            await conn.execute(text("SELECT ensure_partitions(CAST(:at AS date), 1)"), {"at": at})
            await conn.execute(
                text(
                    "INSERT INTO events (id, source, origin, type, kind, occurred_at, received_at)"
                    " SELECT gen_random_uuid(), 's', 'webhook', 'x', 'other', :at, :at FROM generate_series(1, :rows)"
                ),
                {"at": at, "rows": A_DAY},
            )
        kept = [make_receipt() for _ in range(10)]
        await log.accept(conn, kept)
        positions = [event.position for event in await log.read_after(conn, 0, 1000)]
        await readers.move(conn, readers.EVALUATOR, positions[-1])
    assert len(positions) == DAYS * A_DAY + len(kept)
    told = 0
    async with opened(database_url) as pulled:
        first = await pulled.client.get(FEED, params={"format": "raw", "limit": 7})
        removing = asyncio.create_task(retain(engine, RetentionSettings(), [], []))
        params, upto = {"limit": "7", "cursor": first.json()["next_cursor"]}, first.json()["items"][-1]["position"]
        while True:
            answer = await pulled.client.get(FEED, params={"format": "raw", **params})
            if answer.status_code == 410:
                told += 1
                del params["cursor"]
                answer = await pulled.client.get(FEED, params={"format": "raw", **params})
                upto = answer.json()["items"][0]["position"] - 1
            page = answer.json()
            for item in page["items"]:
                if item["kind"] == "other" or item["position"] in positions:
                    assert item["position"] == upto + 1
                    upto = item["position"]
            params["cursor"] = page["next_cursor"]
            if removing.done() and not page["has_more"]:
                break
        await removing
        gone = await pulled.client.get(FEED, params={"cursor": first.json()["next_cursor"]})
        problem(gone, 410, "cursor_expired")
    assert upto == positions[-1]
    assert told <= 1


WRITERS, EVENTS, BATCH = 8, 8_000, 50  # `make bench-siem` does it with a million


async def test_eight_writers_and_three_readers_at_different_speeds_none_skipped_none_out_of_order(
    database_url: str,
) -> None:
    engine = open_engine(database_url, connections_max=WRITERS)
    written_ids: list[str] = []
    done = asyncio.Event()

    async def write(writer: int) -> None:
        for n in range(EVENTS // WRITERS // BATCH):
            async with begin(engine) as conn:
                if (writer + n) % 10 == 0:
                    decisions = [
                        Decision(kind="alert.firing", subject_id=f"{writer}-{n}-{i}", occurred_at=datetime.now(UTC))
                        for i in range(BATCH)
                    ]
                    await log.append(conn, decisions)
                    written_ids.extend(str(one.subject_id) for one in decisions)
                else:
                    receipts = [make_receipt() for _ in range(BATCH)]
                    await log.accept(conn, receipts)
                    written_ids.extend(one.event.event_id for one in receipts)
                await asyncio.sleep(0.001 * ((writer * 7 + n) % 5))  # committed some time after the append

    async def read(pulled: Pulled, limit: int, pause_seconds: float) -> list[tuple[int, str]]:
        seen: list[tuple[int, str]] = []
        params: dict[str, Any] = {"format": "raw", "limit": limit, "wait": "1s"}
        while True:
            finished = done.is_set()
            answer = await pulled.client.get(FEED, params=params, headers=NDJSON)
            assert answer.status_code == 200, answer.text
            items = [json.loads(line) for line in answer.text.splitlines()]
            seen += [(item["position"], item["event_id"]) for item in items]
            params["cursor"] = answer.headers["authwatch-next-cursor"]
            if finished and not items:
                return seen
            await asyncio.sleep(pause_seconds)

    async with opened(database_url) as pulled:
        try:
            reading = [
                asyncio.create_task(read(pulled, limit, pause)) for limit, pause in ((1000, 0), (1000, 0.3), (173, 0))
            ]
            await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
            done.set()
            everything = await asyncio.gather(*reading)
        finally:
            await engine.dispose()
    assert len(written_ids) == EVENTS
    for seen in everything:
        positions = [position for position, _ in seen]
        assert positions == sorted(set(positions))
        assert sorted(event_id for _, event_id in seen) == sorted(written_ids)
    assert everything[0] == everything[1] == everything[2]
