"""EXPIRED accounts are asked for until they are well: within bounds, only where the credentials serve, and once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.responses import JSONResponse

from service import health
from service.providers import PROVIDERS
from service.store import readers
from service.store.expired import Due
from service.store.session import begin
from tests.conftest import SECRET
from tests.end_to_end.running import until
from tests.fakes import serve
from tests.fakes.scalekit_api import CLIENT_ID, CLIENT_SECRET, FakeScalekit
from tests.make import make_receipt
from tests.workers.house import House, make_event, open_house
from workers import expired
from workers.evaluate import evaluate
from workers.expired import Asking, Round, ask_expired, pause_of, wait_of
from workers.reach import RECOVER, Reach

NOW = datetime(2026, 11, 26, 7, tzinfo=UTC)


@dataclass
class Ward:
    house: House
    fake: FakeScalekit

    async def round(self) -> Round | None:
        return await ask_expired(self.house.runtime, Asking())

    async def reach(self, *served: str) -> None:
        async with begin(self.house.runtime.engine) as conn:
            await readers.beat(conn, RECOVER, await readers.clock(conn), Reach(served=frozenset(served)).write())

    async def expire(self, *account_ids: str, ago: float = 120.0) -> None:
        at = datetime.now(UTC) - timedelta(seconds=ago)
        await self.house.accept(
            *(make_event("EXPIRED", at + timedelta(microseconds=n), account=id_) for n, id_ in enumerate(account_ids))
        )
        await evaluate(self.house.runtime)
        for account_id in account_ids:
            self.fake.set_account(account_id, "EXPIRED", updated_at=at)

    async def well(self, account_id: str, at: datetime) -> None:
        self.fake.set_account(account_id, "ACTIVE", updated_at=at)

    async def come_due(self) -> None:
        """As if the time until the next question had gone by."""
        await self.house.run("UPDATE expired_asks SET next_ask_at = now() - interval '1 second'")
        await self.house.run("UPDATE readers SET next_attempt_at = NULL WHERE name = 'expired-accounts'")

    async def recovered(self) -> list[tuple[str, str]]:
        rows = await self.house.rows(
            "SELECT account_id, status FROM events WHERE origin = 'recovery' ORDER BY position"
        )
        return [(row["account_id"], row["status"]) for row in rows]


@pytest.fixture
async def ward(database_url: str, tmp_path: Path) -> AsyncIterator[Ward]:
    fake = FakeScalekit()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(fake.app))
        variables = {
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "SCALEKIT_ENV_URL": url,
            "SCALEKIT_CLIENT_ID": CLIENT_ID,
            "SCALEKIT_CLIENT_SECRET": CLIENT_SECRET,
        }
        house = await stack.enter_async_context(open_house(database_url, tmp_path / "house", variables=variables))
        made = Ward(house, fake)
        await made.reach("scalekit")
        yield made


async def test_a_recovery_whose_webhook_never_comes_resolves_and_resumes(ward: Ward) -> None:
    house = ward.house
    await house.put(account_ids=["ca_1"])
    await ward.expire("ca_1")
    assert (await house.workflow())["state"] == "paused"
    at = datetime.now(UTC) - timedelta(seconds=20)
    await ward.well("ca_1", at)
    done = await ward.round()
    assert done is not None
    assert (done.asked, done.recovered) == (1, 1)
    assert await ward.recovered() == [("ca_1", "ACTIVE")]

    async def resumed() -> bool:
        await evaluate(house.runtime)
        return bool((await house.workflow())["state"] == "active")

    await until(resumed, 10)
    assert [alert["state"] for alert in await house.alerts()] == ["resolved"]
    # The provider's own word comes late, and is nothing new.
    before = await house.kinds()
    body = PROVIDERS["scalekit"].example(
        "connected_account.status_updated",
        account_id="ca_1",
        connection_id="conn_1",
        event_id="evt_late",
        now=at,
        status="ACTIVE",
    )
    raw = json.dumps(json.loads(body) | {"environment_id": "env_1"}).encode()
    read = PROVIDERS["scalekit"].normalise(raw, "msg")
    await house.accept(make_receipt(body=raw, **{name: getattr(read, name) for name in read.__slots__}))
    await evaluate(house.runtime)
    assert await house.kinds() == before
    assert before.count("workflow.resumed") == before.count("alert.resolved") == 1
    assert await ward.round() is None, "nobody is EXPIRED any more"
    assert ward.fake.asked == ["ca_1"]


async def test_two_answers_about_one_recovery_are_one_event(ward: Ward) -> None:
    await ward.expire("ca_1")
    await ward.well("ca_1", datetime.now(UTC) - timedelta(seconds=20))
    for _ in range(2):
        await ward.round()
        await ward.come_due()
    assert await ward.recovered() == [("ca_1", "ACTIVE")]


@pytest.mark.parametrize("status", ["EXPIRED", "PENDING_AUTH", "PENDING_VERIFICATION", "DISCONNECTED", None])
async def test_any_other_answer_changes_nothing(ward: Ward, status: str | None) -> None:
    await ward.expire("ca_1")
    if status is None:
        ward.fake.accounts.clear()
    else:
        ward.fake.set_account("ca_1", status, updated_at=datetime.now(UTC))
    rows = await ward.house.rows("SELECT count(*) AS n FROM events")
    done = await ward.round()
    assert done is not None
    assert (done.asked, done.recovered, done.trouble) == (1, 0, None)
    assert ward.fake.asked == ["ca_1"]
    assert await ward.house.rows("SELECT count(*) AS n FROM events") == rows


async def test_once_a_minute_and_not_right_after_it_broke(ward: Ward) -> None:
    await ward.expire("ca_old")
    await ward.expire("ca_new", ago=1)
    for _ in range(3):
        await ward.round()
    assert ward.fake.asked == ["ca_old"]
    (row,) = await ward.house.rows("SELECT next_ask_at - asked_at AS wait FROM expired_asks")
    assert timedelta(seconds=54) <= row["wait"] <= timedelta(seconds=66)
    await ward.come_due()
    await ward.round()
    assert ward.fake.asked == ["ca_old"] * 2


async def test_a_round_is_bounded_and_begins_with_what_holds_a_workflow_and_what_broke_last(ward: Ward) -> None:
    many = [f"ca_{n:03}" for n in range(70)]
    await ward.house.put(account_ids=["ca_000"])
    await ward.expire(*many, ago=600)
    await ward.expire("ca_last", ago=60)
    done = await ward.round()
    assert done is not None
    places = expired.FIRST_PER_ROUND + expired.LONGEST_PER_ROUND
    assert done.asked == len(ward.fake.asked) == places - 1, "ca_000 has both claims"
    assert {"ca_000", "ca_last"} <= set(
        ward.fake.asked[: 2 * expired.IN_FLIGHT_MAX]
    )  # those in flight arrive in any order
    assert {f"ca_{n:03}" for n in range(1, 10)} <= set(ward.fake.asked), (
        "who has waited longest has a part of the places"
    )
    assert 1 < ward.fake.most_at_once <= expired.IN_FLIGHT_MAX
    await ward.round()
    assert sorted(ward.fake.asked) == sorted([*many, "ca_last"]), "each once"


async def test_a_provider_that_asks_for_patience_gets_it(ward: Ward) -> None:
    await ward.expire(*(f"ca_{n}" for n in range(9)))
    ward.fake.weather = [JSONResponse({}, 429, {"retry-after": "900"})] * 2
    ward.fake.calls.clear()
    done = await ward.round()
    assert done is not None
    assert done.trouble is not None
    assert done.asked == 0
    (row,) = await ward.house.rows(
        "SELECT next_attempt_at - now() AS wait, last_code FROM readers WHERE name = 'expired-accounts'"
    )
    assert timedelta(seconds=880) < row["wait"] <= timedelta(seconds=900)
    assert row["last_code"] == "http_429"
    calls = ward.fake.calls.total()
    assert await ward.round() is None, "nobody is asked before"
    assert ward.fake.calls.total() == calls
    async with begin(ward.house.runtime.engine) as conn:
        said = (await health.report(conn, []))["expired"]
    assert (said["accounts"], said["last_code"], said["paused_until"] is None) == (9, "http_429", False)


async def test_after_trouble_one_question_shows_whether_it_is_over(ward: Ward) -> None:
    await ward.expire(*(f"ca_{n}" for n in range(9)))
    ward.fake.broken_details = {"ca_8"}  # the provider chokes on this one, whoever asks
    done = await ward.round()
    assert done is not None
    assert done.trouble is not None
    before = len(ward.fake.asked)
    assert before <= expired.IN_FLIGHT_MAX
    await ward.house.run("UPDATE readers SET next_attempt_at = NULL WHERE name = 'expired-accounts'")
    probe = await ward.round()
    assert probe is not None
    assert (probe.asked, probe.trouble) == (1, None)
    assert "ca_8" not in ward.fake.asked[before:], "it is no sign of how the provider is"
    await ward.round()
    assert set(ward.fake.asked) == {f"ca_{n}" for n in range(9)}


async def test_one_account_that_cannot_be_asked_for_keeps_nobody_waiting(ward: Ward) -> None:
    await ward.expire("ca_1", "other_1", "ca_2")
    await ward.well("ca_2", datetime.now(UTC))
    done = await ward.round()
    assert done is not None
    assert (done.asked, done.failed, done.recovered, done.trouble) == (3, 1, 1, None)


async def test_two_workers_ask_once(ward: Ward) -> None:
    await ward.expire("ca_1")
    await asyncio.gather(*(ward.round() for _ in range(4)))
    assert ward.fake.asked == ["ca_1"]


async def test_only_what_the_credentials_serve_is_asked_for(ward: Ward) -> None:
    await ward.expire("ca_1")
    for served in ([], ["elsewhere"]):
        await ward.reach(*served)
        assert await ward.round() is None
    await ward.reach("scalekit")
    event = make_event("EXPIRED", datetime.now(UTC) - timedelta(minutes=5), account="ca_dev", environment="env_dev")
    await ward.house.accept(event)
    await evaluate(ward.house.runtime)
    done = await ward.round()
    assert (done, ward.fake.asked) == (Round(until=done.until if done else 0.0), []), (
        "of two environments neither is named"
    )
    ward.fake.say(json.loads(make_event("ACTIVE", NOW, account="ca_9", event_id="evt_9").body))
    await ward.round()
    assert ward.fake.asked == ["ca_1"], "and only those of the credentials' own environment"


async def test_without_credentials_nobody_is_asked(database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, tmp_path / "house", variables={"SCALEKIT_WEBHOOK_SECRET": SECRET}) as house:
        await house.told("EXPIRED", ago=120)
        assert await ask_expired(house.runtime, Asking()) is None


async def test_who_is_well_again_is_forgotten(ward: Ward) -> None:
    await ward.expire("ca_1", "ca_2")
    await ward.round()
    await ward.house.told("ACTIVE", account="ca_1")
    await ward.come_due()
    await ward.round()
    assert [row["account_id"] for row in await ward.house.rows("SELECT account_id FROM expired_asks")] == ["ca_2"]


@pytest.mark.parametrize(
    ("age", "least", "most"),
    [
        (timedelta(minutes=2), timedelta(seconds=54), timedelta(seconds=66)),
        (timedelta(hours=25), timedelta(minutes=54), timedelta(minutes=66)),
        (timedelta(days=31), timedelta(hours=21), timedelta(hours=27)),
        (None, timedelta(hours=21), timedelta(hours=27)),
    ],
)
def test_the_longer_it_is_broken_the_less_often_it_is_asked_for(
    age: timedelta | None, least: timedelta, most: timedelta
) -> None:
    since = NOW - age if age is not None else None
    waits = [wait_of(Due("ca_1", since), NOW, chance / 10) for chance in range(11)]
    assert least <= min(waits) < max(waits) <= most
    assert len(set(waits)) == 11, "spread out"


async def test_what_holds_a_workflow_is_asked_for_every_minute_however_long_it_has_been_broken(ward: Ward) -> None:
    await ward.house.put(account_ids=["ca_held"])
    await ward.expire("ca_held", "ca_forgotten", ago=26 * 3600)
    await ward.round()
    rows = await ward.house.rows("SELECT account_id, next_ask_at - asked_at AS wait FROM expired_asks")
    waits = {row["account_id"]: row["wait"] for row in rows}
    assert waits["ca_held"] <= timedelta(seconds=66)
    assert waits["ca_forgotten"] >= timedelta(minutes=54)


def test_pauses_grow_and_end() -> None:
    assert [pause_of(n, None).total_seconds() for n in (0, 1, 2, 50)] == [10, 20, 40, 600]
    assert pause_of(0, 1200.0) == timedelta(minutes=20)
    assert pause_of(3, 1.0) == timedelta(seconds=80)
    assert pause_of(0, 86_400.0) == timedelta(hours=1)
