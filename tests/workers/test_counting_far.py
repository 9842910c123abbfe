"""A rule that counts is heard of although an account's history is hardly ever read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.workers.house import House, make_event, open_house
from tests.workers.test_found_many import statements_of
from workers.evaluate import evaluate

RULE = """
version: 1
rules:
- id: busy
  severity: P3
  count:
    match: {kind: token.refresh_succeeded}
    within: 50m
    gte: 4
  group_by: [account_id]
  annotations: {summary: "An account is told of often"}
"""


async def tell(house: House, *minutes_ago: float) -> None:
    now = datetime.now(UTC)
    events = [make_event("succeeded", now - timedelta(minutes=minutes)) for minutes in minutes_ago]
    await house.accept(*events)
    await evaluate(house.runtime)


async def opened(house: House) -> int:
    return len(await house.rows("SELECT id FROM alerts WHERE rule_id = 'busy'"))


@pytest.mark.parametrize("known", [True, False])
async def test_a_window_filled_one_by_one_over_hours_is_full(database_url: str, tmp_path: Path, known: bool) -> None:
    async with open_house(database_url, tmp_path / "house", rules=RULE) as house:
        for minutes_ago in (100, 95, 45, 30):
            await tell(house, minutes_ago)
            if not known:  # as the workers of an earlier release left it
                await house.run("UPDATE accounts SET heard_hour = NULL, heard_in_hour = 0, heard_before = 0")
        await tell(house, 15)
        assert await opened(house) == 0
        await tell(house, 1)
        assert await opened(house) == 1


async def test_events_that_came_late_are_counted_with_the_rest(database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, tmp_path / "house", rules=RULE) as house:
        await tell(house, 20)
        await tell(house, 30, 25)
        assert await opened(house) == 0
        await tell(house, 1)
        assert await opened(house) == 1


async def test_an_account_of_which_little_is_known_is_not_read_for_a_rule_that_counts_far(
    database_url: str, tmp_path: Path
) -> None:
    async with open_house(database_url, tmp_path / "house", rules=RULE) as house:
        await tell(house, 20)
        with statements_of(house) as sent:
            await tell(house, 10)
        assert not [statement for statement in sent if "occurred_at >= a.since AND received_at" in statement]
        with statements_of(house) as sent:
            await tell(house, 3, 2)
        assert [statement for statement in sent if "occurred_at >= a.since AND received_at" in statement]
