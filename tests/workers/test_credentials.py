"""An orchestrator that no longer takes our credentials: nothing is given up at once, people are told, and after the mend
everything is made.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from service import health
from service.exposition import how_we_are
from service.store.session import begin
from tests.fakes.asked_first import FakeAskedFirst
from tests.workers.house import House
from tests.workers.test_asked_first import AWAY, PAUSES, RESUMES, broke, healed, message, stands
from tests.workers.test_pauses import WAITED, acted
from workers import credentials, outcomes
from workers.act import act
from workers.credentials import Looked, keep_credentials
from workers.every import Every


async def looked(house: House) -> list[tuple[str, str]]:
    await keep_credentials(house.runtime, Looked(Every(0), Every(0)))
    rows = await house.rows(f"SELECT group_key, state FROM alerts WHERE rule_id = '{credentials.RULE_ID}' ORDER BY id")
    return [(row["group_key"], row["state"]) for row in rows]


async def test_a_resume_refused_for_credentials_is_made_once_they_are_mended(
    house: House, flows: FakeAskedFirst
) -> None:
    await broke(house)
    assert await looked(house) == []
    flows.takes_us = False
    await healed(house)
    [row] = await house.rows(RESUMES)
    assert (row["state"], row["last_code"]) == ("pending", "http_401")
    [due] = await house.rows(
        "SELECT next_attempt_at - now() AS in_time FROM actions WHERE kind = 'orchestrator.resume' AND state = 'pending'"
    )
    assert timedelta(seconds=40) < due["in_time"] < timedelta(seconds=80)
    assert await looked(house) == [("flows", "firing")]
    await act(house.runtime)
    told = " ".join(house.slack.text_of(one) for one in house.slack.messages)
    assert 'The orchestrator "flows" does not take our credentials' in told
    assert "make a new one" in told
    flows.takes_us = True
    await house.run(WAITED)
    await act(house.runtime)
    assert stands(flows) == (False, 1)
    assert await looked(house) == [("flows", "resolved")]


async def test_metrics_say_who_refuses_and_how_much_waits(house: House, flows: FakeAskedFirst) -> None:
    async def refused() -> list[tuple[dict[str, str], float]]:
        async with begin(house.runtime.engine) as conn:
            families = await how_we_are(conn, [])
        [family] = [one for one in families if one.name == "authwatch_orchestrator_refused_asks"]
        return [(sample.labels, sample.value) for sample in family.samples]

    assert await refused() == []
    flows.takes_us = False
    await broke(house)
    assert await refused() == [({"orchestrator": "flows"}, 1)]
    flows.takes_us = True
    await acted(house)
    assert await refused() == []


async def test_a_pause_refused_for_credentials_says_so_and_is_made_later(house: House, flows: FakeAskedFirst) -> None:
    flows.takes_us = False
    await broke(house)
    assert "pause refused so far, and tried again: 401" in await message(house)
    flows.takes_us = True
    await acted(house)
    assert stands(flows) == (True, 0)


async def test_an_alert_of_credentials_stays_until_they_are_proven(house: House, flows: FakeAskedFirst) -> None:
    flows.takes_us = False
    await broke(house)
    await looked(house)
    await house.run("UPDATE actions SET state = 'failed', finished_at = now() WHERE kind LIKE 'orch%'")
    assert await looked(house) == [("flows", "firing")], "nothing waits any more, and nothing is well"
    flows.takes_us = True
    assert await looked(house) == [("flows", "resolved")]


async def test_credentials_that_nobody_mends_end_in_a_failure(
    house: House, flows: FakeAskedFirst, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "CREDENTIALS_GIVE_UP_AFTER", timedelta(0))
    flows.takes_us = False
    await broke(house)
    assert [row["state"] for row in await house.rows(PAUSES)] == ["failed"]


async def test_what_was_refused_for_days_is_not_given_up_at_the_first_trouble_after_the_mend(
    house: House, flows: FakeAskedFirst
) -> None:
    await broke(house)
    flows.takes_us = False
    await healed(house)
    for table, at in (("actions", "created_at"), ("attempts", "started_at")):
        await house.run(f"UPDATE {table} SET {at} = {at} - interval '2 days'")
    flows.takes_us = True
    flows.fail_next("resume", AWAY)
    await acted(house)
    [row] = await house.rows(RESUMES)
    assert (row["state"], row["last_code"]) == ("pending", "connect_failed")
    await acted(house)
    assert stands(flows) == (False, 1)


async def test_a_day_of_other_trouble_is_given_up_all_the_same(house: House, flows: FakeAskedFirst) -> None:
    await broke(house)
    flows.fail_next("resume", AWAY, times=2)
    await healed(house)
    for table, at in (("actions", "created_at"), ("attempts", "started_at")):
        await house.run(f"UPDATE {table} SET {at} = {at} - interval '2 days'")
    await acted(house)
    [row] = await house.rows(RESUMES)
    assert (row["state"], row["last_code"]) == ("failed", "connect_failed")


async def test_what_waits_for_credentials_is_stranded_and_no_sign_of_our_death(
    house: House, flows: FakeAskedFirst
) -> None:
    flows.takes_us = False
    await broke(house)
    await house.run("UPDATE actions SET created_at = created_at - interval '1 hour' WHERE kind LIKE 'orch%'")
    async with begin(house.runtime.engine) as conn:
        report = await health.report(conn, [], [])
    assert (report["status"], report["stranded"]) == ("degraded", 1)
    assert report["actions"]["lag_seconds"] < 600, "what is an hour old is not counted"
