"""Airflow 3: what is its own beside what every orchestrator does. Against a strict fake (tests/fakes/airflow.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators.airflow import AirflowConfig, AirflowOrchestrator
from service.store.actions import PAUSE, RESUME, Action
from service.store.asks import Asked, Standing
from tests.fakes.airflow import DAG, PASSWORDS, Dag, FakeAirflow
from tests.fakes.front import Front, standing
from workers.ask import resume

ASK: dict[str, str] = {"workflow_id": "w1", "reason": "account ca_1 is gone", "idempotency_key": "0199aaaa-1"}
RUNNING, PAUSED = {"is_paused": False}, {"is_paused": True}
MANY = 20


class Ground:
    def __init__(self, fake: FakeAirflow, url: str, http: httpx.AsyncClient) -> None:
        self.fake, self.url, self.http = fake, url, http

    def open(self, **given: Any) -> AirflowOrchestrator:
        section = {"name": "ops", "url": self.url, "timeout_seconds": 5.0, **given}
        if "token" not in given:
            section = {"username": "ops", "password": PASSWORDS["ops"], **section}
        return AirflowOrchestrator(AirflowConfig.model_validate(section), self.http)

    def view(self) -> AirflowOrchestrator:
        return self.open(username="view", password=PASSWORDS["view"])


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
async def ground(front: Front) -> AsyncIterator[Ground]:
    fake = FakeAirflow()
    front.app = fake.app
    async with outbound.open_client() as http:
        yield Ground(fake, front.url, http)


@pytest.mark.parametrize("happens", ["expire_tokens", "restart"])
async def test_a_token_that_is_not_good_any_more_is_got_anew_once(ground: Ground, happens: str) -> None:
    airflow = ground.open()
    found = (await airflow.state(ref=DAG)).as_found
    getattr(ground.fake, happens)()
    assert (await airflow.pause(ref=DAG, found=found, **ASK)).status == "paused"
    assert (ground.fake.dags[DAG].is_paused, ground.fake.logins) == (True, 2)


async def test_many_pauses_at_once_get_one_token_between_them(ground: Ground) -> None:
    ground.fake.dags |= {f"dag_{n}": Dag(f"dag_{n}") for n in range(MANY)}
    airflow = ground.open()
    for logins in (1, 2):
        pausing = (airflow.pause(ref=f"dag_{n}", found=RUNNING, **ASK) for n in range(MANY))
        assert {answer.status for answer in await asyncio.gather(*pausing)} == {"paused"}
        assert ground.fake.logins == logins
        ground.fake.expire_tokens()
    assert sum(dag.is_paused for dag in ground.fake.dags.values()) == MANY


async def test_a_wrong_password_is_tried_once_for_many_pauses_at_once(ground: Ground) -> None:
    airflow = ground.open(password="not-the-password")
    asked = (airflow.pause(ref=DAG, found=RUNNING, **ASK) for _ in range(MANY))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {(type(one), getattr(one, "code", None)) for one in answers} == {(DeliveryFailed, "http_401")}
    assert ground.fake.logins == 1
    ground.fake.passwords["ops"] = "not-the-password"
    assert (await airflow.pause(ref=DAG, found=RUNNING, **ASK)).status == "paused"


async def test_a_refused_password_says_its_mend_and_quotes_nothing(ground: Ground) -> None:
    for status in (401, 422, 500):
        ground.fake.answer(status, body=f"you sent {PASSWORDS['ops']}")
        with pytest.raises(DeliveryFailed) as caught:
            await ground.open().state(ref=DAG)
        assert caught.value.status == status
        assert PASSWORDS["ops"] not in str(caught.value)
        assert ("mend `username` and `password` of ops" in str(caught.value)) == (status == 401)


async def test_airflows_own_words_are_handed_on_without_our_secrets(ground: Ground) -> None:
    airflow = ground.open()
    await airflow.state(ref=DAG)
    ground.fake.answer(500, body=f'{{"detail": "no room for eyJ-token-of-the-fake-1 of {PASSWORDS["ops"]}"}}')
    with pytest.raises(DeliveryFailed) as caught:
        await airflow.pause(ref=DAG, found=RUNNING, **ASK)
    assert "no room for" in str(caught.value)
    assert not [secret for secret in (PASSWORDS["ops"], "eyJ-token") if secret in str(caught.value)]


async def test_who_may_only_look_is_told_so_by_the_pause_and_by_the_check(ground: Ground) -> None:
    airflow = ground.view()
    assert (await airflow.state(ref=DAG)).paused is False
    for asked in (airflow.pause(ref=DAG, found=RUNNING, **ASK), airflow.check()):
        with pytest.raises(DeliveryFailed, match="allowed to edit DAGs") as caught:
            await asked
        assert (caught.value.code, caught.value.permanent) == ("http_403", True)
    assert ground.fake.writes == 0


async def test_the_check_says_how_many_there_are_and_changes_nothing(ground: Ground) -> None:
    ground.fake.dags["weekly"] = Dag("weekly", is_paused=True)
    before = [dag.said() for dag in ground.fake.dags.values()]
    assert await ground.open().check() == (f"ops: 127.0.0.1 takes these credentials; of 2 DAGs they may pause {DAG}.")
    assert ([dag.said() for dag in ground.fake.dags.values()], ground.fake.writes) == (before, 0)


async def test_a_check_without_any_dag_does_not_say_more_than_it_knows(ground: Ground) -> None:
    ground.fake.dags.clear()
    assert "nothing proves they may pause one" in await ground.open().check()


async def test_a_fixed_token_is_never_got_anew(ground: Ground) -> None:
    airflow = ground.open(token="a-token-of-yesterday")
    for status in (401, 403):  # too old, and of another key
        ground.fake.answer(status)
        with pytest.raises(DeliveryFailed, match="`token` of ops") as caught:
            await airflow.state(ref=DAG)
        assert caught.value.code == f"http_{status}"
    assert ground.fake.logins == 0


async def test_a_dag_whose_file_is_gone_is_gone_and_yet_put_back_for_when_it_comes_again(ground: Ground) -> None:
    airflow, dag = ground.open(), ground.fake.dags[DAG]
    dag.is_stale = dag.is_paused = True
    with pytest.raises(DeliveryFailed, match="give the `dag_id` it has now as") as caught:
        await airflow.state(ref=DAG)
    assert (caught.value.code, caught.value.permanent) == ("workflow_gone", True)
    # As the worker does it, and records it: what was sent, and what it put back.
    held = make_action(PAUSE, found={"as_found": RUNNING, "was_paused": False}, state="done")
    stands = Standing(Asked(held, may_have_arrived=True), known=True)
    record = await resume(airflow, make_action(RESUME), stands)
    assert (record["status"], record["sent"], record["restored"]) == ("workflow_gone", True, RUNNING)
    assert record["prior_state"] == PAUSED
    assert "give the `dag_id` it has now as" in record["detail"]
    assert dag.is_paused is False


def make_action(kind: str, *, state: str = "running", **payload: Any) -> Action:
    given = {"id": "0199aaaa-1", "kind": kind, "state": state, "attempts": 0, "workflow_id": "w1"}
    asked = {"ref": DAG, "reason": "account ca_1 is gone", **payload}
    return Action(**dict.fromkeys(Action.__slots__) | given | {"payload": asked})


async def test_a_dag_whose_file_went_before_its_pause_is_paused_and_so_has_its_resume(ground: Ground) -> None:
    airflow, dag = ground.open(), ground.fake.dags[DAG]
    dag.is_stale = True
    with pytest.raises(DeliveryFailed, match="give the `dag_id` it has now as") as caught:
        await airflow.pause(ref=DAG, found=RUNNING, **ASK)
    assert dag.is_paused is True
    # `workflow_gone` would say that nothing was done, and no resume would follow.
    assert (caught.value.code, caught.value.permanent) == ("paused_without_file", True)


@pytest.mark.parametrize("ref", ["~", "..", ".", "a/b", "a?b", "", "x" * 251])
async def test_what_cannot_be_a_dag_id_is_never_asked_for(ground: Ground, ref: str) -> None:
    airflow = ground.open()
    for asked in (airflow.state(ref=ref), airflow.pause(ref=ref, found=RUNNING, **ASK)):
        with pytest.raises(DeliveryFailed) as caught:
            await asked
        assert caught.value.code == "workflow_gone"
    assert ground.fake.calls == 0


async def test_an_address_without_this_api_is_not_taken_for_a_dag_that_is_gone(ground: Ground) -> None:
    airflow = ground.open()
    await airflow.state(ref=DAG)
    ground.fake.answer(404, body='{"error": "API route not found"}')
    with pytest.raises(DeliveryFailed, match="address of an Airflow 3") as caught:
        await airflow.pause(ref=DAG, found=RUNNING, **ASK)
    assert (caught.value.code, caught.value.permanent) == ("http_404", True)


async def test_a_page_of_somebody_else_is_no_answer(ground: Ground) -> None:
    airflow = ground.open()
    await airflow.state(ref=DAG)
    for asked in (
        lambda: airflow.state(ref=DAG),
        lambda: airflow.pause(ref=DAG, found=RUNNING, **ASK),
        lambda: airflow.list_workflows(limit=5),
    ):
        ground.fake.answer(200, body="<html>please sign in</html>")
        with pytest.raises(DeliveryFailed) as caught:
            await asked()
        assert (caught.value.code, caught.value.permanent) == ("answer_unreadable", False)
    ground.fake.expire_tokens()
    ground.fake.answer(401)
    ground.fake.answer(200, body="<html>please sign in</html>")
    with pytest.raises(DeliveryFailed, match="with no token"):
        await airflow.state(ref=DAG)


async def test_no_token_in_time_is_never_a_pause_that_may_have_arrived(ground: Ground) -> None:
    ground.fake.login_slow_seconds = 5.0
    with pytest.raises(DeliveryFailed) as caught:
        await ground.open(timeout_seconds=0.2).pause(ref=DAG, found=RUNNING, **ASK)
    assert (caught.value.code, caught.value.ambiguous, caught.value.permanent) == ("timeout", False, False)
    assert ground.fake.dags[DAG].is_paused is False


async def test_what_is_listed_is_whole_in_order_and_without_what_is_stale(ground: Ground) -> None:
    ground.fake.dags |= {f"dag_{n:04}": Dag(f"dag_{n:04}") for n in range(250)}
    ground.fake.dags["dag_0007"].is_stale = True
    ground.fake.page_max = 40  # as [api] maximum_page_limit can be set
    airflow = ground.open()
    refs = [one.ref for one in await airflow.list_workflows(limit=1_000)]
    assert refs == [*(f"dag_{n:04}" for n in range(250) if n != 7), DAG]
    assert [one.ref for one in await airflow.list_workflows(limit=130)] == refs[:130]
    (last,) = [one for one in await airflow.list_workflows(limit=1_000) if one.ref == DAG]
    assert (last.name, last.tags, last.paused) == (DAG, ("finance", "nightly"), False)


async def test_started_by_a_person_meanwhile_it_is_left(ground: Ground) -> None:
    airflow = ground.open()
    await airflow.pause(ref=DAG, found=RUNNING, **ASK)
    ground.fake.dags[DAG].is_paused = False
    writes = ground.fake.writes
    answer = await airflow.resume(ref=DAG, prior_state=RUNNING, **ASK)
    assert (answer.status, answer.prior_state, ground.fake.writes) == ("left", RUNNING, writes)


async def test_found_paused_it_stays_paused(ground: Ground) -> None:
    ground.fake.dags[DAG].is_paused = True
    airflow = ground.open()
    found = (await airflow.state(ref=DAG)).as_found
    assert (await airflow.pause(ref=DAG, found=found, **ASK)).was_paused is True
    assert (await airflow.resume(ref=DAG, prior_state=found, **ASK)).status == "left"
    assert (ground.fake.dags[DAG].is_paused, ground.fake.writes) == (True, 0)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"username": "ops"},
        {"password": "secret-of-theirs"},
        {"username": "ops", "password": "secret-of-theirs", "token": "secret-of-theirs"},
        {"token": "secret of theirs"},
        {"token": "secret-of-theirs", "url": "ftp://airflow"},
        {"token": "secret-of-theirs", "url": "https://airflow/?dag=1"},
        {"token": "secret-of-theirs", "dags": "all"},
    ],
)
def test_a_section_that_cannot_be_right_is_refused_without_its_secrets(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        AirflowConfig.model_validate({"url": "https://airflow", **given})
    assert "of-theirs" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://a.example/x", "https://a.example/x/", "https://a.example/x/api/v2/"])
def test_the_address_may_end_as_people_copy_it(url: str) -> None:
    assert AirflowConfig(url=url, token="t").url == "https://a.example/x"  # type: ignore[arg-type]
