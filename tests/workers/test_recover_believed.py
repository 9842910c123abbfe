"""What the provider's API says is not believed blindly: accounts end only where the answer can be about ours."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from service.errors import DeliveryFailed
from service.provider_apis.base import EventsPage
from service.recover import environment_of, recover_events
from tests.workers.test_recover import Ward, ago, nothing, ward
from workers.watch import Watch, watch

__all__ = ["ward"]


async def away_for_an_hour(ward: Ward, *accounts: str) -> None:
    """Accounts that were well; then an outage, recovered."""
    await ward.no_listing()
    for account in accounts:
        await ward.house.told("ACTIVE", account=account, ago=7200)
    await ward.down(minutes=60)
    await ward.recover()


async def recovered(ward: Ward) -> list[str]:
    return [row["kind"] for row in await ward.log() if row["origin"] == "recovery"]


async def test_an_empty_list_ends_no_account(ward: Ward) -> None:
    ward.said(1, ago(days=2))
    await away_for_an_hour(ward, "ca_1", "ca_2")
    assert (await recovered(ward), ward.fake.asked) == ([], [])
    assert [row["state"] for row in await ward.house.rows("SELECT state FROM recoveries")] == ["done"]


async def test_a_list_of_an_environment_that_only_we_name_ends_no_account(ward: Ward) -> None:
    ward.fake.set_account("ca_1", "ACTIVE")
    await away_for_an_hour(ward, "ca_1", "ca_2")
    assert (await recovered(ward), ward.fake.asked) == ([], [])


async def test_an_account_that_is_listed_and_has_no_details_is_left_alone(ward: Ward) -> None:
    ward.said(1, ago(days=2))
    ward.fake.set_account("ca_1", "EXPIRED")
    ward.fake.set_account("ca_2", "EXPIRED")
    ward.fake.without_details.add("ca_1")
    await away_for_an_hour(ward, "ca_1", "ca_2")
    assert set(ward.fake.asked) == {"ca_1", "ca_2"}
    assert await recovered(ward) == ["account.reauth_required"]


async def test_credentials_of_another_environment_are_refused_and_told(ward: Ward) -> None:
    """Neither its events come in through this source's door, nor does its list end our accounts."""
    ward.said(1, ago(minutes=30))
    ward.fake.set_account("ca_9", "ACTIVE")
    await ward.no_listing()
    await ward.house.told("ACTIVE", account="ca_1", environment="env_2", ago=7200)
    await ward.down(minutes=60)
    for _ in range(3):
        await ward.recover()
        await ward.house.run("UPDATE recoveries SET next_attempt_at = now()")
    assert await recovered(ward) == []
    await watch(ward.house.runtime, Watch())
    (alert,) = [row for row in await ward.house.alerts() if row["group_key"].startswith("scalekit:outage")]
    assert alert["rule_id"] == "recovery-failing"
    assert "for the environment env_1, of which scalekit never sent anything" in alert["summary"]
    with pytest.raises(DeliveryFailed) as caught:
        await environment_of(ward.scope)
    assert (caught.value.code, caught.value.permanent) == ("environment_foreign", True)


async def test_a_listing_is_not_gone_on_with_in_another_environment(ward: Ward) -> None:
    ward.said(1, ago(days=1), account="ca_000")
    ward.fake.set_account("ca_000", "ACTIVE")
    await ward.recover()
    await ward.house.run("UPDATE recoveries SET state = 'waiting', environment_id = 'env_2'")
    await ward.recover()
    (row,) = await ward.house.rows("SELECT state, last_code FROM recoveries WHERE environment_id = 'env_2'")
    assert (row["state"], row["last_code"]) == ("waiting", "environment_foreign")


async def test_all_that_came_is_kept_whatever_time_its_span_meant(ward: Ward) -> None:
    """Whether the provider's filter goes by the time of the event or by when it was written down is not documented."""
    ward.said(1, ago(minutes=30))
    ward.said(2, ago(hours=30))
    everything = (await ward.scope.api.events_page(ago(days=3), ago(), None)).bodies

    class Api:
        async def events_page(self, _since: datetime, _until: datetime, _token: str | None) -> EventsPage:
            return EventsPage(everything, None)

    total = await recover_events(replace(ward.scope, api=Api()), ago(hours=1), ago(), nothing)  # type: ignore[arg-type]
    assert {row["event_id"] for row in await ward.log()} == {"evt_1", "evt_2"}
    assert total.added == 2


async def test_a_second_with_more_in_it_than_one_piece_is_kept_page_by_page(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.recover.SLICE_PAGES_MAX", 1)
    start = ago(minutes=5)
    for number in range(350):
        ward.said(number, start + timedelta(milliseconds=number))
    total = await recover_events(ward.scope, start, start + timedelta(seconds=1), nothing)
    assert (total.found, total.added, len(await ward.log())) == (350, 350, 350)
