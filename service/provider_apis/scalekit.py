"""Scalekit's REST API: events of a time span, connected accounts, one account's details, a link to re-authorize it.

Documented (OpenAPI, and the annotations in the SDK's protobuf files): the paths, the parameters, `page_size` up to 100,
`page_token` as a query parameter, events most recent first, 400 for a malformed page token, the fields of a list entry,
the token endpoint. The details call is used, never `/auth`: that one returns the tokens.

Inferred: the gateway writes field names as the OpenAPI does (snake case; protobuf's own camel case is read too), an
event has the shape of a webhook's body (the two schemas have the same fields), details are wrapped in
`connected_account`, 404 means that the account is gone. Nothing that may be missing is required.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx

from service import outbound
from service.errors import DeliveryFailed, PayloadUnreadable
from service.outbound import TRANSIENT_4XX, Response, retry_after_seconds
from service.provider_apis.base import AccountsPage, EventsPage, ReauthorizationLink, RemoteAccount
from service.providers import scalekit
from service.providers.scalekit import STATUS_KINDS
from service.settings import ProviderApi as Credentials

PAGE_SIZE = 100  # the most both lists give
# 100 events of some hundred bytes each, with room to spare; a page beyond it is refused, not cut.
RESPONSE_BYTES_MAX = 4 * 1024 * 1024
CALL_SECONDS_MAX = 20.0
ATTEMPTS_MAX = 5
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 0.5, 30.0
RETRY_AFTER_SECONDS_MAX = 60.0  # longer than that is the caller's affair: it comes back later
LINK_CHARS_MAX = 3_000  # what a button in Slack takes
TOKEN_SPARE_SECONDS = 60.0
TOKEN_SECONDS_DEFAULT = 300.0
# The filter names them, or every login of every user would be listed too.
EVENT_TYPES = tuple(
    f"{scalekit.PREFIX}.{what}"
    for what in (
        "created",
        "updated",
        "status_updated",
        "deleted",
        "magic_link_generated",
        "oauth_succeeded",
        "oauth_tokens_fetched",
        "token_refresh_succeeded",
        "token_refresh_failed",
    )
)
# All that is kept of an account: the list's description promises tokens, which must not come further than here.
ACCOUNT_FIELDS = (
    "id",
    "identifier",
    "provider",
    "status",
    "authorization_type",
    "token_expires_at",
    "updated_at",
    "connector",
    "last_used_at",
    "connection_id",
)
CAMEL = {"specVersion": "spec_version", "occurredAt": "occurred_at", "environmentId": "environment_id"} | {
    "organizationId": "organization_id",
    "displayName": "display_name",
}


class ScalekitApi:
    provider = "scalekit"

    def __init__(
        self,
        credentials: Credentials,
        http: httpx.AsyncClient,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._credentials = credentials
        self._base = credentials.env_url.rstrip("/")
        self._http = http
        self._sleep = sleep
        self._token: str | None = None
        self._token_until = 0.0
        self._renewing = asyncio.Lock()

    @classmethod
    def open(cls, credentials: Credentials, http: httpx.AsyncClient) -> ScalekitApi:
        return cls(credentials, http)

    async def environment_id(self) -> str | None:
        """Only events name their environment; the list is of the credentials' own."""
        page = await self._read("POST", "/api/v1/events/paginated", {"page_size": "1"}, {})
        for event in listed(page, "events"):
            name = snake(event).get("environment_id")
            if isinstance(name, str) and name:
                return name
        return None

    async def events_page(self, since: datetime, until: datetime, page_token: str | None) -> EventsPage:
        query = {"page_size": str(PAGE_SIZE)} | ({"page_token": page_token} if page_token else {})
        body = {"event_types": EVENT_TYPES, "start_time": written(since), "end_time": written(until)}
        page = await self._read("POST", "/api/v1/events/paginated", query, body)
        # Sorted, so that the same event has the same bytes whenever it is fetched.
        bodies = [json.dumps(snake(event), sort_keys=True).encode() for event in listed(page, "events")]
        return EventsPage(bodies, next_token(page))

    async def accounts_page(self, page_token: str | None) -> AccountsPage:
        query = {"page_size": str(PAGE_SIZE)} | ({"page_token": page_token} if page_token else {})
        page = await self._read("GET", "/api/v1/connected_accounts", query)
        found = [to_account(item) for item in listed(page, "connected_accounts", "connectedAccounts")]
        return AccountsPage([account for account in found if account is not None], next_token(page))

    async def account(self, account_id: str, *, tries_max: int | None = None) -> RemoteAccount | None:
        path, query = "/api/v1/connected_accounts/details", {"id": account_id}
        try:
            answer = await self._read("GET", path, query, tries_max=tries_max or ATTEMPTS_MAX)
        except DeliveryFailed as exc:
            if exc.status == 404:
                return None
            raise
        inner = answer.get("connected_account") or answer.get("connectedAccount") or answer
        found = to_account(inner) if isinstance(inner, dict) else None
        if found is None or found.account_id != account_id:
            raise unreadable("answered details that are not those of the account asked for")
        return found

    async def reauthorization_link(self, account_id: str) -> ReauthorizationLink:
        """Scalekit calls it a magic link, and tells of it by the event `magic_link_generated`."""
        answer = await self._read("POST", "/api/v1/connected_accounts/magic_link", {}, {"id": account_id}, tries_max=1)
        link = answer.get("link")
        if not isinstance(link, str) or not is_link(link, insecure=self._base.startswith("http://")):
            raise unreadable("answered something that is no link")
        return ReauthorizationLink(link, scalekit.instant(answer.get("expiry")))

    async def check(self) -> str:
        page = await self._read("GET", "/api/v1/connected_accounts", {"page_size": "1"})
        total = page.get("total_size", page.get("totalSize"))
        return f"answers; it knows {total} connected accounts" if isinstance(total, int) else "answers"

    async def _read(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        *,
        tries_max: int = ATTEMPTS_MAX,
    ) -> dict[str, Any]:
        """One call that may be repeated, since all but one of ours only read: with a new token once, after 429 and 5xx by
        and by."""
        url = f"{self._base}{path}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        content = json.dumps(body).encode() if body is not None else None
        renewed = False
        for attempt in range(1, tries_max + 2):  # the renewal is no try of its own
            try:
                token = await self._access_token()
                response = await self._send(method, url, content, {"authorization": f"Bearer {token}"})
                if response.status == 401 and not renewed:
                    renewed = True
                    self._forget(token)
                    continue
                return decoded(response)
            except DeliveryFailed as exc:
                if exc.permanent or attempt - renewed >= tries_max:
                    raise
                asked = exc.retry_after_seconds
                if asked is not None and asked > RETRY_AFTER_SECONDS_MAX:
                    raise
                backoff = min(BACKOFF_SECONDS * 2 ** (attempt - 1), BACKOFF_SECONDS_MAX)
                await self._sleep(asked if asked is not None else backoff * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    async def _send(self, method: str, url: str, content: bytes | None, headers: Mapping[str, str]) -> Response:
        response = await outbound.call(
            self._http,
            method,
            url,
            content=content,
            headers={"content-type": "application/json", "accept": "application/json", **headers},
            timeout_seconds=CALL_SECONDS_MAX,
            response_bytes_max=RESPONSE_BYTES_MAX,
        )
        refuse(response)
        return response

    async def _access_token(self) -> str:
        """OAuth client credentials; kept until a minute before it ends. Several callers cause one renewal."""
        async with self._renewing:
            if self._token is not None and time.monotonic() < self._token_until:
                return self._token
            form = {
                "grant_type": "client_credentials",
                "client_id": self._credentials.client_id,
                "client_secret": self._credentials.client_secret.get_secret_value(),
            }
            response = await outbound.call(
                self._http,
                "POST",
                f"{self._base}/oauth/token",
                content=urlencode(form).encode(),
                headers={"content-type": "application/x-www-form-urlencoded", "accept": "application/json"},
                timeout_seconds=CALL_SECONDS_MAX,
            )
            if response.status in (400, 401, 403):
                raise DeliveryFailed(
                    f"{response.host} refused the client id and secret with {response.status};"
                    " mend SCALEKIT_ENV_URL, SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET",
                    code="credentials_refused",
                    permanent=True,
                    status=response.status,
                )
            refuse(response)
            answer = decoded(response)
            token, seconds = answer.get("access_token"), answer.get("expires_in")
            if not isinstance(token, str) or not token or not token.isascii():
                raise unreadable("answered without an access token")
            lives = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else TOKEN_SECONDS_DEFAULT
            self._token, self._token_until = token, time.monotonic() + max(lives - TOKEN_SPARE_SECONDS, lives / 2)
            return token

    def _forget(self, token: str) -> None:
        if self._token == token:  # another caller may have renewed it already
            self._token = None


def refuse(response: Response) -> None:
    """Anything but 2xx and 401 raises; without the answer's text, which may echo what we sent in confidence."""
    status = response.status
    if 200 <= status < 300 or status == 401:
        return
    transient = status in TRANSIENT_4XX or status >= 500
    raise DeliveryFailed(
        f"{response.host} answered {status}",
        code=f"http_{status}",
        permanent=not transient,
        retry_after_seconds=retry_after_seconds(response.headers, datetime.now(UTC)) if transient else None,
        status=status,
    )


def decoded(response: Response) -> dict[str, Any]:
    if response.status == 401:
        raise DeliveryFailed(
            f"{response.host} refuses a token it gave a moment ago; may this client read events and connected accounts?",
            code="token_refused",
            permanent=True,
            status=401,
        )
    if len(response.body) >= RESPONSE_BYTES_MAX:
        raise unreadable(f"answered more than {RESPONSE_BYTES_MAX} bytes")
    try:
        answer = json.loads(response.body)
    except (ValueError, RecursionError):
        raise unreadable("answered something that is not JSON; is SCALEKIT_ENV_URL right?") from None
    if not isinstance(answer, dict):
        raise unreadable("answered JSON that is not an object")
    return answer


def unreadable(what: str) -> DeliveryFailed:
    return DeliveryFailed(f"the provider's API {what}", code="answer_unreadable", permanent=True)


def is_link(text: str, *, insecure: bool) -> bool:
    """One that a person may be given to open: https, or what an API without TLS gives."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    schemes = ("https", "http") if insecure else ("https",)
    printable = text.isascii() and text.isprintable() and not any(char in ' <>"\\' for char in text)
    return len(text) <= LINK_CHARS_MAX and printable and parts.scheme in schemes and bool(parts.hostname)


def listed(page: Mapping[str, Any], *names: str) -> list[dict[str, Any]]:
    """An empty list is left out by some gateways; anything in it that is no object is passed over."""
    for name in names:
        if name in page:
            items = page[name]
            if not isinstance(items, list):
                raise unreadable(f"answered {name} that is not a list")
            return [item for item in items if isinstance(item, dict)]
    return []


def next_token(page: Mapping[str, Any]) -> str | None:
    token = page.get("next_page_token") or page.get("nextPageToken")
    return token if isinstance(token, str) and token else None


def snake(event: Mapping[str, Any]) -> dict[str, Any]:
    """Only the envelope's own names; `data` is free-form and stays as it is."""
    return {CAMEL.get(name, name): value for name, value in event.items()}


def to_account(item: Mapping[str, Any]) -> RemoteAccount | None:
    """None when it has no id that could be one. REST writes providers in lower case where webhooks write upper case."""
    given = {name: item.get(name, item.get(camel(name))) for name in ACCOUNT_FIELDS}
    try:
        account_id = scalekit.text(given, "id")
        status = scalekit.text(given, "status")
        provider = scalekit.text(given, "provider")
        account = RemoteAccount(
            account_id=account_id or "",
            connection_id=scalekit.text(given, "connection_id"),
            provider=provider.upper() if provider else None,
            identifier=scalekit.text(given, "identifier"),
            # CONNECTION_STATUS_UNSPECIFIED is protobuf's "not said".
            status=None if status is None or status.endswith("_UNSPECIFIED") else status,
            kind=STATUS_KINDS.get(status or "", "account.updated"),
            # Unset timestamps come as 1970 without an offset: `instant` refuses those, the caller the year.
            updated_at=scalekit.instant(given["updated_at"]),
            body=json.dumps({name: value for name, value in given.items() if value is not None}).encode(),
        )
    except PayloadUnreadable:
        return None
    return account if account_id else None


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def written(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
