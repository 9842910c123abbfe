"""Cursors of the pull feed: opaque, of one version back too, and never taken for another log's, as after a restore."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store import events, log
from service.store.session import begin, open_engine
from tests.end_to_end.pulled import FEED, Pulled, emptied, problem
from tests.make import make_receipt


@pytest.fixture
async def pulled(database_of_the_file: str) -> AsyncIterator[Pulled]:
    async with emptied(database_of_the_file) as made:
        yield made


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


# Another log under the same numbers.


async def backup(pulled: Pulled) -> int:
    """Where the log stands that `restore` goes back to."""
    async with begin(pulled.runtime.engine) as conn:
        return (await log.head(conn))[0]


async def restore(pulled: Pulled, position: int, *, grown_by: int) -> list[str]:
    """What came after the backup is gone, and other events have its positions; the ids of those."""
    async with begin(pulled.runtime.engine) as conn:
        await conn.execute(text("DELETE FROM events WHERE position > :position"), {"position": position})
        await conn.execute(text("SELECT setval('log_position', :position)"), {"position": position})
    return await pulled.happened(grown_by)


def ids(page: Any) -> list[str]:
    return [item["id"] for item in page["items"]]


async def test_a_restored_log_that_has_grown_past_a_cursor_is_not_taken_for_the_one_before(pulled: Pulled) -> None:
    await pulled.happened()
    made = await backup(pulled)
    await pulled.happened(3)
    cursors = [(await pulled.page(limit=limit))["next_cursor"] for limit in (2, 4)]
    await restore(pulled, made, grown_by=5)
    for cursor in cursors:
        said = problem(await pulled.client.get(FEED, params={"cursor": cursor}), 410, "cursor_mismatch")
        assert "since, from before the backup" in said
        # Whoever would wait is told at once.
        problem(await pulled.client.get(FEED, params={"cursor": cursor, "wait": "20s"}), 410, "cursor_mismatch")


async def test_a_restored_log_that_has_not_come_as_far_says_so(pulled: Pulled) -> None:
    await pulled.happened()
    made = await backup(pulled)
    await pulled.happened(3)
    cursor = (await pulled.page())["next_cursor"]
    await restore(pulled, made, grown_by=1)
    problem(await pulled.client.get(FEED, params={"cursor": cursor}), 410, "cursor_ahead")


async def test_a_cursor_of_before_the_backup_goes_on_and_misses_nothing(pulled: Pulled) -> None:
    await pulled.happened(2)
    cursor = (await pulled.page())["next_cursor"]
    made = await backup(pulled)
    await pulled.happened(3)
    others = await restore(pulled, made, grown_by=5)
    assert ids(await pulled.page(cursor=cursor)) == others


async def test_who_began_with_an_empty_page_is_told_too(pulled: Pulled) -> None:
    await pulled.happened()
    made = await backup(pulled)
    await pulled.happened()
    empty = await pulled.page(since="2190-01-01T00:00:00Z")
    assert empty["items"] == []
    assert (await pulled.page(cursor=empty["next_cursor"]))["next_cursor"] == empty["next_cursor"]
    await restore(pulled, made, grown_by=2)
    problem(await pulled.client.get(FEED, params={"cursor": empty["next_cursor"]}), 410, "cursor_mismatch")


async def test_a_cursor_of_the_release_before_is_taken_and_the_next_one_is_of_this(pulled: Pulled) -> None:
    _, second = await pulled.happened(2)
    items = (await pulled.page())["items"]
    page = await pulled.page(cursor=written("v1", "siem", items[0]["position"]), limit=1)
    assert ids(page) == [second]
    assert page["next_cursor"] == (await pulled.page())["next_cursor"]
    assert page["next_cursor"] == written("v1", "siem", items[1]["position"], items[1]["received_at"])
    # Also where nothing comes after it.
    old = written("v1", "siem", items[1]["position"])
    assert await pulled.page(cursor=old) == {"items": [], "next_cursor": page["next_cursor"], "has_more": False}


@pytest.mark.parametrize("at", ["soon", 5, None, "2026-11-26T12:00:00", "0001-01-01T00:00:00+14:00", ["x"]])
async def test_a_cursor_whose_time_is_none_is_refused(pulled: Pulled, at: Any) -> None:
    problem(await pulled.client.get(FEED, params={"cursor": written("v1", "siem", 1, at)}), 400, "invalid_cursor")
