"""A drill, end to end: marked everywhere, joins nothing, pauses only what is meant for it, and ends by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service import drill, explain
from service.errors import BadRequest, NotFound
from service.notify.base import AlertView
from service.notify.wording import word
from service.store import accounts, alerts
from service.store.alerts import Alert
from service.store.session import begin
from tests.workers.house import House
from workers.act import act
from workers.drills import end_drills
from workers.evaluate import evaluate
from workers.ship import ship

FAILING = "token-refresh-failing"


async def start(house: House, *, seconds: float = 60, account: str | None = None, workflow: str | None = None) -> Alert:
    async with begin(house.runtime.engine) as conn:
        return await drill.start(
            conn,
            house.runtime.rules.ruleset.by_id[FAILING],
            account=await accounts.find(conn, account) if account else None,
            lasts=timedelta(seconds=seconds),
            workflow_id=workflow,
            notifiers=list(house.runtime.notifiers),
            actor="a person",
        )


async def end(house: House, alert: Alert) -> bool:
    async with begin(house.runtime.engine) as conn:
        return await drill.end(conn, alert.id, list(house.runtime.notifiers), reason="drill_over")


def said(house: House) -> list[str]:
    return [str(call["text"]) for name in ("chat.postMessage", "chat.update") for call in house.slack.calls[name]]


async def test_it_is_marked_in_messages_log_and_copies(house: House) -> None:
    await house.told("ACTIVE")
    alert = await start(house, account="ca_1")
    await act(house.runtime)
    await ship(house.runtime)
    assert await end(house, alert)
    assert not await end(house, alert), "only once"
    await act(house.runtime)
    posted, edited = said(house)
    assert posted.startswith("DRILL ")
    assert "scalekit:env_1:ca_1" in posted
    assert edited.startswith("DRILL ")
    assert "Resolved" in edited
    rows = await house.rows(
        "SELECT kind, account_id, details FROM events WHERE kind IN ('alert.firing', 'alert.resolved') ORDER BY position"
    )
    assert [(row["kind"], row["account_id"], row["details"]["drill"]) for row in rows] == [
        ("alert.firing", None, True),
        ("alert.resolved", None, True),
    ]
    async with begin(house.runtime.engine) as conn:
        assert [one.is_told for one in await drill.told(conn, alert)] == [True]
        assert await alerts.counts(conn) == [], "no metric counts it"
        notes = (
            await explain.explain_alert(conn, alert.id, house.runtime.rules.ruleset, house.runtime.settings.routing)
        )["notes"]
    assert notes[0].startswith("this is a drill")


async def test_it_joins_no_real_episode_and_hides_none(house: House) -> None:
    await house.told("ACTIVE", ago=60)
    await house.put(account_ids=["ca_1"])
    drilled = await start(house, account="ca_1")
    for ago in (3, 2, 1):
        await house.tell("failed", ago=ago)
    await evaluate(house.runtime)
    real = [row for row in await house.alerts() if not row["drill"]]
    assert [(row["rule_id"], row["episode"], row["state"]) for row in real] == [(FAILING, 1, "firing")]
    assert (await house.workflow())["paused_by"] == [str(real[0]["id"])], "the drill paused nothing"
    await house.told("succeeded")
    assert {row["state"] for row in await house.alerts() if row["drill"]} == {"firing"}, (
        "what recovers is not the drill"
    )
    assert await end(house, drilled)


async def test_what_nobody_ends_ends_by_itself(house: House) -> None:
    await start(house, seconds=3600)
    over = await start(house, seconds=1)
    await house.run(f"UPDATE alerts SET drill_until = clock_timestamp() WHERE id = '{over.id}'")
    await end_drills(house.runtime)
    states = {str(row["id"]): (row["state"], row["resolved_reason"]) for row in await house.alerts()}
    assert states.pop(over.id) == ("resolved", "drill_over")
    assert list(states.values()) == [("firing", None)]


async def test_it_pauses_one_workflow_that_is_meant_for_it(house: House) -> None:
    await house.put("drill-flow", account_ids=["ca_1"], ref="ref_1")
    await house.put("payroll", account_ids=["ca_1"])
    alert = await start(house, workflow="drill-flow")
    await act(house.runtime)
    assert (await house.workflow("drill-flow"))["state"] == "paused"
    assert (await house.gate(workflow_id="drill-flow")).reason == "workflow_paused"
    assert (await house.workflow("payroll"))["state"] == "active"
    await house.resolve(alert.id)
    assert (await house.workflow("drill-flow"))["state"] == "paused", "a person's resolve lets nothing go"
    await house.run(f"UPDATE alerts SET drill_until = clock_timestamp() WHERE id = '{alert.id}'")
    await end_drills(house.runtime)
    await act(house.runtime)
    assert (await house.workflow("drill-flow"))["state"] == "active"
    asked = [
        row["kind"] for row in await house.rows("SELECT kind FROM actions WHERE workflow_id = 'drill-flow' ORDER BY id")
    ]
    assert asked == ["orchestrator.pause", "orchestrator.resume"]
    assert {"workflow.paused", "workflow.resumed"} <= set(await house.kinds())


async def test_another_workflow_is_refused(house: House) -> None:
    await house.put("payroll", account_ids=["ca_1"])
    with pytest.raises(BadRequest, match='begins with "drill"'):
        await start(house, workflow="payroll")
    with pytest.raises(NotFound, match="put it first"):
        await start(house, workflow="drill-nothing")
    with pytest.raises(BadRequest, match="at most 1:00:00"):
        await start(house, seconds=7200)
    assert await house.alerts() == []


def test_the_word_stands_first() -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    view = AlertView(
        id="1", rule_id="r", severity="P2", state="firing", summary="S", opened_at=now, fired_at=now, drill=True
    )
    assert word(view, now).text().startswith("DRILL ")
    assert "nothing is broken" in (word(view, now).status or "")


async def run_command(env: dict[str, str], *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("authwatch")),
        "rules",
        "drill",
        FAILING,
        *words,
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def environment(house: House) -> dict[str, str]:
    settings = house.runtime.settings
    return {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "AUTHWATCH_RULES": str(settings.rules_folder),
        "SLACK_BOT_TOKEN": "xoxb-drill-1234567890",
        "SLACK_CHANNEL": "C1",
        "SLACK_API_URL": house.slack.url + "/api/",
    }


async def working(house: House, process: asyncio.subprocess.Process) -> tuple[str, str]:
    """The worker's part beside the command."""
    ended = asyncio.create_task(process.communicate())
    while not ended.done():
        await act(house.runtime)
        await asyncio.wait([ended], timeout=0.05)
    out, err = await ended
    return out.decode(), err.decode()


async def test_the_command_says_who_was_told_and_how_soon(house: House) -> None:
    process = await run_command(environment(house), "--for", "2s")
    out, err = await working(house, process)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("committed after ")
    assert lines[1].startswith("slack was told after "), out
    assert lines[2].startswith("over after ")
    assert lines[3] == "every message says that it is over"


async def test_the_command_fails_when_nobody_sends(house: House) -> None:
    process = await run_command(environment(house), "--for", "1s")
    ended = asyncio.create_task(process.communicate())

    async def is_over() -> bool:
        return [row["state"] for row in await house.alerts()] == ["resolved"]

    while not await is_over():
        assert not ended.done(), await ended
        await asyncio.wait([ended], timeout=0.05)
    await act(house.runtime)  # too late
    _, err = await ended
    assert process.returncode == 1
    assert b"slack was not told within 1 s: nobody has tried: is a worker running?" in err


async def test_a_killed_command_leaves_a_drill_that_ends(house: House) -> None:
    process = await run_command(environment(house), "--for", "2s")
    assert process.stdout is not None
    assert b"committed" in await process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert [row["state"] for row in await house.alerts()] == ["firing"]
    while [row["state"] for row in await house.alerts()] == ["firing"]:
        await end_drills(house.runtime)  # as the sweep does every second
        await asyncio.sleep(0.05)


async def test_a_rule_that_is_not_there_is_said(house: House) -> None:
    wrong = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("authwatch")),
        "rules",
        "drill",
        "no-such-rule",
        env={**os.environ, **environment(house)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await wrong.communicate()
    assert wrong.returncode == 2
    assert b'no rule "no-such-rule" is in force; there are' in err
