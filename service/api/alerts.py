"""`/v1/alerts`: what someone should know of, with evidence and what was done."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from sqlalchemy import select, tuple_
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import queue, rule_sets, steer, views
from service.api.events import as_uuid
from service.api.http import (
    Call,
    Duration,
    Instant,
    Strict,
    Text,
    cursor_id,
    cursor_instant,
    read_cursor,
    read_json,
    read_query,
    runtime_of,
    write_cursor,
)
from service.api.workflows import context_of, wake
from service.errors import BadRequest, NotFound
from service.store import accounts, alerts, readers
from service.store.session import begin
from service.store.tables import alerts as table

SNOOZE_SECONDS_MAX = 7 * 86400


class AlertsQuery(Strict):
    state: Literal["firing", "acknowledged", "resolved"] | None = None
    rule: Text | None = None
    account_id: Text | None = None
    since: Instant | None = Field(None, description="fired at or after this time")
    shadow: bool = Field(False, description="true: what rules in shadow would have told, instead of what was told")
    limit: int = Field(100, ge=1, le=1000)
    cursor: Text | None = None


class SnoozeBody(Strict):
    for_: Duration = Field(alias="for", description="30s, 10m, 2h, 1d or seconds")


class NothingBody(Strict):
    pass


async def list_alerts(request: Request) -> Response:
    query = read_query(request, AlertsQuery)
    statement = select(table).order_by(table.c.fired_at.desc(), table.c.id.desc()).limit(query.limit + 1)
    statement = statement.where(table.c.shadow.is_(query.shadow))
    if query.state is not None:
        statement = statement.where(table.c.state == query.state)
    if query.rule is not None:
        statement = statement.where(table.c.rule_id == query.rule)
    if query.since is not None:
        statement = statement.where(table.c.fired_at >= query.since)
    if query.cursor:
        before = read_cursor("alerts", query.cursor, cursor_instant, cursor_id)
        statement = statement.where(tuple_(table.c.fired_at, table.c.id) < tuple(before))
    async with begin(runtime_of(request).engine) as conn:
        if query.account_id is not None:
            account = await accounts.find(conn, query.account_id)
            statement = statement.where(table.c.account_id == (account.key.account_id if account else query.account_id))
            if account is not None:
                statement = statement.where(
                    table.c.source == account.key.source, table.c.environment_id == account.key.environment_id
                )
        found = [alerts.to_alert(row) for row in await conn.execute(statement)]
        items = [await views.alert_with_actions(conn, alert) for alert in found[: query.limit]]
    more = len(found) > query.limit
    last_item = found[query.limit - 1] if more else None
    cursor = write_cursor("alerts", last_item.fired_at.isoformat(), last_item.id) if last_item else None
    return JSONResponse({"items": items, "next_cursor": cursor})


def alert_id_of(request: Request) -> str:
    alert_id = as_uuid(request.path_params["id"])
    if alert_id is None:
        raise NotFound("no alert of that id", code="unknown_alert")
    return alert_id


async def get_alert(request: Request) -> Response:
    async with begin(runtime_of(request).engine) as conn:
        alert = await alerts.load(conn, alert_id_of(request))
        if alert is None:
            raise NotFound("no alert of that id", code="unknown_alert")
        return JSONResponse(await views.alert_with_actions(conn, alert))


async def acknowledge(request: Request) -> Response:
    runtime = runtime_of(request)
    await read_json(request, NothingBody, optional=True)
    async with begin(runtime.engine) as conn:
        alert = await steer.acknowledge_alert(conn, alert_id_of(request), context_of(request, runtime))
        answer = await views.alert_with_actions(conn, alert)
    wake(runtime)
    return JSONResponse(answer)


async def snooze(request: Request) -> Response:
    runtime = runtime_of(request)
    body = await read_json(request, SnoozeBody)
    if not 0 < body.for_.total_seconds() <= SNOOZE_SECONDS_MAX:
        raise BadRequest("snooze for more than nothing and at most 7d", code="invalid_body")
    async with begin(runtime.engine) as conn:
        until = await readers.clock(conn) + body.for_
        alert = await steer.snooze_alert(conn, alert_id_of(request), until, context_of(request, runtime))
        answer = await views.alert_with_actions(conn, alert)
    runtime.nudger.nudge(queue.SHIP)
    return JSONResponse(answer)


async def resolve(request: Request) -> Response:
    runtime = runtime_of(request)
    await read_json(request, NothingBody, optional=True)
    async with begin(runtime.engine) as conn:
        ruleset = await rule_sets.in_force(conn, runtime)
        alert = await steer.resolve_alert(conn, alert_id_of(request), context_of(request, runtime, ruleset))
        answer = await views.alert_with_actions(conn, alert)
    wake(runtime)
    return JSONResponse(answer)


CALLS = (
    Call("GET", "/v1/alerts", list_alerts, "read", "Alerts, newest first", query=AlertsQuery),
    Call("GET", "/v1/alerts/{id}", get_alert, "read", "One alert with evidence, actions and their attempts"),
    Call("POST", "/v1/alerts/{id}/acknowledge", acknowledge, "write", "Someone is looking at it", body=NothingBody),
    Call("POST", "/v1/alerts/{id}/snooze", snooze, "write", "No repeats for a while; pauses stay", body=SnoozeBody),
    Call(
        "POST",
        "/v1/alerts/{id}/resolve",
        resolve,
        "write",
        "Close by hand; its holds stay until the account is well",
        body=NothingBody,
    ),
)
