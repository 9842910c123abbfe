"""The scenarios on a real Prefect server, and what only Prefect has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from service import outbound
from service.orchestrators.prefect import PrefectConfig, open_prefect
from tests.end_to_end.running import until
from tests.orchestrators.ground import Ground
from tests.orchestrators.prefect import AUTH_STRING, Prefect
from tests.orchestrators.real import running
from tests.orchestrators.scenarios import Scenarios

BOOKED_SECONDS_MAX = 90.0  # its scheduler looks once a minute
RUNS_SECONDS_MAX = 240.0  # a run is a process that imports all of Prefect, on a busy machine
UNDER_WAY_SECONDS, QUIET_SECONDS = 10.0, 15.0  # until its next task would begin; of which there is one a second


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    prefect = Prefect(tmp_path_factory.mktemp("prefect"))
    with running(prefect):
        yield prefect


class TestPrefect(Scenarios):
    def test_a_pause_takes_what_the_schedules_booked_and_leaves_what_was_started_by_hand(
        self, server: Prefect, ground: Ground
    ) -> None:
        ref = server.create("booked")
        by_hand = server.start_by_hand(ref)["id"]
        ground.wait("runs are booked", lambda: len(server.booked(ref)) > 1, BOOKED_SECONDS_MAX)
        account = ground.pauses("booked", ref)
        assert [run["id"] for run in server.booked(ref)] == [by_hand]
        # And so `stops` says: scheduled starts are stopped, these are not.
        assert server.start_by_hand(ref)["state"]["type"] == "SCHEDULED"
        stops = ground.look("booked")["stops"]
        assert (stops["scheduled_starts"], stops["manual_starts"], stops["running_work"]) == (True, False, False)
        ground.heals(account)
        assert ground.answered("booked", "resume")["answer"]["status"] == "resumed"
        ground.wait("runs are booked again", lambda: len(server.booked(ref)) > 2, BOOKED_SECONDS_MAX)

    def test_one_deployed_anew_under_the_same_name_is_not_touched(self, server: Prefect, ground: Ground) -> None:
        ref = server.create("anew")
        account = ground.pauses("anew", ref)
        server.delete(ref)
        assert server.create("anew") == ref
        server.pause(ref)
        before = server.looks(ref)
        ground.heals(account)
        assert ground.answered("anew", "resume")["answer"]["status"] == "workflow_gone"
        assert server.looks(ref) == before

    def test_a_ref_may_be_the_deployments_id(self, server: Prefect, ground: Ground) -> None:
        ref = server.create("by-id")
        account = ground.put("by-id", server.deployment(ref)["id"])
        ground.breaks(account)
        assert ground.answered("by-id", "pause")["state"] == "done"
        assert server.is_paused(ref)
        ground.heals(account)
        assert ground.answered("by-id", "resume")["answer"]["status"] == "resumed"
        assert not server.is_paused(ref)

    async def test_with_stop_running_what_runs_ends_at_its_next_task_and_begins_again(self, server: Prefect) -> None:
        ref = server.create_long("long")
        run_id = server.start_by_hand(ref)["id"]
        async with outbound.open_client() as http:
            given = {**server.section(server.url), "auth_string": AUTH_STRING, "stop_running": True}
            prefect = open_prefect(PrefectConfig.model_validate(given), http)
            await until(lambda: works(server, ref, 3), RUNS_SECONDS_MAX)
            ask: dict[str, str] = {"ref": ref, "workflow_id": "long", "reason": "a test", "idempotency_key": "1"}
            found = (await prefect.state(ref=ref)).as_found
            assert found["running"] == [run_id]
            answer = await prefect.pause(**ask, found=found)
            assert answer.stops is not None
            assert answer.stops.running_work is True
            assert server.run_state(run_id) == ("PAUSED", "Suspended")
            await asyncio.sleep(UNDER_WAY_SECONDS)
            done = server.works(ref)
            await asyncio.sleep(QUIET_SECONDS)
            assert server.works(ref) == done, "it went on"
            answer = await prefect.resume(**ask, prior_state=found)
            assert (answer.status, "1 of its runs" in answer.detail) == ("resumed", True)
            await until(lambda: works(server, ref, done + 1), RUNS_SECONDS_MAX)
            assert server.run_state(run_id)[0] == "RUNNING"
        server.delete(ref)


async def works(server: Prefect, ref: str, least: int) -> bool:
    return server.works(ref) >= least
