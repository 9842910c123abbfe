"""The pull feed as a SIEM's poller sees it: types and encodings, tokens, writers and retention meanwhile. Waits are in
test_siem_waits.py, cursors in test_siem_cursors.py."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.api import siem
from service.api.answering import GZIP_BYTES_MIN, wants_ndjson, weights
from service.retain import retain
from service.settings import RetentionSettings
from service.store import log, pollers, readers
from service.store.log import Decision
from service.store.session import begin, open_engine
from tests.end_to_end.pulled import FEED, NDJSON, Pulled, emptied, opened, problem
from tests.make import make_receipt


@pytest.fixture
async def pulled(database_of_the_file: str) -> AsyncIterator[Pulled]:
    async with emptied(database_of_the_file) as made:
        yield made


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


async def test_the_document_tells_of_lines_and_of_410(pulled: Pulled) -> None:
    paths = (await pulled.client.get("/openapi.json")).json()["paths"]
    answers = paths[FEED]["get"]["responses"]
    assert set(answers["200"]["content"]) == {"application/json", "application/x-ndjson"}
    assert set(answers["410"]["content"]) == {"application/problem+json"}
    assert "410" not in paths["/v1/events"]["get"]["responses"]


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
