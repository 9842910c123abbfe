"""One house a test, and one whose rules are to be edited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from service.store import actions
from tests.fakes.asked_first import FakeAskedFirst
from tests.workers.editing import HOUR, TWO_FAILURES, age, save
from tests.workers.house import House, open_house


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house") as opened:
        yield opened


@pytest.fixture
async def flows(house: House) -> FakeAskedFirst:
    """In the place of the house's own; one workflow there, which depends on ca_1."""
    fake = FakeAskedFirst()
    house.runtime.orchestrators["flows"] = fake
    await house.put(account_ids=["ca_1"], ref="f1")
    return fake


@pytest.fixture
async def settled(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    """Its one rule was saved long ago, and its folder is as old: what is saved now is an edit."""
    async with open_house(database_url, tmp_path / "house", rules=TWO_FAILURES) as opened:
        save(opened.runtime.settings.rules_folder, TWO_FAILURES, ago=HOUR)
        age(opened.runtime.settings.rules_folder, HOUR)
        yield opened


@pytest.fixture
def folder(house: House) -> Path:
    """The rule files of the test's own house."""
    return house.runtime.settings.rules_folder


@pytest.fixture(autouse=True)
def edits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for a burst of changes to end; whoever asks about that says so itself."""
    monkeypatch.setattr(actions, "EDIT_EVERY", timedelta(0))
