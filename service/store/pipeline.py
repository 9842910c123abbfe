"""One connection that takes batches of receipts in libpq's pipeline mode, driven by the event loop's readiness.

Several batches may be under way: while Postgres commits one, the next is already in its socket. Each is a transaction
of its own (a Sync after every statement), and its outcome is told only after that Sync, which is after the commit.
Written on the driver's `pq` layer because a coroutine and a cursor for each batch cost more than the batch.
Source: PostgreSQL manual, "Pipeline Mode" of libpq.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import pq

from service.store.session import connection_arguments
from service.store.wire import encode_array, read_uuid

STATEMENT = b"accept"
PREPARE = "PREPARE accept (receipt_row[]) AS SELECT number, event_row_id, same_body FROM accept_rows($1)"
OID = "SELECT 'receipt_row'::regtype::oid::int8, pg_is_in_recovery()"
STATEMENT_TIMEOUT_MS = 10_000
BINARY = 1


@dataclass(slots=True)
class Outcome:
    """What became of a batch: `error` is None once it is committed.

    `others` names the receipts that added nothing: by number from 0, the id their event is kept under and whether the
    body was the same. `sqlstate` is None when the connection itself was lost.
    """

    error: str | None = None
    sqlstate: str | None = None
    missing_partition: bool = False
    answered: bool = False
    others: dict[int, tuple[str, bool]] = field(default_factory=dict)


class Pipeline:
    """`send` queues a batch at once; `done(outcome)` is called once for each batch, in the order sent."""

    def __init__(self, conn: psycopg.AsyncConnection, oid: int) -> None:
        self._conn = conn
        self._pg = conn.pgconn
        self._oid = oid
        self._loop = asyncio.get_running_loop()
        self._flying: deque[tuple[Callable[[Outcome], None], Outcome]] = deque()
        self._writing = False
        self.broken = False
        self._pg.enter_pipeline_mode()
        # A descriptor of our own: on a lost connection libpq closes its own at once, and the loop would go on watching
        # a number that the next connection may be given.
        self._socket = os.dup(self._pg.socket)
        self._loop.add_reader(self._socket, self._read)

    def send(self, rows: Sequence[bytes], done: Callable[[Outcome], None]) -> None:
        """Never raises: what cannot be sent is told through `done`, like everything else."""
        if self.broken:
            done(Outcome(error="connection_lost"))
            return
        self._flying.append((done, Outcome()))
        try:
            self._pg.send_query_prepared(STATEMENT, [encode_array(self._oid, rows)], [BINARY], BINARY)
            self._pg.pipeline_sync()
            self._write()
        except psycopg.Error:
            self.fail("connection_lost")

    def _write(self) -> None:
        unsent = self._pg.flush()
        if unsent and not self._writing:
            self._loop.add_writer(self._socket, self._write_on)
        elif not unsent and self._writing:
            self._loop.remove_writer(self._socket)
        self._writing = bool(unsent)

    def _write_on(self) -> None:
        try:
            self._write()
        except psycopg.Error:
            self.fail("connection_lost")

    def _read(self) -> None:
        try:
            self._pg.consume_input()
            ended = False
            while self._flying and not self._pg.is_busy():
                result = self._pg.get_result()
                if result is None:
                    if ended:  # the end of one command's results comes once; twice is a connection that is gone
                        break
                    ended = True
                    continue
                ended = False
                done, outcome = self._flying[0]
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    self._flying.popleft()
                    if not outcome.answered and outcome.error is None:
                        outcome.error = "no_answer"  # nothing is taken for kept that was not said to be
                    done(outcome)
                elif result.status == pq.ExecStatus.TUPLES_OK:
                    self._rows(result, outcome)
                else:
                    read_error(result, outcome)
            if self._pg.status == pq.ConnStatus.BAD:
                self.fail("connection_lost")
        except psycopg.Error:
            self.fail("connection_lost")

    def _rows(self, result: pq.abc.PGresult, outcome: Outcome) -> None:
        read_rows(result, outcome)

    def fail(self, error: str) -> None:
        """Gives the connection up: whatever is under way may or may not have been committed."""
        if self.broken:
            return
        self.broken = True
        self._loop.remove_reader(self._socket)
        if self._writing:
            self._loop.remove_writer(self._socket)
        self._pg.finish()
        os.close(self._socket)
        flying, self._flying = self._flying, deque()
        for done, _ in flying:
            done(Outcome(error=error))


def read_rows(result: pq.abc.PGresult, outcome: Outcome) -> None:
    outcome.answered = True
    for row in range(result.ntuples):
        number, event_row_id, same_body = (result.get_value(row, column) for column in range(3))
        assert number is not None
        assert event_row_id is not None
        outcome.others[int.from_bytes(number) - 1] = (read_uuid(event_row_id), same_body == b"\x01")


def read_error(result: pq.abc.PGresult, outcome: Outcome) -> None:
    """The first error counts; its text is never kept, since it may quote a value."""
    if outcome.error is None:
        sqlstate = result.error_field(pq.DiagnosticField.SQLSTATE)
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
        outcome.error = "refused"
        outcome.sqlstate = sqlstate.decode("ascii", "replace") if sqlstate else "?????"
        # Postgres says 23514 (check_violation) when no partition takes the row; its text is the only other mark.
        outcome.missing_partition = outcome.sqlstate == "23514" and b"no partition of relation" in message


async def open_pipeline(database_url: str) -> Pipeline:
    """Raises `psycopg.Error` or `OSError` when the database cannot be reached or is read-only, within seconds."""
    conn = await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, **connection_arguments(statement_timeout_ms=STATEMENT_TIMEOUT_MS)
    )
    try:
        row = await (await conn.execute(OID)).fetchone()
        if row is None or row[1]:
            raise psycopg.OperationalError("the database is read-only")
        await conn.execute(PREPARE)
    except BaseException:
        await conn.close()
        raise
    return Pipeline(conn, int(row[0]))
