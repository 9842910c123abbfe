"""Scalekit: Standard Webhooks signatures, nine documented `connected_account.*` events and the article's names for more.

Sources: the provider's OpenAPI `webhooks` section and the article this product starts from; contract.md has the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import orjson

from service import signatures
from service.errors import BadRequest, PayloadUnreadable
from service.event import TEXT_BYTES_MAX, ProviderEvent
from service.signatures import Secret, Verified

PREFIX = "connected_account"
MEANINGS_MAX = 1024
KINDS = {
    "created": "account.created",
    "updated": "account.updated",
    "oauth_succeeded": "account.authorized",
    "oauth_tokens_fetched": "account.authorized",
    "magic_link_generated": "account.reauth_started",
    "deleted": "account.deleted",
    "token_refresh_succeeded": "token.refresh_succeeded",
    "token_refresh_failed": "token.refresh_failed",
    # Named by the article, not by the provider's documentation.
    "disconnected": "account.disconnected",
    "reauth_required": "account.reauth_required",
    "authorization_failed": "auth.failed",
    "scope_changed": "auth.scope_changed",
}
STATUS_KINDS = {
    "ACTIVE": "account.authorized",
    "EXPIRED": "account.reauth_required",
    "PENDING_AUTH": "account.reauth_started",
    "PENDING_VERIFICATION": "account.reauth_started",
    "DISCONNECTED": "account.disconnected",
}
# The provider's own examples of these carry a status that is not the account's (a stale ACTIVE): they change nothing.
SAY_NO_STATUS = frozenset({"token_refresh_failed", "magic_link_generated"})
# The same names in `data`; only text is taken. docs/rules.md says in which events.
DETAILS = {"token_expires_at": "time", "last_used_at": "time", "connection_name": "text", "authorization_type": "text"}
EXAMPLES = {
    "account.created": ("created", "PENDING_AUTH"),
    "account.updated": ("updated", "ACTIVE"),
    "account.authorized": ("oauth_succeeded", "ACTIVE"),
    "account.reauth_started": ("magic_link_generated", "PENDING_AUTH"),
    "account.reauth_required": ("status_updated", "EXPIRED"),
    "account.disconnected": ("status_updated", "DISCONNECTED"),
    "account.deleted": ("deleted", "ACTIVE"),
    "token.refresh_succeeded": ("token_refresh_succeeded", "ACTIVE"),
    "token.refresh_failed": ("token_refresh_failed", "ACTIVE"),
    "auth.failed": ("authorization_failed", "PENDING_AUTH"),
    "auth.scope_changed": ("scope_changed", "ACTIVE"),
}


class Scalekit:
    name = "scalekit"
    details = DETAILS

    def parse_secret(self, text: str, *, name: str) -> Secret:
        return signatures.parse_secret(text, name=name)

    def verify(
        self, headers: Sequence[tuple[bytes, bytes]], body: bytes, secrets: Sequence[Secret], now: datetime
    ) -> Verified:
        return signatures.verify(headers, body, secrets, now)

    def normalise(self, body: bytes, message_id: str) -> ProviderEvent:
        payload = parse(body)
        type_ = payload.get("type")
        if type_ is None:
            raise PayloadUnreadable("the event has no type", code="type_missing")
        if not isinstance(type_, str) or not type_:
            raise PayloadUnreadable("the event's type is not text", code="type_not_text")
        storable(type_)  # before it becomes a key of a cache
        given = payload.get("data")
        data: Mapping[str, Any] = given if isinstance(given, dict) else {}
        status, old_status = text(data, "status"), text(data, "old_status")
        account_id, connection_id = text(data, "id"), text(data, "connection_id")
        kind, account_status = meaning(type_, status)
        return ProviderEvent(
            event_id=text(payload, "id") or message_id,
            type=type_,
            kind=kind,
            account_id=account_id or connection_id,
            connection_id=connection_id or account_id,
            provider=text(data, "provider"),
            identifier=text(data, "identifier"),
            organization_id=text(payload, "organization_id"),
            environment_id=text(payload, "environment_id"),
            status=status,
            old_status=old_status,
            account_status=account_status,
            occurred_at=instant(payload.get("occurred_at")),
            details={name: value for name in DETAILS if (value := text(data, name)) is not None},
        )

    def example(
        self,
        kind: str,
        *,
        account_id: str | None,
        connection_id: str | None,
        event_id: str,
        now: datetime,
        status: str | None = None,
    ) -> bytes:
        what, said = EXAMPLES.get(kind, (suffix(kind), "ACTIVE"))
        if kind not in EXAMPLES and what not in KINDS and what != "status_updated":
            raise BadRequest(f'unknown kind "{kind}"; known: {", ".join(EXAMPLES)}', code="unknown_kind")
        data = {
            "authorization_type": "OAUTH",
            "connection_id": connection_id or "conn_example",
            "id": account_id or "ca_example",
            "identifier": "Bruce",
            "provider": "GOOGLE_ADS",
            "status": status or said,
        }
        if what == "status_updated":
            data["old_status"] = "PENDING_AUTH" if data["status"] == "ACTIVE" else "ACTIVE"
        if what in ("token_refresh_succeeded", "oauth_succeeded", "oauth_tokens_fetched"):
            data["token_expires_at"] = (now + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
        event = {
            "spec_version": "1",
            "id": event_id,
            "type": f"{PREFIX}.{what}",
            "object": "ConnectedAccount",
            "occurred_at": now.isoformat().replace("+00:00", "Z"),
            "environment_id": "env_example",
            "data": data,
        }
        return json.dumps(event).encode()


def parse(body: bytes) -> dict[str, Any]:
    """orjson reads in a quarter of the time; what it refuses is judged by the standard library, which reads more."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        payload = parse_slowly(body)
    if not isinstance(payload, dict):
        raise PayloadUnreadable("the body is not a JSON object", code="not_an_object")
    return payload


def parse_slowly(body: bytes) -> Any:
    try:
        decoded = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise PayloadUnreadable("the body is not UTF-8", code="not_utf8") from exc
    try:
        return json.loads(decoded)
    except RecursionError as exc:
        raise PayloadUnreadable("the body nests too deep", code="too_deep") from exc
    except ValueError as exc:  # not JSON, or a number longer than Python converts
        raise PayloadUnreadable("the body is not JSON", code="not_json") from exc


@lru_cache(maxsize=MEANINGS_MAX)
def meaning(type_: str, status: str | None) -> tuple[str, str | None]:
    """`(kind, account status)` of a type and the status that came with it."""
    what = suffix(type_)
    return kind_of(what, status), account_status_of(what, status)


def suffix(type_: str) -> str:
    """`connected_account.disconnected` and the article's `connected_account_disconnected` are the same word."""
    if type_.startswith(PREFIX) and type_[len(PREFIX) : len(PREFIX) + 1] in (".", "_"):
        return type_[len(PREFIX) + 1 :]
    return ""


def kind_of(what: str, status: str | None) -> str:
    if what == "status_updated":
        return STATUS_KINDS.get(status or "", "account.updated")
    return KINDS.get(what, "other")


def account_status_of(what: str, status: str | None) -> str | None:
    """What this event makes of the account (contract.md, "Account status"); None when it says nothing about it."""
    if what in SAY_NO_STATUS:
        return None
    if what == "deleted":
        return "DELETED"
    if what == "disconnected":
        return "DISCONNECTED"
    if what == "reauth_required":
        return status or "EXPIRED"
    return status


def text(source: Mapping[str, Any], name: str) -> str | None:
    """A field that is there and text; anything else counts as not said."""
    value = source.get(name)
    if not isinstance(value, str) or not value:
        return None
    # Nearly every field of every event, without another call.
    quick = len(value) <= TEXT_BYTES_MAX and value.isascii() and "\x00" not in value
    return value if quick else storable(value)


def storable(value: str) -> str:
    if len(value) > TEXT_BYTES_MAX or not (value.isascii() or bytes_of(value) <= TEXT_BYTES_MAX):
        raise PayloadUnreadable(f"a field is longer than {TEXT_BYTES_MAX} bytes", code="text_too_long")
    if "\x00" in value:
        raise unstorable()
    return value


def bytes_of(value: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        raise unstorable() from None


def unstorable() -> PayloadUnreadable:
    return PayloadUnreadable("a field has a character that cannot be stored", code="text_unstorable")


def instant(value: Any) -> datetime | None:
    """RFC 3339 up to nanoseconds, which Python cuts to microseconds; without an offset it is no instant."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        parsed = datetime.fromisoformat(value)
        if parsed.tzinfo is UTC:
            return parsed
        return parsed.astimezone(UTC) if parsed.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
