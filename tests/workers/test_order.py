"""Evaluation is a function of the log: whatever the order of arrival, the duplicates and the batches, the same episodes."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.event import new_id
from tests.workers.house import EVENTS, House, make_event, open_house
from workers.evaluate import evaluate

ORDERS = 8
WORDS = (
    ("failed",) * 6 + ("succeeded",) * 2 + ("ACTIVE", "EXPIRED", "EXPIRED", "PENDING_AUTH", "DISCONNECTED", "DELETED")
)
SUBSIDING = """\
version: 1
rules:
- id: many-failures
  severity: P3
  count:
    match: {kind: token.refresh_failed}
    within: 30s
    gte: 3
  keep_firing_for: 5s
  annotations: {summary: "Many failures"}
"""


def make_story(random_: random.Random, events: int) -> list[tuple[str, float]]:
    """(what, seconds ago), in order. Small steps and ties are common, as they are where a provider retries."""
    ago, story = 1500.0, []
    for _ in range(events):
        ago -= random_.choice((0, 0, 1, 4, 9, 10, 11, 25, 60))
        story.append((random_.choice(WORDS), ago))
    return story


async def episodes_of(house: House) -> dict[str, set[tuple[Any, ...]]]:
    found: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for alert in await house.alerts():
        # A late event showed that it never was: the row stays, as what people were told, of no length.
        if alert["condition_ended_at"] != alert["opened_at"]:
            found[alert["account_id"]].add((alert["rule_id"], alert["opened_at"], alert["condition_ended_at"]))
    return found


async def arrive(house: House, story: list[tuple[str, float]], now: datetime, random_: random.Random) -> None:
    """The same story for many accounts: the first as it happened, event by event; the others in any order and batches."""
    rounds: list[list[Any]] = [[] for _ in range(2 * len(story))]
    for number in range(ORDERS):
        account = f"ca_{number}"
        events = [
            make_event(what, now - timedelta(seconds=ago), account=account, event_id=f"evt_{number}_{index:02}")
            for index, (what, ago) in enumerate(story)
        ]
        if number:
            events += [replace(event, id=new_id()) for event in random_.choices(events, k=3)]
            random_.shuffle(events)
        batches = random_.randint(1, len(story)) if number > 1 else len(story)
        for index, event in enumerate(events):
            rounds[index * batches // len(events)].append(event)
    for batch in rounds:
        if batch:
            await house.accept(*batch)
            await evaluate(house.runtime)


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_and_any_batches_give_the_same_episodes(house: House, seed: int) -> None:
    random_ = random.Random(seed)
    await house.put(account_ids=[f"ca_{number}" for number in range(ORDERS)])
    story = make_story(random_, 8 + 2 * seed)
    await arrive(house, story, datetime.now(UTC), random_)
    found = await episodes_of(house)
    expected = found["ca_0"]
    differing = {
        account: sorted(map(str, found[account] ^ expected)) for account in found if found[account] != expected
    }
    assert not differing, story
    accounts = await house.rows("SELECT DISTINCT status, status_since, failures_in_a_row, not_well FROM accounts")
    assert len(accounts) == 1, story
    if seed >= 2:
        assert expected, "this story was meant to hold some episode"


@pytest.mark.parametrize("seed", range(2))
async def test_windows_that_empty_by_themselves_are_the_same_in_any_order(
    database_url: str, tmp_path: Path, seed: int
) -> None:
    random_ = random.Random(seed)
    async with open_house(database_url, tmp_path / "house", rules=SUBSIDING) as house:
        ago, story = 1500.0, []
        for _ in range(14):
            ago -= random_.choice((0, 1, 5, 9, 15, 30, 31, 40, 70))
            story.append(("failed", ago))
        await arrive(house, story, datetime.now(UTC), random_)
        found = await episodes_of(house)
        assert {account: found[account] for account in found if found[account] != found["ca_0"]} == {}, (
            story,
            found["ca_0"],
        )
        assert found["ca_0"]


def test_the_words_of_these_stories_are_words_of_the_house() -> None:
    assert set(WORDS) <= set(EVENTS)
