"""The backtest against the evaluator: the same log, the same episodes; and what the command prints."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner, Result

from service import backtest
from service.cli import authwatch
from service.errors import Unavailable
from service.rules import Ruleset, load_text
from service.rules.folding import BEGINNING
from service.rules.model import Objective
from service.store.backlog import snapshot
from tests.make import make_receipt
from tests.workers.house import House, make_event, open_house
from workers.evaluate import evaluate

RULES = """\
version: 1
rules:
- id: token-refresh-failing
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 3}
  resolve: {event: [{kind: [token.refresh_succeeded, account.authorized]}, {became: ACTIVE}]}
  actions: [{pause_workflows: {stable_for: 1s}}]
  annotations: {summary: Failing}
- id: account-disconnected-active-workflow
  severity: P2
  state:
    of: account
    match:
    - {status: [DISCONNECTED, DELETED], active_workflows: {gte: 1}}
    - {status: EXPIRED, active_workflows: {gte: 1}, for: 10s}
  actions: [{pause_workflows: {stable_for: 1s}}]
  annotations: {summary: Down}
"""
GROUPED = """\
version: 1
rules:
- id: many-accounts
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 61s, gte: 3, distinct: account_id}
  group_by: [connection_id]
  annotations: {summary: Many}
- id: success-rate
  severity: P3
  ratio: {good: {kind: token.refresh_succeeded}, total: {kind: [token.refresh_succeeded, token.refresh_failed]}, within: 1m, lt: 0.5, min_total: 3}
  group_by: [connection_id]
  annotations: {summary: Rate}
- id: lag
  severity: P3
  gauge: {metric: delivery_lag_seconds, gt: 30}
  annotations: {summary: Lag}
"""
WORDS = ("failed", "failed", "failed", "succeeded", "ACTIVE", "EXPIRED", "DISCONNECTED", "PENDING_AUTH")


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", rules=RULES) as opened:
        yield opened


def url_of(house: House) -> str:
    return house.runtime.settings.database_url.get_secret_value()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_it_says_what_the_evaluator_made_of_the_same_log(house: House, seed: int) -> None:
    chance = random.Random(seed)
    accounts = [f"ca_{number}" for number in range(6)]
    await house.put(account_ids=accounts[:4])
    began = datetime.now(UTC) - timedelta(hours=8)
    # In whole minutes: nothing is judged at the very instant at which a window is just full.
    told = [(chance.choice(accounts), chance.choice(WORDS), began + timedelta(minutes=number)) for number in range(300)]
    for start in range(0, len(told), 25):
        batch = told[start : start + 25]
        await house.accept(*(make_event(word, at, account=account) for account, word, at in batch))
        await evaluate(house.runtime)
    done = backtest.run(url_of(house), house.runtime.rules.ruleset, lambda _now: BEGINNING, keep_spans=True)
    mine = Counter(
        (tally.rule.id, group, opened, ended) for tally in done.tallies for group, opened, ended, _ in tally.spans or ()
    )
    theirs = Counter(
        (row["rule_id"], row["group_key"], row["opened_at"], row["condition_ended_at"])
        for row in await house.alerts()
        if row["rule_version"] is not None and row["resolved_reason"] != "late_arrival"
    )
    assert len(theirs) > 10
    assert mine == theirs
    assert done.rows == 300


async def test_late_open_pauses_and_messages_are_counted(house: House) -> None:
    await house.put("w1", account_ids=["ca_1"])
    await house.put("w2", connection_ids=["conn_1"])
    for ago in (300, 299, 298):
        await house.told("failed", ago=ago)
    await house.told("succeeded", ago=5, account="ca_2")
    for ago in (100, 99, 98):
        await house.told("failed", ago=ago, account="ca_2")
    assert [alert["discovered_late"] for alert in await house.alerts()] == [False, True]
    [failing, _] = backtest.run(url_of(house), house.runtime.rules.ruleset, lambda now: now - timedelta(days=1)).tallies
    assert (failing.episodes, failing.discovered_late, failing.open_at_end) == (2, 1, 1)
    assert (failing.messages, failing.pauses) == (1, 2)
    assert failing.longest > timedelta(seconds=290)
    later = backtest.run(url_of(house), house.runtime.rules.ruleset, lambda now: now - timedelta(seconds=3)).tallies[0]
    assert (later.episodes, later.open_at_end, later.messages) == (1, 1, 0), "what ended before is not counted"


async def test_groups_other_than_accounts(house: House, tmp_path: Path) -> None:
    rules = tmp_path / "grouped.yml"
    rules.write_text(GROUPED)
    began = datetime.now(UTC) - timedelta(minutes=10)
    for number in range(3):
        at = began + timedelta(seconds=number)
        await house.accept(make_event("failed", at, account=f"ca_{number}"))
        await house.accept(make_event("failed", at, account=f"ca_{number}", connection=f"conn_of_{number}"))
    answer = CliRunner().invoke(
        authwatch, ["rules", "backtest", "--json", str(rules)], env={"DATABASE_URL": url_of(house)}
    )
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    many, rate = said["rules"]
    assert (many["episodes"], many["worst"]) == (1, [{"group": "conn_1", "episodes": 1}])
    assert many["longest_seconds"] == pytest.approx(59, abs=1)
    assert rate["episodes"] == 1
    assert rate["open_at_end"] == 1, "too little is unknown, which never resolves"
    assert said["not_in_the_log"] == ["lag"]


async def test_a_connection_is_itself_in_its_environment_and_pauses_what_it_serves(house: House) -> None:
    """As the evaluator has it (grouped.py): the same id in development adds nothing to production."""
    text = GROUPED.replace("gte: 3,", "gte: 2,").replace(
        "  group_by: [connection_id]\n  annotations: {summary: Many}",
        "  group_by: [connection_id]\n  actions: [{pause_workflows: {depends_on: connection_id}}]\n  annotations: {summary: Many}",
    )
    loaded = load_text(text.encode(), "grouped.yml")
    assert loaded.problems == ()
    ruleset = Ruleset(loaded.rules)
    await house.put("w1", connection_ids=["conn_1"])
    await house.put("w2", connection_ids=["conn_1"], active=False)
    await house.put("w3", account_ids=["ca_1"])
    at = datetime.now(UTC) - timedelta(seconds=5)

    async def fail(account_id: str, environment_id: str) -> None:
        await house.accept(
            make_receipt(
                kind="token.refresh_failed",
                type="f",
                occurred_at=at,
                account_id=account_id,
                environment_id=environment_id,
            )
        )

    def many() -> tuple[int, int]:
        tally = backtest.run(url_of(house), ruleset, lambda _now: BEGINNING).tallies[0]
        return tally.episodes, tally.pauses

    await fail("ca_1", "env_1")
    await fail("ca_2", "env_2")
    assert many() == (0, 0)
    await fail("ca_3", "env_1")
    assert many() == (1, 1)
    await fail("ca_4", "env_2")
    tally = backtest.run(url_of(house), ruleset, lambda _now: BEGINNING).tallies[0]
    assert dict(tally.worst) == {"scalekit:env_1:conn_1": 1, "scalekit:env_2:conn_1": 1}


async def test_a_database_without_our_tables_is_said_in_a_sentence(house: House) -> None:
    bare = urlsplit(url_of(house))._replace(path="/postgres").geturl()
    folder = str(house.runtime.settings.rules_folder)
    answer = CliRunner().invoke(authwatch, ["rules", "backtest", folder], env={"DATABASE_URL": bare})
    assert isinstance(answer.exception, Unavailable)
    assert "run `authwatch migrate`" in str(answer.exception)


async def test_the_command_says_it_in_words_and_changes_nothing(house: House, tmp_path: Path) -> None:
    for ago in (300, 299, 298):
        await house.told("failed", ago=ago)
    before = await house.rows("SELECT (SELECT count(*) FROM events) AS e, (SELECT max(fired_at) FROM alerts) AS a")
    folder = str(house.runtime.settings.rules_folder)
    env = {"DATABASE_URL": url_of(house)}

    def run(*words: str) -> Result:
        return CliRunner().invoke(authwatch, ["rules", "backtest", *words], env=env)

    answer = run("--rule", "token-refresh-failing", folder)
    assert answer.exit_code == 0, answer.output
    assert "1 episodes, 0 of them discovered late, 1 open at the end" in answer.stdout
    assert "worst: scalekit:env_1:ca_1 (1)" in answer.stdout
    assert "account-disconnected" not in answer.stdout
    assert (
        await house.rows("SELECT (SELECT count(*) FROM events) AS e, (SELECT max(fired_at) FROM alerts) AS a") == before
    )
    assert 'no rule "nonsense"; there are token-refresh-failing' in run("--rule", "nonsense", folder).output
    assert "neither a length such as 30d" in run("--since", "yesterday", folder).output
    (tmp_path / "bad.yml").write_text("version: 1\nrules: [{id: x}]\n")
    bad = run(str(tmp_path / "bad.yml"))
    assert (bad.exit_code, "bad.yml:2:" in bad.stderr) == (1, True)
    with snapshot(url_of(house)) as conn, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        conn.execute("DELETE FROM alerts")


async def test_a_report_that_the_providers_word_outweighs_counts_for_none_of_both(house: House) -> None:
    """Two failures that the agent reported too, at nearly the same instants: two, and not four."""
    began = datetime.now(UTC) - timedelta(minutes=9)
    for minutes in (0, 5):
        for origin, seconds in (("webhook", 0), ("report", 10)):
            at = began + timedelta(minutes=minutes, seconds=seconds)
            await house.accept(make_receipt(kind="token.refresh_failed", type="f", occurred_at=at, origin=origin))
    await evaluate(house.runtime)
    assert await house.alerts() == []
    done = backtest.run(url_of(house), house.runtime.rules.ruleset, lambda _now: BEGINNING)
    assert [tally.episodes for tally in done.tallies] == [0, 0]
    assert done.rows == 4


async def test_the_objective_is_measured_by_when_the_events_came(house: House) -> None:
    rules = [
        rule.model_copy(update={"objective": Objective(detect_within=timedelta(seconds=30))})
        for rule in house.runtime.rules.ruleset.rules
    ]
    await house.put(account_ids=["ca_1", "ca_2"])
    await house.tell("DISCONNECTED", ago=1)
    await house.tell("DISCONNECTED", ago=60, account="ca_2")
    done = backtest.run(url_of(house), Ruleset(rules), lambda _now: BEGINNING)
    assert [(tally.episodes, tally.objective_missed) for tally in done.tallies] == [(0, 0), (2, 1)]


async def test_a_thousand_ties_and_namesakes(house: House) -> None:
    at = datetime.now(UTC) - timedelta(minutes=5)
    await house.accept(
        *(
            make_receipt(kind="token.refresh_failed", type="f", occurred_at=at, environment_id=f"env_{number % 2}")
            for number in range(6)
        )
    )
    done = backtest.run(url_of(house), house.runtime.rules.ruleset, lambda _now: BEGINNING, keep_spans=True)
    assert sorted(span[0] for span in done.tallies[0].spans or ()) == ["scalekit:env_0:ca_1", "scalekit:env_1:ca_1"]
