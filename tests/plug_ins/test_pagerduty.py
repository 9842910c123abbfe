"""PagerDuty's own: what is sent by the alert's state, whom it wakes, and what the words of its refusals mean."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service import outbound
from service.errors import DeliveryFailed
from service.notify.base import AlertView, MessageRef, Together, WorkflowLine
from service.notify.pagerduty import (
    BODY_BYTES_MAX,
    BUSY_SECONDS,
    PagerDutyConfig,
    PagerDutyNotifier,
    dedup_key,
    encoded,
    event,
)
from service.notify.refusals import is_of_the_destination
from tests.fakes.front import Front, standing
from tests.fakes.pagerduty import ROUTING_KEY, FakePagerDuty, payload_errors
from tests.plug_ins.notifier_cases.views import ACKNOWLEDGED, OPENED, RESOLVED, VIEW

JOINED = Together(total=3, firing=2, resolved=1)


@dataclass
class Ground:
    fake: FakePagerDuty
    url: str
    http: httpx.AsyncClient

    def notifier(self, **changes: Any) -> PagerDutyNotifier:
        given = {"routing_key": ROUTING_KEY, "url": self.url, **changes}
        return PagerDutyNotifier(PagerDutyConfig.model_validate(given), self.http)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
async def ground(front: Front) -> AsyncIterator[Ground]:
    fake = FakePagerDuty()
    front.app = fake.app
    async with outbound.open_client() as http:
        yield Ground(fake, front.url, http)


async def post(ground: Ground, view: AlertView = VIEW) -> MessageRef:
    return await ground.notifier().post(view, delivery_id="d1", possible_repeat=False)


async def test_trigger_acknowledge_and_resolve_are_one_incident_and_one_page(ground: Ground) -> None:
    ref = await post(ground)
    ref = await ground.notifier().update(ACKNOWLEDGED, ref)
    assert ground.fake.states() == ["acknowledged"]
    await ground.notifier().update(RESOLVED, ref)
    assert ground.fake.states() == ["resolved"]
    assert len(ground.fake.pages) == 1
    assert {event["dedup_key"] for event in ground.fake.events} == {"authwatch:0199-alert"}
    assert [event["event_action"] for event in ground.fake.events] == ["trigger", "acknowledge", "resolve"]


async def test_the_event_has_what_the_on_call_needs(ground: Ground) -> None:
    await post(ground)
    [sent] = ground.fake.events
    assert sent["client"] == "Authwatch"
    assert sent["client_url"] == VIEW.url
    assert sent["links"] == [{"href": VIEW.url, "text": "Open in Authwatch"}]
    payload = sent["payload"]
    details = payload.pop("custom_details")
    assert payload == {
        "summary": "Token refresh is failing — GOOGLE_ADS account of clark@example.com",
        "source": "GOOGLE_ADS",
        "severity": "error",
        "timestamp": "2026-11-22T10:00:00Z",
        "component": "clark@example.com",
        "group": "GOOGLE_ADS",
        "class": "token-refresh-failing",
    }
    assert details["workflows"] == ["Nightly report (w1): paused; the gate denies, nothing else was told to stop."]


@pytest.mark.parametrize(
    ("severity", "theirs"), [("P1", "critical"), ("P2", "error"), ("P3", "warning"), ("P4", "info"), ("P9", "error")]
)
async def test_severities_are_theirs(ground: Ground, severity: str, theirs: str) -> None:
    await post(ground, dataclasses.replace(VIEW, severity=severity))
    assert ground.fake.events[0]["payload"]["severity"] == theirs


async def test_a_silent_edit_sends_nothing(ground: Ground) -> None:
    ref = await post(ground)
    for view in (
        VIEW,
        dataclasses.replace(VIEW, together=JOINED, workflows=()),
        dataclasses.replace(VIEW, flapping=True),
    ):
        assert await ground.notifier().update(view, ref) is ref
    assert ground.fake.calls == 1


async def test_an_edit_that_comes_after_the_resolve_pages_nobody(ground: Ground) -> None:
    """One of a group fires again while its resolve was on its way: that alert has a message of its own soon."""
    ref = await ground.notifier().update(RESOLVED, await post(ground))
    calls = ground.fake.calls
    for view in (ACKNOWLEDGED, RESOLVED, dataclasses.replace(VIEW, fired_at=datetime.now(UTC))):
        assert await ground.notifier().update(view, ref) is ref
    assert ground.fake.calls == calls
    assert len(ground.fake.pages) == 1


async def test_what_fires_long_after_the_resolve_and_has_no_message_of_its_own_pages(ground: Ground) -> None:
    """Its message was taken for this one, as the resolve was not told yet: nobody would hear of it."""
    ref = await ground.notifier().update(RESOLVED, await post(ground))
    again = dataclasses.replace(VIEW, fired_at=datetime.now(UTC) - timedelta(seconds=26))
    ref = await ground.notifier().update(again, ref)
    assert ground.fake.states() == ["resolved", "triggered"]
    await ground.notifier().update(RESOLVED, ref)
    assert ground.fake.states() == ["resolved", "resolved"]


@pytest.mark.parametrize("view", [ACKNOWLEDGED, RESOLVED])
async def test_what_is_in_hand_or_over_before_it_could_be_told_pages_nobody(ground: Ground, view: AlertView) -> None:
    await post(ground, view)
    assert ground.fake.pages == []
    assert len(ground.fake.dropped) == 1


async def test_a_resolve_ends_what_a_trigger_of_unknown_fate_left(ground: Ground) -> None:
    ground.fake.weather.break_off_next()
    with pytest.raises(DeliveryFailed):
        await post(ground)
    await post(ground, RESOLVED)
    assert ground.fake.states() == ["resolved"]
    assert ground.fake.dropped == []


async def test_the_key_is_of_the_alert_that_the_message_was_first_about_whoever_leads_now(ground: Ground) -> None:
    first = dataclasses.replace(VIEW, incident_id="0199-alert", together=JOINED)
    ref = await post(ground, first)
    await ground.notifier().update(dataclasses.replace(RESOLVED, id="0199-another", incident_id="0199-alert"), ref)
    assert ground.fake.states() == ["resolved"]


async def test_an_escalation_to_who_was_paged_already_adds_to_that_incident(ground: Ground) -> None:
    await post(ground)
    escalated = dataclasses.replace(VIEW, together=Together(kind="escalation"), incident_id=VIEW.id)
    await ground.notifier().post(escalated, delivery_id="d2", possible_repeat=False)
    assert len(ground.fake.incidents) == len(ground.fake.pages) == 1


async def test_another_integration_key_stops_the_destination_and_is_told_with_its_mend(ground: Ground) -> None:
    with pytest.raises(DeliveryFailed, match="copy it again") as caught:
        await ground.notifier(routing_key="x" * 32).post(VIEW, delivery_id="d1", possible_repeat=False)
    assert (caught.value.code, caught.value.permanent, caught.value.status) == ("key_refused", True, 400)
    assert is_of_the_destination(caught.value.code)


async def test_an_event_that_cannot_be_read_is_of_that_event_alone(ground: Ground) -> None:
    ground.fake.weather.answer_next(400, body='{"status": "invalid event", "errors": ["severity"]}')
    with pytest.raises(DeliveryFailed, match="invalid event") as caught:
        await post(ground)
    assert (caught.value.code, caught.value.permanent) == ("http_400", True)
    assert not is_of_the_destination(caught.value.code)


async def test_a_limit_without_a_time_waits_as_its_documentation_asks(ground: Ground) -> None:
    ground.fake.weather.answer_next(429)
    with pytest.raises(DeliveryFailed) as caught:
        await post(ground)
    assert caught.value.retry_after_seconds == BUSY_SECONDS >= 60


async def test_check_proves_the_key_and_leaves_no_incident(ground: Ground) -> None:
    assert "takes events" in await ground.notifier().check()
    assert (ground.fake.incidents, len(ground.fake.dropped)) == ([], 1)
    with pytest.raises(DeliveryFailed, match="integration key"):
        await ground.notifier(routing_key="x" * 32).check()


def test_what_is_larger_than_theirs_goes_without_its_details() -> None:
    whole = event(VIEW, "k", ROUTING_KEY, OPENED)
    assert encoded(whole) == json.dumps(whole).encode()
    short = json.loads(encoded(whole, bytes_max=len(encoded(whole)) - 1))
    assert "custom_details" not in short["payload"]
    assert short["payload"]["summary"] == whole["payload"]["summary"]


# A few hostile ones and their length: any text at all costs hypothesis minutes here.
HOSTILE = ("", " ", "x", '"\\\n<!channel>', "\U0001f534\ud800", "https://a.example/b?token=c ", "\u202e\x00")
WORDS = st.builds(lambda piece, times: piece * times, st.sampled_from(HOSTILE), st.sampled_from([1, 7, 2_000]))
MAYBE = WORDS | st.none()
LINES = st.builds(WorkflowLine, workflow_id=WORDS, name=MAYBE, state=WORDS, orchestrator_state=MAYBE)
VIEWS = st.builds(
    AlertView,
    id=WORDS,
    rule_id=WORDS,
    severity=WORDS,
    state=st.just("firing"),
    summary=WORDS,
    opened_at=st.just(OPENED),
    fired_at=st.just(OPENED),
    what_to_do=MAYBE,
    account_id=MAYBE,
    connection_id=MAYBE,
    source=MAYBE,
    provider=MAYBE,
    identifier=MAYBE,
    incident_id=MAYBE,
    url=MAYBE | st.just("https://authwatch.example.com/" + "&" * 500),
    workflows=st.lists(LINES, max_size=3).map(lambda some: tuple(some) * 10),
)


@settings(max_examples=60, deadline=None)
@given(VIEWS)
def test_any_alert_is_an_event_that_they_take(view: AlertView) -> None:
    key = dedup_key(view)
    assert 0 < len(key) <= 255
    body = encoded(event(view, key, ROUTING_KEY, OPENED))
    assert len(body) <= BODY_BYTES_MAX
    assert payload_errors(json.loads(body)["payload"]) == []


@pytest.mark.parametrize("key", ["", "short", "x" * 31, "x" * 33, "x" * 31 + " ", "x" * 31 + "-"])
def test_a_key_that_cannot_be_right_stops_the_start(key: str) -> None:
    with pytest.raises(ValidationError, match="integration key") as caught:
        PagerDutyConfig.model_validate({"routing_key": key})
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("url", ["events.pagerduty.com", "ftp://a/", "https://u:p@a/", "https://a/?b=c", "https://"])
def test_a_url_that_cannot_be_right_stops_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        PagerDutyConfig.model_validate({"routing_key": ROUTING_KEY, "url": url})


def test_the_european_endpoint_is_given_by_its_host() -> None:
    config = PagerDutyConfig.model_validate({"routing_key": ROUTING_KEY, "url": "https://events.eu.pagerduty.com"})
    assert config.url == "https://events.eu.pagerduty.com/v2/enqueue"
