"""What a provider's answer says: the codes we know, found where providers put them. Pure, bounded, never raises.

Codes that are not in the table are not kept, and texts are only searched: what is in a body may be a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

BODY_BYTES_MAX = 64 * 1024
NODES_MAX = 2_000
DEPTH_MAX = 6
CODE_CHARS_MAX = 64
TEXT_CHARS_MAX = 2_000
TEXTS_MAX = 20
LEADING_CHARS_MAX = 200
HEADERS_MAX = 200
HEADER_CHARS_MAX = 8_192
FORM_FIELDS_MAX = 50
# Where a code stands. Names in lower case without separators.
CODE_FIELDS = frozenset(
    {"error", "code", "errorcode", "status", "reason", "type", "suberror", "errorcodes", "statuscode"}
)
TEXT_FIELDS = frozenset({"errordescription", "message", "errormessages", "detail", "description", "errormessage"})
# What to look into. `body` is a part of a composite answer.
CONTAINERS = frozenset(
    {"error", "errors", "details", "innererror", "extensions", "compositeresponse", "responses", "body", "fault"}
)
CHALLENGE = re.compile(r'([a-z_]{1,40})\s*=\s*(?:"([^"\\]{0,500})"|([^\s,"]{1,200}))', re.IGNORECASE)
LOOSE_PAIR = re.compile(
    r"[\"'](error|error_?code|code|reason|errorCode|suberror)[\"']\s{0,8}:\s{0,8}[\"']([A-Za-z0-9_.\-]{1,64})[\"']"
)
FORM = re.compile(r"[\w.\-+%\[\]]{1,100}=")
AADSTS = re.compile(r"\baadsts(\d{4,8})\b")
# A code at the beginning of a sentence, as libraries put it: "invalid_grant: Bad Request", "(invalid_grant) Bad Request",
# "Error: invalid_grant". Only words with an underscore: no sentence begins with one by itself.
LEADING = re.compile(
    r"(?:[\w.]{0,80}(?:error|exception)\s{0,4}:)?[\s('\"\[]{0,8}([a-z]{1,30}(?:_[a-z]{1,30}){1,6})(?![\w-])", re.ASCII
)


@dataclass(slots=True)
class Said:
    """`codes` in the order found, lower case, each known. `texts` are the provider's messages, lower case: to be searched,
    never to be shown. `status` is one inside the body. `parts_ok` / `parts_failed` count the parts of a composite answer."""

    codes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    status: int | None = None
    refused: bool = False
    parts_ok: int = 0
    parts_failed: int = 0


def read(headers: Mapping[str, str], body: object, known: Collection[str], *, succeeded: bool) -> Said:
    """`headers` by lower-case names. `succeeded`: the status was 2xx, so the body is someone's data unless its envelope
    says that it failed, and only that envelope is looked at."""
    said = Said()
    take_challenge(said, headers.get("www-authenticate", ""), known)
    value = parsed(body)
    if isinstance(value, str):
        for name, code in LOOSE_PAIR.findall(value):
            if not succeeded:
                take_code(said, name, code, known)
        if not succeeded and take_leading(said, value, known):
            take_text(said, value, known)
        return said
    count_parts(said, value)
    if succeeded and not envelope_of_failure(value):
        return said
    for name, item in islice(walk(value), NODES_MAX):
        take(said, name, item, known, succeeded=succeeded)
    return said


def parsed(body: object) -> Any:
    """JSON-like data, a form's fields as a mapping, or what is left as text."""
    if isinstance(body, memoryview):
        body = body[:BODY_BYTES_MAX].tobytes() if body.contiguous else b""
    if isinstance(body, bytes | bytearray):
        text = bytes(body[:BODY_BYTES_MAX]).decode("utf-8", "replace")
    elif isinstance(body, str):
        text = body[:BODY_BYTES_MAX]
    else:
        return body
    text = text.lstrip("\ufeff \t\r\n")
    if text[:1] in ("{", "[", '"'):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    if FORM.match(text) and "\n" not in text.strip():
        try:
            return dict(parse_qsl(text[:TEXT_CHARS_MAX], max_num_fields=FORM_FIELDS_MAX))
        except ValueError:
            return text
    return text


def plain(name: object) -> str:
    return name[:CODE_CHARS_MAX].lower().replace("_", "").replace("-", "") if isinstance(name, str) else ""


def pairs(value: object) -> Iterator[tuple[Any, Any]]:
    """A mapping's items, bounded; a mapping of a caller's own that cannot be read has none."""
    if isinstance(value, dict):
        for number, item in enumerate(value.items()):
            if number >= NODES_MAX:
                return
            yield item


def envelope_of_failure(value: object) -> bool:
    """Does a body that came with a 2xx say that it failed? GitHub's and OAuth's `error`, Slack's `ok: false`, GraphQL's
    `errors`, Salesforce's `success: false`."""
    if isinstance(value, list):
        return any(envelope_of_failure(item) for item in value[:TEXTS_MAX] if isinstance(item, dict))
    if not isinstance(value, dict):
        return False
    return bool(
        value.get("ok") is False
        or value.get("success") is False
        or value.get("error")
        or value.get("errors")
        or value.get("errorCode")
        or value.get("compositeResponse")
        or value.get("responses")
    )


def walk(value: object) -> Iterator[tuple[str, Any]]:
    """Every field of the envelope with its plain name, outer ones first, not into what is not part of it."""
    queue: list[tuple[object, int]] = [(value, 0)]
    looked = 0
    while queue and looked < NODES_MAX:
        node, depth = queue.pop(0)
        looked += 1
        if isinstance(node, list | tuple):
            for item in node[:TEXTS_MAX]:
                if isinstance(item, dict | list) and depth < DEPTH_MAX:
                    queue.append((item, depth + 1))
            continue
        for key, item in pairs(node):
            name = plain(key)
            yield name, item
            if name in CONTAINERS and isinstance(item, dict | list | tuple) and depth < DEPTH_MAX:
                queue.append((item, depth + 1))


def take(said: Said, name: str, item: object, known: Collection[str], *, succeeded: bool) -> None:
    if name in CODE_FIELDS:
        for one in item[:TEXTS_MAX] if isinstance(item, list | tuple) else (item,):
            take_code(said, name, one, known)
            take_leading(said, one, known)
    if name in TEXT_FIELDS or (name == "error" and isinstance(item, str)):
        for one in item[:TEXTS_MAX] if isinstance(item, list | tuple) else (item,):
            if isinstance(one, str):
                take_text(said, one, known)
    if name in ("code", "status", "statuscode", "httpstatuscode") and isinstance(item, int) and 400 <= item < 600:
        said.status = said.status or item
    if name.startswith("retry") and isinstance(item, str | int | float) and len(said.fields) < TEXTS_MAX:
        said.fields.setdefault(name, item)
    if succeeded and ((name == "error" and item) or (name in ("ok", "success") and item is False)):
        said.refused = True


def take_code(said: Said, name: str, item: object, known: Collection[str]) -> None:
    if isinstance(item, int) and not isinstance(item, bool) and name == "errorcodes" and 0 <= item < 10**9:
        item = f"aadsts{item}"
    if not isinstance(item, str) or len(item) > CODE_CHARS_MAX:
        return
    code = item.strip().lower()
    if code in known and code not in said.codes:
        said.codes.append(code)


def take_text(said: Said, text: str, known: Collection[str]) -> None:
    if len(said.texts) >= TEXTS_MAX:
        return
    lowered = text[:TEXT_CHARS_MAX].lower()
    said.texts.append(lowered)
    take_leading(said, lowered, known)
    for number in AADSTS.findall(lowered)[:TEXTS_MAX]:
        take_code(said, "error", f"aadsts{number}", known)


def take_leading(said: Said, text: object, known: Collection[str]) -> bool:
    """Whether the text begins with a code that we know."""
    if not isinstance(text, str) or (found := LEADING.match(text[:LEADING_CHARS_MAX].lower())) is None:
        return False
    take_code(said, "error", found[1], known)
    return found[1] in known


def take_challenge(said: Said, challenge: str, known: Collection[str]) -> None:
    """RFC 6750 section 3: `WWW-Authenticate: Bearer error="invalid_token", error_description="..."`."""
    for name, quoted, bare in CHALLENGE.findall(challenge[:HEADER_CHARS_MAX]):
        if name.lower() == "error":
            take_code(said, "error", quoted or bare, known)
        elif name.lower() == "error_description":
            take_text(said, quoted or bare, known)


def count_parts(said: Said, value: object) -> None:
    """How the parts of a composite answer went: Salesforce's composite and collections, Microsoft Graph's batch."""
    if isinstance(value, dict):
        for name, status in (("compositeResponse", "httpStatusCode"), ("responses", "status")):
            parts = value.get(name)
            for part in parts[:NODES_MAX] if isinstance(parts, list) else ():
                code = part.get(status) if isinstance(part, dict) else None
                if isinstance(code, int) and not isinstance(code, bool):
                    said.parts_failed += code >= 400
                    said.parts_ok += code < 400
    elif isinstance(value, list):
        for part in value[:NODES_MAX]:
            went = part.get("success") if isinstance(part, dict) else None
            said.parts_failed += went is False
            said.parts_ok += went is True


def lowered(headers: object) -> dict[str, str]:
    """Header names in lower case, the first of a name, bounded; anything that is no text is left out."""
    try:
        items = list(headers.items() if isinstance(headers, Mapping) else headers or ())  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return {}
    found: dict[str, str] = {}
    for item in items[:HEADERS_MAX]:
        if not isinstance(item, tuple | list) or len(item) != 2:
            continue
        name, value = (part.decode("latin-1") if isinstance(part, bytes) else part for part in item)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**15:
            value = str(value)
        if isinstance(name, str) and isinstance(value, str) and len(name) <= 128:
            found.setdefault(name.strip().lower(), value[:HEADER_CHARS_MAX])
    return found
