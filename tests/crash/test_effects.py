"""Kill -9 between "sent" and "recorded", at every step of every effect: nothing is done twice, and nothing is lost.

With the other tests every step is struck once, with all effects under way at it; `make crash` strikes each by itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.effects import EFFECTS, POINTS, die, make, open_scene, problems, recover


async def struck(
    database_url: str, folder: Path, effects: tuple[str, ...], point: str, *, history: bool = True
) -> None:
    async with open_scene(database_url, folder, history=history) as scene:
        await make(scene, effects)
        await die(scene, effects, point)
        await recover(scene, effects, point)
        wrong = await problems(scene, effects, point, history=history)
        assert not wrong, "\n".join(["", *wrong, scene.worker.logs()])


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_with_everything_under_way_does_nothing_twice(
    database_url: str, tmp_path: Path, point: str
) -> None:
    await struck(database_url, tmp_path, EFFECTS, point)


async def test_where_the_history_cannot_be_read_a_post_is_repeated_once_and_marked(
    database_url: str, tmp_path: Path
) -> None:
    await struck(database_url, tmp_path, ("post",), "sent", history=False)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("effect", EFFECTS)
async def test_a_worker_killed_at_one_step_of_one_effect_does_nothing_twice(
    database_url: str, tmp_path: Path, effect: str, point: str
) -> None:
    await struck(database_url, tmp_path, (effect,), point)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
async def test_where_the_history_cannot_be_read_every_step_of_a_post_is_safe(
    database_url: str, tmp_path: Path, point: str
) -> None:
    await struck(database_url, tmp_path, ("post",), point, history=False)
