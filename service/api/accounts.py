"""`GET /v1/accounts` and `GET /v1/accounts/{account_id}`: each account's state now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import views
from service.api.http import (
    Call,
    Strict,
    Text,
    cursor_text,
    path_text,
    read_cursor,
    read_query,
    runtime_of,
    write_cursor,
)
from service.errors import NotFound
from service.store import accounts, alerts
from service.store.accounts import Account
from service.store.dependents import dependents as workflow_dependents
from service.store.session import begin
from service.store.tables import accounts as table


class AccountsQuery(Strict):
    status: Text | None = None
    connection_id: Text | None = None
    source: Text | None = None
    limit: int = Field(100, ge=1, le=1000)
    cursor: Text | None = None


async def list_accounts(request: Request) -> Response:
    query = read_query(request, AccountsQuery)
    key = (table.c.source, table.c.environment_id, table.c.account_id)
    statement = select(table).order_by(*key).limit(query.limit + 1)
    for column, value in (
        (table.c.status, query.status),
        (table.c.connection_id, query.connection_id),
        (table.c.source, query.source),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if query.cursor:
        after = read_cursor("accounts", query.cursor, cursor_text, cursor_text, cursor_text)
        statement = statement.where(tuple_(*key) > tuple(after))
    async with begin(runtime_of(request).engine) as conn:
        found = [accounts.to_account(row) for row in await conn.execute(statement)]
        items = await as_json(conn, found[: query.limit])
    more = len(found) > query.limit
    return JSONResponse(
        {"items": items, "next_cursor": write_cursor("accounts", *found[query.limit - 1].key) if more else None}
    )


async def get_account(request: Request) -> Response:
    written = path_text(request, "account_id")
    async with begin(runtime_of(request).engine) as conn:
        account = await accounts.find(conn, written)
        if account is None:
            raise NotFound("no event has named this account yet", code="unknown_account")
        return JSONResponse((await as_json(conn, [account]))[0])


async def as_json(conn: AsyncConnection, found: Sequence[Account]) -> list[dict[str, Any]]:
    dependents = await workflow_dependents(
        conn, {account.key: account.connection_id for account in found}, only_active=False
    )
    open_alerts = await alerts.unresolved_of(conn, [account.key for account in found])
    return [
        views.account_json(
            account,
            [alert.id for alert in open_alerts.get(account.key, ())],
            [workflow.workflow_id for workflow in dependents.get(account.key, ())],
        )
        for account in found
    ]


CALLS = (
    Call("GET", "/v1/accounts", list_accounts, "read", "Accounts and their state now", query=AccountsQuery),
    Call(
        "GET",
        "/v1/accounts/{account_id:path}",
        get_account,
        "read",
        "One account; 409 with the candidates when the short id is ambiguous",
    ),
)
