"""The part of Prefect 3's REST API that we call, rebuilt strictly: what a server of 3.8.8 was seen to answer, and to refuse.

By prefect/server/api/{deployments,flows,server}.py too: Basic credentials of every call but `/health` and `/ready`, ids that are
no UUID have no route, a page holds 200 at most, and what is not found is named.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from tests.fakes.slack import BreakOff

AUTH_STRING = "authwatch:Pr3fect-Passw0rd-of-the-tests"
LIMIT_MAX = 200  # PREFECT_SERVER_API_DEFAULT_LIMIT
SORTS = ("CREATED_DESC", "UPDATED_DESC", "NAME_ASC", "NAME_DESC")
UNAUTHORIZED = {"exception_message": "Unauthorized"}
NOT_FOUND = {"detail": "Deployment not found"}
NO_RUN = {"detail": "Flow run not found"}
INVALID: dict[str, Any] = {
    "exception_message": "Invalid request received.",
    "exception_detail": [],
    "request_body": None,
}


@dataclass
class Deployed:
    """One deployment. `schedules` is who is active; `booked` are the runs that its schedules made, `by_hand` the others."""

    flow: str
    name: str
    tags: tuple[str, ...] = ()
    paused: bool = False
    schedules: list[bool] = field(default_factory=lambda: [True, False])
    booked: int = 3
    by_hand: int = 0
    id: str = field(default_factory=lambda: str(uuid4()))

    @property
    def flow_id(self) -> str:
        return str(uuid5(NAMESPACE_URL, self.flow))

    def json(self) -> dict[str, Any]:
        """As the server says it, without what we have no use for."""
        schedules = [{"active": active, "schedule": {"interval": 60.0}} for active in self.schedules]
        return {
            "id": self.id,
            "name": self.name,
            "flow_id": self.flow_id,
            "paused": self.paused,
            "schedules": schedules,
            "tags": list(self.tags),
            "parameters": {},
            "parameter_openapi_schema": {"type": "object", "properties": {}},
            "status": "NOT_READY",
        }


@dataclass
class Run:
    """A run of a deployment. Only one that is running can be suspended; one that is resumed is scheduled to begin again."""

    deployment_id: str
    type: str = "RUNNING"
    name: str = "Running"
    message: str | None = None
    parent_task_run_id: str | None = None
    id: str = field(default_factory=lambda: str(uuid4()))

    def json(self) -> dict[str, Any]:
        state = {"type": self.type, "name": self.name, "message": self.message}
        return {"id": self.id, "deployment_id": self.deployment_id, "state": state}

    def become(self, type_: str, name: str, message: str | None = None) -> None:
        self.type, self.name, self.message = type_, name, message


class FakePrefect:
    """`deployments` by id, oldest first; `writes` is how often a call really changed one; `calls` all that were let in."""

    def __init__(self, *, auth_string: str = AUTH_STRING) -> None:
        self.auth_string = auth_string
        self.deployments: dict[str, Deployed] = {}
        self.runs: dict[str, Run] = {}
        self.writes = 0
        self.calls: list[str] = []
        self.slow_seconds = 0.0
        self.break_off = False
        self.refuse_runs: int | None = None  # every call about runs is answered so
        self._next: Response | None = None
        self._always = False
        one = "/deployments/{id:uuid}"
        routes = [
            self._route("/deployments/count", self._count, "POST"),
            self._route("/deployments/filter", self._filter, "POST"),
            self._route("/flows/filter", self._flows, "POST"),
            self._route("/deployments/name/{flow}/{name}", self._by_name, "GET"),
            self._route(one, self._read, "GET"),
            self._route(one + "/pause_deployment", self._pause, "POST"),
            self._route(one + "/resume_deployment", self._resume, "POST"),
            self._route(one + "/create_flow_run", self._create_run, "POST"),
            self._route("/flow_runs/filter", self._filter_runs, "POST"),
            self._route("/flow_runs/{id:uuid}", self._read_run, "GET"),
            self._route("/flow_runs/{id:uuid}/set_state", self._set_state, "POST"),
            self._route("/flow_runs/{id:uuid}/resume", self._resume_run, "POST"),
            Route("/health", lambda _request: JSONResponse(True)),
        ]
        self.app = Starlette(routes=[Mount("/api", routes=routes)])

    def add(self, flow: str, name: str, tags: tuple[str, ...] = ()) -> Deployed:
        one = Deployed(flow, name, tags)
        self.deployments[one.id] = one
        return one

    def answer_next(self, status: int, headers: Mapping[str, str], body: str, *, always: bool = False) -> None:
        self._next, self._always = PlainTextResponse(body, status, headers=dict(headers)), always

    def _route(self, path: str, work: Callable[[Request], Awaitable[Response]], method: str) -> Route:
        async def take(request: Request) -> Response:
            if self._next is not None:
                answer = self._next
                self._next = answer if self._always else None
                return answer
            if not self._lets_in(request.headers.get("authorization")):
                return JSONResponse(UNAUTHORIZED, 401)
            self.calls.append(f"{method} {request.url.path}")
            if self.refuse_runs is not None and "/flow_runs/" in path:
                return JSONResponse({"detail": "no"}, self.refuse_runs)
            before = self.writes
            answer = await work(request)
            if self.writes > before and self.break_off:
                self.break_off = False
                return BreakOff()
            if self.writes > before and self.slow_seconds:
                await asyncio.sleep(self.slow_seconds)
            return answer

        return Route(path, take, methods=[method])

    def _lets_in(self, said: str | None) -> bool:
        scheme, _, given = (said or "").partition(" ")
        try:
            return scheme == "Basic" and base64.b64decode(given, validate=True).decode() == self.auth_string
        except ValueError:
            return False

    def _one(self, request: Request) -> Deployed | None:
        return self.deployments.get(str(request.path_params["id"]))

    async def _read(self, request: Request) -> Response:
        one = self._one(request)
        return JSONResponse(one.json()) if one else JSONResponse(NOT_FOUND, 404)

    async def _by_name(self, request: Request) -> Response:
        asked = (request.path_params["flow"], request.path_params["name"])
        found = [one for one in self.deployments.values() if (one.flow, one.name) == asked]
        return JSONResponse(found[0].json()) if found else JSONResponse(NOT_FOUND, 404)

    async def _pause(self, request: Request) -> Response:
        one = self._one(request)
        if one is None:
            return JSONResponse(NOT_FOUND, 404)
        self.writes += not one.paused
        one.paused, one.booked = True, 0
        return JSONResponse(None)

    async def _resume(self, request: Request) -> Response:
        one = self._one(request)
        if one is None:
            return JSONResponse(NOT_FOUND, 404)
        self.writes += one.paused
        one.paused, one.booked = False, 3  # its scheduler books the next within seconds
        return JSONResponse(None)

    async def _create_run(self, request: Request) -> Response:
        """Accepted while it is paused too."""
        one = self._one(request)
        if one is None:
            return JSONResponse(NOT_FOUND, 404)
        one.by_hand += 1
        return JSONResponse({"deployment_id": one.id, "auto_scheduled": False}, 201)

    async def _count(self, request: Request) -> Response:
        asked = await json_of(request)
        return JSONResponse(INVALID, 422) if asked is None else JSONResponse(len(self.deployments))

    async def _filter(self, request: Request) -> Response:
        asked = await json_of(request)
        if asked is None or asked.get("sort") not in SORTS:
            return JSONResponse(INVALID, 422)
        if (wrong := limit_error(asked)) is not None:
            return wrong
        rows = [one.json() for one in reversed(self.deployments.values())]
        return JSONResponse(rows[asked["offset"] :][: asked["limit"]])

    async def _flows(self, request: Request) -> Response:
        asked = await json_of(request)
        if asked is None:
            return JSONResponse(INVALID, 422)
        if (wrong := limit_error(asked)) is not None:
            return wrong
        ids = asked["flows"]["id"]["any_"]
        flows = {one.flow_id: one.flow for one in self.deployments.values() if one.flow_id in ids}
        return JSONResponse([{"id": id_, "name": name} for id_, name in flows.items()][: asked["limit"]])

    async def _filter_runs(self, request: Request) -> Response:
        asked = await json_of(request)
        if asked is None:
            return JSONResponse(INVALID, 422)
        if (wrong := limit_error(asked)) is not None:
            return wrong
        of, runs = asked["deployments"]["id"]["any_"], asked["flow_runs"]
        found = [one for one in self.runs.values() if one.deployment_id in of]
        found = [one for one in found if one.type in runs["state"]["type"]["any_"]]
        if runs["parent_task_run_id"]["is_null_"]:
            found = [one for one in found if one.parent_task_run_id is None]
        return JSONResponse([one.json() for one in found][: asked.get("limit", LIMIT_MAX)])

    async def _read_run(self, request: Request) -> Response:
        run = self.runs.get(str(request.path_params["id"]))
        return JSONResponse(run.json()) if run else JSONResponse(NO_RUN, 404)

    async def _set_state(self, request: Request) -> Response:
        run, asked = self.runs.get(str(request.path_params["id"])), await json_of(request)
        if run is None:
            return JSONResponse(NO_RUN, 404)
        if (
            asked is None
            or asked["state"]["type"] != "PAUSED"
            or not asked["state"]["state_details"]["pause_reschedule"]
        ):
            return JSONResponse(INVALID, 422)
        if run.type != "RUNNING":
            return JSONResponse({"status": "REJECT", "state": None, "details": {"type": "reject_details"}})
        self.writes += 1
        run.become("PAUSED", asked["state"]["name"], asked["state"]["message"])
        return JSONResponse({"status": "ACCEPT", "details": {"type": "accept_details"}}, 201)

    async def _resume_run(self, request: Request) -> Response:
        run = self.runs.get(str(request.path_params["id"]))
        if run is None:
            return JSONResponse(NO_RUN, 404)
        if run.type != "PAUSED":
            return JSONResponse({"status": "ABORT", "state": None, "details": {"type": "abort_details"}})
        self.writes += 1
        run.become("SCHEDULED", "Resuming")
        return JSONResponse({"status": "ACCEPT", "details": {"type": "accept_details"}}, 201)


def limit_error(asked: Mapping[str, Any]) -> Response | None:
    limit = asked.get("limit", LIMIT_MAX)
    if not isinstance(limit, int) or limit < 0 or asked.get("offset", 0) < 0:
        return JSONResponse(INVALID, 422)
    if limit > LIMIT_MAX:
        return JSONResponse({"detail": f"Invalid limit: must be less than or equal to {LIMIT_MAX}."}, 422)
    return None


async def json_of(request: Request) -> dict[str, Any] | None:
    if request.headers.get("content-type") != "application/json":
        return None
    try:
        said = json.loads(await request.body())
    except ValueError:
        return None
    return said if isinstance(said, dict) else None
