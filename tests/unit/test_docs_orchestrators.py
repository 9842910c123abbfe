"""docs/orchestrators.md says nothing that is not so: the messages shown are ours, and the answer shown is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx

from service.api.workflows import PAUSE_SECONDS_MAX
from service.orchestrators import webhook
from service.orchestrators.base import Stops
from service.orchestrators.webhook import WebhookConfig, WebhookOrchestrator, read_answer
from tests.fakes.orchestrator import SECRET

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "orchestrators.md").read_text(encoding="utf-8")
PAUSE, ANSWER, RESUME = (
    json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
)


async def sent(message: dict[str, Any]) -> dict[str, Any]:
    """What we post for the data of this message."""
    posted: list[dict[str, Any]] = []

    def take(request: httpx.Request) -> httpx.Response:
        posted.append(json.loads(request.content))
        return httpx.Response(200, stream=httpx.ByteStream(b""))

    async with httpx.AsyncClient(transport=httpx.MockTransport(take)) as http:
        config = WebhookConfig.model_validate({"url": "https://jobs.example.com/hooks", "secret": SECRET})
        orchestrator = WebhookOrchestrator(config, http)
        call = orchestrator.pause if message["type"] == "workflow.pause" else orchestrator.resume
        await call(**message["data"])
    return posted[0]


async def test_the_messages_shown_are_the_ones_we_post() -> None:
    for message in (PAUSE, RESUME):
        posted = await sent(message)
        assert posted | {"timestamp": message["timestamp"]} == message


def test_the_answer_shown_is_read_whole_and_comes_back_with_the_resume() -> None:
    answer = read_answer(json.dumps(ANSWER).encode(), "paused")
    assert answer.detail == ANSWER["detail"]
    assert answer.was_paused is ANSWER["was_paused"]
    assert answer.stops == Stops(**ANSWER["stops"])
    assert answer.prior_state == ANSWER["state"] == RESUME["data"]["prior_state"]


def test_its_numbers_are_the_codes() -> None:
    assert f"at most {PAUSE_SECONDS_MAX // 86400} days" in TEXT
    assert f"at most {webhook.STATE_CHARS_MAX:,} characters" in TEXT
