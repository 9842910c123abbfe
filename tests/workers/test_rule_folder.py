"""The folder of rule files: what is taken for an edit, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.rule_folder import SETTLE_SECONDS
from tests.workers.editing import ANOTHER, BROKEN, HOUR, TWO_FAILURES, age, another, ids, own, save, version
from tests.workers.house import House
from workers.rules import INVALID, keep_rules


@pytest.fixture
def house(settled: House) -> House:
    return settled


def emptied(folder: Path) -> Path:
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.mkdir()
    return aside


def put_back(folder: Path, aside: Path) -> None:
    folder.rmdir()
    aside.rename(folder)


async def test_a_folder_that_was_emptied_takes_no_rule_away_and_is_said(house: House, folder: Path) -> None:
    """A mount that failed looks like this."""
    house.runtime.rules.reload()
    await keep_rules(house.runtime)
    before = await ids(house.runtime)
    aside = emptied(folder)
    house.runtime.rules.reload()
    await keep_rules(house.runtime)
    assert await ids(house.runtime) == before
    (alert,) = await own(house, INVALID)
    assert (alert["state"], alert["group_key"]) == ("firing", "the folder")
    put_back(folder, aside)
    house.runtime.rules.reload()
    await keep_rules(house.runtime)
    assert [row["state"] for row in await own(house, INVALID)] == ["resolved"]


async def test_an_editor_that_saves_by_renaming_takes_no_rule_away(house: House, folder: Path) -> None:
    """For a moment the file is not there: its backup is, and the new text is still to come."""
    save(folder, ANOTHER, "another.yml", ago=HOUR)
    age(folder, HOUR)
    await keep_rules(house.runtime)
    before = await version(house.runtime)
    (folder / "rules.yml").rename(folder / "rules.yml~")
    (folder / ".rules.yml").write_text(BROKEN)
    await keep_rules(house.runtime)
    assert await version(house.runtime) == before
    save(folder, TWO_FAILURES, ago=1)
    age(folder, HOUR)
    await keep_rules(house.runtime)
    assert await version(house.runtime) == before
    assert await own(house, INVALID) == [], "what begins with a dot is the editor's own"


async def test_a_file_that_stays_away_takes_its_rules_along(house: House, folder: Path) -> None:
    save(folder, ANOTHER, "another.yml", ago=HOUR)
    age(folder, HOUR)
    await keep_rules(house.runtime)
    (folder / "another.yml").unlink()
    await keep_rules(house.runtime)
    assert await ids(house.runtime) == ["another", "two-failures"]
    age(folder, SETTLE_SECONDS)
    await keep_rules(house.runtime)
    assert await ids(house.runtime) == ["two-failures"]


async def test_a_worker_that_starts_while_a_file_is_being_renamed_takes_no_rule_away(
    house: House, folder: Path
) -> None:
    save(folder, ANOTHER, "another.yml", ago=HOUR)
    await keep_rules(house.runtime)
    (folder / "another.yml").unlink()
    async with another(house, folder) as started:
        await keep_rules(started)
        assert await ids(started) == ["another", "two-failures"]
        save(folder, ANOTHER, "another.yml", ago=1)
        await keep_rules(started)
        assert await ids(started) == ["another", "two-failures"]
