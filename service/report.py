"""What agents report, as values: tool calls and token refreshes, read strictly out of one request. No I/O here.

Decoded and checked in one pass by msgspec: it reads and checks a report in the time a JSON parser takes to read it, and
says which item of which request is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from service.errors import BadRequest
from service.event import WELL, YEAR_MAX, YEAR_MIN, rfc3339
from service.redact import redact_text

SOURCE = "report"  # the source of an account that nothing but reports tell of
ITEMS_MAX = 1000
BODY_BYTES_MAX = 4 * 1024 * 1024
ERROR_CHARS_MAX = 500
MILLISECONDS_MAX = 86_400_000
# Trying these again cannot help, or may do it twice (docs/playbook.md): any retry is a mistake of the agent's.
NEVER_RETRIED = frozenset({"refresh_failed", "insufficient_scope", "malformed_params", "partial_execution"})
# Where the provider itself says so near a reported refresh how the account's credential fares, its word counts alone.
OUTWEIGHED_WITHIN = timedelta(seconds=60)
OUTWEIGHED_BY = (
    "token.refresh_succeeded",
    "token.refresh_failed",
    "account.authorized",
    "account.reauth_required",
    "account.disconnected",
    "account.deleted",
)
OUTWEIGHING = ("webhook", "recovery")
# The state check after a write that said it was done. A report is final: what waits as it is reported is not there.
NOT_AS_WRITTEN = ("missing", "mismatch", "pending")

# What a reported event holds in its `details`, for rules to ask for.
DETAILS = {
    "tool": "text",
    "operation": "text",
    "outcome": "text",
    "http_status": "number",
    "error_class": "text",
    "error": "text",
    "retries": "number",
    "latency_ms": "number",
    "verification": "text",
    "partial": "truth value",
    "retried_against_rules": "truth value",
    "workflow_id": "text",
    "duration_ms": "number",
}

Id = Annotated[str, Meta(min_length=1, max_length=128)]
AccountId = Annotated[str, Meta(min_length=1, max_length=256)]  # may be `source:environment_id:account_id`
Word = Annotated[str, Meta(min_length=1, max_length=128)]
Milliseconds = Annotated[float, Meta(ge=0, le=MILLISECONDS_MAX)]
HttpStatus = Annotated[int, Meta(ge=100, le=599)]
Instant = Annotated[datetime, Meta(tz=True)]
Outcome = Literal["success", "error"]
ErrorClass = Literal[
    "token_expired",
    "refresh_failed",
    "insufficient_scope",
    "rate_limited",
    "upstream_5xx",
    "malformed_params",
    "partial_execution",
    "other",
]
# In the order of the rollups' columns.
ERROR_CLASSES: tuple[str, ...] = ErrorClass.__args__  # type: ignore[attr-defined]
Verification = Literal["verified", "pending", "missing", "mismatch", "none"]


class ToolCall(Struct, forbid_unknown_fields=True, gc=False, kw_only=True):
    """One call of a tool, with all its tries. `error_class` of one that succeeded in the end is why it was retried.

    `params` and `schema` stay as they came: only those of malformed calls are looked at. Whatever is optional may be null:
    many clients write so what they do not have.
    """

    id: Id
    occurred_at: Instant
    account_id: AccountId
    tool: Word
    operation: Literal["read", "write"]
    outcome: Outcome
    connection_id: Word | None = None
    workflow_id: Word | None = None
    provider: Word | None = None
    http_status: HttpStatus | None = None
    error_class: ErrorClass | None = None
    error: str | None = None
    retries: Annotated[int, Meta(ge=0, le=1000)] | None = 0
    latency_ms: Milliseconds | None = None
    verification: Verification | None = None
    idempotency_key: Annotated[str, Meta(max_length=256)] | None = None
    params: msgspec.Raw | UnsetType = UNSET
    schema: msgspec.Raw | UnsetType = UNSET

    @property
    def partial(self) -> bool:
        """It said it wrote, and what was to be there is not, or not so, or not yet."""
        return self.operation == "write" and (
            self.error_class == "partial_execution"
            or (self.outcome == "success" and self.verification in NOT_AS_WRITTEN)
        )

    @property
    def retried_against_rules(self) -> bool:
        return (self.retries or 0) > 0 and self.error_class in NEVER_RETRIED

    @property
    def noteworthy(self) -> bool:
        """Whether it enters the log: a success alone is no one's incident."""
        return self.outcome == "error" or self.partial or self.retried_against_rules


class TokenRefresh(Struct, forbid_unknown_fields=True, gc=False, kw_only=True):
    """One refresh of a token by the agent's own vault."""

    id: Id
    occurred_at: Instant
    account_id: AccountId
    outcome: Outcome
    provider: Word | None = None
    duration_ms: Milliseconds | None = None
    http_status: HttpStatus | None = None
    error: str | None = None


class ToolCalls(Struct, forbid_unknown_fields=True):
    items: Annotated[list[ToolCall], Meta(min_length=1, max_length=ITEMS_MAX)]


class TokenRefreshes(Struct, forbid_unknown_fields=True):
    items: Annotated[list[TokenRefresh], Meta(min_length=1, max_length=ITEMS_MAX)]


_TOOL_CALLS = msgspec.json.Decoder(ToolCalls)
_TOKEN_REFRESHES = msgspec.json.Decoder(TokenRefreshes)
_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_CHOICES: dict[str, Any] = {
    "operation": Literal["read", "write"],
    "outcome": Outcome,
    "error_class": ErrorClass,
    "verification": Verification,
}
R = TypeVar("R", ToolCall, TokenRefresh)


def read_tool_calls(raw: bytes) -> list[ToolCall]:
    """All of a request or, with BadRequest, nothing of it: the message says which item is wrong, and how to mend it."""
    return read(raw, _TOOL_CALLS, ToolCall)


def read_token_refreshes(raw: bytes) -> list[TokenRefresh]:
    return read(raw, _TOKEN_REFRESHES, TokenRefresh)


def read(raw: bytes, decoder: msgspec.json.Decoder[Any], item: type[R]) -> list[R]:
    try:
        items: list[R] = decoder.decode(raw).items
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise explained(exc, item) from None
    return storable(raw, items)


def storable(raw: bytes, items: list[R]) -> list[R]:
    """Postgres text takes no NUL; the bytes tell in one look that there is none, nearly always."""
    if b"\x00" in raw or b"\\u0000" in raw:
        for index, item in enumerate(items):
            for name in item.__struct_fields__:
                value = getattr(item, name)
                if isinstance(value, str) and "\x00" in value:
                    raise BadRequest(
                        f"body: items[{index}].{name}: has a character that cannot be stored", code="invalid_body"
                    )
    return items


def explained(exc: Exception, item: type[Struct]) -> BadRequest:
    """In our words, and without the value: it may be a token in the wrong place."""
    said = str(exc)
    place = _PLACE.search(said)
    if not isinstance(exc, msgspec.ValidationError):
        return BadRequest("the body is not JSON", code="invalid_json")
    where = place[1] if place else ""
    what = _PLACE.sub("", said)
    field = where.rpartition(".")[2]
    if where == "items" and "length" in what:
        what = f"send 1 to {ITEMS_MAX} items in one request, and the rest in another"
    elif what.startswith("Invalid enum value") and field in _CHOICES:
        what = f"must be one of {', '.join(_CHOICES[field].__args__)}"
    elif what.startswith("Object contains unknown field"):
        known = item.__struct_fields__ if where else ("items",)
        what = f"{what[0].lower()}{what[1:].replace('`', chr(34))}; known: {', '.join(known)}"
    elif what.startswith("Invalid RFC3339") or "timezone" in what:
        what = "must be an RFC 3339 time with an offset, such as 2026-11-26T09:00:00Z"
    else:
        what = what[0].lower() + what[1:].replace("`", '"')
    return BadRequest(f"body: {where}: {what}" if where else f"body: {what}", code="invalid_body")


def is_well(source: str, status: str | None, last_refresh_outcome: str | None) -> bool:
    """Whether an account is (contract.md: well means ACTIVE). Of one that only reports tell of nobody ever says a status:
    there the last refresh that was reported says it, if it succeeded."""
    return status == WELL or (status is None and source == SOURCE and last_refresh_outcome == "success")


UNBELIEVED = datetime(1900, 1, 1, tzinfo=UTC)


def in_calendar(at: datetime) -> datetime:
    """An instant that can be stored and compared. One that nobody believes is another that nobody believes: in UTC it may
    be before the first year or after the last."""
    return at if YEAR_MIN <= at.year < YEAR_MAX else UNBELIEVED


def as_written(at: datetime) -> str | None:
    """For the eye, where nobody believes it as it came."""
    return rfc3339(at) if YEAR_MIN <= at.year < YEAR_MAX else at.isoformat()


def shown(error: str | None) -> str | None:
    """An error's text as it is kept: bounded, and without what may authorize."""
    if not error:
        return None
    return redact_text(error[: 2 * ERROR_CHARS_MAX])[:ERROR_CHARS_MAX]


def first_of_each(items: Sequence[R]) -> Sequence[R]:
    """Of reports with one id the first, as it is with those of different requests."""
    if len({item.id for item in items}) == len(items):
        return items
    found: dict[str, R] = {}
    for item in items:
        found.setdefault(item.id, item)
    return list(found.values())
