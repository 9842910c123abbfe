"""The scenarios on a real Prefect server, and what only Prefect has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.orchestrators.ground import Ground
from tests.orchestrators.prefect import Prefect
from tests.orchestrators.real import running
from tests.orchestrators.scenarios import Scenarios

BOOKED_SECONDS_MAX = 90.0  # its scheduler looks once a minute


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
