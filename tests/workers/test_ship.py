"""The copy to the SIEM: everything, in commit order, and never at the alerts' cost."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest

from service.event import Event
from service.sinks.base import Sent
from service.store import log
from service.store.session import begin
from tests.fakes.hec import Scripted
from tests.make import make_receipt
from tests.store.servers import END_OURS
from tests.workers.house import House
from workers.act import act
from workers.evaluate import evaluate
from workers.ship import ship


async def kept(house: House) -> list[str]:
    async with begin(house.runtime.engine) as conn:
        return [event.id for event in await log.read_after(conn, 0, 1000) if event.origin != "probe"]


async def soon(house: House) -> None:
    await house.run("UPDATE readers SET next_attempt_at = NULL WHERE name LIKE 'sink:%'")
    await ship(house.runtime)


def shipped(house: House) -> list[str]:
    return [event["metadata"]["uid"] for event in house.hec.events]


async def test_a_siem_that_was_down_gets_everything_in_order_and_the_alerts_did_not_wait(house: House) -> None:
    house.hec.always = Scripted(503)
    await house.put(account_ids=["ca_1"])
    for _ in range(3):
        await house.tell("failed")
        await ship(house.runtime)
    await evaluate(house.runtime)
    await act(house.runtime)
    assert (house.posts(), house.hec.envelopes) == (1, [])
    house.hec.always = None
    await house.told("succeeded")
    await soon(house)
    assert shipped(house) == await kept(house)
    assert len(house.hec.envelopes) == 8


async def test_decisions_audit_and_quarantine_are_in_the_log_and_a_probe_never_leaves(house: House) -> None:
    await house.accept(
        make_receipt(kind="quarantine", type="quarantine", account_id=None, occurred_at=None),
        make_receipt(kind="token.refresh_failed", origin="probe", account_id="ca_probe"),
    )
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    await house.told("ACTIVE")
    await soon(house)
    kinds = [
        row["kind"] for row in await house.rows("SELECT kind FROM events WHERE origin <> 'probe' ORDER BY position")
    ]
    assert kinds == [
        "quarantine",
        "audit",
        "account.disconnected",
        "workflow.paused",
        "alert.firing",
        "account.authorized",
        "alert.resolved",
    ]
    assert shipped(house) == await kept(house)
    assert await house.rows("SELECT 1 FROM accounts WHERE account_id = 'ca_probe'") == []


async def test_a_batch_whose_answer_was_lost_is_sent_again_and_none_is_missing(house: House) -> None:
    await house.told("ACTIVE")
    house.hec.script.append(Scripted(500, keep=True))
    await ship(house.runtime)
    await soon(house)
    assert list(dict.fromkeys(shipped(house))) == await kept(house)
    assert len(shipped(house)) == 2


async def lose_connections(house: House) -> None:
    url = house.runtime.settings.database_url.get_secret_value()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        ended = await (await conn.execute(END_OURS)).fetchall()
    assert ended
    assert all(one == (True,) for one in ended)


@pytest.mark.parametrize("refused", [False, True])
async def test_a_database_that_is_away_when_the_answer_comes_holds_the_sink_up_no_longer_than_that(
    house: House, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    await house.told("ACTIVE")
    sink = house.runtime.sinks["splunk"]
    send = sink.send

    async def send_and_lose(items: Sequence[Event]) -> Sent:
        try:
            return await send(items)
        finally:
            await lose_connections(house)

    if refused:
        house.hec.script.append(Scripted(503))
    monkeypatch.setattr(sink, "send", send_and_lose)
    await ship(house.runtime)
    monkeypatch.undo()
    await house.told("DISCONNECTED")
    await soon(house)
    assert shipped(house) == await kept(house)
