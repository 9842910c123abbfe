"""Scalekit's REST API, from its documentation: refuses a wrong token, unknown parameters and fields, pages above 100.

Where the documentation is silent it does what is worse for us: a time span holds both of its ends, an empty field is left
out, unset timestamps are 1970 without an offset, tokens of pages are opaque and end with the server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections import Counter
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

CLIENT_ID = "skc_1234567890"
CLIENT_SECRET = "test_secret_that_must_not_leak"
ENVIRONMENT = "env_1"
FILTER_FIELDS = frozenset(
    {
        "event_types",
        "start_time",
        "end_time",
        "organization_id",
        "source",
        "auth_request_id",
        "interceptor_id",
        "interceptor_status",
        "interceptor_decision",
        "connection_id",
        "connected_account_id",
    }
)
LIST_PARAMETERS = frozenset(
    {"organization_id", "user_id", "connector", "identifier", "provider", "page_size", "page_token", "query"}
    | {"connection_names", "is_org_wide_credential"}
)
EVENT_FIELDS = frozenset(
    {"spec_version", "id", "type", "occurred_at", "environment_id", "organization_id", "object", "data", "display_name"}
)
LINK_FIELDS = frozenset({"id", "connector", "identifier", "organization_id", "user_id", "state", "user_verify_url"})
STATUSES = frozenset({"ACTIVE", "EXPIRED", "PENDING_AUTH", "PENDING_VERIFICATION", "DISCONNECTED"})
PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX = 10, 100
UNSET = "1970-01-01T00:00:00"


class FakeScalekit:
    """`events` and `accounts` are what the provider knows; `weather` holds the next answers given instead of its own."""

    def __init__(self, *, environment: str = ENVIRONMENT) -> None:
        self.environment = environment
        self.events: list[dict[str, Any]] = []
        self.accounts: dict[str, dict[str, Any]] = {}
        self.tokens: set[str] = set()
        self.secret = CLIENT_SECRET
        self.expires_in = 86399
        self.weather: list[Response | None] = []  # None: the connection is dropped without an answer
        self.calls: Counter[str] = Counter()
        self.asked: list[str] = []
        self.refuse_lists = False  # a client without the right to read accounts
        self.without_details: set[str] = set()  # listed, and 404 when asked for
        self.broken_details: set[str] = set()  # 500 when asked for
        self.at_once = self.most_at_once = 0  # calls for details under way
        self.links: list[str] = []  # magic links handed out, newest last
        self._pages: dict[str, tuple[str, int]] = {}
        self.app = Starlette(
            routes=[
                Route("/oauth/token", self._issue, methods=["POST"]),
                Route("/api/v1/events/paginated", self._list_events, methods=["POST"]),
                Route("/api/v1/connected_accounts", self._list_accounts, methods=["GET"]),
                Route("/api/v1/connected_accounts/details", self._details, methods=["GET"]),
                Route("/api/v1/connected_accounts/magic_link", self._magic_link, methods=["POST"]),
            ]
        )

    def say(self, event: dict[str, Any]) -> None:
        """The provider has this event, in the shape of its webhook."""
        assert set(event) <= EVENT_FIELDS, set(event) - EVENT_FIELDS
        assert event["id"].startswith("evt"), event["id"]
        assert len(event["id"]) <= 32, event["id"]
        self.events.append(event)

    def set_account(self, account_id: str, status: str, *, updated_at: datetime | None = None, **fields: Any) -> None:
        assert status in STATUSES
        self.accounts[account_id] = {
            "id": account_id,
            "identifier": "john@example.com",
            "provider": "gmail",
            "status": status,
            "authorization_type": "OAUTH",
            "connector": "gmail-1",
            "connection_id": "conn_1",
            "token_expires_at": UNSET,
            "last_used_at": UNSET,
            "updated_at": updated_at.isoformat().replace("+00:00", "Z") if updated_at else UNSET,
            **fields,
        }

    def expire_tokens(self) -> None:
        self.tokens.clear()

    def restart(self) -> None:
        """Nothing it handed out is good any more."""
        self._pages.clear()
        self.tokens.clear()

    async def _issue(self, request: Request) -> Response:
        self.calls["token"] += 1
        if (spoilt := await self._spoilt()) is not None:
            return spoilt
        if request.headers.get("content-type") != "application/x-www-form-urlencoded":
            return refusal(400, "the body must be a form")
        form = parse_qsl((await request.body()).decode(), strict_parsing=True)
        if sorted(name for name, _ in form) != ["client_id", "client_secret", "grant_type"]:
            return refusal(400, f"unknown or missing form fields: {form}")
        given = dict(form)
        if given["grant_type"] != "client_credentials":
            return refusal(400, "unsupported_grant_type")
        if (given["client_id"], given["client_secret"]) != (CLIENT_ID, self.secret):
            # As some servers do: the answer echoes what was sent.
            return JSONResponse({"error": "invalid_client", "echo": given}, 401)
        token = "eyJ" + secrets.token_urlsafe(24)
        self.tokens.add(token)
        return JSONResponse({"access_token": token, "expires_in": self.expires_in, "token_type": "Bearer"})

    async def _list_events(self, request: Request) -> Response:
        if (no := await self._guard(request, "events", {"page_size", "page_token"})) is not None:
            return no
        try:
            wanted = json.loads(await request.body())
        except ValueError:
            return refusal(400, "the body must be a filter")
        if not isinstance(wanted, dict) or set(wanted) - FILTER_FIELDS:
            return refusal(400, f"unknown fields in the filter: {wanted}")
        start, end = (instant(wanted.get(name)) for name in ("start_time", "end_time"))
        if start and end and start > end:
            return refusal(400, "start_time is after end_time")
        types = wanted.get("event_types")
        found = [
            event
            for event in sorted(self.events, key=lambda one: str(one["occurred_at"]), reverse=True)
            if (types is None or event["type"] in types)
            and (start is None or instant(event["occurred_at"]) >= start)  # type: ignore[operator]
            and (end is None or instant(event["occurred_at"]) <= end)  # type: ignore[operator]
        ]
        return self._page(request, "events", found, json.dumps(wanted, sort_keys=True))

    async def _list_accounts(self, request: Request) -> Response:
        if (no := await self._guard(request, "accounts", LIST_PARAMETERS)) is not None:
            return no
        if self.refuse_lists:
            return refusal(403, "permission connected_accounts:read is missing")
        return self._page(request, "connected_accounts", [self.accounts[key] for key in sorted(self.accounts)], "all")

    async def _details(self, request: Request) -> Response:
        if (no := await self._guard(request, "details", {"id"})) is not None:
            return no
        account_id = request.query_params.get("id", "")
        self.asked.append(account_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)  # time in which others may come
        self.at_once -= 1
        if account_id in self.broken_details:
            return refusal(500, "internal")
        if not account_id.startswith("ca_"):
            return refusal(400, "a malformed connected account id")
        if account_id not in self.accounts or account_id in self.without_details:
            return refusal(404, "connected account not found")
        return JSONResponse({"connected_account": self.accounts[account_id]})

    async def _magic_link(self, request: Request) -> Response:
        if (no := await self._guard(request, "magic_link", set())) is not None:
            return no
        try:
            wanted = json.loads(await request.body())
        except ValueError:
            return refusal(400, "the body must be JSON")
        if not isinstance(wanted, dict) or set(wanted) - LINK_FIELDS:
            return refusal(400, f"unknown fields: {wanted}")
        account_id = wanted.get("id")
        if not isinstance(account_id, str) or not account_id.startswith("ca_"):
            return refusal(400, "a malformed connected account id")
        if account_id not in self.accounts:
            return refusal(404, "connected account not found")
        self.links.append(f"https://acme.scalekit.dev/magicLink/{secrets.token_urlsafe(18)}_c?a=1&b=2")
        return JSONResponse({"link": self.links[-1], "expiry": "2026-12-01T10:00:00.000000123Z"})

    async def _guard(self, request: Request, what: str, parameters: set[str] | frozenset[str]) -> Response | None:
        self.calls[what] += 1
        if (spoilt := await self._spoilt()) is not None:
            return spoilt
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            return refusal(401, "missing or invalid Authorization header")
        names = [name for name, _ in request.query_params.multi_items()]
        if set(names) - parameters or len(names) != len(set(names)):
            return refusal(400, f"unknown parameters: {names}")
        return None

    async def _spoilt(self) -> Response | None:
        if not self.weather:
            return None
        next_ = self.weather.pop(0)
        if next_ is None:
            return Hangup()
        return next_

    def _page(self, request: Request, name: str, items: list[dict[str, Any]], about: str) -> Response:
        size_text = request.query_params.get("page_size", str(PAGE_SIZE_DEFAULT))
        if not size_text.isdigit() or not 0 <= int(size_text) <= PAGE_SIZE_MAX:
            return refusal(400, f"page_size must be between 0 and {PAGE_SIZE_MAX}")
        size = int(size_text) or PAGE_SIZE_DEFAULT
        token, offset = request.query_params.get("page_token"), 0
        if token is not None:
            about_then, offset = self._pages.get(token, ("", -1))
            if about_then != about:
                return refusal(400, "page_token is malformed")
        page: dict[str, Any] = {name: items[offset : offset + size]} if items[offset : offset + size] else {}
        if offset + size < len(items):
            following = base64.b64encode(secrets.token_bytes(9)).decode()  # with characters a URL must escape
            self._pages[following] = (about, offset + size)
            page["next_page_token"] = following
        if name == "connected_accounts":
            page["total_size"] = len(items)
        return JSONResponse(page)


class Hangup(Response):
    """Ends the exchange in the middle of its answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def refusal(status: int, detail: str) -> Response:
    return JSONResponse({"message": detail}, status)


def instant(value: Any) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else None
