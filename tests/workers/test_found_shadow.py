"""What was opened in shadow is told to nobody to its end, and what was told is told to its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service import steer
from service.store.session import begin
from tests.workers.editing import HOUR, THREE_FAILURES, TWO_FAILURES, age, save
from tests.workers.house import House, open_house
from tests.workers.test_gauges import change_rules, gauge, waits
from workers.act import act
from workers.decide import decide
from workers.evaluate import evaluate
from workers.gauges import look_at_gauges
from workers.rules import keep_rules

SHADOW = TWO_FAILURES.replace("  severity", "  enabled: shadow\n  severity")


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", rules=SHADOW) as opened:
        folder = opened.runtime.settings.rules_folder
        save(folder, SHADOW, ago=HOUR)
        age(folder, HOUR)
        await keep_rules(opened.runtime)
        await opened.tell("failed", ago=2)
        await opened.told("failed", ago=1)
        yield opened


async def told_to(house: House) -> list[str]:
    await decide(house.runtime)
    return [row["destination"] for row in await house.rows("SELECT destination FROM actions")]


async def test_the_word_of_a_person_on_a_shadow_alert_is_an_audit_row_and_no_message(house: House) -> None:
    (alert,) = await house.alerts()
    async with begin(house.runtime.engine) as conn:
        await steer.acknowledge_alert(conn, str(alert["id"]), house.context)
    await house.resolve(str(alert["id"]))
    (alert,) = await house.alerts()
    assert (alert["state"], alert["resolved_reason"]) == ("resolved", "manual")
    assert await told_to(house) == []
    assert [kind for kind in await house.kinds() if kind != "audit"] == []


async def test_an_edit_ends_a_shadow_alert_without_a_word(house: House) -> None:
    folder = house.runtime.settings.rules_folder
    save(folder, THREE_FAILURES.replace("  severity", "  enabled: shadow\n  severity"))
    await keep_rules(house.runtime)
    (alert,) = await house.alerts()
    assert (alert["state"], alert["resolved_reason"]) == ("resolved", "rule_changed")
    assert await told_to(house) == []
    assert [kind for kind in await house.kinds() if kind != "audit"] == []


async def test_what_still_holds_when_a_rule_leaves_the_shadow_is_told(house: House) -> None:
    """As `rules diff` says of such an edit."""
    save(house.runtime.settings.rules_folder, TWO_FAILURES)
    await keep_rules(house.runtime)
    await evaluate(house.runtime)
    said = [(row["shadow"], row["state"], row["resolved_reason"]) for row in await house.alerts()]
    assert said == [(True, "resolved", "rule_changed"), (False, "firing", None)]
    assert len(await told_to(house)) == 1


@pytest.mark.parametrize(
    ("first", "then", "alerts", "said"),
    [
        ("true", "shadow", [(False, "recovered")], 2),
        # What a rule that is one no longer had noticed in shadow is news: whoever should have heard of it hears of it.
        ("shadow", "true", [(True, "rule_changed"), (False, "recovered")], 2),
        ("shadow", "shadow", [(True, "recovered")], 0),
    ],
)
async def test_a_gauge_is_told_to_its_end_by_what_was_told_of_its_begin(
    database_url: str, tmp_path: Path, first: str, then: str, alerts: list[tuple[bool, str]], said: int
) -> None:
    rule = gauge("evaluator_lag_seconds", "gt: 10", f"enabled: {first}")
    async with open_house(database_url, tmp_path / "gauge", rules=rule) as house:
        await house.tell("failed")
        await waits(house, 12)
        await look_at_gauges(house.runtime)
        await act(house.runtime)
        await change_rules(house, rule.replace(f"enabled: {first}", f"enabled: {then}").replace("P3", "P4"))
        await look_at_gauges(house.runtime)
        await act(house.runtime)
        await evaluate(house.runtime)
        await look_at_gauges(house.runtime)
        assert [(row["shadow"], row["resolved_reason"]) for row in await house.alerts()] == alerts
        assert len(await told_to(house)) == said
