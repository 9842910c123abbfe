"""What the gate's answer stands on: one prepared statement on a connection of its own, one round trip, one snapshot.

A question comes as often as an agent calls a tool, beside webhooks in the same process. So many questions fly on one
connection at once, each a statement with a Sync of its own, and the token is looked up by the same statement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson
import psycopg
from psycopg import pq

from service.event import WELL, AccountKey
from service.report import SOURCE as REPORTED
from service.store.accounts import CANDIDATES_MAX, AmbiguousAccount, parse_key
from service.store.pipeline import Outcome, Pipeline
from service.store.readers import EVALUATOR, RETENTION
from service.store.session import connection_arguments
from service.store.tokens import Token

STATEMENT_TIMEOUT_MS = 1000  # nobody waits longer for the gate
TEXT = 0
# Every look is by a key, whatever the tables held when the plan was made; and no plan is made for a question.
SETTINGS = (
    "SET plan_cache_mode = force_generic_plan",
    "SET enable_seqscan = off",
    "SET jit = off",
    "SET default_transaction_read_only = on",
)
STATE, STATE_IN_FULL, OLDEST, MOVED = b"gate_state", b"gate_state_in_full", b"gate_oldest", b"gate_moved"
GIVEN = "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM log_position)"
EVALUATED = f"coalesce((SELECT position FROM readers WHERE name = '{EVALUATOR}'), 0)"
TODAY_REACHES_BACK_SECONDS = 3600.0
# A day is a partition: of these one or two are opened, and the row looked for is the first of an index. A statement that
# names the log costs several times as much as all the others' keys together, so a question seldom does.
TODAY = (
    f"received_at >= date_trunc('day', now() - interval '{TODAY_REACHES_BACK_SECONDS:.0f} s')"
    " AND received_at < date_trunc('day', now()) + interval '1 day'"
)
PROGRESS = f"extract(epoch FROM clock_timestamp()), {EVALUATED}, {GIVEN}"
OLDEST_ROW = f"""
    (SELECT json_build_array(position, extract(epoch FROM received_at)) FROM events
        WHERE {TODAY} AND position > (SELECT {EVALUATED}) ORDER BY position LIMIT 1)
"""
ACCOUNT = f"""
    json_build_object('source', a.source, 'environment_id', a.environment_id, 'account_id', a.account_id,
        'status', a.status, 'status_since', a.status_since,
        'alerts', CASE WHEN a.status IS DISTINCT FROM '{WELL}' THEN (
            SELECT json_agg(l.id ORDER BY l.fired_at, l.id) FROM alerts l
            WHERE l.account_id = a.account_id AND l.source = a.source AND l.environment_id = a.environment_id
                AND l.state <> 'resolved' AND NOT l.shadow) END)
"""
# Of an id written in full; a statement pays for every table that it names, whether it looks into it or not.
EXACT = f"(SELECT {ACCOUNT} FROM accounts a WHERE a.source = $4 AND a.environment_id = $5 AND a.account_id = $6)"


def prepare_state(name: bytes, exact: str) -> str:
    """$1 the token's hash, $2 workflow, $3 account as it was written, $4 to $6 the same as a full key where it may be one."""
    return f"""
    PREPARE {name.decode()} (bytea, text, text, text, text, text) AS
    SELECT {PROGRESS}, NULL,
        (SELECT json_build_object('id', id, 'name', name, 'scopes', scopes,
            'noted', coalesce(last_used_at > now() - interval '1 minute', false))
            FROM tokens WHERE token_sha256 = $1 AND revoked_at IS NULL),
        (SELECT active FROM workflows WHERE workflow_id = $2),
        (SELECT json_agg(json_build_object('scope', scope, 'source', source, 'environment_id', environment_id,
            'account_id', account_id, 'alert_id', alert_id, 'reason', reason) ORDER BY placed_at, id)
            FROM holds WHERE workflow_id = $2 AND released_at IS NULL
                AND (scope = 'workflow' OR account_id = $3 OR account_id = $6)),
        (SELECT json_agg({ACCOUNT}) FROM (
            SELECT * FROM accounts WHERE account_id = $3 ORDER BY source, environment_id LIMIT {CANDIDATES_MAX}) AS a),
        {exact}
    """


PREPARE: tuple[str, ...] = (
    prepare_state(STATE, "NULL::json"),
    prepare_state(STATE_IN_FULL, EXACT),
    f"PREPARE {OLDEST.decode()} AS SELECT {PROGRESS}, {OLDEST_ROW}",
    f"""
    PREPARE {MOVED.decode()} AS
    SELECT {PROGRESS}, NULL,
        (SELECT position FROM events WHERE {TODAY} ORDER BY position DESC LIMIT 1),
        coalesce((SELECT position FROM readers WHERE name = '{RETENTION}'), 0)
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`token`: the SHA-256 of who asks, None when that is known already."""

    token: bytes | None = None
    workflow_id: str | None = None
    account_id: str | None = None


@dataclass(frozen=True, slots=True)
class KnownWorkflow:
    workflow_id: str
    active: bool


@dataclass(frozen=True, slots=True)
class KnownHold:
    workflow_id: str
    scope: str
    account: AccountKey | None
    alert_id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class KnownAccount:
    key: AccountKey
    status: str | None
    status_since: datetime | None
    alert_ids: tuple[str, ...] = ()


class Progress(NamedTuple):
    """`at`: the database's clock, seconds since 1970. `evaluated`: up to which position all of the log is. `given`: the
    last position that was given out, committed or not. `oldest`: of today's rows the first that is not evaluated, and when
    it was received, where that was asked."""

    at: float
    evaluated: int
    given: int
    oldest: int | None = None
    oldest_at: float | None = None


class Moved(NamedTuple):
    """Progress, the newest committed position of today (None: of yesterday or before), and up to where rows may be gone."""

    progress: Progress
    newest: int | None
    retained: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All as of one instant. `accounts`: every one of the short id that was asked for; `exact`: the one of the full id."""

    progress: Progress
    token: Token | None
    token_noted: bool
    workflow: KnownWorkflow | None
    holds: tuple[KnownHold, ...]
    accounts: tuple[KnownAccount, ...]
    exact: KnownAccount | None

    def account(self, written: str) -> KnownAccount | None:
        """As `accounts.find` chooses. AmbiguousAccount when a short id is several accounts'."""
        found = [one for one in self.accounts if one.key.source != REPORTED] or list(self.accounts)
        if len(found) > 1:
            raise AmbiguousAccount(written, [str(one.key) for one in found])
        return found[0] if found else self.exact


@dataclass(slots=True)
class Answered(Outcome):
    values: list[bytes | None] = field(default_factory=list)


class Questions(Pipeline):
    """`done(outcome)` is called once for each question, in the order asked; an `Answered` holds the only row."""

    def ask(self, statement: bytes, values: Sequence[bytes | None], done: Callable[[Outcome], None]) -> None:
        if self.broken:
            done(Outcome(error="connection_lost"))
            return
        self._flying.append((done, Answered()))
        try:
            self._pg.send_query_prepared(statement, values, None, TEXT)
            self._pg.pipeline_sync()
            self._write()
        except psycopg.Error:
            self.fail("connection_lost")

    def _rows(self, result: pq.abc.PGresult, outcome: Outcome) -> None:
        assert isinstance(outcome, Answered)
        outcome.answered = True
        outcome.values = [result.get_value(0, column) for column in range(result.nfields)]


async def open_questions(database_url: str) -> Questions:
    """Raises `psycopg.Error` or `OSError` when the database cannot be reached, or is a standby, whose state is old."""
    conn = await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, **connection_arguments(statement_timeout_ms=STATEMENT_TIMEOUT_MS)
    )
    try:
        row = await (await conn.execute("SELECT pg_is_in_recovery()")).fetchone()
        if row is None or row[0]:
            raise psycopg.OperationalError("the database is a standby")
        for statement in (*SETTINGS, *PREPARE):
            await conn.execute(statement.encode())
    except BaseException:
        await conn.close()
        raise
    return Questions(conn, 0)


def statement(question: Question) -> tuple[bytes, list[bytes | None]]:
    """Which one, and its parameters."""
    written = question.account_id
    in_full = written is not None and written.count(":") >= 2
    key = parse_key(written) if written is not None and in_full else (None, None, None)
    token = b"\\x" + question.token.hex().encode() if question.token is not None else None
    values = [token, *(None if text is None else text.encode() for text in (question.workflow_id, written, *key))]
    return (STATE_IN_FULL if in_full else STATE), values


def read_state(question: Question, values: Sequence[bytes | None]) -> State:
    token, active, holds, accounts, exact = values[4:]
    told: dict[str, Any] = orjson.loads(token) if token is not None else {}
    workflow_id = question.workflow_id or ""
    return State(
        progress=read_progress(values),
        token=Token(id=told["id"], name=told["name"], scopes=frozenset(told["scopes"])) if told else None,
        token_noted=bool(told.get("noted")),
        workflow=KnownWorkflow(workflow_id, active == b"t") if active is not None else None,
        holds=tuple(read_hold(workflow_id, hold) for hold in orjson.loads(holds)) if holds is not None else (),
        accounts=tuple(read_account(one) for one in orjson.loads(accounts)) if accounts is not None else (),
        exact=read_account(orjson.loads(exact)) if exact is not None else None,
    )


def read_moved(values: Sequence[bytes | None]) -> Moved:
    newest, retained = values[4:]
    return Moved(read_progress(values), None if newest is None else int(newest), int(retained or 0))


def read_progress(values: Sequence[bytes | None]) -> Progress:
    at, evaluated, given, oldest = values[:4]
    position, received_at = orjson.loads(oldest) if oldest is not None else (None, None)
    return Progress(float(at or 0), int(evaluated or 0), int(given or 0), position, received_at)


def read_hold(workflow_id: str, told: dict[str, Any]) -> KnownHold:
    account = AccountKey(told["source"], told["environment_id"], told["account_id"]) if told["account_id"] else None
    return KnownHold(workflow_id, told["scope"], account, told["alert_id"], told["reason"])


def read_account(told: dict[str, Any]) -> KnownAccount:
    since = told["status_since"]
    return KnownAccount(
        AccountKey(told["source"], told["environment_id"], told["account_id"]),
        told["status"],
        datetime.fromisoformat(since) if since is not None else None,
        tuple(told["alerts"] or ()),
    )
