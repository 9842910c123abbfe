"""`/v1/workflows`: what depends on which accounts, and who holds it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import queue, rule_sets, steer, views
from service.api.http import (
    Call,
    Duration,
    Strict,
    Text,
    cursor_id,
    cursor_instant,
    cursor_text,
    path_text,
    read_cursor,
    read_json,
    read_query,
    runtime_of,
    write_cursor,
)
from service.errors import BadRequest, NotFound
from service.event import TEXT_BYTES_MAX
from service.rules import Ruleset
from service.runtime import Runtime
from service.steer import Context, Wanted
from service.store import hold_history, workflows
from service.store.session import begin

IDS_MAX = 1000
PAUSE_SECONDS_MAX = 30 * 86400


class Orchestrator(Strict):
    name: Text = Field(min_length=1, max_length=TEXT_BYTES_MAX)
    ref: Text = Field(min_length=1, max_length=TEXT_BYTES_MAX)


class WorkflowBody(Strict):
    name: Text | None = Field(None, max_length=TEXT_BYTES_MAX)
    account_ids: list[Text] = Field(default_factory=list, max_length=IDS_MAX)
    connection_ids: list[Text] = Field(default_factory=list, max_length=IDS_MAX)
    active: bool = True
    pause: Literal["workflow", "account"] | None = Field(
        None,
        description="what one broken account stops; by default the workflow, or with connection_ids only that account",
    )
    orchestrator: Orchestrator | None = None
    resume: Literal["auto", "manual"] = "auto"

    @model_validator(mode="after")
    def ids_are_ids(self) -> Self:
        if not all(map(is_id, (*self.account_ids, *self.connection_ids))):
            raise ValueError(f"an id has 1 to {TEXT_BYTES_MAX} bytes in UTF-8")
        return self


class WorkflowsQuery(Strict):
    limit: int = Field(100, ge=1, le=1000)
    cursor: Text | None = None


class ReasonBody(Strict):
    reason: Text = Field("", max_length=500)


class PauseBody(ReasonBody):
    for_: Duration | None = Field(
        None,
        alias="for",
        description="30s, 10m, 2h, 1d or seconds: it goes by itself then; given again it goes at the new time, and without"
        " one it stays until somebody resumes",
    )


class HistoryQuery(Strict):
    limit: int = Field(100, ge=1, le=1000)
    cursor: Text | None = None


def context_of(request: Request, runtime: Runtime, ruleset: Ruleset | None = None) -> Context:
    return Context(
        actor=request.state.actor,
        notifiers=list(runtime.notifiers),
        orchestrators=list(runtime.orchestrators),
        ruleset=ruleset,
    )


def is_id(text: str) -> bool:
    """As long as an event's may be: two of them are an index entry."""
    return 0 < len(text.encode()) <= TEXT_BYTES_MAX


def workflow_id_of(request: Request) -> str:
    workflow_id = path_text(request, "workflow_id")
    if not is_id(workflow_id):
        raise BadRequest(f"a workflow id has 1 to {TEXT_BYTES_MAX} bytes in UTF-8", code="invalid_path")
    return workflow_id


async def put_workflow(request: Request) -> Response:
    runtime = runtime_of(request)
    body = await read_json(request, WorkflowBody, optional=True)
    wanted = Wanted(
        workflow_id=workflow_id_of(request),
        name=body.name,
        account_ids=tuple(dict.fromkeys(body.account_ids)),
        connection_ids=tuple(dict.fromkeys(body.connection_ids)),
        active=body.active,
        pause=body.pause or ("account" if body.connection_ids else "workflow"),
        resume=body.resume,
        orchestrator_name=body.orchestrator.name if body.orchestrator else None,
        orchestrator_ref=body.orchestrator.ref if body.orchestrator else None,
    )
    async with begin(runtime.engine) as conn:
        ruleset = await rule_sets.in_force(conn, runtime)  # a receiver judges by the same rules as the workers
        workflow = await steer.put_workflow(conn, wanted, context_of(request, runtime, ruleset))
        answer = (await views.workflows_json(conn, [workflow]))[0]
    wake(runtime)
    return JSONResponse(answer)


async def list_workflows(request: Request) -> Response:
    query = read_query(request, WorkflowsQuery)
    after = read_cursor("workflows", query.cursor, cursor_text)[0] if query.cursor else ""
    async with begin(runtime_of(request).engine) as conn:
        found = await workflows.list_after(conn, after, query.limit + 1)
        items = await views.workflows_json(conn, found[: query.limit])
    more = len(found) > query.limit
    return JSONResponse(
        {"items": items, "next_cursor": write_cursor("workflows", found[query.limit - 1].workflow_id) if more else None}
    )


async def get_workflow(request: Request) -> Response:
    async with begin(runtime_of(request).engine) as conn:
        workflow = await workflows.load(conn, workflow_id_of(request))
        if workflow is None:
            raise NotFound("no workflow of that id; put it first", code="unknown_workflow")
        return JSONResponse((await views.workflows_json(conn, [workflow]))[0])


async def delete_workflow(request: Request) -> Response:
    runtime = runtime_of(request)
    async with begin(runtime.engine) as conn:
        ruleset = await rule_sets.in_force(conn, runtime)
        await steer.delete_workflow(conn, workflow_id_of(request), context_of(request, runtime, ruleset))
    wake(runtime)
    return Response(status_code=204)


async def pause_workflow(request: Request) -> Response:
    runtime = runtime_of(request)
    body = await read_json(request, PauseBody, optional=True)
    if body.for_ is not None and not 0 < body.for_.total_seconds() <= PAUSE_SECONDS_MAX:
        days = PAUSE_SECONDS_MAX // 86400
        raise BadRequest(
            f"for: more than nothing and at most {days}d; without it the pause stays until somebody resumes",
            code="invalid_body",
        )
    async with begin(runtime.engine) as conn:
        workflow = await steer.pause_workflow(
            conn,
            workflow_id_of(request),
            body.reason or "paused by a person",
            context_of(request, runtime),
            lasts=body.for_,
        )
        answer = (await views.workflows_json(conn, [workflow]))[0]
    wake(runtime)
    return JSONResponse(answer)


async def resume_workflow(request: Request) -> Response:
    runtime = runtime_of(request)
    body = await read_json(request, ReasonBody, optional=True)
    async with begin(runtime.engine) as conn:
        workflow = await steer.resume_workflow(
            conn, workflow_id_of(request), body.reason or "resumed by a person", context_of(request, runtime)
        )
        answer = (await views.workflows_json(conn, [workflow]))[0]
    wake(runtime)
    return JSONResponse(answer)


async def list_history(request: Request) -> Response:
    query, workflow_id = read_query(request, HistoryQuery), workflow_id_of(request)
    before: tuple[datetime, str] | None = None
    if query.cursor:
        of, at, hold_id = read_cursor("workflow_history", query.cursor, cursor_text, cursor_instant, cursor_id)
        if of != workflow_id:
            raise BadRequest("this cursor is of another workflow; start again without it", code="invalid_cursor")
        before = (at, hold_id)
    async with begin(runtime_of(request).engine) as conn:
        found = await hold_history.history(conn, workflow_id, query.limit + 1, before)
        if not found and before is None and await workflows.load(conn, workflow_id) is None:
            raise NotFound("no workflow of that id, and nothing that is kept ever held one", code="unknown_workflow")
        items = await views.history_json(conn, workflow_id, found[: query.limit])
    last = found[query.limit - 1].hold if len(found) > query.limit else None
    cursor = write_cursor("workflow_history", workflow_id, last.placed_at.isoformat(), last.id) if last else None
    return JSONResponse({"items": items, "next_cursor": cursor})


def wake(runtime: Runtime) -> None:
    """After the commit: actions may be waiting, deadlines may be new, and the log has grown."""
    for job in (queue.ACT, queue.EVALUATE, queue.SHIP):
        runtime.nudger.nudge(job)


CALLS = (
    Call(
        "PUT",
        "/v1/workflows/{workflow_id}",
        put_workflow,
        "write",
        "Register a workflow and what it depends on; never resumes it",
        body=WorkflowBody,
    ),
    Call("GET", "/v1/workflows", list_workflows, "read", "Workflows with their state", query=WorkflowsQuery),
    Call("GET", "/v1/workflows/{workflow_id}", get_workflow, "read", "One workflow"),
    Call(
        "DELETE",
        "/v1/workflows/{workflow_id}",
        delete_workflow,
        "write",
        "Forget a workflow; what was paused is put back",
        ok=204,
    ),
    Call(
        "GET",
        "/v1/workflows/{workflow_id}/history",
        list_history,
        "read",
        "Every hold it had, newest first, also once it is deleted: whose, why, how long, what its orchestrator was told",
        query=HistoryQuery,
    ),
    Call(
        "POST",
        "/v1/workflows/{workflow_id}/pause",
        pause_workflow,
        "write",
        "Hold a workflow, for a while or until somebody resumes it",
        body=PauseBody,
    ),
    Call(
        "POST", "/v1/workflows/{workflow_id}/resume", resume_workflow, "write", "Lift the holds of now", body=ReasonBody
    ),
)
