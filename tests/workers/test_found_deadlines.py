"""Deadlines that are lost, overwritten, never end, or are judged before what they wait for is read."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.store import accounts
from service.store.session import begin
from tests.end_to_end.running import until
from tests.workers.editing import THREE_FAILURES, TWO_FAILURES, save
from tests.workers.house import House, make_event, open_house
from tests.workers.passing import let_pass
from workers import evaluate as evaluating
from workers.evaluate import Evaluated, evaluate
from workers.rules import keep_rules

ABSENCE = """\
version: 1
rules:
- id: not-recovered
  severity: P2
  absence:
    after: {kind: token.refresh_failed}
    expect: {kind: [token.refresh_succeeded, account.authorized]}
    within: 1s
  annotations: {summary: "It failed and nothing came after"}
"""
LONG_ABSENCE = ABSENCE.replace("within: 1s", "within: 10m")


async def of_rule(house: House, rule_id: str) -> list[tuple[str, str | None]]:
    return [(row["state"], row["resolved_reason"]) for row in await house.alerts() if row["rule_id"] == rule_id]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rounds: list[int] = []
    real = evaluating.judge_due

    async def counting(*given: Any) -> Any:
        rounds.append(1)
        return await real(*given)

    monkeypatch.setattr(evaluating, "judge_due", counting)
    return rounds


@pytest.mark.parametrize(
    "edited",
    ["version: 1\nrules: []\n", TWO_FAILURES.replace("two-failures", "not-recovered")],
    ids=["the-last-absence-is-gone", "the-id-is-now-a-count"],
)
async def test_a_deadline_whose_rule_is_gone_is_removed_and_the_evaluator_rests(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    async with open_house(database_url, tmp_path / "house", rules=ABSENCE) as house:
        folder = house.runtime.settings.rules_folder
        save(folder, ABSENCE, ago=60)
        await keep_rules(house.runtime)
        await house.told("failed")
        assert len(await house.rows("SELECT * FROM armed")) == 1
        save(folder, edited, ago=0.5)
        await keep_rules(house.runtime)
        await house.run("UPDATE armed SET due_at = due_at - interval '10 s'")
        await evaluate(house.runtime)
        rounds = counted(monkeypatch)
        await evaluate(house.runtime)
        assert (len(await house.rows("SELECT * FROM armed")), len(rounds)) == (0, 0)


async def test_an_edit_that_leaves_the_deadline_does_not_postpone_it(database_url: str, tmp_path: Path) -> None:
    """`keep_firing_for` is part of the condition: the row keeps the old condition's version, so that the next `after` arms
    anew, though the first one counts."""
    async with open_house(database_url, tmp_path / "house", rules=LONG_ABSENCE) as house:
        folder = house.runtime.settings.rules_folder
        save(folder, LONG_ABSENCE, ago=60)
        await keep_rules(house.runtime)
        await house.told("failed", ago=500)
        [before] = await house.rows("SELECT due_at FROM armed")
        save(folder, LONG_ABSENCE.replace("  annotations", "  keep_firing_for: 1m\n  annotations"), ago=0.5)
        await keep_rules(house.runtime)
        await evaluate(house.runtime)
        await house.told("failed")
        [after] = await house.rows("SELECT due_at FROM armed")
        assert after["due_at"] == before["due_at"]


@pytest.mark.parametrize("batch", [2000, 1], ids=["current", "behind"])
async def test_a_rejudgement_after_an_edit_is_not_lost_to_a_batch_from_before_it(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """While the evaluator is behind, `as_of` is before the edit; the account's next event of another kind deletes the
    deadline that the edit had set, and no one judges the new condition."""
    async with open_house(database_url, tmp_path / "house", rules=THREE_FAILURES) as house:
        folder = house.runtime.settings.rules_folder
        save(folder, THREE_FAILURES, ago=60)
        await keep_rules(house.runtime)
        await house.tell("failed", ago=3)
        await house.told("failed", ago=2)
        await house.tell("PENDING_AUTH", ago=1)  # waits, unread, as in a backlog
        await house.tell("PENDING_AUTH", ago=1, account="ca_2")
        save(folder, TWO_FAILURES, ago=0.5)
        await keep_rules(house.runtime)
        assert len(await house.rows("SELECT * FROM deadlines")) == 1
        monkeypatch.setattr(evaluating, "BATCH_EVENTS_MAX", batch)
        await evaluate(house.runtime)
        await evaluate(house.runtime)
        assert await of_rule(house, "two-failures") == [("firing", None)]


async def test_a_retry_of_a_failed_rule_is_not_lost_to_an_event_of_another_kind(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(database_url, tmp_path / "house", rules=TWO_FAILURES) as house:
        await house.told("failed", ago=3)
        with monkeypatch.context() as broken:

            def fail(*_: object) -> None:
                raise ZeroDivisionError

            broken.setattr("service.rules.triggers.count.Count.judge", fail)
            await house.told("failed", ago=2)
        assert len(await house.rows("SELECT * FROM deadlines")) == 1
        await house.told("PENDING_AUTH")
        assert len(await house.rows("SELECT * FROM deadlines")) == 1, "it was to be tried again"


WAITS = """\
version: 1
rules:
- id: fails-for-a-while
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 1h, gte: 1}
  for: 2s
  annotations: {summary: "It has failed for a while"}
"""


async def test_an_event_from_before_a_deadline_that_is_read_after_it_does_not_take_it_away(
    database_url: str, tmp_path: Path
) -> None:
    async with open_house(database_url, tmp_path / "house", rules=WAITS) as house:
        await house.told("failed", ago=1.0)
        await let_pass(house, 1.2)
        [waits] = await house.rows("SELECT due_at FROM deadlines")
        assert waits["due_at"] < datetime.now(UTC)
        await house.told(
            "PENDING_AUTH", ago=0.5
        )  # delivered half a second late, and of a kind the rule does not ask for
        await evaluate(house.runtime)
        assert await of_rule(house, "fails-for-a-while") == [("firing", None)]


GROUP_AND_WAIT = """\
version: 1
rules:
- id: by-account-and-provider
  severity: P2
  count: {match: {kind: account.reauth_started}, within: 2s, gte: 1}
  group_by: [account_id, provider]
  actions: [{pause_workflows: {depends_on: account_id, stable_for: 1h}}]
  annotations: {summary: "Grouped, about one account"}
- id: fails-for-a-while
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 1h, gte: 1}
  for: 4s
  annotations: {summary: "It has failed for a while"}
"""


async def test_a_groups_verdict_does_not_overwrite_the_accounts_deadline(database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, tmp_path / "house", rules=GROUP_AND_WAIT) as house:
        await house.put(account_ids=["ca_1"])
        await house.tell("PENDING_AUTH", ago=1.0)
        await house.tell("ACTIVE", ago=0.5)
        await house.told("failed", ago=0.2)
        assert await of_rule(house, "by-account-and-provider") == [("firing", None)]
        [before] = await house.rows("SELECT due_at FROM deadlines")

        async def ended() -> bool:
            await evaluate(house.runtime)
            return await of_rule(house, "by-account-and-provider") == [("resolved", "subsided")]

        await until(ended, 10)
        [after] = await house.rows("SELECT due_at FROM deadlines")
        assert after["due_at"] == before["due_at"], "the hold's release is in an hour, what is pending in seconds"


async def test_a_group_about_an_account_is_judged_under_the_accounts_lock(database_url: str, tmp_path: Path) -> None:
    """A PUT that holds the account's lock and the end of a `for` at the same time: neither would see the other."""
    rules = GROUP_AND_WAIT.replace("gte: 1}\n  group_by", "gte: 1}\n  for: 1s\n  group_by")
    async with open_house(database_url, tmp_path / "house", rules=rules) as house:
        await house.told("PENDING_AUTH")
        assert (await house.rows("SELECT due_at FROM groups"))[0]["due_at"] is not None
        await asyncio.sleep(1.1)
        async with begin(house.runtime.engine) as conn:
            await accounts.lock(conn, ["ca_1"])  # as a PUT of a workflow that depends on it
            task = asyncio.create_task(evaluate(house.runtime))
            done, _ = await asyncio.wait({task}, timeout=2.0)
            opened = await of_rule(house, "by-account-and-provider")
        await task
        assert (opened, bool(done)) == ([], False)


async def test_no_deadline_is_judged_while_its_answer_lies_unread(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many deadlines come at once and are judged in rounds. What arrives during those rounds is not read before the next
    round, which says of it that it did not come."""
    async with open_house(database_url, tmp_path / "house", rules=ABSENCE.replace("1s", "3s")) as house:
        now = datetime.now(UTC)
        await house.accept(make_event("failed", now - timedelta(seconds=2), account="ca_1"))
        await house.accept(make_event("failed", now, account="ca_2"))
        await evaluate(house.runtime)
        assert await house.alerts() == []
        await let_pass(house, 1.1)
        monkeypatch.setattr(evaluating, "ACCOUNTS_DUE_MAX", 1)
        real, rounds = evaluating.judge_due, []

        async def slow(*given: Any) -> Any:
            out = await real(*given)
            rounds.append(out)
            if len(rounds) == 1:  # the first round; the answer of the other account comes in time, meanwhile
                await house.accept(make_event("succeeded", datetime.now(UTC), account="ca_2"))
                await asyncio.sleep(2.2)
            return out

        monkeypatch.setattr(evaluating, "judge_due", slow)
        await evaluate(house.runtime)
        assert len(rounds) >= 1
        fired = [row["account_id"] for row in await house.alerts()]
        assert fired == ["ca_1"], "ca_2 was answered before its deadline, and the log had it"


async def test_one_step_alone_reads_what_is_unread(database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, tmp_path / "house", rules=ABSENCE) as house:
        await house.told("failed")
        await house.tell("succeeded")
        await let_pass(house, 1.1)
        await evaluating.one_transaction(house.runtime, evaluating.judge_due, Evaluated())
        assert await of_rule(house, "not-recovered") == []
