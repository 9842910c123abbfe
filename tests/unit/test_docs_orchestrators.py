"""docs/orchestrators.md says nothing that is not so: the messages shown are ours, and the answer shown is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.workflows import PAUSE_SECONDS_MAX
from service.import_settings import EVERY_MAX, EVERY_MIN, ImportSettings
from service.orchestrators import ORCHESTRATORS, webhook
from service.orchestrators.base import Listed, Stops
from service.orchestrators.proposals import SUFFIX_CHARS, workflow_id_of
from service.orchestrators.webhook import WebhookConfig, WebhookOrchestrator, read_answer
from service.settings import Environment, read_config
from tests.fakes.orchestrator import SECRET
from workers.outcomes import CREDENTIALS_GIVE_UP_AFTER

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "orchestrators.md").read_text(encoding="utf-8")
PAUSE, ANSWER, RESUME = (
    json.loads(block)
    for block in re.findall(
        r"^```json\n(.*?)^```$",
        TEXT.partition("## To write a receiver")[2].partition("\n## ")[0],
        re.MULTILINE | re.DOTALL,
    )
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
    assert f"for {CREDENTIALS_GIVE_UP_AFTER.days} days; the alert" in TEXT
    every = ImportSettings.model_fields["every"].default
    assert f"every {every.seconds // 60} minutes unless" in TEXT
    assert (EVERY_MIN.total_seconds(), EVERY_MAX.days, SUFFIX_CHARS) == (60, 1, 8)
    assert workflow_id_of(Listed(ref="1", name="Sync Mail")) == "sync-mail"


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
def test_the_configuration_shown_is_taken(block: str, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(block)
    file = read_config(tmp_path / "config.yml", Environment(dict.fromkeys(re.findall(r"\$\{(\w+)\}", block), SECRET)))
    assert file.orchestrators or file.imports
    for name, section in file.orchestrators.items():
        ORCHESTRATORS[section["kind"]].Config.model_validate({**section, "name": name})
