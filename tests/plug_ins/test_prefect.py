"""What is Prefect's own: its two sorts of address and credentials, ids behind names, and which 404 means that it is gone."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators import prefect_runs
from service.orchestrators.prefect import AT_ONCE, BUSY_SECONDS, PrefectConfig, PrefectOrchestrator
from service.orchestrators.webhook import STATE_CHARS_MAX
from tests.fakes.front import Front, standing
from tests.fakes.prefect import AUTH_STRING, Deployed, FakePrefect, Run

CLOUD = "https://api.prefect.cloud/api/accounts/9b649228-0419-40e1/workspaces/d137367a-5055-44ff"
ASK: dict[str, Any] = {"workflow_id": "w1", "reason": "account ca_1 is gone", "idempotency_key": "0199aaaa"}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "orchestrators.md"


class Ground:
    def __init__(self, fake: FakePrefect, front: Front, http: httpx.AsyncClient) -> None:
        self.fake, self.front, self.url, self.http = fake, front, front.url, http

    def prefect(self, **more: Any) -> PrefectOrchestrator:
        given = {"name": "ops", "url": f"{self.url}/api", "auth_string": AUTH_STRING} | more
        return PrefectOrchestrator(PrefectConfig.model_validate(given), self.http)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
async def ground(front: Front) -> AsyncIterator[Ground]:
    fake = FakePrefect()
    front.app = fake.app
    async with outbound.open_client() as http:
        yield Ground(fake, front, http)


def add(ground: Ground, name: str = "production") -> Deployed:
    return ground.fake.add("nightly", name)


@pytest.mark.parametrize(
    ("flow", "name"), [("nightly", "production"), ("über den Rhein", "täglich um 4?"), ("a%2Fb", "c#d"), ("f", "..a")]
)
async def test_a_deployment_is_found_by_its_name_and_by_its_id(ground: Ground, flow: str, name: str) -> None:
    one = ground.fake.add(flow, name)
    for ref in (f"{flow}/{name}", one.id, one.id.upper()):
        state = await ground.prefect().state(ref=ref)
        assert (state.paused, state.as_found) == (
            False,
            {"deployment_id": one.id, "deployment": name, "paused": False},
        )
        assert "1 of its 2 schedules are active" in state.detail


@pytest.mark.parametrize("ref", ["nightly", "nightly/", "/production", "a/b/c", "../production", "x/..", ""])
async def test_a_ref_that_can_be_none_is_asked_of_nobody(ground: Ground, ref: str) -> None:
    with pytest.raises(DeliveryFailed, match="flow/deployment") as caught:
        await ground.prefect().state(ref=ref)
    assert (caught.value.code, caught.value.permanent) == ("workflow_gone", True)
    assert ground.fake.calls == []


async def test_a_name_that_leads_elsewhere_by_now_is_not_touched(ground: Ground) -> None:
    ours, ref = add(ground), "nightly/production"
    prefect = ground.prefect()
    found = (await prefect.state(ref=ref)).as_found
    await prefect.pause(ref=ref, **ASK, found=found)
    # Deleted, deployed under that name anew, and paused by a person.
    del ground.fake.deployments[ours.id]
    anew = add(ground)
    anew.paused = True
    for call in (prefect.pause(ref=ref, **ASK, found=found), prefect.resume(ref=ref, **ASK, prior_state=found)):
        with pytest.raises(DeliveryFailed, match=ref) as caught:
            await call
        assert (caught.value.code, caught.value.permanent) == ("workflow_gone", True)
    assert anew.paused
    assert ground.fake.writes == 1


async def test_a_run_by_hand_is_taken_while_it_is_paused_and_so_it_says(ground: Ground) -> None:
    one = add(ground)
    await ground.prefect().pause(ref=one.id, **ASK)
    answer = await ground.http.post(
        f"{ground.url}/api/deployments/{one.id}/create_flow_run", json={}, auth=httpx.BasicAuth(*AUTH_STRING.split(":"))
    )
    assert answer.status_code == 201
    stops = ground.prefect().stops
    assert (stops.scheduled_starts, stops.manual_starts, stops.running_work) == (True, False, False)


# With stop_running


async def test_what_runs_is_left_alone_unless_it_is_asked_for(ground: Ground) -> None:
    one, prefect = add(ground), ground.prefect()
    run = ran(ground, one)
    found = (await prefect.state(ref=one.id)).as_found
    await prefect.pause(ref=one.id, **ASK, found=found)
    assert (run.type, "running" in found) == ("RUNNING", False)


def ran(ground: Ground, one: Deployed, **more: Any) -> Run:
    run = Run(one.id, **more)
    ground.fake.runs[run.id] = run
    return run


async def test_what_runs_is_suspended_and_goes_on_with_the_resume(ground: Ground) -> None:
    one, prefect = add(ground), ground.prefect(stop_running=True)
    ours, ended, persons = ran(ground, one), ran(ground, one), ran(ground, one)
    others, below = ran(ground, add(ground, "other")), ran(ground, one, parent_task_run_id="1")
    state = await prefect.state(ref=one.id)
    found = state.as_found
    assert found["running"] == [ours.id, ended.id, persons.id]
    assert state.adds_up == {"running": prefect_runs.RUNS_MAX}
    ended.become("COMPLETED", "Completed")
    answer = await prefect.pause(ref=one.id, **ASK, found=found)
    assert answer.stops is not None
    assert answer.stops.running_work is True
    assert [run.type for run in (ours, ended, persons, others, below)] == [
        *("PAUSED", "COMPLETED", "PAUSED"),
        *("RUNNING", "RUNNING"),
    ]
    # A person takes one into their own hands, and another of theirs was deleted.
    persons.become("PAUSED", "Suspended", "waits for a decision")
    del ground.fake.runs[ended.id]
    answer = await prefect.resume(ref=one.id, **ASK, prior_state=found)
    assert (answer.status, "1 of its runs" in answer.detail) == ("resumed", True)
    assert (ours.name, persons.name, one.paused) == ("Resuming", "Suspended", False)


async def test_what_began_between_the_look_and_the_pause_is_said_to_go_on(ground: Ground) -> None:
    one, prefect = add(ground), ground.prefect(stop_running=True)
    found = (await prefect.state(ref=one.id)).as_found
    late = ran(ground, one, type="PENDING", name="Pending")
    answer = await prefect.pause(ref=one.id, **ASK, found=found)
    assert answer.stops is not None
    assert (answer.stops.scheduled_starts, answer.stops.running_work) == (True, False)
    assert "1 began meanwhile" in answer.detail
    assert late.type == "PENDING"


async def test_a_deployment_that_a_person_resumed_has_its_runs_back_too(ground: Ground) -> None:
    one = add(ground)
    run = ran(ground, one)
    prefect = ground.prefect(stop_running=True)
    found = (await prefect.state(ref=one.id)).as_found
    await prefect.pause(ref=one.id, **ASK, found=found)
    one.paused = False
    # Also once stop_running is off: what was recorded is put back.
    answer = await ground.prefect().resume(ref=one.id, **ASK, prior_state=found)
    assert (answer.status, run.name) == ("left", "Resuming")


@pytest.mark.parametrize("status", [401, 404, 422, 500])
async def test_a_failure_after_the_pause_never_reads_as_without_effect(ground: Ground, status: int) -> None:
    one, prefect = add(ground), ground.prefect(stop_running=True)
    ran(ground, one)
    found = (await prefect.state(ref=one.id)).as_found
    ground.fake.refuse_runs = status
    with pytest.raises(DeliveryFailed, match="it is paused there") as caught:
        await prefect.pause(ref=one.id, **ASK, found=found)
    assert (caught.value.ambiguous, caught.value.permanent, caught.value.status) == (True, False, status)
    ground.fake.refuse_runs = None
    assert (await prefect.pause(ref=one.id, **ASK, found=found)).status == "paused"
    await prefect.resume(ref=one.id, **ASK, prior_state=found)
    assert [run.name for run in ground.fake.runs.values()] == ["Resuming"]


@pytest.mark.parametrize("status", [401, 422, 500])
async def test_a_run_that_cannot_go_on_does_not_keep_its_deployment_paused(ground: Ground, status: int) -> None:
    one, prefect = add(ground), ground.prefect(stop_running=True)
    run = ran(ground, one)
    found = (await prefect.state(ref=one.id)).as_found
    await prefect.pause(ref=one.id, **ASK, found=found)
    ground.fake.refuse_runs = status
    with pytest.raises(DeliveryFailed, match="it schedules again") as caught:
        await prefect.resume(ref=one.id, **ASK, prior_state=found)
    assert (caught.value.ambiguous, caught.value.permanent, one.paused) == (True, False, False)
    ground.fake.refuse_runs = None
    await prefect.resume(ref=one.id, **ASK, prior_state=found)
    assert run.name == "Resuming"


async def test_as_many_runs_as_may_be_recorded_are_suspended(ground: Ground) -> None:
    one, prefect = add(ground), ground.prefect(stop_running=True)
    for _ in range(prefect_runs.RUNS_MAX + 5):
        ran(ground, one)
    found = (await prefect.state(ref=one.id)).as_found
    assert len(json.dumps(found)) < STATE_CHARS_MAX
    answer = await prefect.pause(ref=one.id, **ASK, found=found)
    assert answer.stops is not None
    assert (answer.stops.running_work, "5 began" in answer.detail) == (False, True)


# What it answers


async def test_a_server_is_asked_few_things_at_a_time_and_a_busy_one_later(ground: Ground) -> None:
    one, most, now = add(ground), 0, 0
    inner = ground.fake.app

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        await inner(scope, receive, send)
        now -= 1

    ground.front.app = counting
    prefect = ground.prefect()
    await asyncio.gather(*(prefect.state(ref=one.id) for _ in range(5 * AT_ONCE)))
    assert most == AT_ONCE == prefect.at_once, "nor are more attempts begun, which would wait inside for their turn"
    ground.front.app = inner
    ground.fake.slow_seconds = 0.6
    config = PrefectConfig.model_validate({"url": f"{ground.url}/api", "auth_string": AUTH_STRING})
    with pytest.raises(DeliveryFailed) as caught:
        await PrefectOrchestrator(config, ground.http, timeout_seconds=0.2).pause(ref=one.id, **ASK)
    assert (caught.value.code, caught.value.retry_after_seconds) == ("timeout", BUSY_SECONDS)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('{"detail": "Deployment not found"}', "workflow_gone"),
        ('{"exception_message": "Deployment not found"}', "workflow_gone"),
        ('{"detail": "Not Found"}', "http_404"),
        ("<html>404 no such host</html>", "http_404"),
        ("[]", "http_404"),
    ],
)
async def test_only_prefects_own_words_say_that_a_deployment_is_gone(ground: Ground, body: str, code: str) -> None:
    one = add(ground)
    ground.fake.answer_next(404, {}, body)
    with pytest.raises(DeliveryFailed) as caught:
        await ground.prefect().resume(ref=one.id, **ASK, prior_state={"deployment_id": one.id, "paused": False})
    assert (caught.value.code, caught.value.permanent) == (code, True)


@pytest.mark.parametrize(
    ("status", "body", "mend"),
    [
        (401, '{"exception_message": "Unauthorized"}', "auth_string"),
        (403, '{"detail": "Missing CSRF token"}', "PREFECT_SERVER_CSRF_PROTECTION_ENABLED"),
        (403, '{"detail": "Forbidden"}', "role"),
        (404, "", "PREFECT_API_URL"),
        (405, '{"detail": "Method Not Allowed"}', "PREFECT_API_URL"),
    ],
)
async def test_a_refusal_says_how_it_is_mended(ground: Ground, status: int, body: str, mend: str) -> None:
    ground.fake.answer_next(status, {}, body)
    with pytest.raises(DeliveryFailed, match=mend):
        await ground.prefect().check()


@pytest.mark.parametrize("body", ["", "<html>Prefect UI</html>", "true", '{"detail": 1}', "[1]", "[" * 10_000])
async def test_who_answers_otherwise_than_prefect_is_not_taken_for_it(ground: Ground, body: str) -> None:
    prefect = ground.prefect()
    for call in (prefect.check(), prefect.state(ref="nightly/production"), prefect.list_workflows(limit=5)):
        ground.fake.answer_next(200, {}, body)
        with pytest.raises(DeliveryFailed, match="PREFECT_API_URL") as caught:
            await call
        assert (caught.value.code, caught.value.permanent) == ("not_prefect", True)


async def test_a_wrong_password_is_refused_and_not_shown(ground: Ground) -> None:
    wrong = "authwatch:an0ther-Passw0rd"
    with pytest.raises(DeliveryFailed) as caught:
        await ground.prefect(auth_string=wrong).check()
    assert (caught.value.code, caught.value.permanent) == ("http_401", True)
    ground.fake.answer_next(500, {}, f"who is {wrong.partition(':')[2]}?")
    with pytest.raises(DeliveryFailed) as caught:
        await ground.prefect(auth_string=wrong).check()
    assert "an0ther" not in str(caught.value)


async def test_a_key_of_prefect_cloud_is_a_bearer_token() -> None:
    seen: list[httpx.Request] = []

    def take(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b"7"))

    config = PrefectConfig.model_validate({"name": "ops", "url": CLOUD + "/", "api_key": "pnu_1234567890"})
    async with httpx.AsyncClient(transport=httpx.MockTransport(take)) as http:
        said = await PrefectOrchestrator(config, http).check()
    assert str(seen[0].url) == f"{CLOUD}/deployments/count"
    assert seen[0].headers["authorization"] == "Bearer pnu_1234567890"
    assert "7 deployments" in said


async def test_every_deployment_is_listed_once_with_its_tags_however_many_there_are(ground: Ground) -> None:
    for number in range(120):
        ground.fake.add(f"flow-{number % 60}", f"d-{number}", tags=(f"n:{number}",)).paused = number % 2 == 1
    listed = await ground.prefect().list_workflows(limit=500)
    assert {one.name: (one.tags, one.paused) for one in listed} == {
        f"flow-{number % 60}/d-{number}": ((f"n:{number}",), number % 2 == 1) for number in range(120)
    }
    assert len(listed) == 120
    assert {one.ref for one in listed} == set(ground.fake.deployments)
    assert all(one.other_refs == (one.name,) for one in listed), "it may be registered as flow/deployment"


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"url": "http://prefect:4200"}, "url"),  # without /api it would be the pages for people
        ({"url": "prefect:4200/api"}, "url"),
        ({"url": "https://u:p@prefect/api"}, "url"),
        ({"url": "https://prefect/api?x=1"}, "url"),
        ({"auth_string": "no-colon-7531"}, "auth_string"),
        ({"auth_string": ":only-a-password-7531"}, "auth_string"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "two words-7531"}, "api_key"),
        ({"auth_string": "a:b-7531", "api_key": "pnu_7531"}, "give one of them"),
    ],
)
def test_what_cannot_be_right_stops_the_start_without_being_shown(wrong: dict[str, str], names: str) -> None:
    with pytest.raises(ValidationError, match=names) as caught:
        PrefectConfig.model_validate({"name": "ops", "url": "http://prefect:4200/api"} | wrong)
    assert "7531" not in str(caught.value)
    assert "u:p@" not in str(caught.value)


def test_the_section_that_the_docs_show_is_one() -> None:
    text = DOCS.read_text(encoding="utf-8").partition("## Prefect 3")[2]
    block = re.search(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    section = YAML(typ="safe", pure=True).load(block[1])["orchestrators"]["prefect"]
    config = PrefectConfig.model_validate(section | {"auth_string": AUTH_STRING})
    assert config.url == section["url"]
    assert PrefectConfig.model_validate({"name": "x", "url": CLOUD, "api_key": "pnu_1"}).url == CLOUD
