"""The audit chain in a real log: sealed as it is appended, and what is done to its rows is found."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from service import audit_verify, secret_changes
from service.audit import START, Broken, Link
from service.audit import seal as make_seal
from service.audit_verify import Verdict, verify
from service.event import AccountKey
from service.retain import cut_kept
from service.store import audit_chain, audit_entries, log, retention
from service.store.log import Decision
from service.store.session import begin
from tests.make import make_receipt

NOW = datetime.now(UTC)


def said(subject: str, kind: str = "audit", **details: Any) -> Decision:
    more = {"actor": "mia", "action": "workflow.pause", "subject": subject, "reason": "ü", **details}
    return Decision(kind=kind, subject_id=subject, occurred_at=NOW, details=more)


async def write(engine: AsyncEngine, *decisions: Decision) -> None:
    async with begin(engine) as conn:
        await log.append(conn, decisions)


async def run(engine: AsyncEngine, statement: str, **values: Any) -> None:
    async with begin(engine) as conn:
        await conn.execute(text(statement), values)


async def rows(engine: AsyncEngine) -> list[Any]:
    async with begin(engine) as conn:
        return list(await conn.execute(text("SELECT * FROM events ORDER BY position")))


@pytest.fixture
async def chain(engine: AsyncEngine) -> AsyncEngine:
    """Six entries, numbered 1 to 6, among other rows of the log."""
    for n in range(1, 4):
        async with begin(engine) as conn:
            await log.accept(conn, [make_receipt()])
        await write(engine, said(f"w{n}", tries=2.0, share=0.1, many=1e22), said("w9", "alert.firing"), said(f"v{n}"))
    return engine


async def found(engine: AsyncEngine, **more: Any) -> Broken | None:
    return (await verify(engine, **more)).broken


def named(verdict: Verdict) -> tuple[int, str | None, str | None]:
    walk = verdict.walk
    first, newest = (event.event_id if event is not None else None for event in (walk.first, walk.newest))
    return walk.count, first, newest


async def test_entries_are_numbered_in_the_order_of_the_log_and_other_rows_are_not_touched(chain: AsyncEngine) -> None:
    written = await rows(chain)
    assert [row.position for row in written] == list(range(1, 13))
    seals = [row.details["chain"] for row in written if row.kind == "audit"]
    assert [seal["number"] for seal in seals] == [1, 2, 3, 4, 5, 6]
    assert [seal["previous"] for seal in seals] == [START, *(seal["hash"] for seal in seals[:-1])]
    assert all("chain" not in (row.details or {}) for row in written if row.kind != "audit")
    verdict = await verify(chain)
    assert (verdict.broken, named(verdict)) == (None, (6, "w1", "v3"))
    assert verdict.walk.last == Link(6, seals[-1]["hash"])


async def test_an_empty_chain_is_sound(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        await log.accept(conn, [make_receipt()])
    assert (await found(engine), named(await verify(engine))) == (None, (0, None, None))


async def test_what_is_no_entry_asks_the_chain_nothing(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError("the chain was asked")

    monkeypatch.setattr(audit_chain, "place", never)
    monkeypatch.setattr(audit_chain, "rules_of", never)
    await write(engine, said("a", "alert.firing"))
    assert len(await rows(engine)) == 1
    with pytest.raises(AssertionError):
        await write(engine, said("w1"))


async def test_many_at_once_make_one_chain(engine: AsyncEngine) -> None:
    await asyncio.gather(*(write(engine, said(f"w{n}"), said(f"v{n}")) for n in range(20)))
    verdict = await verify(engine)
    assert (verdict.broken, verdict.walk.count) == (None, 40)


async def test_a_transaction_that_rolls_back_leaves_no_hole(chain: AsyncEngine) -> None:
    async with chain.connect() as conn:
        await log.append(conn, [said("lost")])
        await conn.rollback()
    await write(chain, said("kept"))
    assert named(await verify(chain)) == (7, "w1", "kept")
    assert await found(chain) is None


SWAP = """
UPDATE events e SET position = CASE e.event_id WHEN 'w2' THEN o.other ELSE o.own END
FROM (SELECT max(position) FILTER (WHERE event_id = 'w2') AS own, max(position) FILTER (WHERE event_id = 'w3') AS other
    FROM events) AS o
WHERE e.event_id IN ('w2', 'w3')
"""
COPY = """
INSERT INTO events (position, id, source, origin, event_id, type, kind, occurred_at, received_at, details)
SELECT 1000, gen_random_uuid(), source, origin, event_id, type, kind, occurred_at, received_at, {details}
FROM events WHERE event_id = 'w2'
"""
TAIL = "DELETE FROM events WHERE position >= (SELECT max(position) - 1 FROM events)"


@pytest.mark.parametrize(
    ("tampering", "check"),
    [
        ("UPDATE events SET details = jsonb_set(details, '{actor}', '\"eve\"') WHERE event_id = 'w2'", "changed"),
        ("UPDATE events SET event_id = 'w7' WHERE event_id = 'w2'", "changed"),
        ("UPDATE events SET occurred_at = occurred_at - interval '1 microsecond' WHERE event_id = 'w2'", "changed"),
        ("UPDATE events SET details = jsonb_set(details, '{share}', '0.2') WHERE event_id = 'w2'", "changed"),
        (
            f"UPDATE events SET details = jsonb_set(details, '{{chain,hash}}', '\"{'f' * 64}\"') WHERE event_id = 'w2'",
            "changed",
        ),
        ("UPDATE events SET details = details - 'chain' WHERE event_id = 'w2'", "missing"),
        ("UPDATE events SET kind = 'other' WHERE event_id = 'w2'", "missing"),
        ("DELETE FROM events WHERE event_id = 'w2'", "missing"),
        ("DELETE FROM events WHERE event_id = 'w1'", "missing"),
        (SWAP, "missing"),
        (TAIL, "end_missing"),
        ("DELETE FROM events WHERE kind = 'audit'", "end_missing"),
        (COPY.format(details="details"), "out_of_order"),
        (COPY.format(details="details - 'chain'"), "unsealed"),
        ("DELETE FROM audit_chain", "end_differs"),
        ("UPDATE audit_chain SET anchor_number = 2, anchor_position = 5", "unlinked"),
    ],
)
async def test_what_was_done_to_the_rows_is_found(chain: AsyncEngine, tampering: str, check: str) -> None:
    assert await found(chain) is None
    await run(chain, tampering)
    broken = await found(chain)
    assert broken is not None
    assert broken.check == check, broken
    await write(chain, said("later"))
    again = await found(chain)
    assert again is not None, "what is appended later covers nothing up"


async def test_a_beginning_that_somebody_cut_off_is_told_from_one_that_went_in_its_time(chain: AsyncEngine) -> None:
    """Also when the row beside the log is written to fit."""
    await run(
        chain,
        "UPDATE audit_chain SET anchor_number = 2, anchor_position = e.position, cut_position = e.position,"
        " anchor_hash = e.details->'chain'->>'hash' FROM events e WHERE e.event_id = 'v1'",
    )
    await run(chain, "DELETE FROM events WHERE event_id IN ('w1', 'v1')")
    broken = await found(chain)
    assert broken is not None
    assert broken.check == "beginning_differs"


async def test_a_whole_chain_written_anew_is_found_by_a_hash_noted_elsewhere(chain: AsyncEngine) -> None:
    noted = (await verify(chain)).walk.last
    assert noted is not None
    await write(chain, said("later"))
    assert await found(chain, expect=noted.hash) is None
    await run(chain, "DELETE FROM events")
    await run(chain, "DELETE FROM audit_chain")
    await write(chain, said("w1"))
    assert await found(chain) is None
    broken = await found(chain, expect=noted.hash)
    assert broken is not None
    assert broken.check == "expected_missing"


async def test_from_a_time_on(chain: AsyncEngine) -> None:
    await run(chain, "UPDATE events SET details = jsonb_set(details, '{actor}', '\"eve\"') WHERE event_id = 'w1'")
    second = next(row for row in await rows(chain) if row.event_id == "w2")
    verdict = await verify(chain, since=second.received_at)
    assert (verdict.broken, named(verdict)) == (None, (4, "w2", "v3"))
    await run(chain, "DELETE FROM events WHERE event_id = 'v2'")
    assert await found(chain, since=second.received_at) is not None


async def test_what_older_processes_append_beside_is_told_and_can_be_vouched_for(chain: AsyncEngine) -> None:
    """As a worker of the version before does during an upgrade."""
    older = (
        "INSERT INTO events (id, source, origin, event_id, type, kind, occurred_at, received_at, details) VALUES"
        " (gen_random_uuid(), 'authwatch', 'authwatch', 'old', 'audit', 'audit', now(), now(), '{\"actor\": \"old\"}')"
    )
    await run(chain, older)
    await write(chain, said("later"))
    broken = await found(chain)
    assert broken is not None
    assert broken.check == "unsealed"
    assert "audit adopt" in broken.what
    async with begin(chain) as conn:
        entries = await audit_entries.unsealed(conn)
        assert [entry.event_id for entry in entries] == ["old"]
        await audit_entries.adopt(conn, entries, "cli:mia", "the upgrade of Monday", NOW)
    verdict = await verify(chain)
    assert (verdict.broken, verdict.walk.adopted) == (None, 1)
    async with begin(chain) as conn:
        assert await audit_entries.unsealed(conn) == []
    await run(chain, "UPDATE events SET details = '{\"actor\": \"eve\"}' WHERE event_id = 'old'")
    broken = await found(chain)
    assert broken is not None
    assert broken.check == "changed"


async def test_entries_from_before_the_chain_are_counted_and_not_checked(engine: AsyncEngine) -> None:
    await run(
        engine,
        "INSERT INTO events (id, source, origin, type, kind, occurred_at, received_at)"
        " SELECT gen_random_uuid(), 'authwatch', 'authwatch', 'audit', 'audit', now(), now() FROM generate_series(1, 3)",
    )
    await write(engine, said("w1"))
    verdict = await verify(engine)
    assert (verdict.broken, verdict.walk.unchained, named(verdict)) == (None, 3, (1, "w1", "w1"))


async def test_retention_cuts_the_beginning_and_the_rest_still_holds(chain: AsyncEngine) -> None:
    """What is over lies in events_kept by then; here its rows get there by hand."""
    old = NOW - timedelta(days=500)
    async with begin(chain) as conn:
        await retention.open_kept(conn)
        await conn.execute(
            text(f"COMMENT ON TABLE events_kept IS 'authwatch: kept {old:%Y-%m-%d} {old + timedelta(days=1):%Y-%m-%d}'")
        )
        await retention.attach_kept(conn)
    async with begin(chain) as conn:
        await conn.execute(text("UPDATE audit_chain SET number = 0, hash = repeat('0', 64)"))
        await conn.execute(text("DELETE FROM events"))
    for n in range(1, 5):
        await write(chain, said(f"w{n}"))
    moved = "UPDATE events SET received_at = :at, details = :details WHERE event_id = :id"
    # Resealed with the times they would have had.
    last = Link()
    async with begin(chain) as conn:
        for n, event in enumerate(await audit_entries.after(conn, 0, 10), 1):
            at = old if n < 3 else event.received_at
            event.received_at = at
            own = make_seal(event, last)
            last = Link(own.number, own.hash)
            event.details = {**(event.details or {}), "chain": own.to_details()}
            await conn.execute(
                text(moved).bindparams(bindparam("details", type_=JSONB())),
                {"at": at, "details": event.details, "id": f"w{n}"},
            )
        await conn.execute(text("UPDATE audit_chain SET hash = :hash"), {"hash": last.hash})
    assert await found(chain) is None
    times = {"events": old, "alerts": old, "audit": NOW - timedelta(days=400)}
    async with begin(chain) as conn:
        await cut_kept(conn, floor=1_000_000, **times)
    left = await rows(chain)
    assert [row.event_id for row in left] == ["w3", "w4", "audit:2"]
    verdict = await verify(chain)
    assert (verdict.broken, named(verdict)) == (None, (3, "w3", "audit:2"))
    async with begin(chain) as conn:
        await cut_kept(conn, floor=1_000_000, **times)
    assert len(await rows(chain)) == 3, "nothing went, so nothing is said"
    await run(chain, "DELETE FROM events WHERE event_id = 'w3'")
    broken = await found(chain)
    assert broken is not None
    assert broken.check == "missing"


async def test_a_beginning_cut_under_a_walk_is_begun_anew(chain: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = 0
    real = audit_verify.go_through

    async def once_cut(*words: Any) -> Verdict:
        nonlocal walks
        walks += 1
        verdict = await real(*words)
        if walks == 1:
            await run(chain, "UPDATE audit_chain SET cut_position = 2")
            return Verdict(verdict.walk, verdict.head, Broken("missing", "gone meanwhile"))
        return verdict

    monkeypatch.setattr(audit_verify, "go_through", once_cut)
    assert (await found(chain), walks) == (None, 2)


async def test_a_pause_says_by_which_rule(engine: AsyncEngine) -> None:
    alert_id = "00000000-0000-7000-8000-000000000001"
    await run(
        engine,
        'INSERT INTO alerts (id, rule_id, severity, "group", group_key, episode, dedup_key, state, summary, opened_at,'
        " fired_at) VALUES (:id, 'refresh-failing', 'P2', '{}', 'k', 1, 'k', 'firing', 's', now(), now())",
        id=alert_id,
    )
    account = AccountKey("scalekit", "env_1", "ca_1")
    paused = Decision(
        kind="workflow.paused",
        subject_id="w1",
        occurred_at=NOW,
        account=account,
        details={"workflow_id": "w1", "alert_ids": [alert_id], "reason": "s", "scope": "workflow"},
    )
    await write(engine, paused, said("a", "alert.firing"))
    first, other = await rows(engine)
    assert (first.details["rule_ids"], first.details["chain"]["number"]) == (["refresh-failing"], 1)
    assert "rule_ids" not in other.details
    assert await found(engine) is None


async def test_a_secret_that_is_put_in_or_taken_out_is_one_entry(engine: AsyncEngine) -> None:
    async def seen(**secrets: str) -> None:
        await secret_changes.note(engine, {"scalekit": {key: name for name, key in secrets.items()}})

    await seen(current="aaaaaaaa")
    assert await rows(engine) == [], "the first secret of all is no change"
    for _ in range(2):
        await asyncio.gather(*(seen(current="bbbbbbbb", previous="aaaaaaaa") for _ in range(3)))
    await seen(current="bbbbbbbb")
    assert [
        (row.details["actor"], row.details["action"], row.details["subject"], row.details["reason"])
        for row in await rows(engine)
    ] == [
        ("the configuration", "secret.add", "scalekit/current", "fingerprint bbbbbbbb"),
        ("the configuration", "secret.remove", "scalekit/previous", "fingerprint aaaaaaaa"),
    ]
    assert await found(engine) is None


async def test_a_role_that_may_only_insert_into_the_log_appends_entries(engine: AsyncEngine) -> None:
    """docs/audit.md: what the parts that face the network need of the log, and no more."""
    async with begin(engine) as conn:
        if (await conn.execute(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))).scalar_one():
            pytest.skip("a superuser may do everything")
    await run(engine, "REVOKE ALL ON events, audit_chain FROM CURRENT_USER")
    await run(engine, "GRANT SELECT, INSERT ON events TO CURRENT_USER")
    await run(engine, "GRANT SELECT, INSERT, UPDATE ON audit_chain TO CURRENT_USER")
    await write(engine, said("w1"))
    async with begin(engine) as conn:
        await log.accept(conn, [make_receipt()])
    for forbidden in ("UPDATE events SET kind = 'other'", "DELETE FROM events", "TRUNCATE events"):
        with pytest.raises(ProgrammingError, match="permission denied"):
            await run(engine, forbidden)
    assert named(await verify(engine)) == (1, "w1", "w1")
