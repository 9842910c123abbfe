"""Airflow 3's REST API as far as we use it, strictly: what it refuses and in which words, as 3.3.2 answered on loopback.

Two users: `ops`, who may edit DAGs, and `view`, who may only look. Its tokens are good until they are too old (401) or its
key is another one (403).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.fakes.slack import BreakOff

PASSWORDS = {"ops": "0ps-of-the-tests", "view": "v1ew-of-the-tests"}
PAGE_MAX, PAGE_DEFAULT = 100, 50
DAG = "nightly_report"
Work = Callable[[], Awaitable[Response]]


@dataclass
class Dag:
    dag_id: str
    tags: tuple[str, ...] = ()
    is_paused: bool = False
    is_stale: bool = False

    def said(self) -> dict[str, Any]:
        return {
            "dag_id": self.dag_id,
            "dag_display_name": self.dag_id,
            "is_paused": self.is_paused,
            "is_stale": self.is_stale,
            "description": None,
            "timetable_summary": "0 2 * * *",
            "tags": [{"name": tag, "dag_id": self.dag_id, "dag_display_name": self.dag_id} for tag in self.tags],
            "max_active_tasks": 16,
            "owners": ["airflow"],
            "file_token": "a-signed-word",
        }


class FakeAirflow:
    """`dags` by id; `writes` counts what really changed something, `logins` the tokens that were asked for, `audit` what its
    own audit log has of calls that would change something, allowed or not."""

    def __init__(self) -> None:
        self.dags = {DAG: Dag(DAG, tags=("finance", "nightly"))}
        self.passwords = dict(PASSWORDS)
        self.writes = self.logins = self.calls = 0
        self.audit: list[str] = []
        self.page_max = PAGE_MAX
        self.slow_seconds = self.login_slow_seconds = 0.0
        self._numbers = itertools.count(1)
        self._live: dict[str, str] = {}
        self._expired: set[str] = set()
        self._always: Response | None = None
        self._next: list[Response] = []
        self._break_off = False
        self.app = Starlette(
            routes=[
                Route("/auth/token", self._login, methods=["POST"]),
                Route("/api/v2/dags", self._list, methods=["GET"]),
                Route("/api/v2/dags/{dag_id}", self._get, methods=["GET"]),
                Route("/api/v2/dags/{dag_id}", self._patch, methods=["PATCH"]),
                Route("/api/v2/{rest:path}", self._no_route),
            ]
        )

    def answer(
        self, status: int, headers: Mapping[str, str] | None = None, body: str = "", *, always: bool = False
    ) -> None:
        response = PlainTextResponse(body, status, headers=dict(headers or {}))
        if always:
            self._always = response
        else:
            self._next.append(response)

    def break_off(self) -> None:
        self._break_off = True

    def expire_tokens(self) -> None:
        """A day passes."""
        self._expired |= set(self._live)
        self._live.clear()

    def restart(self) -> None:
        """With another key, as a server without a configured one: no token of before is known."""
        self._expired.clear()
        self._live.clear()

    async def _over(self, work: Work, *, changes: bool = False) -> Response:
        self.calls += 1
        if self._always is not None:
            return self._always
        if self._next:
            return self._next.pop(0)
        done = await work()
        if changes and self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        if changes and self._break_off:
            self._break_off = False
            return BreakOff()
        return done

    def _user(self, request: Request, *, edits: bool = False) -> Response | None:
        """What keeps this caller out, if anything does."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return detail(401, "Not authenticated")
        if token in self._expired:
            return detail(401, "Token Expired")
        if token not in self._live:
            return detail(403, "Invalid JWT token")
        return detail(403, "Forbidden") if edits and self._live[token] != "ops" else None

    async def _login(self, request: Request) -> Response:
        async def work() -> Response:
            await asyncio.sleep(self.login_slow_seconds)
            given = json.loads(await request.body())
            if set(given) != {"username", "password"} or request.headers["content-type"] != "application/json":
                return JSONResponse({"detail": repr(given)}, 422)  # which it really echoes
            self.logins += 1
            if self.passwords.get(given["username"]) != given["password"]:
                return detail(401, "Invalid credentials")
            token = f"eyJ-token-of-the-fake-{next(self._numbers)}"
            self._live[token] = given["username"]
            return JSONResponse({"access_token": token}, 201)

        return await self._over(work)

    async def _list(self, request: Request) -> Response:
        async def work() -> Response:
            if (no := self._user(request)) is not None:
                return no
            query = dict(request.query_params)
            if set(query) - {"limit", "offset", "order_by", "exclude_stale"} or query.get("order_by") != "dag_id":
                return detail(400, f"the fake knows no such query: {query}")
            limit, offset = min(int(query.get("limit", PAGE_DEFAULT)), self.page_max), int(query.get("offset", 0))
            stale_too = query.get("exclude_stale", "true") == "false"
            found = [dag.said() for _, dag in sorted(self.dags.items()) if stale_too or not dag.is_stale]
            return JSONResponse({"dags": found[offset : offset + limit], "total_entries": len(found)})

        return await self._over(work)

    async def _get(self, request: Request) -> Response:
        async def work() -> Response:
            if (no := self._user(request)) is not None:
                return no
            dag_id = request.path_params["dag_id"]
            if dag_id not in self.dags:
                return detail(404, f"The Dag with ID: `{dag_id}` was not found")
            return JSONResponse(self.dags[dag_id].said())

        return await self._over(work)

    async def _patch(self, request: Request) -> Response:
        async def work() -> Response:
            if (no := self._user(request, edits=True)) is not None:
                return no
            dag_id, body = request.path_params["dag_id"], json.loads(await request.body())
            self.audit.append(dag_id)
            if set(body) != {"is_paused"} or not isinstance(body["is_paused"], bool):
                return JSONResponse({"detail": [{"type": "extra_forbidden", "input": body}]}, 422)
            if dag_id not in self.dags:
                return detail(404, f"Dag with id: {dag_id} was not found")
            if request.query_params.getlist("update_mask") not in ([], ["is_paused"]):
                return detail(400, "Only `is_paused` field can be updated through the REST API")
            dag = self.dags[dag_id]
            self.writes += dag.is_paused is not body["is_paused"]
            dag.is_paused = body["is_paused"]
            return JSONResponse(dag.said())

        return await self._over(work, changes=True)

    async def _no_route(self, _request: Request) -> Response:
        return JSONResponse({"error": "API route not found"}, 404)


def detail(status: int, said: str) -> Response:
    return JSONResponse({"detail": said}, status)
