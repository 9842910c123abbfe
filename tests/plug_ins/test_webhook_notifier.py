"""The webhook's own: signed so that the Standard Webhooks package takes it, each state once, and nothing secret in it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.responses import RedirectResponse

from service import outbound
from service.errors import DeliveryFailed
from service.notify.base import MessageRef, Together, WorkflowLine
from service.notify.webhook import BODY_BYTES_MAX, WORKFLOWS_MAX, WebhookConfig, WebhookNotifier, encoded, message
from tests.fakes.front import Front, standing
from tests.fakes.receiver import PATH, SECRET, FakeReceiver
from tests.plug_ins.notifier_cases.views import ACKNOWLEDGED, OPENED, RESOLVED, VIEW


@dataclass
class Ground:
    fake: FakeReceiver
    url: str
    http: httpx.AsyncClient

    def notifier(self, **changes: Any) -> WebhookNotifier:
        given = {"url": self.url + PATH, "secret": SECRET, **changes}
        return WebhookNotifier(WebhookConfig.model_validate(given), self.http)

    async def post(self, delivery_id: str = "0199-alert:ops.hook") -> MessageRef:
        return await self.notifier().post(VIEW, delivery_id=delivery_id, possible_repeat=False)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
async def ground(front: Front) -> AsyncIterator[Ground]:
    fake = FakeReceiver()
    front.app = fake.app
    async with outbound.open_client() as http:
        yield Ground(fake, front.url, http)


async def test_every_state_is_told_once_whatever_is_sent_again(ground: Ground) -> None:
    ref = await ground.post()
    await ground.post()
    for view in (ACKNOWLEDGED, RESOLVED):
        ground.fake.weather.answer_next(500, after_the_work=True)
        with pytest.raises(DeliveryFailed):
            await ground.notifier().update(view, ref)
        ref = await ground.notifier().update(view, ref)
    assert ground.fake.types() == ["alert.firing", "alert.acknowledged", "alert.resolved"]
    assert len(ground.fake.requests) == 6
    assert ground.fake.refused == []
    assert len({sent["data"]["message"]["id"] for _, sent in ground.fake.requests}) == 1


async def test_the_headers_are_those_of_the_scheme(ground: Ground) -> None:
    await ground.post()
    [(headers, sent)] = ground.fake.requests
    assert headers["webhook-id"].startswith("msg_")
    assert "." not in headers["webhook-id"]
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 5
    assert (sent["type"], sent["version"]) == ("alert.firing", 1)


async def test_an_edit_within_a_state_and_one_that_goes_back_send_nothing(ground: Ground) -> None:
    ref = await ground.post()
    assert await ground.notifier().update(dataclasses.replace(VIEW, workflows=()), ref) is ref
    ref = await ground.notifier().update(RESOLVED, ref)
    assert await ground.notifier().update(VIEW, ref) is ref
    assert len(ground.fake.requests) == 2


async def test_another_message_of_the_same_incident_has_another_id(ground: Ground) -> None:
    await ground.post()
    repeat = dataclasses.replace(VIEW, together=Together(kind="repeat", firing=1), incident_id=VIEW.id)
    await ground.notifier().post(repeat, delivery_id="0199-repeat:ops.hook", possible_repeat=False)
    first, second = (sent["data"]["message"] for sent in ground.fake.taken)
    assert first["id"] != second["id"]
    assert first["incident_id"] == second["incident_id"] == VIEW.id
    assert (first["kind"], second["kind"]) == ("first", "repeat")


async def test_another_secret_is_refused_and_stops_the_destination(ground: Ground) -> None:
    with pytest.raises(DeliveryFailed) as caught:
        await ground.notifier(secret="whsec_" + "QUJD" * 10).post(VIEW, delivery_id="d1", possible_repeat=False)
    assert (caught.value.code, caught.value.permanent) == ("http_401", True)
    assert ground.fake.taken == []


async def test_410_says_that_the_receiver_takes_no_more(ground: Ground) -> None:
    ground.fake.weather.answer_next(410)
    with pytest.raises(DeliveryFailed, match="takes no more") as caught:
        await ground.post()
    assert (caught.value.code, caught.value.permanent) == ("gone", True)


async def test_a_redirect_is_not_followed(ground: Ground) -> None:
    """It would carry what we say to a place that nobody configured, an address inside the house for one."""
    ground.fake.weather.answer_next(307, headers=dict(RedirectResponse(ground.url + PATH).headers))
    with pytest.raises(DeliveryFailed, match="final address"):
        await ground.post()
    assert ground.fake.calls == 1


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"])
async def test_a_proxy_in_the_environment_is_not_used(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    async with outbound.open_client() as http:
        await Ground(ground.fake, ground.url, http).post()
    assert len(ground.fake.taken) == 1


def test_nothing_of_the_outside_goes_on_as_it_came() -> None:
    """A link in a provider's text may let its reader act as that user; a token in it is one."""
    view = dataclasses.replace(
        VIEW,
        summary="see https://evil.example/authorize?code=1 \u202e now\n\nBearer abcdefghijklmnop1234567890",
        resolved_reason="refresh_token=1//0g-abcdefghijklmnopqrstuvwxyz",
        workflows=(
            WorkflowLine(workflow_id="w1", name="n", state="paused", orchestrator_state="pause failed: https://x/y"),
        ),
    )
    said = json.dumps(message(view, "d1", OPENED))
    for secret in ("evil.example", "abcdefghijklmnop1234567890", "0g-abcdefghij", "https://x/y", "\\u202e", "\\n"):
        assert secret not in said


def test_the_largest_alert_is_bounded() -> None:
    filler = "\U0001f534&" * 5_000
    line = WorkflowLine(
        workflow_id=filler, name=filler, state="paused", orchestrator=filler, orchestrator_state=filler[:300]
    )
    view = dataclasses.replace(
        VIEW,
        summary=filler,
        what_to_do=filler,
        identifier=filler,
        resolved_reason=filler,
        together=Together(total=9_000, names=(filler,) * 200),
        workflows=(line,) * 9_000,
    )
    body = encoded(view, "d1", datetime.now(UTC))
    assert len(body) <= BODY_BYTES_MAX
    assert json.loads(body)["data"]["alert"]["workflows_total"] == 9_000


def test_as_many_workflows_are_told_as_there_is_room_for() -> None:
    line = WorkflowLine(workflow_id="w1", name="Nightly", state="paused")
    sent = json.loads(encoded(dataclasses.replace(VIEW, workflows=(line,) * 60), "d1", OPENED))
    assert len(sent["data"]["alert"]["workflows"]) == WORKFLOWS_MAX


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "not a secret", "whsec_***"])
def test_a_secret_that_cannot_be_right_stops_the_start_without_being_shown(secret: str) -> None:
    with pytest.raises(ValidationError, match="secret") as caught:
        WebhookConfig.model_validate({"url": "https://ops.example.com/hook", "secret": secret})
    assert not secret.removeprefix("whsec_") or secret not in str(caught.value)


@pytest.mark.parametrize("url", ["", "ops.example.com", "ftp://a/", "https:///x", "https://u:p@a/", "https://a/#x"])
def test_a_url_that_cannot_be_right_stops_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        WebhookConfig.model_validate({"url": url, "secret": SECRET})
