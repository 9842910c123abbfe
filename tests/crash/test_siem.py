"""Kill -9 at every step of a batch on its way to a sink: nothing is lost, the order is kept, and twice comes only what was
under way, only where the protocol has no key, and it is counted.

With the other tests every step is struck once, with all sinks at it; `make crash` strikes each by itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.siem import POINTS, SINKS, die, open_scene, problems, recover


async def struck(database_url: str, folder: Path, sinks: tuple[str, ...], point: str) -> None:
    async with open_scene(database_url, folder, sinks) as scene:
        await die(scene, sinks, point)
        await recover(scene, sinks)
        wrong = await problems(scene, sinks, point)
        assert not wrong, "\n".join(["", *wrong, scene.worker.logs()])


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_with_a_batch_on_its_way_loses_none_and_doubles_only_what_has_no_key(
    database_url: str, tmp_path: Path, point: str
) -> None:
    await struck(database_url, tmp_path, SINKS, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("sink", SINKS)
async def test_a_worker_killed_at_one_step_of_one_sink_loses_none(
    database_url: str, tmp_path: Path, sink: str, point: str
) -> None:
    await struck(database_url, tmp_path, (sink,), point)
