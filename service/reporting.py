"""What becomes of reports: kept, and where a success alone does not tell the story, entered into the log, in one commit.

Requests that come together share a transaction (as webhooks do, service/commit.py): one is under way, and the next takes
everything that has come meanwhile. Nothing is answered before its commit.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec
import orjson
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.errors import Unavailable
from service.event import ProviderEvent, judge_clock
from service.observe import log as logger
from service.redact import redact
from service.report import TokenRefresh, ToolCall, as_written, first_of_each, shown
from service.store import log, reports
from service.store.log import Receipt
from service.store.reports import Bound
from service.store.session import begin

BATCH_ITEMS_MAX = 5_000
QUEUE_ITEMS_MAX = 50_000
REVIEWED_BYTES_MAX = 32 * 1024  # of the params or the schema of one malformed call

Item = TypeVar("Item", ToolCall, TokenRefresh)


@dataclass(frozen=True, slots=True)
class Counted:
    """Of one request: reports that are kept now, and those whose id had been reported before."""

    accepted: int
    duplicates: int


Step: TypeAlias = Callable[[AsyncConnection, Sequence[Item]], Awaitable[tuple[set[str], bool]]]


class Reporting(Generic[Item]):
    """`keep` from any request. `step` keeps a batch within a transaction, and says which ids it knew already and whether
    something went into the log."""

    def __init__(
        self,
        engine: AsyncEngine,
        step: Step[Item],
        *,
        make_partitions: Callable[[], Awaitable[None]],
        nudge: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._step: Step[Item] = step
        self._make_partitions = make_partitions
        self._nudge = nudge
        self._waiting: deque[tuple[Sequence[Item], asyncio.Future[Counted]]] = deque()
        self._waiting_items = 0
        self._flying: asyncio.Task[None] | None = None

    async def keep(self, items: Sequence[Item]) -> Counted:
        """Returns once they are committed; Unavailable: as far as we know nothing was kept, and a repeat does no harm."""
        if self._waiting_items + len(items) > QUEUE_ITEMS_MAX:
            raise Unavailable("too many reports are waiting for the database; send it again", code="queue_full")
        answer: asyncio.Future[Counted] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, answer))
        self._waiting_items += len(items)
        if self._flying is None:
            self._flying = asyncio.get_running_loop().create_task(self._fly(), name="reports")
        return await answer

    async def _fly(self) -> None:
        try:
            while self._waiting:
                await self._commit(self._take())
        finally:
            self._flying = None

    def _take(self) -> list[tuple[Sequence[Item], asyncio.Future[Counted]]]:
        batch: list[tuple[Sequence[Item], asyncio.Future[Counted]]] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0][0]) <= BATCH_ITEMS_MAX):
            items, answer = self._waiting.popleft()
            self._waiting_items -= len(items)
            if not answer.done():  # the caller hung up
                batch.append((items, answer))
                size += len(items)
        return batch

    async def _commit(self, batch: Sequence[tuple[Sequence[Item], asyncio.Future[Counted]]]) -> None:
        everything = [item for items, _ in batch for item in items]
        if not everything:
            return
        try:
            known, logged = await self._keep(first_of_each(everything))
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is answered to those who wait
            await self._failed(batch, exc)
            return
        if logged:
            self._nudge()
        seen = known  # of what came twice in one batch the first counts, as if they had come one after the other
        told = len(known) == 0 and len({item.id for item in everything}) == len(everything)
        for items, answer in batch:
            new = len(items) if told else 0
            if not told:
                for item in items:
                    if item.id not in seen:
                        seen.add(item.id)
                        new += 1
            if not answer.done():
                answer.set_result(Counted(new, len(items) - new))

    async def _keep(self, items: Sequence[Item]) -> tuple[set[str], bool]:
        try:
            async with begin(self._engine) as conn:
                return await self._step(conn, items)
        except DBAPIError as exc:
            if not log.partition_is_missing(exc):
                raise
        await self._make_partitions()
        async with begin(self._engine) as conn:
            return await self._step(conn, items)

    async def _failed(self, batch: Sequence[tuple[Sequence[Item], asyncio.Future[Counted]]], exc: Exception) -> None:
        """One bad request does not fail its neighbours: each is tried by itself."""
        if len(batch) > 1 and not isinstance(exc, Unavailable):
            for one in batch:
                await self._commit([one])
            return
        if not isinstance(exc, Unavailable):
            logger.error("reports.refused_by_database", error=type(exc).__name__)
            exc = Unavailable("the database refused these reports", code="store_refused", retry_after_seconds=60)
        for _, answer in batch:
            if not answer.done():
                answer.set_exception(exc)


async def keep_tool_calls(conn: AsyncConnection, calls: Sequence[ToolCall]) -> tuple[set[str], bool]:
    """All calls are kept; of the new ones those that failed, were partial or retried against the rules are logged."""
    now = await reports.lock(conn)
    errors = [shown(call.error) for call in calls]
    known = await reports.add_calls(conn, now, calls, errors)
    new = [
        (call, error)
        for call, error in zip(calls, errors, strict=True)
        if call.noteworthy and not (known and call.id in known)
    ]
    if not new:
        return known, False
    await reports.add_malformed(
        conn, [malformed(call, error, now) for call, error in new if call.error_class == "malformed_params"]
    )
    bound = await reports.bind(conn, {call.account_id for call, _ in new})
    await log.accept(conn, [call_receipt(call, error, bound[call.account_id], now) for call, error in new])
    return known, True


async def keep_token_refreshes(conn: AsyncConnection, refreshes: Sequence[TokenRefresh]) -> tuple[set[str], bool]:
    """All are kept. Logged is every failure, and a success of an account that was not known to be well until then: rules
    resolve by it, and one more success of an account that is well tells nobody anything.

    Where the provider itself spoke of the account within a minute, it is believed and the report stays out of the log.
    """
    now = await reports.lock(conn)
    bound = await reports.bind(conn, {refresh.account_id for refresh in refreshes})
    outweighed = await reports.outweighed(conn, refreshes, bound, now)
    errors = [shown(refresh.error) for refresh in refreshes]
    known = await reports.add_refreshes(conn, now, refreshes, errors, outweighed)
    new = [
        (refresh, error)
        for refresh, error in zip(refreshes, errors, strict=True)
        if refresh.id not in known and refresh.id not in outweighed
    ]
    failed = {bound[refresh.account_id].key for refresh, _ in new if refresh.outcome == "error"}
    well = {
        key
        for refresh, _ in new
        if bound[refresh.account_id].last_refresh_outcome == "success"
        and (key := bound[refresh.account_id].key) not in failed
    }
    well -= await reports.failed_lately(conn, well, now)
    told = [
        refresh_receipt(refresh, error, bound[refresh.account_id], now)
        for refresh, error in new
        if refresh.outcome == "error" or bound[refresh.account_id].key not in well
    ]
    if told:
        await log.accept(conn, told)
    return known, bool(told)


def call_receipt(call: ToolCall, error: str | None, bound: Bound, now: datetime) -> Receipt:
    details = {
        "tool": call.tool,
        "operation": call.operation,
        "outcome": call.outcome,
        "http_status": call.http_status,
        "error_class": call.error_class,
        "error": error,
        "retries": call.retries or 0,
        "latency_ms": call.latency_ms,
        "verification": call.verification or "none",
        "partial": call.partial,
        "retried_against_rules": call.retried_against_rules,
        "workflow_id": call.workflow_id,
    }
    return make_receipt(
        call, "tool_call.completed", bound, now, details, provider=call.provider, connection_id=call.connection_id
    )


def refresh_receipt(refresh: TokenRefresh, error: str | None, bound: Bound, now: datetime) -> Receipt:
    kind = "token.refresh_succeeded" if refresh.outcome == "success" else "token.refresh_failed"
    details = {"duration_ms": refresh.duration_ms, "http_status": refresh.http_status, "error": error}
    return make_receipt(refresh, kind, bound, now, details, provider=refresh.provider, connection_id=None)


def make_receipt(
    item: ToolCall | TokenRefresh,
    kind: str,
    bound: Bound,
    now: datetime,
    details: Mapping[str, Any],
    *,
    provider: str | None,
    connection_id: str | None,
) -> Receipt:
    """What we know of the account counts before what the report says of it. The body is what is kept of the report."""
    occurred_at, suspect = judge_clock(item.occurred_at, now)
    said = {name: value for name, value in details.items() if value is not None}
    body = orjson.dumps(
        {"id": item.id, "occurred_at": as_written(item.occurred_at), "account_id": item.account_id, **said}
    )
    return Receipt(
        source=bound.key.source,
        origin="report",
        event=ProviderEvent(
            event_id=item.id,
            type=kind,
            kind=kind,
            account_id=bound.key.account_id,
            connection_id=bound.connection_id or connection_id,
            provider=bound.provider or provider,
            environment_id=bound.key.environment_id or None,
            occurred_at=occurred_at,
            details=said,
        ),
        clock_suspect=suspect,
        headers={},
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        secret_name=None,
        attempted_at=None,
    )


def malformed(call: ToolCall, error: str | None, now: datetime) -> dict[str, Any]:
    occurred_at, _ = judge_clock(call.occurred_at, now)
    return {
        "received_at": now,
        "id": call.id,
        "occurred_at": occurred_at or now,
        "account_id": call.account_id,
        "connection_id": call.connection_id,
        "workflow_id": call.workflow_id,
        "tool": call.tool,
        "provider": call.provider,
        "http_status": call.http_status,
        "error": error,
        "params": reviewed(call.params),
        "schema": reviewed(call.schema),
    }


def reviewed(raw: msgspec.Raw | msgspec.UnsetType) -> Any:
    """What was sent, token-like parts masked. What is too large or unreadable says so in its place."""
    if isinstance(raw, msgspec.UnsetType):
        return None
    written = bytes(raw)
    if len(written) > REVIEWED_BYTES_MAX:
        return {"left_out": f"{len(written)} bytes; at most {REVIEWED_BYTES_MAX} are kept"}
    try:
        return without_nul(redact(orjson.loads(written)))
    except (ValueError, RecursionError):
        return {"left_out": "not readable as JSON"}


def without_nul(value: Any) -> Any:
    """Postgres takes none; `redact` has bounded how deep it goes."""
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    if isinstance(value, dict):
        return {name.replace("\x00", ""): without_nul(item) for name, item in value.items()}
    return value
