"""The scenarios on a real Airflow 3, and what only it does: runs that wait, tasks that go on, DAGs that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators.airflow import AirflowConfig, AirflowOrchestrator
from service.orchestrators.base import State
from tests.orchestrators.airflow import ONLOOKERS_PASSWORD, PASSWORD, TOKEN_SECONDS, Airflow, wait
from tests.orchestrators.ground import Ground
from tests.orchestrators.real import RealServer, running
from tests.orchestrators.scenarios import Scenarios

T = TypeVar("T")
ASK = {"workflow_id": "w1", "reason": "account ca_1 is gone", "idempotency_key": "0199aaaa-1"}
QUIET = 8.0  # seconds in which a scheduler that may start something has started it
# Two steps that say when they begin, the first of which waits until it may end. New, and so paused, and without a schedule.
TWO_STEPS = """
import pathlib, time

from airflow.sdk import task

FOLDER = pathlib.Path({folder!r})

@task
def first():
    (FOLDER / "first").touch()
    while not (FOLDER / "go").exists():
        time.sleep(0.1)

@task
def second():
    (FOLDER / "second").touch()

with DAG("two_steps", schedule=None, catchup=False, default_args={{"retries": 2, "retry_delay": timedelta(seconds=1)}}):
    first() >> second()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    airflow = Airflow(tmp_path_factory.mktemp("airflow"))
    with running(airflow):
        yield airflow


def told(server: Airflow, asked: Callable[[AirflowOrchestrator], Awaitable[T]], **given: Any) -> T:
    """What our orchestrator says of the server itself, without a service around it."""

    async def once() -> T:
        async with outbound.open_client() as http:
            section = {"name": "ops", "url": server.url, "username": "authwatch", "password": PASSWORD, **given}
            return await asked(AirflowOrchestrator(AirflowConfig.model_validate(section), http))

    return asyncio.run(once())


def refused(server: Airflow, asked: Callable[[AirflowOrchestrator], Awaitable[Any]], **given: Any) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        told(server, asked, **given)
    return caught.value


def state_asked(ref: str) -> Callable[[AirflowOrchestrator], Awaitable[State]]:
    return lambda airflow: airflow.state(ref=ref)


def state_of(server: Airflow, ref: str, run_id: str) -> str:
    return str(server.ask("GET", f"/api/v2/dags/{ref}/dagRuns/{run_id}").raise_for_status().json()["state"])


def trigger(server: Airflow, ref: str) -> str:
    answer = server.ask("POST", f"/api/v2/dags/{ref}/dagRuns", {"logical_date": None})
    return str(answer.raise_for_status().json()["dag_run_id"])


class TestAirflow(Scenarios):
    def test_one_renamed_during_our_hold(self, server: RealServer, ground: Ground) -> None:
        """Another `dag_id` is another DAG, which is left alone; the one that is gone is unpaused for when it comes back."""
        ref = server.create("renamed")
        account = ground.pauses("renamed", ref)
        new = server.rename(ref, "renamed-anew")
        server.pause(new)
        ground.heals(account)
        said = ground.answered("renamed", "resume")
        assert (said["state"], said["answer"]["status"]) == ("done", "workflow_gone"), said
        assert server.is_paused(new)
        assert not server.is_paused(ref)

    def test_what_runs_goes_on_but_not_further_and_what_is_triggered_waits_until_the_resume(
        self, server: Airflow, tmp_path: Path
    ) -> None:
        server.write("two_steps", TWO_STEPS.format(folder=str(tmp_path)))
        assert server.is_paused("two_steps"), "a new DAG is paused"
        server.resume("two_steps")
        under_way = trigger(server, "two_steps")
        wait(lambda: (tmp_path / "first").exists(), "the first task runs")

        found = told(server, lambda airflow: airflow.state(ref="two_steps")).as_found
        told(server, lambda airflow: airflow.pause(ref="two_steps", found=found, **ASK))
        waiting = trigger(server, "two_steps")

        def states() -> tuple[str, str]:
            return state_of(server, "two_steps", under_way), state_of(server, "two_steps", waiting)

        (tmp_path / "go").touch()
        first = f"/api/v2/dags/two_steps/dagRuns/{under_way}/taskInstances/first"
        wait(lambda: server.ask("GET", first).json()["state"] == "success", "the first task ends as it would have")
        with pytest.raises(AssertionError, match="never"):
            wait(lambda: (tmp_path / "second").exists(), "never: the second task", QUIET)
        assert states() == ("running", "queued")

        assert (
            told(server, lambda airflow: airflow.resume(ref="two_steps", prior_state=found, **ASK)).status == "resumed"
        )
        wait(lambda: states() == ("success", "success"), "both runs end")
        assert (tmp_path / "second").exists()

    def test_a_token_too_old_is_got_anew_and_a_wrong_password_says_its_mend(self, server: Airflow) -> None:
        async def twice(airflow: AirflowOrchestrator) -> list[bool | None]:
            before = await airflow.state(ref="aged")
            await asyncio.sleep(TOKEN_SECONDS + 1)
            return [before.paused, (await airflow.state(ref="aged")).paused]

        server.create("aged")
        assert told(server, twice) == [False, False]
        failed = refused(server, lambda airflow: airflow.state(ref="aged"), password="wr0ng")
        assert (failed.code, failed.permanent) == ("http_401", True)
        server.delete("aged")

    def test_who_may_only_look_is_found_by_the_check(self, server: Airflow) -> None:
        server.create("looked_at")
        onlooker = {"username": "onlooker", "password": ONLOOKERS_PASSWORD}
        before = server.looks("looked_at")
        assert "they may pause" in told(server, lambda airflow: airflow.check())
        for asked in (
            lambda airflow: airflow.check(),
            lambda airflow: airflow.pause(ref="looked_at", found={"is_paused": False}, **ASK),
        ):
            assert refused(server, asked, **onlooker).code == "http_403"
        assert server.looks("looked_at") == before
        server.delete("looked_at")

    def test_a_dag_that_is_gone_and_an_address_that_is_wrong_are_told_apart(self, server: Airflow) -> None:
        server.create("short_lived")
        server.rename("short_lived", "long_lived")
        server.create("deleted")
        server.delete("deleted")
        for ref in ("short_lived", "deleted", "never_was"):
            assert refused(server, state_asked(ref)).code == "workflow_gone"
        assert refused(server, state_asked("x"), url=f"{server.url}/elsewhere").code == "http_405"
        listed = told(server, lambda airflow: airflow.list_workflows(limit=1_000))
        names = {one.ref: one for one in listed}
        assert names["long_lived"].tags == ("authwatch",)
        assert not {"short_lived", "deleted"} & set(names)
        server.delete("long_lived")

    def test_two_hundred_are_listed_whole_and_in_order(self, server: Airflow) -> None:
        refs = list(server.create_many(210, "listed"))
        listed = told(server, lambda airflow: airflow.list_workflows(limit=1_000))
        assert [one.ref for one in listed if one.ref.startswith("listed_")] == refs
        assert len(told(server, lambda airflow: airflow.list_workflows(limit=150))) == 150
