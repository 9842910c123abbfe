"""`GET /v1/gate`: what an agent asks before a tool call."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import gate, health
from service.api.http import Call, Strict, Text, read_query, runtime_of
from service.errors import BadRequest
from service.gate import Asked
from service.store import accounts, alerts, workflows
from service.store.session import begin


class GateQuery(Strict):
    workflow_id: Text | None = None
    account_id: Text | None = None
    on_unknown: Literal["deny", "allow"] = "deny"


async def ask_gate(request: Request) -> Response:
    query = read_query(request, GateQuery)
    if not query.workflow_id and not query.account_id:
        raise BadRequest("give workflow_id, account_id or both", code="nothing_asked")
    async with begin(runtime_of(request).engine) as conn:
        workflow = await workflows.load(conn, query.workflow_id) if query.workflow_id else None
        holds = await workflows.open_holds(conn, workflow_ids=[workflow.workflow_id]) if workflow else []
        account = await accounts.find(conn, query.account_id) if query.account_id else None
        open_alerts = (await alerts.unresolved_of(conn, [account.key]))[account.key] if account else []
        lag_seconds = await health.evaluation_lag_seconds(conn)
    answer = gate.decide(
        Asked(
            workflow_id=query.workflow_id,
            workflow=workflow,
            holds=holds,
            account_id=query.account_id,
            account=account,
            alert_ids=[alert.id for alert in open_alerts],
            on_unknown=query.on_unknown,
            evaluation_lag_seconds=lag_seconds,
        )
    )
    return JSONResponse(
        {"allow": answer.allow, "reason": answer.reason, "detail": answer.detail, "alert_ids": list(answer.alert_ids)}
    )


CALLS = (Call("GET", "/v1/gate", ask_gate, "read", "May this tool call go ahead?", query=GateQuery),)
