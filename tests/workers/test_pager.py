"""A pager and a webhook beside Slack, from the event that breaks an account to what each of them was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from service import tell
from service.store import actions
from service.store.session import begin
from tests.fakes import serve
from tests.fakes.pagerduty import ROUTING_KEY, FakePagerDuty
from tests.fakes.receiver import PATH, SECRET, FakeReceiver
from tests.workers.house import House
from tests.workers.refusing import mended
from tests.workers.test_routing import NOTIFIERS, acknowledge, breaks, heard, later, recovers, routed
from workers.act import act
from workers.attempt import attempt, read
from workers.refusals import keep_refusals

STEP = {"after": "10m", "to": "pager"}


@dataclass
class Paged:
    house: House
    pager: FakePagerDuty
    hook: FakeReceiver


@asynccontextmanager
async def paged(database_url: str, folder: Path, **config: Any) -> AsyncIterator[Paged]:
    pager, hook = FakePagerDuty(), FakeReceiver()
    async with AsyncExitStack() as stack:
        pager_url = await stack.enter_async_context(serve(pager.app))
        hook_url = await stack.enter_async_context(serve(hook.app))
        notifiers = NOTIFIERS | {
            "pager": {"kind": "pagerduty", "routing_key": ROUTING_KEY, "url": pager_url},
            "hook": {"kind": "webhook", "url": hook_url + PATH, "secret": SECRET},
        }
        house = await stack.enter_async_context(routed(database_url, folder, notifiers=notifiers, **config))
        yield Paged(house, pager, hook)


async def test_each_hears_of_an_episode_from_its_break_to_its_end_once(database_url: str, tmp_path: Path) -> None:
    async with paged(database_url, tmp_path) as at:
        await breaks(at.house, "ca_1")
        await acknowledge(at.house)
        await recovers(at.house)
        assert at.pager.states() == ["resolved"]
        assert [event["event_action"] for event in at.pager.events] == ["trigger", "acknowledge", "resolve"]
        assert len(at.pager.pages) == 1
        assert at.hook.types() == ["alert.firing", "alert.acknowledged", "alert.resolved"]
        await breaks(at.house, "ca_1")
        assert len({incident.key for incident in at.pager.incidents}) == 2, "the next episode is another incident"


async def test_a_trigger_whose_answer_is_lost_is_sent_again_and_pages_once(database_url: str, tmp_path: Path) -> None:
    async with paged(database_url, tmp_path, route={"receiver": "pager"}) as at:
        at.pager.weather.break_off_next()
        await breaks(at.house, "ca_1")
        await at.house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
        await act(at.house.runtime)
        assert at.pager.calls == 2
        assert len(at.pager.incidents) == len(at.pager.pages) == 1
        rows = await at.house.rows("SELECT outcome FROM attempts ORDER BY number")
        assert [row["outcome"] for row in rows] == ["ambiguous", "done"]


async def test_a_process_that_dies_between_sent_and_recorded_pages_nobody_twice(
    database_url: str, tmp_path: Path
) -> None:
    async with paged(database_url, tmp_path, route={"receiver": "pager"}) as at:
        runtime = at.house.runtime
        await at.house.put(account_ids=["ca_1"])
        await at.house.told("DISCONNECTED")
        async with begin(runtime.engine) as conn:
            await tell.decide(conn, runtime.settings.routing, frozenset({"pager"}))
            [(action, _)] = await actions.claim(conn, None, lease=timedelta(seconds=1), limit=9)
        until = asyncio.get_running_loop().time() + 20
        ended = await attempt(runtime, action, asyncio.create_task(read(runtime, [action])), until)
        assert (ended.outcome, len(at.pager.pages)) == ("done", 1)
        await at.house.run("UPDATE actions SET lease_until = now(), next_attempt_at = now()")
        await act(runtime)
        assert at.pager.calls == 2
        assert len(at.pager.incidents) == len(at.pager.pages) == 1
        rows = await at.house.rows("SELECT outcome, code FROM attempts ORDER BY number")
        assert [(row["outcome"], row["code"]) for row in rows] == [("ambiguous", "process_died"), ("done", None)]


async def test_twenty_accounts_of_one_connection_are_one_incident_and_one_page(
    database_url: str, tmp_path: Path
) -> None:
    async with paged(database_url, tmp_path, route={"receiver": "pager"}) as at:
        for start in range(0, 20, 5):
            await breaks(at.house, *(f"ca_{number}" for number in range(start, start + 5)))
        for number in range(19):
            await recovers(at.house, f"ca_{number}")
        assert at.pager.calls == 1, "no edit between the first and the last is for a pager"
        await recovers(at.house, "ca_19")
        assert at.pager.states() == ["resolved"]
        assert at.pager.calls == 2


async def test_a_repeat_is_a_message_of_its_own_to_a_receiver(database_url: str, tmp_path: Path) -> None:
    async with paged(database_url, tmp_path, route={"receiver": "hook", "repeat_interval": "30m"}) as at:
        await breaks(at.house, "ca_1")
        await later(at.house, 1801)
        assert [message["data"]["message"]["kind"] for message in at.hook.taken] == ["first", "repeat"]


async def test_a_repeat_pages_nobody_twice(database_url: str, tmp_path: Path) -> None:
    async with paged(database_url, tmp_path, route={"receiver": "pager", "repeat_interval": "30m"}) as at:
        await breaks(at.house, "ca_2", connection="conn_2")
        for _ in range(3):
            await later(at.house, 1801)
        assert at.pager.calls == 1
        await recovers(at.house, "ca_2", connection="conn_2")
        assert at.pager.states() == ["resolved"]


async def test_an_escalation_to_the_pager_pages_and_one_to_who_was_paged_does_not(
    database_url: str, tmp_path: Path
) -> None:
    steps = [STEP, {"after": "20m", "to": "pager"}]
    async with paged(database_url, tmp_path, route={"receiver": "team", "escalate": steps}) as at:
        await breaks(at.house, "ca_1")
        assert at.pager.calls == 0
        await later(at.house, 601)
        assert len(at.pager.pages) == 1
        await later(at.house, 601)
        assert len(at.pager.pages) == 1
        await acknowledge(at.house)
        assert at.pager.states() == ["acknowledged"]
        await recovers(at.house)
        assert at.pager.states() == ["resolved"]


async def test_who_is_told_by_one_route_and_escalated_to_by_another_is_paged_once(
    database_url: str, tmp_path: Path
) -> None:
    routes = [
        {"matchers": ["alertname=~.+"], "receiver": "pager", "continue": True},
        {"matchers": ["alertname=~.+"], "receiver": "team", "escalate": STEP},
    ]
    async with paged(database_url, tmp_path, route={"receiver": "team", "routes": routes}) as at:
        await breaks(at.house, "ca_1")
        await later(at.house, 601)
        assert len(at.pager.incidents) == len(at.pager.pages) == 1
        await recovers(at.house)
        assert at.pager.states() == ["resolved"]


async def test_what_breaks_after_all_has_healed_is_another_incident_and_nothing_reopens_the_first(
    database_url: str, tmp_path: Path
) -> None:
    async with paged(
        database_url, tmp_path, route={"receiver": "pager", "escalate": {"after": "10m", "to": "team"}}
    ) as at:
        await breaks(at.house, "ca_1")
        await recovers(at.house, "ca_1")
        assert at.pager.states() == ["resolved"]
        await breaks(at.house, "ca_2")
        assert at.pager.calls == 2, "it may be over within seconds, as the one before"
        await at.house.run("UPDATE alerts SET fired_at = fired_at - interval '26 seconds'")
        await later(at.house, 26)
        assert at.pager.states() == ["resolved", "triggered"]
        assert len({incident.key for incident in at.pager.incidents}) == 2
        await later(at.house, 601)
        assert len(heard(at.house, "team")) == 1
        await recovers(at.house, "ca_2")
        assert at.pager.states() == ["resolved", "resolved"]
        assert len(at.pager.pages) == 2


async def test_a_pager_that_is_down_for_an_hour_pages_for_what_stands_and_not_for_what_is_over(
    database_url: str, tmp_path: Path
) -> None:
    async with paged(database_url, tmp_path, route={"receiver": "pager"}) as at:
        for _ in range(2):
            at.pager.weather.answer_next(503)
        await breaks(at.house, "ca_1")
        await breaks(at.house, "ca_2", connection="conn_2")
        await recovers(at.house, "ca_1")
        await at.house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
        await act(at.house.runtime)
        assert len(at.pager.pages) == 1
        assert at.pager.states() == ["triggered"]


async def test_a_revoked_integration_key_is_told_elsewhere_and_what_stands_is_paged_once_it_is_mended(
    database_url: str, tmp_path: Path
) -> None:
    async with paged(database_url, tmp_path, route={"receiver": "pager"}) as at:
        at.pager.routing_key = "x" * 32
        await breaks(at.house, "ca_1")
        await keep_refusals(at.house.runtime)
        await act(at.house.runtime)
        assert "integration key" in heard(at.house, "oncall")[0]
        assert at.hook.types() == ["alert.firing"]
        at.pager.routing_key = ROUTING_KEY
        await mended(at.house)
        assert len(at.pager.pages) == 1
        assert at.hook.types() == ["alert.firing", "alert.resolved"]


async def test_no_secret_of_a_notifier_is_in_what_is_kept(database_url: str, tmp_path: Path) -> None:
    async with paged(database_url, tmp_path) as at:
        at.pager.routing_key = "x" * 32
        at.hook.weather.answer_next(410)
        await breaks(at.house, "ca_1")
        for table in ("actions", "attempts", "notifier_refusals", "messages", "alerts", "events"):
            said = str([dict(row) for row in await at.house.rows(f"SELECT * FROM {table}")])
            assert not [secret for secret in (ROUTING_KEY, SECRET, SECRET[6:], PATH) if secret in said], table
