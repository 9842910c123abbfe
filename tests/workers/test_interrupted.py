"""What a pause interrupted is taken up again by the resume, also where a second pause came before that: nothing that was
suspended is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.orchestrators.prefect import PrefectConfig, PrefectOrchestrator
from service.store.asks import with_interrupted
from tests.fakes.front import Front, standing
from tests.fakes.prefect import AUTH_STRING, Deployed, FakePrefect, Run
from tests.workers.house import House
from workers.act import act


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


def runs(fake: FakePrefect, one: Deployed) -> Run:
    run = Run(one.id)
    fake.runs[run.id] = run
    return run


@pytest.mark.parametrize("started_by_hand", [True, False])
async def test_a_second_pause_before_the_resume_of_the_first_forgets_no_run(
    house: House, front: Front, started_by_hand: bool
) -> None:
    fake = FakePrefect()
    front.app = fake.app
    one = fake.add("nightly", "production")
    section = {"name": "flows", "url": f"{front.url}/api", "auth_string": AUTH_STRING, "stop_running": True}
    prefect = PrefectOrchestrator(PrefectConfig.model_validate(section), house.runtime.http)
    house.runtime.orchestrators["flows"] = prefect
    await house.put(ref=one.id)
    first = runs(fake, one)
    await house.pause()
    await act(house.runtime)
    assert (one.paused, first.type) == (True, "PAUSED")
    await house.resume()
    if started_by_hand:  # which takes up none of its runs
        one.paused = False
    second = runs(fake, one)
    await house.pause()
    await act(house.runtime)
    assert (one.paused, first.type, second.type) == (True, "PAUSED", "PAUSED")
    await house.resume()
    await act(house.runtime)
    assert (one.paused, first.name, second.name) == (False, "Resuming", "Resuming")


@pytest.mark.parametrize(
    ("seen", "whole"),
    [
        ([{}, {}], {"v": 1}),
        ([{}, {"runs": []}], {"v": 1, "runs": []}),
        ([{"runs": ["a", "b"]}, {}], {"v": 1, "runs": ["a", "b"]}),
        ([{"runs": ["a", "b"]}, {"runs": ["b", "c", "d"]}], {"v": 1, "runs": ["a", "b", "c"]}),
        ([{"runs": "a"}, {"runs": None}], {"v": 1}),
    ],
)
def test_the_earliest_come_first_and_as_many_as_there_is_room_for(
    seen: list[dict[str, object]], whole: dict[str, object]
) -> None:
    assert with_interrupted({"v": 1}, seen, {"runs": 3}) == whole
