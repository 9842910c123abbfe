"""The rule set in force: published once and the same for every process."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service import rule_changes, rule_sets
from service.rule_failures import QUIET, Failures
from service.rules import Problem, load_text
from service.rules.load import Loaded
from service.store import log, readers
from service.store import rule_sets as store
from service.store.session import begin
from tests.workers.editing import (
    ANOTHER,
    BROKEN,
    HOUR,
    ME,
    THREE_FAILURES,
    TWO_FAILURES,
    age,
    another,
    ids,
    in_set,
    own,
    save,
    version,
)
from tests.workers.house import RULES, House
from workers.act import act
from workers.evaluate import evaluate
from workers.rules import FAILING, INVALID, keep_rules


@pytest.fixture
def house(settled: House) -> House:
    return settled


async def test_with_an_empty_database_the_files_are_published_before_anything_is_judged(house: House) -> None:
    await house.tell("failed")
    await house.told("failed")  # no sweep has run
    assert [alert["rule_id"] for alert in await house.alerts()] == ["two-failures"]
    assert await house.rows("SELECT rule_id, change FROM rule_versions") == [
        {"rule_id": "two-failures", "change": "added"}
    ]
    assert await version(house.runtime) > 0


async def test_a_save_is_in_force_for_every_worker_within_two_seconds(
    house: House, folder: Path, tmp_path: Path
) -> None:
    save(tmp_path / "copy", TWO_FAILURES, ago=HOUR)
    async with another(house, tmp_path / "copy") as second:
        for runtime in (house.runtime, second):
            await keep_rules(runtime)
        before = await version(second)
        (folder / "more.yml").write_text(ANOTHER)  # with the present as its time, as an editor leaves it
        saved_at = time.monotonic()
        while await ids(second) != ["another", "two-failures"]:
            assert time.monotonic() - saved_at < 2.0
            await keep_rules(house.runtime)  # what the sweep does each second
        assert await ids(house.runtime) == ["another", "two-failures"]
        assert await version(house.runtime) == await version(second) != before
        assert second.rule_sets.folder.look(datetime.now(UTC)) is not None
        assert not (tmp_path / "copy" / "more.yml").exists()


async def test_two_workers_that_see_the_same_edit_publish_it_once(house: House, folder: Path) -> None:
    async with another(house, folder) as second:
        for runtime in (house.runtime, second):
            await keep_rules(runtime)
        save(folder, THREE_FAILURES)
        for runtime in (house.runtime, second):
            await keep_rules(runtime)
    changes = await house.rows("SELECT change FROM rule_versions ORDER BY set_version")
    assert [row["change"] for row in changes] == ["added", "changed"]


async def test_an_old_copy_on_another_host_does_not_bring_old_rules_back(
    house: House, folder: Path, tmp_path: Path
) -> None:
    save(folder, THREE_FAILURES, ago=60)
    save(folder, ANOTHER, "another.yml", ago=60)
    await keep_rules(house.runtime)
    assert await ids(house.runtime) == ["another", "two-failures"]
    before = await version(house.runtime)
    save(tmp_path / "old", TWO_FAILURES, ago=HOUR)  # and without another.yml
    age(tmp_path / "old", HOUR)
    async with another(house, tmp_path / "old") as stale:
        for _ in range(2):
            await keep_rules(stale)
        assert await version(stale) == before
        assert (await in_set(stale, "two-failures")).count.gte == 3
        # An edit that this worker sees is one, whatever else its folder is behind in.
        save(tmp_path / "old", TWO_FAILURES.replace("gte: 2", "gte: 5"))
        await keep_rules(stale)
        assert (await in_set(house.runtime, "two-failures")).count.gte == 5
        assert await ids(house.runtime) == ["another", "two-failures"]


async def test_what_was_edited_or_deleted_while_no_worker_ran_is_published_at_the_next_start(
    house: House, folder: Path
) -> None:
    save(folder, ANOTHER, "another.yml", ago=60)
    age(folder, 60)
    await keep_rules(house.runtime)
    await house.run("UPDATE rule_files SET changed_at = changed_at - interval '1 minute'")
    save(folder, THREE_FAILURES, ago=1)
    save(folder, None, "another.yml")
    async with another(house, folder) as next_one:
        await keep_rules(next_one)
        assert await ids(next_one) == ["two-failures"]
        assert (await in_set(next_one, "two-failures")).count.gte == 3


async def test_a_worker_that_starts_with_a_broken_file_judges_by_its_last_good_version(
    house: House, folder: Path
) -> None:
    save(folder, ANOTHER, "another.yml", ago=60)
    await keep_rules(house.runtime)
    save(folder, BROKEN, ago=1)
    save(folder, ANOTHER.replace("another", "better"), "another.yml", ago=1)
    async with another(house, folder) as started:
        await keep_rules(started)
        assert await ids(started) == ["better", "two-failures"]  # the broken file harms no other
    (alert,) = await own(house, INVALID)
    assert (alert["state"], alert["severity"], alert["group_key"]) == ("firing", "P2", "rules.yml")
    assert "rules.yml:5:" in alert["summary"]
    assert 'unknown key "witin"; did you mean "within"?' in alert["summary"]
    assert "authwatch rules check" in alert["what_to_do"]
    assert f"last saved by {ME}" in alert["what_to_do"]
    async with another(house, folder) as once_more:
        await keep_rules(once_more)
        assert await ids(once_more) == ["better", "two-failures"]
    assert len(await own(house, INVALID)) == 1


@pytest.mark.parametrize("mended", [THREE_FAILURES, TWO_FAILURES, None], ids=["edited", "taken-back", "deleted"])
async def test_the_alert_about_a_broken_file_is_posted_once_and_resolves_when_it_is_good_or_gone(
    house: House, folder: Path, mended: str | None
) -> None:
    await keep_rules(house.runtime)
    save(folder, BROKEN)
    for _ in range(3):
        await keep_rules(house.runtime)
    await act(house.runtime)
    assert house.posts() == 1
    assert [alert["state"] for alert in await own(house, INVALID)] == ["firing"]
    assert await ids(house.runtime) == ["two-failures"]
    save(folder, ANOTHER, "another.yml")
    save(folder, mended, ago=0.5)
    await keep_rules(house.runtime)
    assert [alert["resolved_reason"] for alert in await own(house, INVALID)] == ["recovered"]
    assert await ids(house.runtime) == (["another"] if mended is None else ["another", "two-failures"])


async def test_a_file_that_may_not_be_read_is_an_alert_and_loses_no_rule(
    house: House, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved by another user, with a mode that is closed to us: nothing would happen, and nobody would know why."""
    await keep_rules(house.runtime)
    opens, locked = Path.open, {"rules.yml"}

    def open_(path: Path, *rest: Any, **more: Any) -> Any:
        if path.name in locked:
            raise PermissionError(13, "Permission denied", str(path))
        return opens(path, *rest, **more)

    monkeypatch.setattr(Path, "open", open_)
    save(folder, THREE_FAILURES)
    for _ in range(2):
        house.runtime.rules.reload()
        await keep_rules(house.runtime)
    (alert,) = await own(house, INVALID)
    assert (alert["state"], alert["group_key"]) == ("firing", "rules.yml")
    assert alert["summary"] == "The rule file rules.yml cannot be read (PermissionError)"
    assert (await in_set(house.runtime, "two-failures")).count.gte == 2
    locked.clear()
    house.runtime.rules.reload()
    await keep_rules(house.runtime)
    assert [alert["state"] for alert in await own(house, INVALID)] == ["resolved"]
    assert await ids(house.runtime) == ["two-failures"]
    assert (await in_set(house.runtime, "two-failures")).count.gte == 3


async def test_the_same_id_in_another_file_is_that_files_mistake(house: House, folder: Path) -> None:
    await keep_rules(house.runtime)
    save(folder, TWO_FAILURES.replace("gte: 2", "gte: 9"), "zz.yml")
    await keep_rules(house.runtime)
    assert (await in_set(house.runtime, "two-failures")).count.gte == 2
    (alert,) = await own(house, INVALID)
    assert alert["group_key"] == "zz.yml"
    assert "already used in rules.yml" in alert["summary"]
    save(folder, ANOTHER, "another.yml")
    save(folder, None, "rules.yml")
    await keep_rules(house.runtime)
    assert (await in_set(house.runtime, "two-failures")).count.gte == 9
    assert [alert["state"] for alert in await own(house, INVALID)] == ["resolved"]


async def test_a_version_says_who_when_and_what(house: House, folder: Path) -> None:
    await keep_rules(house.runtime)
    save(folder, THREE_FAILURES)
    await keep_rules(house.runtime)
    save(folder, ANOTHER, "another.yml")
    save(folder, None)
    await keep_rules(house.runtime)
    async with begin(house.runtime.engine) as conn:
        removed, changed, added = await store.versions_of(conn, "two-failures", None, 10)
    assert [one.change for one in (added, changed, removed)] == ["added", "changed", "removed"]
    assert {one.by for one in (added, changed, removed)} == {ME}
    assert house.began <= added.at <= changed.at <= removed.at <= datetime.now(UTC)
    assert (added.text or "").startswith("- id: two-failures\n")
    assert "-  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 2}" in changed.diff
    assert "+  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 3}" in changed.diff
    assert (removed.version, removed.text) == (None, None)
    assert "-- id: two-failures" in removed.diff
    audits = await house.rows("SELECT details FROM events WHERE kind = 'audit' ORDER BY position")
    assert [row["details"]["reason"] for row in audits] == [
        "changed two-failures",
        "added another, removed two-failures",
    ]
    assert audits[0]["details"]["actor"] == ME


async def test_put_judges_by_the_set_in_force_and_not_by_its_own_files(
    house: House, folder: Path, tmp_path: Path
) -> None:
    states = RULES.format(stable_for="1s", expired_for="1s")
    save(folder, states, "more.yml")
    await keep_rules(house.runtime)
    await house.told("DISCONNECTED", ago=5)
    save(tmp_path / "old", TWO_FAILURES, ago=HOUR)
    async with another(house, tmp_path / "old") as receiver:
        other = House(receiver, house.slack, house.hec, house.orchestrator)
        assert (await other.put(account_ids=["ca_1"]))["state"] == "paused"


async def test_what_a_crash_left_open_is_mended_by_the_sweep_in_batches(
    house: House, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep_rules(house.runtime)
    for account in ("ca_1", "ca_2", "ca_3"):
        await house.tell("failed", ago=2, account=account)
        await house.told("failed", ago=1, account=account)
    assert len(await house.alerts()) == 3
    save(folder, ANOTHER, "another.yml")
    save(folder, None)
    # As if the process had been killed right after the commit that published, with one batch of one alert in it.
    monkeypatch.setattr(rule_changes, "CLOSED_AT_ONCE_MAX", 1)
    runtime = house.runtime
    look = runtime.rule_sets.folder.look(datetime.now(UTC))
    assert look is not None
    async with begin(runtime.engine) as conn:
        _, out = await rule_sets.take_in(conn, runtime.rule_sets, look, [])
        await log.append(conn, out.decisions)
    assert [decision.kind for decision in out.decisions] == ["alert.resolved", "audit"]
    assert sum(alert["state"] == "firing" for alert in await house.alerts()) == 2
    async with another(house, folder) as started:
        await keep_rules(started)
        assert {alert["resolved_reason"] for alert in await house.alerts()} == {"rule_changed"}
        await keep_rules(started)
        assert (await house.kinds()).count("alert.resolved") == 3  # each is said once
    assert (await house.rows("SELECT settled, rejudge_since FROM rule_set")) == [
        {"settled": True, "rejudge_since": None}
    ]


async def test_what_a_newer_version_of_the_code_cannot_read_is_an_alert_and_ends_nothing(
    house: House, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, ANOTHER, "another.yml", ago=60)
    await keep_rules(house.runtime)
    await house.tell("failed", ago=2)
    await house.told("failed", ago=1)
    assert len(await house.alerts()) == 2

    def strict(raw: bytes, name: str) -> Loaded:
        refused = Problem(name, 2, 1, "no longer allowed; write it anew")
        return Loaded((), (refused,)) if name == "rules.yml" else load_text(raw, name)

    monkeypatch.setattr("service.rule_sets.load_text", strict)
    async with another(house, folder) as upgraded:
        save(folder, ANOTHER.replace("It fails", "It does fail"), "another.yml", ago=5)
        await keep_rules(upgraded)
        assert await ids(upgraded) == ["another"]
    (invalid,) = await own(house, INVALID)
    assert "rules.yml:2:1: no longer allowed" in invalid["summary"]
    assert {alert["state"] for alert in await house.alerts()} == {"firing"}
    monkeypatch.undo()
    async with another(house, folder) as downgraded:
        await keep_rules(downgraded)
        assert await ids(downgraded) == ["another", "two-failures"]
    assert [alert["state"] for alert in await own(house, INVALID)] == ["resolved"]


async def test_a_publication_that_was_rolled_back_is_published_again(house: House, folder: Path) -> None:
    await keep_rules(house.runtime)
    save(folder, THREE_FAILURES)
    look = house.runtime.rule_sets.folder.look(datetime.now(UTC))
    assert look is not None
    async with house.runtime.engine.connect() as conn:
        await rule_sets.take_in(conn, house.runtime.rule_sets, look, [])
        seen: Any = (await house.runtime.rule_sets.current(conn)).ruleset.by_id["two-failures"]
        assert seen.count.gte == 3
        await conn.rollback()
    assert (await in_set(house.runtime, "two-failures")).count.gte == 2
    await keep_rules(house.runtime)
    assert (await in_set(house.runtime, "two-failures")).count.gte == 3


async def test_who_judges_holds_the_set_until_it_ends(house: House, folder: Path) -> None:
    """Nothing is opened by an old set once a new one is published."""
    await keep_rules(house.runtime)
    async with begin(house.runtime.engine) as judging:
        await rule_sets.in_force(judging, house.runtime)
        async with begin(house.runtime.engine) as publishing:
            free = await publishing.execute(text(f"SELECT pg_try_advisory_xact_lock({store.LOCK})"))
            assert free.scalar_one() is False
        async with begin(house.runtime.engine) as beside:  # two who judge do not wait for each other
            await rule_sets.in_force(beside, house.runtime)
    async with begin(house.runtime.engine) as publishing:
        free = await publishing.execute(text(f"SELECT pg_try_advisory_xact_lock({store.LOCK})"))
        assert free.scalar_one() is True


async def test_publishing_judging_and_putting_at_once_wait_for_each_other_and_never_in_a_ring(
    house: House, folder: Path
) -> None:
    """A deadlock would be an error of one of them."""
    rounds = 12
    await keep_rules(house.runtime)

    async def edits() -> None:
        for number in range(rounds):
            save(folder, TWO_FAILURES if number % 2 else THREE_FAILURES)
            await keep_rules(house.runtime)

    async def judges() -> None:
        for number in range(rounds):
            for account in range(5):
                await house.tell("failed", ago=5 - number / rounds, account=f"ca_{account}")
            await evaluate(house.runtime)

    async def puts() -> None:
        for number in range(rounds):
            await house.put(f"w{number}", account_ids=[f"ca_{account}" for account in range(5)])

    await asyncio.gather(edits(), judges(), puts())
    await keep_rules(house.runtime)
    await evaluate(house.runtime)
    rule = await in_set(house.runtime, "two-failures")
    alerts = [alert for alert in await house.alerts() if alert["condition_ended_at"] is None]
    assert {alert["condition_version"] for alert in alerts} == {rule.condition_version}
    assert sorted(alert["account_id"] for alert in alerts) == [f"ca_{account}" for account in range(5)]


async def test_accounts_are_judged_again_in_batches(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        await house.tell("ACTIVE" if number == 0 else "failed", ago=10, account=f"ca_{number}")
    await house.told("succeeded", ago=1, account="ca_1")
    monkeypatch.setattr(rule_changes, "REJUDGED_AT_ONCE_MAX", 2)
    await house.run("DELETE FROM deadlines")
    after: tuple[str, ...] | None = ()
    rounds = 0
    while after is not None:
        async with begin(house.runtime.engine) as conn:
            now = await readers.clock(conn)
            after = await rule_changes.rejudge_soon(conn, now, after, now)
        rounds += 1
    assert rounds == 3
    due = await house.rows("SELECT account_id FROM deadlines ORDER BY account_id")
    assert [row["account_id"] for row in due] == ["ca_2", "ca_3", "ca_4"]


async def test_a_failing_rule_is_said_and_its_alert_resolves_when_it_is_well_or_edited(
    house: House, folder: Path
) -> None:
    await keep_rules(house.runtime)
    rule = await in_set(house.runtime, "two-failures")

    async def fails() -> None:
        failures = Failures()
        assert failures.attempt(rule, lambda: 1 // 0) is None
        assert failures.attempt(rule, lambda: 7) == 7  # of another account
        assert failures.found == {"two-failures": (rule.version, "ZeroDivisionError")}
        async with begin(house.runtime.engine) as conn:
            await store.record_failures(conn, failures.found, await readers.clock(conn))

    await fails()
    await keep_rules(house.runtime)
    await fails()
    await keep_rules(house.runtime)
    (alert,) = await own(house, FAILING)
    assert (alert["state"], alert["severity"]) == ("firing", "P2")
    assert alert["summary"] == "Rule two-failures cannot be judged: ZeroDivisionError"
    assert alert["id"] not in [one["id"] for one in await house.alerts() if one["resolved_reason"] == "rule_changed"]
    quiet = int(QUIET.total_seconds())
    await house.run(f"UPDATE rule_failures SET last_at = now() - interval '{quiet} seconds'")
    await keep_rules(house.runtime)
    assert [alert["state"] for alert in await own(house, FAILING)] == ["resolved"]
    await fails()
    await keep_rules(house.runtime)
    assert [alert["state"] for alert in await own(house, FAILING)] == ["resolved", "firing"]
    save(folder, THREE_FAILURES)
    await keep_rules(house.runtime)
    assert [alert["state"] for alert in await own(house, FAILING)] == ["resolved", "resolved"]
    assert await house.rows("SELECT * FROM rule_failures") == []
