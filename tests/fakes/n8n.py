"""n8n's public API, rebuilt strictly from its OpenAPI document and from what 2.8.4 was seen to answer.

`words`: "publish" as in the newest 2.x, which know the old words too; "activate" as until about 2.20, where /publish looks like
the path of a version (405); "unversioned" as in 1.x, where a workflow is one thing, active or not.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.slack import BreakOff

API_KEY = "eyJhbGciOiJIUzI1NiJ9.bjhuLWtleS1vZi10aGUtdGVzdHM.c2lnbmF0dXJl"
REF = "Rt5kTickets00001"
SCOPES = frozenset({"workflow:read", "workflow:list", "workflow:activate", "workflow:deactivate"})
QUERY = {
    "list": {"active", "tags", "name", "projectId", "excludePinnedData", "limit", "cursor"},
    "get": {"excludePinnedData"},
}
STOP, START = ("unpublish", "deactivate"), ("publish", "activate")
LIMIT_MAX = 250


@dataclass
class Workflow:
    """`versions`: what its history still has; `draft` is the newest, `published` the one that runs."""

    id: str
    name: str
    draft: str = "v1"
    published: str | None = "v1"
    versions: set[str] = field(default_factory=lambda: {"v1"})
    archived: bool = False
    tags: tuple[str, ...] = ()


class FakeN8n:
    """`writes` is what really changed, by whom: "api" or nobody else. `calls` is every method and path."""

    def __init__(self, *, words: Literal["publish", "activate", "unversioned"] = "publish") -> None:
        self.words = words
        self.api_key = API_KEY
        self.scopes = SCOPES
        self.calls: list[str] = []
        self.writes: list[str] = []
        self.slow_seconds = 0.0
        self.takes_seconds = 0.0  # to answer a GET of one
        self.at_once = self.at_once_max = 0
        self.forgets: tuple[str, ...] = ()
        self.break_off_next = False
        self.always: Response | None = None
        self.next: list[Response] = []
        self.refuses: tuple[int, dict[str, Any]] | None = None  # what a publish is answered
        self.workflows = {REF: Workflow(REF, "Route tickets", tags=("support", "authwatch"))}
        self.app = Starlette(
            routes=[
                Route("/api/v1/workflows", self._list, methods=["GET"]),
                Route("/api/v1/workflows/{id}", self._get, methods=["GET"]),
                Route("/api/v1/workflows/{id}/{word}", self._act, methods=["POST"]),
            ],
        )

    def answer(self, status: int, headers: Mapping[str, str], body: str, *, always: bool = False) -> None:
        response = Response(body, status, headers=dict(headers))
        if always:
            self.always = response
        else:
            self.next.append(response)

    def as_json(self, workflow: Workflow) -> dict[str, Any]:
        said: dict[str, Any] = {
            "id": workflow.id,
            "name": workflow.name,
            "active": workflow.published is not None,
            "isArchived": workflow.archived,
            "nodes": [{"name": "Every minute", "type": "n8n-nodes-base.scheduleTrigger"}],
            "connections": {},
            "settings": {},
            "tags": [{"id": f"t{n}", "name": name} for n, name in enumerate(workflow.tags)],
            "versionId": workflow.draft,
        }
        if self.words != "unversioned":
            published = workflow.published
            said["activeVersionId"] = published
            said["activeVersion"] = None if published is None else {"versionId": published, "nodes": said["nodes"]}
        return said

    def _before(self, request: Request, scope: str) -> Response | None:
        self.calls.append(f"{request.method} {request.url.path.removeprefix('/api/v1')}")
        if self.next:
            return self.next.pop(0)
        if self.always is not None:
            return self.always
        key = request.headers.get("x-n8n-api-key")
        if key is None:
            return says(401, "'X-N8N-API-KEY' header required")
        if key != self.api_key:
            return says(401, "unauthorized")
        return None if scope in self.scopes else says(403, "Forbidden")

    async def _list(self, request: Request) -> Response:
        if early := self._before(request, "workflow:list"):
            return early
        if unknown := set(request.query_params) - QUERY["list"]:
            return says(400, f"Unknown query parameter '{unknown.pop()}'")
        offset, limit = 0, int(request.query_params.get("limit", "100"))
        if not 1 <= limit <= LIMIT_MAX:
            return says(400, "request/query/limit must be <= 250")
        if cursor := request.query_params.get("cursor"):
            try:
                page = json.loads(base64.b64decode(cursor, validate=True))
            except ValueError:
                return says(400, "An invalid cursor was provided")
            offset, limit = page["offset"], page["limit"]
        every = [self.as_json(workflow) for workflow in self.workflows.values()]
        after = json.dumps({"limit": limit, "offset": offset + limit}).encode()
        more = len(every) > offset + limit
        return JSONResponse(
            {"data": every[offset : offset + limit], "nextCursor": base64.b64encode(after).decode() if more else None}
        )

    async def _get(self, request: Request) -> Response:
        if early := self._before(request, "workflow:read"):
            return early
        if unknown := set(request.query_params) - QUERY["get"]:
            return says(400, f"Unknown query parameter '{unknown.pop()}'")
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        await asyncio.sleep(self.takes_seconds)
        self.at_once -= 1
        workflow = self.workflows.get(request.path_params["id"])
        return JSONResponse(self.as_json(workflow)) if workflow else says(404, "Not Found")

    async def _act(self, request: Request) -> Response:
        word, body = request.path_params["word"], await request.body()
        early = self._before(request, "workflow:deactivate" if word in STOP else "workflow:activate")
        if early is not None:
            return early
        known = ("activate", "deactivate") if self.words != "publish" else (*STOP, *START)
        if word not in known or word in self.forgets:
            return says(404, "not found") if self.words == "unversioned" else says(405, "POST method not allowed")
        workflow = self.workflows.get(request.path_params["id"])
        if body and not request.headers.get("content-type", "").startswith("application/json"):
            return says(415, "unsupported media type text/plain")
        if workflow is None:
            return says(404, "Not Found")
        before = workflow.published
        if word in STOP:
            workflow.published = None
        elif refused := self._start(workflow, json.loads(body or b"{}")):
            return refused
        if workflow.published == before:
            return JSONResponse(self.as_json(workflow))
        self.writes.append(word)
        answer = JSONResponse(self.as_json(workflow))
        if self.break_off_next:
            self.break_off_next = False
            return BreakOff()
        if self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        return answer

    def _start(self, workflow: Workflow, asked: dict[str, Any]) -> Response | None:
        if self.refuses is not None:
            return JSONResponse(self.refuses[1], self.refuses[0])
        if workflow.archived:
            return says(400, "Cannot activate an archived workflow.")
        # Without one it is the newest that is published, be it a draft.
        version = workflow.draft if self.words == "unversioned" else asked.get("versionId", workflow.draft)
        if version not in workflow.versions:
            return says(404, "Version not found")
        workflow.published = version
        return None


def says(status: int, message: str) -> JSONResponse:
    return JSONResponse({"message": message}, status)
