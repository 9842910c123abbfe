"""What an orchestrator runs is registered by itself where the config file asks for it: once, by one worker, and never over
what a person registered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from service import importing
from service.errors import Conflict
from service.orchestrators.base import Listed
from service.orchestrators.proposals import Proposal, Wanted
from service.runtime import Runtime
from tests.fakes.asked_first import FakeAskedFirst, Flow
from tests.workers.house import House, open_house
from workers import imports
from workers.act import act
from workers.imports import Importing

CONFIG = {"imports": [{"orchestrator": "flows", "name": "sync-*", "account_ids": ["ca_1"]}]}
SOON = "UPDATE heartbeats SET at = at - interval '11 seconds' WHERE part LIKE 'import:%'"
DUE = "UPDATE heartbeats SET at = at - interval '1 hour' WHERE part LIKE 'import:%'"
WANTED = Wanted(orchestrator="flows", account_ids=("ca_1",))


@pytest.fixture
async def importer(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[House, FakeAskedFirst]]:
    async with open_house(database_url, tmp_path / "house", config=CONFIG) as house:
        fake = FakeAskedFirst("flows", "sync-mail", "sync-crm", "report")
        house.runtime.orchestrators["flows"] = fake
        yield house, fake


async def registered(house: House) -> dict[str, str | None]:
    rows = await house.rows("SELECT workflow_id, orchestrator_ref FROM workflows ORDER BY workflow_id")
    return {row["workflow_id"]: row["orchestrator_ref"] for row in rows}


async def test_what_matches_is_registered_once_and_what_comes_later_too(importer: tuple[House, FakeAskedFirst]) -> None:
    house, fake = importer
    await Importing().step(house.runtime)
    assert await registered(house) == {"sync-crm": "sync-crm", "sync-mail": "sync-mail"}
    fake.flows["sync-chat"] = Flow()
    await Importing().step(house.runtime)
    assert "sync-chat" not in await registered(house), "another worker had the turn just now"
    await house.run(DUE)
    await Importing().step(house.runtime)
    assert set(await registered(house)) == {"sync-chat", "sync-crm", "sync-mail"}
    puts = "SELECT 1 FROM events WHERE kind = 'audit' AND details ->> 'action' = 'workflow.put'"
    assert len(await house.rows(puts)) == 3, "nothing was put twice"


async def test_a_persons_word_is_left_and_what_is_gone_stays(importer: tuple[House, FakeAskedFirst]) -> None:
    house, fake = importer
    await house.put("mine", account_ids=["ca_9"], ref="sync-mail")
    await house.put("sync-crm", account_ids=["ca_9"], ref="elsewhere")
    await Importing().step(house.runtime)
    found = await registered(house)
    [new] = set(found) - {"mine", "sync-crm"}
    assert (found["mine"], found["sync-crm"], found[new]) == ("sync-mail", "elsewhere", "sync-crm")
    assert (await house.workflow("mine"))["account_ids"] == ["ca_9"]
    fake.flows.clear()
    await house.run(DUE)
    await Importing().step(house.runtime)
    assert await registered(house) == found


async def test_what_is_registered_while_we_look_is_not_overwritten(importer: tuple[House, FakeAskedFirst]) -> None:
    house, _ = importer
    plan = await importing.look(house.runtime, WANTED)
    await house.put("sync-mail", account_ids=["ca_9"])
    await house.put("mine", account_ids=["ca_9"], ref="report")
    done = await importing.apply(house.runtime, WANTED, plan.new, "a person")
    assert [one.workflow_id for one in done] == ["sync-crm"]
    assert (await house.workflow("sync-mail"))["account_ids"] == ["ca_9"]


async def test_what_is_imported_while_its_account_is_broken_is_paused_at_once(
    importer: tuple[House, FakeAskedFirst],
) -> None:
    house, fake = importer
    await house.put("w1", account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    await Importing().step(house.runtime)
    assert (await house.workflow("sync-mail"))["state"] == "paused"
    await act(house.runtime)
    assert fake.flows["sync-mail"].paused
    assert not fake.flows["report"].paused


async def test_an_orchestrator_that_is_away_is_asked_again(importer: tuple[House, FakeAskedFirst]) -> None:
    house, fake = importer
    importing_ = Importing()
    fake.takes_us = False
    await importing_.step(house.runtime)
    assert await registered(house) == {}
    fake.takes_us = True
    await house.run(DUE)
    await importing_.step(house.runtime)
    assert len(await registered(house)) == 2


async def test_very_many_are_registered_a_few_at_a_time(
    importer: tuple[House, FakeAskedFirst], monkeypatch: pytest.MonkeyPatch
) -> None:
    house, _ = importer
    monkeypatch.setattr(imports, "PUTS_MAX", 1)
    importing_ = Importing()
    await importing_.step(house.runtime)
    assert len(await registered(house)) == 1
    await house.run(SOON)
    await importing_.step(house.runtime)
    assert len(await registered(house)) == 2


async def test_one_that_cannot_be_registered_keeps_no_other_from_it(
    importer: tuple[House, FakeAskedFirst], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where a turn has room for few: what failed comes last at the next."""
    house, _ = importer

    async def put(runtime: Runtime, wanted: Wanted, one: Proposal, actor: str) -> bool:
        if one.ref == "sync-crm":
            raise Conflict("ca_1 is two accounts by now: write source:environment_id:account_id")
        return await importing.put(runtime, wanted, one, actor)

    monkeypatch.setattr(imports, "put", put)
    monkeypatch.setattr(imports, "PUTS_MAX", 1)
    importing_ = Importing()
    await importing_.step(house.runtime)
    assert await registered(house) == {}
    await house.run(SOON)
    await importing_.step(house.runtime)
    assert set(await registered(house)) == {"sync-mail"}
    await house.run(SOON)
    await importing_.step(house.runtime)
    assert importing_.more == set(), "what failed is not tried again and again"
    monkeypatch.setattr(imports, "put", importing.put)
    await house.run(DUE)
    await importing_.step(house.runtime)
    assert set(await registered(house)) == {"sync-crm", "sync-mail"}


async def test_a_turn_ends_in_its_time(importer: tuple[House, FakeAskedFirst], monkeypatch: pytest.MonkeyPatch) -> None:
    house, fake = importer
    importing_ = Importing()

    async def never(*, limit: int) -> Sequence[Listed]:
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as silent:
        silent.setattr(fake, "list_workflows", never)
        silent.setattr(imports, "LOOK_SECONDS_MAX", 0.05)
        await importing_.step(house.runtime)
    with monkeypatch.context() as late:
        late.setattr(imports, "TURN_SECONDS_MAX", -1.0)
        await house.run(DUE)
        await importing_.step(house.runtime)
    assert await registered(house) == {}
    await house.run(SOON)
    await importing_.step(house.runtime)
    assert len(await registered(house)) == 2, "the rest follows at once"
