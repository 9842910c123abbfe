"""What n8n alone can do to a pause: drafts, versions that go, archives, old words, and answers that only look like one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Orchestrator
from service.orchestrators.n8n import CALLS_AT_ONCE, PAGE_WORKFLOWS, WORKFLOW_BYTES_MAX, N8nConfig, open_n8n
from tests.fakes.front import Front, standing
from tests.fakes.n8n import API_KEY, REF, FakeN8n, Workflow

ASK: dict[str, Any] = {"ref": REF, "workflow_id": "w1", "reason": "account ca_1 is gone", "idempotency_key": "k1"}


class Ground:
    def __init__(self, fake: FakeN8n, url: str, http: httpx.AsyncClient) -> None:
        self.fake, self.url, self.http = fake, url, http
        self.n8n = self.at(url)

    def at(self, url: str) -> Orchestrator:
        return open_n8n(N8nConfig.model_validate({"name": "ops", "url": url, "api_key": API_KEY}), self.http)

    @property
    def workflow(self) -> Workflow:
        return self.fake.workflows[REF]

    async def pause(self) -> Answer:
        return await self.n8n.pause(**ASK, found=(await self.n8n.state(ref=REF)).as_found)

    async def failure_of_resume(self, prior_state: dict[str, Any] | None) -> DeliveryFailed:
        with pytest.raises(DeliveryFailed) as caught:
            await self.n8n.resume(**ASK, prior_state=prior_state)
        return caught.value


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
async def ground(front: Front) -> AsyncIterator[Ground]:
    fake = FakeN8n()
    front.app = fake.app
    async with outbound.open_client() as http:
        yield Ground(fake, front.url, http)


# What is published again


async def test_what_was_published_is_published_again_and_never_a_draft(ground: Ground) -> None:
    found = await ground.n8n.state(ref=REF)
    assert found.as_found == {"active": True, "active_version_id": "v1"}
    paused = await ground.pause()
    ground.workflow.versions.add("v2")
    ground.workflow.draft = "v2"
    resumed = await ground.n8n.resume(**ASK, prior_state=paused.prior_state)
    assert (resumed.status, ground.workflow.published) == ("resumed", "v1")


async def test_another_version_that_a_person_published_meanwhile_is_left(ground: Ground) -> None:
    paused = await ground.pause()
    ground.workflow.versions.add("v2")
    ground.workflow.published = ground.workflow.draft = "v2"
    answer = await ground.n8n.resume(**ASK, prior_state=paused.prior_state)
    assert (answer.status, ground.workflow.published) == ("left", "v2")
    assert "another version" in answer.detail


async def test_an_archived_workflow_is_left(ground: Ground) -> None:
    paused = await ground.pause()
    ground.workflow.archived = True
    answer = await ground.n8n.resume(**ASK, prior_state=paused.prior_state)
    assert (answer.status, ground.fake.writes) == ("left", ["unpublish"])


async def test_a_version_that_is_gone_from_the_history_is_told_and_nothing_else_is_published(ground: Ground) -> None:
    paused = await ground.pause()
    ground.workflow.versions, ground.workflow.draft = {"v2"}, "v2"
    failure = await ground.failure_of_resume(dict(paused.prior_state or {}))
    assert (failure.code, failure.permanent) == ("version_gone", True)
    assert "v1" in str(failure)
    assert "publish the version you want" in str(failure)
    assert ground.workflow.published is None


@pytest.mark.parametrize("prior_state", [None, {}, {"active": True}])
async def test_without_the_version_nothing_is_published(ground: Ground, prior_state: dict[str, Any] | None) -> None:
    await ground.pause()
    failure = await ground.failure_of_resume(prior_state)
    assert (failure.code, failure.permanent, ground.workflow.published) == ("version_unknown", True, None)


@pytest.mark.parametrize(
    ("status", "said", "shown"),
    [
        (409, {"message": "Open review", "reason": "review_pending"}, "review_pending"),
        (409, {"message": "There is a conflict with one of the webhooks."}, "webhooks"),
        (400, {"message": "There is a conflict with one of the webhooks."}, "webhooks"),
    ],
)
async def test_what_only_a_person_can_settle_is_told_at_once(
    ground: Ground, status: int, said: dict[str, Any], shown: str
) -> None:
    paused = await ground.pause()
    ground.fake.refuses = status, said
    failure = await ground.failure_of_resume(dict(paused.prior_state or {}))
    assert (failure.code, failure.permanent, failure.status) == ("publish_refused", True, status)
    assert shown in str(failure)


async def test_a_trigger_that_its_provider_does_not_take_is_tried_again(ground: Ground) -> None:
    paused = await ground.pause()
    ground.fake.refuses = 400, {"message": "The service refused the connection"}
    assert not (await ground.failure_of_resume(dict(paused.prior_state or {}))).permanent
    ground.fake.refuses = None
    assert (await ground.n8n.resume(**ASK, prior_state=paused.prior_state)).status == "resumed"


async def test_what_goes_wrong_inside_is_no_refusal_of_the_whole(ground: Ground) -> None:
    """It may be half done, so a resume has to follow."""
    found = (await ground.n8n.state(ref=ASK["ref"])).as_found
    ground.fake.answer(400, {"content-type": "application/json"}, '{"message": "SQLITE_BUSY: database is locked"}')
    with pytest.raises(DeliveryFailed) as caught:
        await ground.n8n.pause(**ASK, found=found)
    assert (caught.value.code, caught.value.permanent, caught.value.status) == ("failed_inside", False, 400)


# Which words it knows


async def test_before_publish_there_was_activate(ground: Ground) -> None:
    ground.fake.words = "activate"
    paused = await ground.pause()
    assert (paused.was_paused, ground.workflow.published) == (False, None)
    ground.workflow.versions.add("v2")
    ground.workflow.draft = "v2"
    assert (await ground.n8n.resume(**ASK, prior_state=paused.prior_state)).status == "resumed"
    assert (ground.workflow.published, ground.fake.writes) == ("v1", ["deactivate", "activate"])


async def test_the_word_that_it_knew_is_said_first_the_next_time(ground: Ground) -> None:
    ground.fake.words = "activate"
    for _ in range(2):
        paused = await ground.pause()
        await ground.n8n.resume(**ASK, prior_state=paused.prior_state)
    said = [call.rpartition("/")[2] for call in ground.fake.calls if call.startswith("POST")]
    assert said == ["unpublish", "deactivate", "publish", "activate", "deactivate", "activate"]
    # An upgrade that forgets the old words is found out.
    ground.fake.words = "publish"
    ground.fake.forgets = ("activate", "deactivate")
    paused = await ground.pause()
    assert (await ground.n8n.resume(**ASK, prior_state=paused.prior_state)).status == "resumed"


@pytest.mark.parametrize("words", ["publish", "activate"])
async def test_a_version_is_gone_whichever_word_was_said_first(ground: Ground, words: Any) -> None:
    ground.fake.words = words
    for version in ("v1", "v2"):
        paused = await ground.pause()
        if version == "v1":
            await ground.n8n.resume(**ASK, prior_state=paused.prior_state)
    ground.workflow.versions, ground.workflow.draft = {"v3"}, "v3"
    assert (await ground.failure_of_resume(dict(paused.prior_state or {}))).code == "version_gone"


async def test_no_more_calls_at_once_than_it_can_answer(ground: Ground) -> None:
    ground.fake.takes_seconds = 0.05
    await asyncio.gather(*(ground.n8n.state(ref=REF) for _ in range(3 * CALLS_AT_ONCE)))
    assert len(ground.fake.calls) == 3 * CALLS_AT_ONCE
    assert 1 < ground.fake.at_once_max <= CALLS_AT_ONCE


async def test_a_1_x_has_no_versions(ground: Ground) -> None:
    ground.fake.words = "unversioned"
    paused = await ground.pause()
    assert paused.prior_state == {"active": True}
    assert (await ground.n8n.resume(**ASK, prior_state=paused.prior_state)).status == "resumed"
    assert ground.fake.writes == ["deactivate", "activate"]


async def test_a_1_x_that_became_a_2_x_meanwhile_gets_no_draft_published(ground: Ground) -> None:
    ground.fake.words = "unversioned"
    paused = await ground.pause()
    ground.fake.words = "publish"
    assert (await ground.failure_of_resume(dict(paused.prior_state or {}))).code == "version_unknown"


@pytest.mark.parametrize("words", ["publish", "activate", "unversioned"])
async def test_a_workflow_that_is_gone_is_told_from_a_word_that_is_not_known(ground: Ground, words: Any) -> None:
    ground.fake.words = words
    found = (await ground.n8n.state(ref=REF)).as_found
    del ground.fake.workflows[REF]
    with pytest.raises(DeliveryFailed, match="has no workflow") as caught:
        await ground.n8n.pause(**ASK, found=found)
    assert (caught.value.code, caught.value.permanent) == ("workflow_gone", True)


async def test_neither_word_is_no_lost_workflow(ground: Ground) -> None:
    found = (await ground.n8n.state(ref=REF)).as_found
    for _ in range(2):
        ground.fake.answer(405, {}, "no")
    with pytest.raises(DeliveryFailed, match="let through GET alone") as caught:
        await ground.n8n.pause(**ASK, found=found)
    assert (caught.value.code, caught.value.permanent) == ("http_405", True)


# What looks like an answer and is none


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "n8n is starting up. Please wait"),
        (200, "<html>log in</html>"),
        (200, "[]"),
        (200, '{"id": "another", "active": false}'),
        (200, f'{{"id": "{REF}"}}'),
        (204, ""),  # what n8n answers to whom it takes for a bot
    ],
)
async def test_no_pause_is_believed_that_n8n_did_not_confirm(ground: Ground, status: int, body: str) -> None:
    found = (await ground.n8n.state(ref=REF)).as_found
    ground.fake.answer(status, {}, body)
    with pytest.raises(DeliveryFailed, match="not as n8n's API does") as caught:
        await ground.n8n.pause(**ASK, found=found)
    assert (caught.value.code, caught.value.permanent) == ("not_the_api", False)
    assert ground.workflow.published == "v1"


async def test_a_pause_after_which_it_still_runs_is_none(ground: Ground) -> None:
    found = (await ground.n8n.state(ref=REF)).as_found
    ground.fake.answer(200, {}, f'{{"id": "{REF}", "active": true}}')
    with pytest.raises(DeliveryFailed, match="still published") as caught:
        await ground.n8n.pause(**ASK, found=found)
    assert not caught.value.permanent


async def test_a_404_that_is_not_of_the_api_is_no_lost_workflow(ground: Ground) -> None:
    """n8n knows no path for some seconds of its start; its public API may be off; a proxy may answer for it."""
    ground.fake.answer(404, {}, "Cannot GET /api/v1/workflows", always=True)
    calls = (ground.n8n.state(ref=REF), ground.n8n.pause(**ASK, found={"active": True}), ground.n8n.check())
    for call in calls:
        with pytest.raises(DeliveryFailed, match="it may be starting") as caught:
            await call
        assert (caught.value.code, caught.value.permanent) == ("not_the_api", False)


async def test_a_workflow_too_large_to_be_read_whole_is_not_guessed_at(ground: Ground) -> None:
    ground.fake.answer(200, {}, f'{{"id": "{REF}", "nodes": "' + "x" * WORKFLOW_BYTES_MAX + '"}')
    with pytest.raises(DeliveryFailed, match="16 MiB") as caught:
        await ground.n8n.state(ref=REF)
    assert caught.value.permanent


@pytest.mark.parametrize("ref", ["", "..", "a/b", "a?b", "a#b", "%2e%2e", "ü", "x" * 65, "a\r\nb"])
async def test_a_ref_that_is_no_id_is_never_asked_for(ground: Ground, ref: str) -> None:
    for call in (ground.n8n.state(ref=ref), ground.n8n.pause(**ASK | {"ref": ref}, found={"active": True})):
        with pytest.raises(DeliveryFailed) as caught:
            await call
        assert (caught.value.code, caught.value.permanent) == ("workflow_gone", True)
    assert ground.fake.calls == []


# What runs there, and whether we may


async def test_every_page_is_listed_with_tags_and_without_what_is_archived(ground: Ground) -> None:
    for number in range(2 * PAGE_WORKFLOWS):
        ref = f"Filler{number:010}"
        ground.fake.workflows[ref] = Workflow(ref, f"Filler {number}", archived=number % 2 == 0)
    ground.workflow.published = None
    listed = await ground.n8n.list_workflows(limit=1_000)
    assert len(listed) == 1 + PAGE_WORKFLOWS
    first = listed[0]
    assert (first.ref, first.name, first.tags, first.paused) == (REF, "Route tickets", ("support", "authwatch"), True)
    assert [call.split()[1] for call in ground.fake.calls] == ["/workflows"] * 3


async def test_a_cursor_that_never_ends_is_left_after_a_bounded_number_of_pages(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.orchestrators.n8n.PAGES_MAX", 4)
    ground.fake.answer(200, {}, '{"data": [{"id": "a", "name": "a"}, 5, null], "nextCursor": "again"}', always=True)
    assert [one.ref for one in await ground.n8n.list_workflows(limit=100)] == ["a"]
    assert len(ground.fake.calls) == 4


@pytest.mark.parametrize("words", ["publish", "activate", "unversioned"])
async def test_check_proves_the_key_and_touches_no_workflow(ground: Ground, words: Any) -> None:
    ground.fake.words = words
    assert "takes this API key" in await ground.n8n.check()
    assert not any(REF in call for call in ground.fake.calls)


@pytest.mark.parametrize("words", ["publish", "activate"])
@pytest.mark.parametrize("missing", ["workflow:read", "workflow:list", "workflow:activate", "workflow:deactivate"])
async def test_check_misses_each_scope_that_we_need(ground: Ground, missing: str, words: Any) -> None:
    ground.fake.words = words
    ground.fake.scopes -= {missing}
    with pytest.raises(DeliveryFailed, match="it needs workflow:read") as caught:
        await ground.n8n.check()
    assert (caught.value.code, caught.value.permanent) == ("http_403", True)


async def test_a_refused_key_is_told_with_its_mend(ground: Ground) -> None:
    ground.fake.api_key = "another"
    with pytest.raises(DeliveryFailed, match=r"Settings > n8n API.*`orchestrators` > ops > api_key") as caught:
        await ground.n8n.check()
    assert caught.value.code == "http_401"


@pytest.mark.parametrize("path", ["", "/", "/api/v1", "/api/v1/"])
async def test_the_address_of_n8n_or_of_its_api(ground: Ground, path: str) -> None:
    assert (await ground.at(ground.url + path).state(ref=REF)).paused is False


def test_n8n_below_a_path_keeps_it() -> None:
    config = N8nConfig.model_validate({"url": "https://ops.example.com/n8n/", "api_key": API_KEY})
    assert config.url == "https://ops.example.com/n8n/api/v1"


@pytest.mark.parametrize("url", ["", "ops.example.com", "ftp://a/", "https:///x", "https://u:p@a/", "https://a/?x=1"])
def test_a_url_that_cannot_be_right_stops_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        N8nConfig.model_validate({"url": url, "api_key": API_KEY})


@pytest.mark.parametrize(
    "key", ["", "short", "with a space in it, and long", "ümlautümlautümlaut", "a\r\nx: yyyyyyyyyyyyy"]
)
def test_a_key_that_cannot_be_right_stops_the_start_without_being_shown(key: str) -> None:
    with pytest.raises(ValidationError, match="api_key") as caught:
        N8nConfig.model_validate({"url": "https://ops.example.com", "api_key": key})
    assert not key or key not in str(caught.value)
