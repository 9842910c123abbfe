"""A drill lasts as long as it was asked for, is of the rules in force, and reads like the real thing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from service import drill, drill_command, rule_sets
from service.notify.wording import word
from service.rules import load_text
from service.store.session import begin
from service.views import alert_view
from tests.workers.editing import BROKEN, HOUR, TWO_FAILURES, age, save
from tests.workers.house import House, open_house
from tests.workers.test_drill import environment
from tests.workers.test_gauges import gauge
from tests.workers.test_own_alerts import NOW
from workers.gauges import look_at_gauges
from workers.rules import keep_rules


async def start(house: House, rule_id: str) -> str:
    async with begin(house.runtime.engine) as conn:
        rule = (await rule_sets.in_force(conn, house.runtime)).by_id[rule_id]
        alert = await drill.start(
            conn,
            rule,
            account=None,
            lasts=timedelta(seconds=60),
            workflow_id=None,
            notifiers=list(house.runtime.notifiers),
            actor="a person",
        )
        return alert.id


async def test_no_look_at_the_gauges_ends_a_drill_of_one(database_url: str, tmp_path: Path) -> None:
    rule = gauge("evaluator_lag_seconds", "gt: 10")
    async with open_house(database_url, tmp_path / "house", rules=rule) as house:
        await start(house, "mine")
        await look_at_gauges(house.runtime)
        (alert,) = await house.alerts()
        assert (alert["state"], alert["condition_ended_at"]) == ("firing", None)


async def test_the_command_fires_what_is_in_force_although_its_file_is_broken_now(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(database_url, tmp_path / "house", rules=TWO_FAILURES) as house:
        folder = house.runtime.settings.rules_folder
        save(folder, TWO_FAILURES, ago=HOUR)
        age(folder, HOUR)
        await keep_rules(house.runtime)
        save(folder, BROKEN)
        for name, value in environment(house).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SLACK_BOT_TOKEN")
        monkeypatch.delenv("SLACK_CHANNEL")
        await drill_command.run("two-failures", None, timedelta(milliseconds=200), None)
        assert [row["rule_id"] for row in await house.alerts() if row["drill"]] == ["two-failures"]


def test_its_words_are_those_of_a_real_one() -> None:
    text = TWO_FAILURES.replace("It fails", "{{ value }} failures of {{ identifier }} at {{ source }}")
    (rule,) = load_text(text.encode(), "rules.yml").rules
    alert = drill.make_alert(rule, None, NOW, timedelta(seconds=1), pauses=False)
    assert alert.summary == "DRILL: 2 failures of a practice account at a practice source"


async def test_the_message_says_drill_once_in_its_title_and_claims_no_missing_event(
    database_url: str, tmp_path: Path
) -> None:
    async with open_house(database_url, tmp_path / "house", rules=TWO_FAILURES) as house:
        alert_id = await start(house, "two-failures")
        async with begin(house.runtime.engine) as conn:
            view = await alert_view(conn, alert_id, public_url="")
        assert view is not None
        said = word(view, view.opened_at)
        assert said.title.count("DRILL") == 1
        assert said.evidence == "Evidence: none, it is a drill."
