"""The worker's stories are all there, and each does what it is named for."""

from __future__ import annotations

from typing import Any

import pytest

from workers import main
from workers.act import Acting
from workers.imports import Importing
from workers.processes import PROCESS_OF
from workers.retain import Retaining
from workers.rollups import RollingUp
from workers.ship import Shipping

CALLED = ("evaluate", "sweep", "recover")


class Read:
    read, decided, acted, next_due_at = 0, 0, 0, None


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the stories' functions were called, by name."""
    names: list[str] = []

    def noting(name: str) -> Any:
        async def call(*_words: Any) -> Any:
            names.append(name)
            return Read()

        return call

    for name in CALLED:
        monkeypatch.setattr(main, name, noting(name))
    monkeypatch.setattr(main, "ask_expired", noting("expired"))
    monkeypatch.setattr(Acting, "step", noting("act"))
    monkeypatch.setattr(Retaining, "step", noting("retain"))
    monkeypatch.setattr(RollingUp, "step", noting("rollup"))
    monkeypatch.setattr(Shipping, "step", noting("ship"))
    monkeypatch.setattr(Importing, "step", noting("import"))
    monkeypatch.setattr(main, "beat", noting("beat"))
    return names


async def test_every_story_is_there_and_does_what_it_is_named_for(called: list[str]) -> None:
    stories = {story.name: story for story in main.stories_of(None).values()}  # type: ignore[arg-type]
    assert set(stories) == {*CALLED, "act", "expired", "import", "retain", "rollup", "ship"}
    for name, story in stories.items():
        called.clear()
        await story._step()
        assert [what for what in called if what != "beat"] == [name]


def test_every_story_has_its_process() -> None:
    otlp: Any = None
    stories = main.stories_of(None, otlp)  # type: ignore[arg-type]
    assert {*stories, "otlp"} == set(PROCESS_OF)


async def test_a_story_of_another_process_is_wanted_there(called: list[str]) -> None:
    wanted: list[str] = []
    stories = main.stories_of(None, want=wanted.append)  # type: ignore[arg-type]
    Read.read = Read.acted = 1
    try:
        await stories["evaluate"]._step()
    finally:
        Read.read = Read.acted = 0
    assert wanted == ["act", "ship"]
