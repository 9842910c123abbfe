"""The signed generic webhook itself; what it shares with every orchestrator is in test_orchestrators_conform.py."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.responses import JSONResponse, RedirectResponse, Response

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Orchestrator, Stops
from service.orchestrators.webhook import WebhookConfig, WebhookOrchestrator
from tests.fakes.front import Front, standing
from tests.fakes.orchestrator import PATH, SECRET, FakeOrchestrator

KEY = "0199aaaa-0000-7000-8000-000000000001"
ASK: dict[str, Any] = {"ref": "deployments/nightly", "workflow_id": "w1", "reason": "account ca_1 is gone"}


class Ground:
    """A fake, its address, and the client that every call of a test goes through."""

    def __init__(self, fake: FakeOrchestrator, url: str, http: httpx.AsyncClient) -> None:
        self.fake, self.url, self.http = fake, url, http

    def webhook(
        self, *, url: str | None = None, secret: str = SECRET, timeout_seconds: float = 5.0
    ) -> WebhookOrchestrator:
        config = WebhookConfig.model_validate({"name": "ops", "url": url or self.url + PATH, "secret": secret})
        return WebhookOrchestrator(config, self.http, timeout_seconds=timeout_seconds)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
async def ground(front: Front) -> AsyncIterator[Ground]:
    fake = FakeOrchestrator()
    front.app = fake.app
    async with outbound.open_client() as http:
        yield Ground(fake, front.url, http)


@pytest.fixture
def orchestrator(ground: Ground) -> Orchestrator:
    return ground.webhook()


async def test_a_resume_is_given_what_the_pause_found(orchestrator: Orchestrator, ground: Ground) -> None:
    ground.fake.says_was_paused = False
    ground.fake.by_hand(ASK["ref"], paused=True)
    found = await orchestrator.pause(**ASK, idempotency_key=KEY)
    assert found.was_paused is None
    await orchestrator.resume(**ASK, idempotency_key=f"{KEY}-resume", prior_state=found.prior_state)
    assert ground.fake.paused == {ASK["ref"]}


async def test_a_pause_asked_again_answers_what_it_found_the_first_time(
    orchestrator: Orchestrator, ground: Ground
) -> None:
    await orchestrator.pause(**ASK, idempotency_key=KEY)
    assert (await orchestrator.pause(**ASK, idempotency_key=KEY)).was_paused is False
    assert (await orchestrator.pause(**ASK, idempotency_key=f"{KEY}-2")).was_paused is True


async def test_a_failure_after_the_work_was_done_is_repeated_with_one_effect(
    orchestrator: Orchestrator, ground: Ground
) -> None:
    ground.fake.answer_next(Response("no", 500), after_the_work=True)
    with pytest.raises(DeliveryFailed):
        await orchestrator.pause(**ASK, idempotency_key=KEY)
    assert (await orchestrator.pause(**ASK, idempotency_key=KEY)).prior_state == {"paused": False}
    assert len(ground.fake.pauses) == 1


@pytest.mark.parametrize("trouble", ["refused", "echoed", "slow", "away"])
async def test_the_secret_and_the_signature_are_in_no_error_and_no_log(
    orchestrator: Orchestrator, ground: Ground, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    target = ground.webhook(timeout_seconds=0.3)
    if trouble == "refused":
        ground.fake.answer_next(Response("no", 401))
    elif trouble == "echoed":
        ground.fake.answer_next(JSONResponse({"secret": SECRET, "token": "whsec_abc"}, 500))
    elif trouble == "slow":
        ground.fake.slow_seconds = 0.6
    else:
        target = ground.webhook(url="http://127.0.0.1:9/hook/my-private-path")
    with pytest.raises(DeliveryFailed) as caught:
        await target.pause(**ASK, idempotency_key=KEY)
    said = f"{caught.value} {caught.value!r} {vars(caught.value)} {target!r} {orchestrator!r}"
    assert SECRET not in said
    assert SECRET.removeprefix("whsec_") not in said
    assert "my-private-path" not in said
    assert not any(SECRET.removeprefix("whsec_") in record.getMessage() for record in caplog.records)
    # The library's own debug lines show headers; a signature there would let its reader replay the message.
    assert not any(signature_of(ground) in record.getMessage() for record in caplog.records if signature_of(ground))


def signature_of(ground: Ground) -> str:
    return ground.fake.requests[0][0]["webhook-signature"] if ground.fake.requests else ""


# The webhook itself


async def test_the_message_is_what_the_standard_webhooks_package_accepts(ground: Ground) -> None:
    await ground.webhook().pause(**ASK, idempotency_key=KEY)
    ((headers, message),) = ground.fake.requests
    assert ground.fake.refused == []
    assert message["type"] == "workflow.pause"
    assert message["data"] == {**ASK, "idempotency_key": KEY}
    assert headers["webhook-id"] == headers["idempotency-key"] == KEY
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 5
    assert headers["content-type"] == "application/json"


async def test_a_retry_keeps_its_id_and_takes_a_new_timestamp(ground: Ground) -> None:
    await ground.webhook().pause(**ASK, idempotency_key=KEY)
    await asyncio.sleep(1.1)
    await ground.webhook().pause(**ASK, idempotency_key=KEY)
    first, second = (headers for headers, _ in ground.fake.requests)
    assert first["webhook-id"] == second["webhook-id"]
    assert int(first["webhook-timestamp"]) < int(second["webhook-timestamp"])


async def test_another_secret_is_refused_for_good(ground: Ground) -> None:
    with pytest.raises(DeliveryFailed) as caught:
        await ground.webhook(secret="whsec_" + "QUJD" * 10).pause(**ASK, idempotency_key=KEY)
    assert (caught.value.status, caught.value.permanent) == (401, True)
    assert ground.fake.pauses == []
    assert len(ground.fake.refused) == 1


async def test_any_text_of_ours_arrives_as_it_was(ground: Ground) -> None:
    ask: dict[str, Any] = {"ref": 'r"\\', "workflow_id": "wörk\u2028flow", "reason": "\U0001f534 <&> \x00"}
    await ground.webhook().pause(**ask, idempotency_key=KEY)
    assert ground.fake.requests[0][1]["data"] == {**ask, "idempotency_key": KEY}


async def test_410_says_that_the_receiver_takes_no_more(ground: Ground) -> None:
    ground.fake.answer_next(Response(status_code=410))
    with pytest.raises(DeliveryFailed, match="takes no more") as caught:
        await ground.webhook().pause(**ASK, idempotency_key=KEY)
    assert caught.value.code == "gone"


async def test_a_redirect_is_not_followed(ground: Ground) -> None:
    ground.fake.answer_next(RedirectResponse(ground.url + PATH, status_code=307))
    with pytest.raises(DeliveryFailed, match="final address"):
        await ground.webhook().pause(**ASK, idempotency_key=KEY)
    assert len(ground.fake.requests) == 1


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"", Answer(status="paused", detail="")),
        (b"ok", Answer(status="paused", detail="")),
        (b"[1]", Answer(status="paused", detail="")),
        (b"\xff\xfe", Answer(status="paused", detail="")),
        (b"[" * 10_000, Answer(status="paused", detail="")),
        (b'{"detail": 5, "state": "on"}', Answer(status="paused", detail="")),
        (b'{"detail": "done\\u0000", "state": {"a": 1}}', Answer(status="paused", detail="done", prior_state={"a": 1})),
        (b'{"state": {"a": "\\u0000"}}', Answer(status="paused", detail="")),
        (b'{"state": {"a": "\\ud800"}}', Answer(status="paused", detail="")),
        (b'{"state": {"a": NaN}}', Answer(status="paused", detail="")),
        (b'{"state": {"a": "' + b"x" * 5_000 + b'"}}', Answer(status="paused", detail="")),
        (b'{"detail": "' + b"x" * 5_000 + b'"}', Answer(status="paused", detail="x" * 300)),
        (b'{"was_paused": true}', Answer(status="paused", detail="", was_paused=True)),
        (b'{"was_paused": false}', Answer(status="paused", detail="", was_paused=False)),
        (b'{"was_paused": "false"}', Answer(status="paused", detail="")),
        (b'{"was_paused": 1, "stops": [true]}', Answer(status="paused", detail="")),
        (
            b'{"stops": {"scheduled_starts": true, "manual_starts": false, "running_work": "no"}}',
            Answer(status="paused", detail="", stops=Stops(scheduled_starts=True, manual_starts=False)),
        ),
        (b'{"detail": "' + b"x" * 20_000 + b'"}', Answer(status="paused", detail="")),
    ],
)
async def test_a_2xx_is_done_whatever_its_body_and_what_is_kept_is_bounded(
    ground: Ground, body: bytes, answer: Answer
) -> None:
    ground.fake.answer_next(Response(body, 202))
    assert await ground.webhook().pause(**ASK, idempotency_key=KEY) == answer


@pytest.mark.parametrize("key", ["", "a.b", "a b", "a\r\nx: y", "ümlaut", "k" * 300])
async def test_a_key_that_cannot_be_a_webhook_id_is_never_sent(ground: Ground, key: str) -> None:
    send: list[Callable[..., Awaitable[Answer]]] = [ground.webhook().pause, ground.webhook().resume]
    for call in send:
        with pytest.raises(DeliveryFailed) as caught:
            await call(**ASK, idempotency_key=key)
        assert (caught.value.code, caught.value.permanent) == ("key_invalid", True)
    assert ground.fake.requests == []
    assert ground.fake.refused == []


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "not a secret", "whsec_***"])
def test_a_secret_that_cannot_be_right_stops_the_start_without_being_shown(secret: str) -> None:
    with pytest.raises(ValidationError, match="secret") as caught:
        WebhookConfig.model_validate({"url": "https://ops.example.com/hook", "secret": secret})
    assert not secret.removeprefix("whsec_") or secret not in str(caught.value)


@pytest.mark.parametrize("url", ["", "ops.example.com", "ftp://a/", "https:///x", "https://u:p@a/", "https://a/#x"])
def test_a_url_that_cannot_be_right_stops_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        WebhookConfig.model_validate({"url": url, "secret": SECRET})


def test_the_secret_is_not_in_the_configs_repr() -> None:
    config = WebhookConfig.model_validate({"url": "https://ops.example.com/hook", "secret": SECRET})
    assert SECRET not in repr(config)
    assert SECRET.removeprefix("whsec_") not in repr(config)
