"""What is there when all is over: read from the database itself, past the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.rows import class_row

from tests.crash.house import WORKFLOW_OF_MANY, House

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the log, with its receipt where it is a provider's event."""

    id: str
    position: int
    origin: str
    kind: str
    event_id: str | None
    body: bytes | None
    secret_name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRow:
    id: str
    rule_id: str
    about: str
    account_id: str | None
    opened_at: datetime
    ended_at: datetime | None
    state: str
    discovered_late: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRow:
    id: str
    kind: str
    state: str
    workflow_id: str | None
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRow:
    account_id: str
    status: str | None
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupRow:
    event_id: str
    event_row_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictRow:
    event_row_id: str
    body: bytes


@dataclass(slots=True, kw_only=True)
class Found:
    """`hec_posts`: the positions of each post that was taken. `slack_posts`: (delivery id, marked as a possible repeat).
    `conflicts` None: this database has no such table."""

    log: list[Row] = field(default_factory=list)
    dedup: list[DedupRow] = field(default_factory=list)
    conflicts: list[ConflictRow] | None = None
    alerts: list[AlertRow] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)  # by alert: the alert that its group's message began with
    more_messages: set[str] = field(default_factory=set)  # that say how a group grew
    actions: list[ActionRow] = field(default_factory=list)
    accounts: list[AccountRow] = field(default_factory=list)
    paused: set[str] = field(default_factory=set)
    paused_accounts: set[str] = field(default_factory=set)
    feed: list[dict[str, Any]] = field(default_factory=list)
    slack_posts: list[tuple[str, bool]] = field(default_factory=list)
    hec_posts: list[list[int]] = field(default_factory=list)
    effects: list[tuple[str, str, str]] = field(default_factory=list)  # (pause | resume, ref, idempotency key)


async def read(conn: psycopg.AsyncConnection[Any], kind: type[T], query: LiteralString) -> list[T]:
    async with conn.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query)
        return await cursor.fetchall()


async def look(house: House, feed: Sequence[dict[str, Any]]) -> Found:
    found = Found(feed=list(feed))
    async with await house.connect() as conn:
        found.log = await read(
            conn,
            Row,
            """SELECT e.id::text, e.position, e.origin, e.kind, e.event_id, r.body, r.secret_name
            FROM events AS e LEFT JOIN receipts AS r ON r.event_row_id = e.id ORDER BY e.position""",
        )
        found.dedup = await read(
            conn, DedupRow, "SELECT event_id, event_row_id::text FROM dedup WHERE source = 'scalekit'"
        )
        there = await (await conn.execute("SELECT to_regclass('conflicts') IS NOT NULL")).fetchone()
        if there == (True,):
            found.conflicts = await read(conn, ConflictRow, "SELECT event_row_id::text, body FROM conflicts")
        found.alerts = await read(
            conn,
            AlertRow,
            """SELECT id::text, rule_id, group_key AS about, account_id, opened_at, condition_ended_at AS ended_at, state, discovered_late
            FROM alerts""",
        )
        told = await conn.execute(
            """SELECT a.alert_id::text, p.id::text, p.kind FROM notification_alerts AS a JOIN notification_posts AS p
            ON p.notification_id = a.notification_id AND p.destination = a.destination WHERE p.destination = 'slack'"""
        )
        for alert, message, kind in await told.fetchall():
            if kind == "first":
                found.messages[str(alert)] = str(message)
            else:
                found.more_messages.add(str(message))
        found.actions = await read(
            conn, ActionRow, "SELECT id::text, kind, state, workflow_id, attempts FROM actions ORDER BY created_at, id"
        )
        found.accounts = await read(
            conn, AccountRow, "SELECT account_id, status, failures_in_a_row AS failures FROM accounts"
        )
    found.slack_posts = [
        (call["metadata"]["event_payload"]["delivery_id"], "possible repeat" in house.slack.text_of(call))
        for call in house.slack.calls["chat.postMessage"]
    ]
    taken = iter(house.hec.events)
    found.hec_posts = [[int(next(taken)["position"]) for _ in range(count)] for count in house.hec.posts]
    found.effects = effects_of(house)
    workflows = (await house.parts.get("/v1/workflows?limit=1000"))["items"]
    found.paused = {one["workflow_id"] for one in workflows if one["state"] == "paused"}
    for one in workflows:
        if one["workflow_id"] == WORKFLOW_OF_MANY:
            found.paused_accounts = set(one["paused_accounts"])
    return found


def effects_of(house: House) -> list[tuple[str, str, str]]:
    """What the orchestrator really did, in order: the first request under each key."""
    done: dict[str, tuple[str, str, str]] = {}
    for headers, message in house.orchestrator.requests:
        key = headers["webhook-id"]
        done.setdefault(key, (message["type"].removeprefix("workflow."), message["data"]["ref"], key))
    return list(done.values())
