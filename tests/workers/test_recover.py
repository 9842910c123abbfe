"""Gap recovery: an outage is noticed and filled, states are brought to the provider's, nothing is taken twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse

from service import intake
from service.errors import Unavailable
from service.provider_apis import open_api
from service.providers import PROVIDERS
from service.recover import Environment, Scope, environment_of, fetch_slice, reconcile, recover_events, scope_of, wider
from service.store import log, readers, recoveries
from service.store.log import Receipt
from service.store.session import begin
from tests.conftest import SECRET
from tests.end_to_end.running import until
from tests.fakes import serve
from tests.fakes.scalekit_api import CLIENT_ID, CLIENT_SECRET, FakeScalekit
from tests.make import make_receipt
from tests.workers.house import House, open_house
from workers import recover as story
from workers.evaluate import evaluate
from workers.recover import Recovering, recover
from workers.watch import Watch, watch


@dataclass
class Ward:
    house: House
    fake: FakeScalekit
    memory: Recovering

    def said(
        self, number: int, at: datetime, *, account: str = "ca_1", kind: str = "account.updated", **data: Any
    ) -> None:
        self.fake.say(provider_event(number, at, account=account, kind=kind, **data))

    @property
    def scope(self) -> Scope:
        runtime = self.house.runtime
        api = open_api(runtime.settings, runtime.http)
        assert api is not None
        return scope_of(runtime.engine, runtime.nudger, runtime.sources["scalekit"], api)

    async def recover(self) -> None:
        await recover(self.house.runtime, self.memory)

    async def log(self) -> list[dict[str, Any]]:
        return [
            dict(row)
            for row in await self.house.rows("SELECT * FROM events WHERE origin <> 'authwatch' ORDER BY position")
        ]

    async def down(self, minutes: float) -> None:
        """The receivers could commit until so many minutes ago, and can now."""
        await intake.note(self.house.runtime.engine, ["scalekit"])
        await self.house.run(f"UPDATE intake SET able_until = able_until - interval '{minutes} minutes'")
        await intake.note(self.house.runtime.engine, ["scalekit"])

    async def no_listing(self) -> None:
        """As if every account had been listed long ago."""
        self.memory.listing_wanted.add("scalekit")


def provider_event(number: int, at: datetime, *, account: str, kind: str, **data: Any) -> dict[str, Any]:
    body = PROVIDERS["scalekit"].example(
        kind,
        account_id=account,
        connection_id="conn_1",
        event_id=f"evt_{number}",
        now=at,
        status=data.pop("status", None),
    )
    event: dict[str, Any] = json.loads(body) | {"environment_id": "env_1"}
    event["data"] |= data
    return event


def as_webhook(event: dict[str, Any]) -> Receipt:
    """The same event as its webhook brings it, with bytes of its own."""
    body = json.dumps(event, indent=1).encode()
    read = PROVIDERS["scalekit"].normalise(body, "msg")
    return make_receipt(body=body, **{name: getattr(read, name) for name in read.__slots__})


@pytest.fixture
async def ward(database_url: str, tmp_path: Path) -> AsyncIterator[Ward]:
    fake = FakeScalekit()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(fake.app))
        house = await stack.enter_async_context(
            open_house(
                database_url,
                tmp_path / "house",
                variables={
                    "SCALEKIT_WEBHOOK_SECRET": SECRET,
                    "SCALEKIT_ENV_URL": url,
                    "SCALEKIT_CLIENT_ID": CLIENT_ID,
                    "SCALEKIT_CLIENT_SECRET": CLIENT_SECRET,
                },
            )
        )
        yield Ward(house, fake, Recovering())


@pytest.fixture
async def without_api(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", variables={"SCALEKIT_WEBHOOK_SECRET": SECRET}) as house:
        yield house


def ago(**parts: float) -> datetime:
    return datetime.now(UTC) - timedelta(**parts)


async def test_an_outage_is_noticed_and_filled_oldest_first(ward: Ward) -> None:
    await ward.no_listing()
    ward.fake.set_account("ca_1", "ACTIVE")
    for number in range(230):
        ward.said(number, ago(hours=2) + timedelta(seconds=10 * number))
    await ward.down(minutes=150)
    await ward.recover()
    rows = await ward.log()
    assert [row["event_id"] for row in rows] == [f"evt_{number}" for number in range(230)]
    assert {row["origin"] for row in rows} == {"recovery"}
    (done,) = await ward.house.rows("SELECT * FROM recoveries")
    assert (done["state"], done["found"] >= 230, done["done_until"] == done["until"]) == ("done", True, True)
    await ward.recover()
    assert len(await ward.log()) == 230


async def test_a_restart_is_no_outage(ward: Ward) -> None:
    await ward.down(minutes=0.5)
    assert await ward.house.rows("SELECT * FROM recoveries") == []


async def test_what_was_still_being_tried_when_we_went_down_is_fetched(ward: Ward) -> None:
    """It happened up to 22 minutes before the outage, and its remaining attempts fell into it."""
    await ward.no_listing()
    for number, minutes in enumerate((90, 80, 65)):
        ward.said(number, ago(minutes=minutes))
    await ward.down(minutes=60)
    await ward.recover()
    assert [row["event_id"] for row in await ward.log()] == ["evt_1", "evt_2"]


async def test_an_outage_noted_by_a_clock_that_ran_ahead_is_filled_and_hides_no_later_one(ward: Ward) -> None:
    await ward.no_listing()
    ward.said(1, ago(minutes=30))
    await ward.down(minutes=60)
    await ward.house.run(
        "UPDATE recoveries SET until = until + interval '3 days', created_at = created_at + interval '3 days',"
        " next_attempt_at = next_attempt_at + interval '3 days', lease_until = now() + interval '3 days'"
    )
    await ward.recover()
    (row,) = await ward.house.rows("SELECT state, done_until <= now() AS clamped FROM recoveries")
    assert (row["state"], row["clamped"]) == ("done", True)
    assert [row["event_id"] for row in await ward.log()] == ["evt_1"]


async def test_two_receivers_see_one_outage(ward: Ward) -> None:
    await intake.note(ward.house.runtime.engine, ["scalekit"])
    await ward.house.run("UPDATE intake SET able_until = able_until - interval '1 hour'")
    await asyncio.gather(*(intake.note(ward.house.runtime.engine, ["scalekit"]) for _ in range(5)))
    assert len(await ward.house.rows("SELECT * FROM recoveries")) == 1


async def test_a_webhook_and_its_recovery_are_one_whichever_comes_first(ward: Ward) -> None:
    first, second = (provider_event(n, ago(minutes=30), account="ca_1", kind="account.updated") for n in (1, 2))
    ward.fake.events += [first, second]
    await ward.house.accept(as_webhook(first))
    total = await recover_events(ward.scope, ago(hours=1), ago(), nothing)
    assert (total.found, total.added) == (2, 1)
    async with begin(ward.house.runtime.engine) as conn:
        (kept,) = await log.accept(conn, [as_webhook(second)])
    assert not kept.accepted
    assert [(row["event_id"], row["origin"]) for row in await ward.log()] == [
        ("evt_1", "webhook"),
        ("evt_2", "recovery"),
    ]


async def test_what_cannot_be_read_is_kept_aside_once(ward: Ward) -> None:
    event = provider_event(1, ago(minutes=5), account="ca_" + "x" * 600, kind="account.updated")
    ward.fake.events.append(event)
    for _ in range(2):
        await recover_events(ward.scope, ago(hours=1), ago(), nothing)
    (row,) = await ward.log()
    assert (row["kind"], row["details"]) == ("quarantine", {"reason": "text_too_long"})


async def nothing(*_step: object) -> None:
    pass


async def test_killed_in_the_middle_it_goes_on_and_doubles_nothing(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    await ward.no_listing()
    ward.fake.set_account("ca_1", "ACTIVE")
    for number in range(300):
        ward.said(number, ago(hours=5) + timedelta(minutes=number))
    await ward.down(minutes=330)
    real, steps = recoveries.went_on, 0

    async def dies(*words: Any, **more: Any) -> bool:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Unavailable("the database is away")  # after the slice's events, before its progress
        return await real(*words, **more)

    monkeypatch.setattr(recoveries, "went_on", dies)
    with pytest.raises(Unavailable):
        await ward.recover()
    before = len(await ward.log())
    assert 0 < before < 300
    await ward.recover()
    assert len(await ward.log()) == before  # its lease still holds
    await ward.house.run("UPDATE recoveries SET lease_until = now()")
    calls = ward.fake.calls["events"]
    await ward.recover()
    assert [row["event_id"] for row in await ward.log()] == [f"evt_{number}" for number in range(300)]
    (row,) = await ward.house.rows("SELECT * FROM recoveries")
    assert row["state"] == "done"
    assert ward.fake.calls["events"] > calls


async def test_one_at_a_time_and_who_lost_the_lease_stops(ward: Ward) -> None:
    await ward.no_listing()
    await ward.down(minutes=60)
    await ward.down(minutes=60)
    engine = ward.house.runtime.engine
    async with begin(engine) as conn:
        now = await readers.clock(conn)
        mine = await recoveries.claim(conn, ["scalekit"], now, timedelta(minutes=1))
    assert mine is not None
    async with begin(engine) as conn:
        assert await recoveries.claim(conn, ["scalekit"], now, timedelta(minutes=1)) is None
        later = await recoveries.claim(conn, ["scalekit"], now + timedelta(minutes=2), timedelta(minutes=1))
    assert later is not None
    assert later.id == mine.id
    with pytest.raises(story.Lost):
        await story.run(ward.scope, mine, ward.house.runtime.settings.retention)


async def test_a_provider_that_fails_is_asked_again_later_and_it_is_said(ward: Ward) -> None:
    await ward.no_listing()
    await ward.down(minutes=60)
    ward.fake.secret = "another"
    for _ in range(3):
        await ward.recover()
        await ward.house.run("UPDATE recoveries SET next_attempt_at = now()")
    await watch(ward.house.runtime, Watch())
    (alert,) = await ward.house.alerts()
    assert (alert["rule_id"], alert["severity"], alert["state"]) == ("recovery-failing", "P2", "firing")
    assert "refused the client id and secret" in alert["summary"]
    assert CLIENT_SECRET not in json.dumps(alert, default=str)
    ward.fake.secret = CLIENT_SECRET
    await ward.recover()
    await watch(ward.house.runtime, Watch())
    (alert,) = await ward.house.alerts()
    assert alert["state"] == "resolved"


async def test_what_fails_after_the_events_are_in_is_said_too(ward: Ward) -> None:
    """Going over the events again is no progress that would hide that the accounts are never compared."""
    await ward.no_listing()
    ward.said(1, ago(minutes=30))
    await ward.down(minutes=60)
    ward.fake.refuse_lists = True
    for _ in range(4):
        await ward.recover()
        await ward.house.run("UPDATE recoveries SET next_attempt_at = now()")
    await watch(ward.house.runtime, Watch())
    assert [alert["rule_id"] for alert in await ward.house.alerts()] == ["recovery-failing"]
    assert len(await ward.log()) == 1


async def test_of_two_sources_only_that_of_the_credentials_is_recovered(ward: Ward) -> None:
    runtime = ward.house.runtime
    await ward.house.accept(make_receipt(source="dev", environment_id="env_dev", account_id="ca_dev"))
    await ward.house.told("ACTIVE", ago=7200)
    ward.said(1, ago(minutes=30))
    both = ["dev", "scalekit"]
    assert await story.of_our_environment(runtime, ward.memory, ward.scope.api, both) == ["scalekit"]
    asked = ward.fake.calls["events"]
    assert await story.of_our_environment(runtime, ward.memory, ward.scope.api, both) == ["scalekit"]
    assert ward.fake.calls["events"] == asked


async def test_a_slow_step_keeps_its_lease(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    await ward.no_listing()
    ward.said(1, ago(minutes=30))
    await ward.down(minutes=60)
    monkeypatch.setattr(story, "HOLD_SECONDS", 0.05)
    real, leases = story.run, []

    async def held() -> bool:
        [row] = await ward.house.rows("SELECT lease_until > now() + interval '1 minute' AS held FROM recoveries")
        return bool(row["held"])

    async def slowly(*words: Any) -> Any:
        await ward.house.run("UPDATE recoveries SET lease_until = now() + interval '1 second'")
        await until(held, 20)
        leases.append("held")
        return await real(*words)

    monkeypatch.setattr(story, "run", slowly)
    await ward.recover()
    assert leases == ["held"]


async def test_without_credentials_a_long_outage_is_said_and_a_short_one_left(without_api: House) -> None:
    for minutes in (10, 30):
        await intake.note(without_api.runtime.engine, ["scalekit"])
        await without_api.run(f"UPDATE intake SET able_until = able_until - interval '{minutes} minutes'")
        await intake.note(without_api.runtime.engine, ["scalekit"])
    for _ in range(2):
        await watch(without_api.runtime, Watch())
    (alert,) = await without_api.alerts()
    assert (alert["rule_id"], alert["severity"]) == ("events-may-be-lost", "P2")
    assert "SCALEKIT_ENV_URL" in alert["what_to_do"]
    assert "authwatch recover --since 20" in alert["what_to_do"]
    rows = await without_api.rows("SELECT state FROM recoveries ORDER BY created_at")
    assert [row["state"] for row in rows] == ["left", "waiting"]


async def test_no_recovery_goes_further_back_than_dedup_knows(ward: Ward) -> None:
    """Further back, what is here already would come a second time."""
    await ward.no_listing()
    await ward.house.run("UPDATE retention_state SET dedup_before = now() - interval '10 days'")
    for number, days in enumerate((12, 9)):
        ward.said(number, ago(days=days))
    await ward.down(minutes=60 * 24 * 20)
    await ward.recover()
    assert [row["event_id"] for row in await ward.log()] == ["evt_1"]


async def test_who_recovers_by_hand_ends_the_alert(without_api: House) -> None:
    await intake.note(without_api.runtime.engine, ["scalekit"])
    await without_api.run("UPDATE intake SET able_until = able_until - interval '1 hour'")
    await intake.note(without_api.runtime.engine, ["scalekit"])
    await watch(without_api.runtime, Watch())
    assert [alert["state"] for alert in await without_api.alerts()] == ["firing"]
    async with begin(without_api.runtime.engine) as conn:
        await recoveries.cover(conn, "scalekit", ago(minutes=30), ago(), ago())
    await watch(without_api.runtime, Watch())
    assert [alert["state"] for alert in await without_api.alerts()] == ["firing"], "half of it is not all of it"
    async with begin(without_api.runtime.engine) as conn:
        await recoveries.cover(conn, "scalekit", ago(hours=2), ago(), ago())
    await watch(without_api.runtime, Watch())
    assert [alert["state"] for alert in await without_api.alerts()] == ["resolved"]


async def test_credentials_of_another_environment_are_told_without_any_outage(ward: Ward) -> None:
    ward.said(1, ago(minutes=30))
    await ward.house.told("ACTIVE", environment="env_2")
    for _ in range(3):
        ward.memory.listing_look.done_at = None
        await ward.recover()
    await watch(ward.house.runtime, Watch())
    (alert,) = await ward.house.alerts()
    assert (alert["rule_id"], alert["group_key"]) == ("recovery-failing", "scalekit:environment")
    assert "of which scalekit never sent anything" in alert["summary"]


async def test_the_first_listing_makes_accounts_known_that_broke_before_us(ward: Ward) -> None:
    ward.said(1, ago(days=60), account="ca_000")
    for number in range(250):
        ward.fake.set_account(f"ca_{number:03}", "ACTIVE", updated_at=ago(days=50))
    ward.fake.set_account("ca_007", "EXPIRED", updated_at=ago(days=30))
    ward.fake.set_account("ca_008", "DISCONNECTED")
    ward.fake.set_account("ca_009", "EXPIRED", updated_at=ago(days=30))
    await ward.house.put("w1", account_ids=["ca_007"])
    for _ in range(2):
        await ward.recover()
    await ward.house.work()
    assert len(await ward.log()) == 250
    assert {row["origin"] for row in await ward.log()} == {"recovery"}
    (alert,) = await ward.house.alerts()
    assert (alert["rule_id"], alert["account_id"]) == ("account-disconnected-active-workflow", "ca_007")
    assert (await ward.house.workflow("w1"))["state"] == "paused"
    # Nobody depends on the others; who comes to depend joins at once.
    assert (await ward.house.put("w2", account_ids=["ca_008"]))["state"] == "paused"
    assert (await ward.house.put("w3", account_ids=["ca_009"]))["state"] == "paused"
    assert (await ward.house.put("w4", account_ids=["ca_010"]))["state"] == "active"
    assert (await ward.house.gate(account_id="ca_008")).reason == "account_disconnected"
    calls = ward.fake.calls["accounts"]
    await recover(ward.house.runtime, Recovering())  # another process: it was done once, for ever
    assert ward.fake.calls["accounts"] == calls


async def test_a_listing_goes_on_where_it_was_and_starts_over_when_its_token_is_gone(ward: Ward) -> None:
    ward.said(1, ago(days=1), account="ca_000")
    for number in range(250):
        ward.fake.set_account(f"ca_{number:03}", "ACTIVE")
    await ward.recover()  # wants it, does it
    await ward.house.run("UPDATE recoveries SET state = 'waiting', page_token = 'of-another-day'")
    await ward.recover()
    (row,) = await ward.house.rows("SELECT state, last_code, page_token FROM recoveries")
    assert (row["state"], row["last_code"], row["page_token"]) == ("waiting", "http_400", None)
    await ward.house.run("UPDATE recoveries SET next_attempt_at = now()")
    await ward.recover()
    (row,) = await ward.house.rows("SELECT state, last_code FROM recoveries")
    assert row["state"] == "done"
    assert len(await ward.log()) == 250


async def test_no_environment_no_listing_until_an_event_names_it(ward: Ward) -> None:
    ward.fake.set_account("ca_1", "EXPIRED")
    await ward.recover()
    assert await ward.log() == []
    assert await environment_of(ward.scope) is None
    await ward.house.told("ACTIVE", account="ca_2")
    assert await environment_of(ward.scope) == Environment("env_1", named=False)


async def test_states_are_reconciled_after_an_outage(ward: Ward) -> None:
    await ward.no_listing()
    for name in ("ca_well", "ca_broke", "ca_gone", "ca_tie"):
        await ward.house.told("ACTIVE", account=name, ago=7200)
        ward.fake.set_account(name, "ACTIVE", updated_at=ago(hours=2))
    await ward.house.put("w1", account_ids=["ca_broke"])
    await ward.house.put("w2", account_ids=["ca_gone"])
    broke_at = ago(minutes=40)
    ward.fake.set_account("ca_broke", "DISCONNECTED", updated_at=broke_at)
    ward.fake.set_account("ca_tie", "EXPIRED", updated_at=ago(hours=3))  # older than what we were told
    del ward.fake.accounts["ca_gone"]
    ward.said(1, ago(days=2))  # so that the provider names its environment
    await ward.down(minutes=60)
    await ward.recover()
    states = [row for row in await ward.log() if row["origin"] == "recovery"]
    by_account = {row["account_id"]: row for row in states}
    assert set(by_account) == {"ca_broke", "ca_gone", "ca_tie"}
    assert by_account["ca_broke"]["occurred_at"] == broke_at
    assert by_account["ca_broke"]["kind"] == "account.disconnected"
    assert (by_account["ca_gone"]["kind"], by_account["ca_gone"]["status"]) == ("account.deleted", "DELETED")
    assert by_account["ca_tie"]["occurred_at"] > ago(minutes=5)
    assert set(ward.fake.asked) == {"ca_broke", "ca_gone", "ca_tie"}
    await ward.house.work()
    assert [(await ward.house.workflow(name))["state"] for name in ("w1", "w2")] == ["paused", "paused"]
    # Asked again, before and after: nothing new.
    assert [await reconcile(ward.scope, "env_1", name) for name in by_account] == [0, 0, 0]


async def test_reconciling_twice_before_the_evaluator_looks_says_it_once(ward: Ward) -> None:
    await ward.house.told("ACTIVE", ago=600)
    ward.fake.set_account("ca_1", "EXPIRED", updated_at=ago(minutes=5))
    assert [await reconcile(ward.scope, "env_1", "ca_1") for _ in range(2)] == [1, 0]


async def test_a_webhook_that_comes_while_we_ask_knows_better(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    await ward.house.told("ACTIVE", ago=600)
    ward.fake.set_account("ca_1", "EXPIRED")
    scope = ward.scope
    real = scope.api.account

    async def slowly(account_id: str) -> Any:
        answer = await real(account_id)
        await ward.house.tell("ACTIVE")
        return answer

    monkeypatch.setattr(scope.api, "account", slowly)
    assert await reconcile(scope, "env_1", "ca_1") == 0


async def test_a_list_that_misses_most_accounts_is_not_believed(ward: Ward) -> None:
    await ward.no_listing()
    for number in range(12):
        await ward.house.tell("ACTIVE", account=f"ca_{number}", ago=7200)
    await evaluate(ward.house.runtime)
    await ward.down(minutes=60)
    await ward.recover()
    assert {row["origin"] for row in await ward.log()} == {"webhook"}


async def test_accounts_of_another_environment_are_left_alone(ward: Ward) -> None:
    await ward.no_listing()
    await ward.house.told("ACTIVE", account="ca_prod", environment="env_2", ago=7200)
    ward.said(1, ago(minutes=10))
    ward.fake.set_account("ca_1", "ACTIVE")
    await ward.down(minutes=60)
    await ward.recover()
    assert ward.fake.asked == []


async def test_recovered_failures_fire_although_they_are_old(ward: Ward) -> None:
    """An outage of three hours does not make three failed refreshes too late to matter."""
    await ward.no_listing()
    ward.fake.set_account("ca_1", "ACTIVE")
    await ward.house.told("ACTIVE", ago=20_000)
    await ward.house.put("w1", account_ids=["ca_1"])
    for number in range(3):
        ward.said(number, ago(hours=2) + timedelta(minutes=number), kind="token.refresh_failed")
    await ward.down(minutes=180)
    await ward.recover()
    await ward.house.work()
    assert [alert["rule_id"] for alert in await ward.house.alerts()] == ["token-refresh-failing"]
    assert (await ward.house.workflow("w1"))["state"] == "paused"


async def test_a_slice_with_too_much_in_it_is_cut(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.recover.SLICE_PAGES_MAX", 2)
    start = ago(minutes=30)
    for number in range(500):
        ward.said(number, start + timedelta(seconds=2 * number))
    assert await fetch_slice(ward.scope.api, start, start + timedelta(minutes=30)) is None
    total = await recover_events(ward.scope, start, ago(), nothing)
    assert total.added == 500
    assert [row["event_id"] for row in await ward.log()] == [f"evt_{number}" for number in range(500)]


async def test_weather_on_the_way_is_waited_out(ward: Ward) -> None:
    ward.said(1, ago(minutes=5))
    ward.fake.weather = [JSONResponse({}, 503), None]
    total = await recover_events(ward.scope, ago(hours=1), ago(), nothing)
    assert total.added == 1


def test_quiet_spans_are_crossed_in_strides() -> None:
    width, at, calls = timedelta(minutes=15), timedelta(0), 0
    while at < timedelta(days=90):
        at, calls = at + width, calls + 1
        width = wider(width, 0)
    assert calls < 120
