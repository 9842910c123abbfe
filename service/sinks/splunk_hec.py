"""Splunk's HTTP Event Collector: events go out as concatenated envelopes, and a bad one is put aside alone.

httpx by way of `outbound`; the known HEC packages are logging handlers that drop what they cannot send. HEC's 200 means
accepted and not yet indexed; its acknowledgements exist on Splunk Enterprise only and are not used.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit, urlunsplit

import httpx
from pydantic import Field, SecretStr, field_validator

from service.errors import DeliveryFailed
from service.event import Event
from service.outbound import Response, post, raise_for_status
from service.sinks.base import Progress, Sent, SinkConfig
from service.sinks.formats import FORMATS
from service.sinks.ocsf import milliseconds

EVENT_PATH = "/services/collector/event"
BATCH_ITEMS_MAX = 500
BODY_BYTES_MAX = 1_000_000  # before gzip; Splunk Cloud takes about 1 MB
GZIP_BYTES_MIN = 4096
# HEC's `code` where one item is at fault: 6 invalid format, 12 no event field, 13 event blank, 15 bad indexed fields.
ITEM_CODES = frozenset({6, 12, 13, 15})
SUCCESS_CODE = 0
NO_DATA_CODE = 5
BUSY_CODES = frozenset({8, 9})  # internal error, server busy
HINTS = {
    1: "the HEC token is disabled; enable it in Splunk",
    2: "Splunk saw no token; is something between us removing the Authorization header?",
    3: "Splunk did not understand the Authorization header; give the token alone, without the word Splunk",
    4: "Splunk does not know this HEC token; check it",
    7: "the HEC token may not write to this index; allow it in Splunk or change the sink's index",
    9: "Splunk is busy",
    10: "the token demands a channel; switch indexer acknowledgement off for it",
    14: "indexer acknowledgement is off; nothing of ours asks for it",
}


class SplunkHecConfig(SinkConfig):
    kind: Literal["splunk_hec"] = "splunk_hec"
    name: str = Field(default="splunk_hec", min_length=1, max_length=64)
    url: str
    token: SecretStr = Field(min_length=4)
    index: str | None = Field(default=None, min_length=1, max_length=255)
    host: str = Field(default="authwatch", min_length=1, max_length=255)
    sourcetype: str | None = Field(default=None, min_length=1, max_length=255)
    batch_items_max: int = Field(default=BATCH_ITEMS_MAX, ge=1, le=BATCH_ITEMS_MAX)

    @field_validator("url")
    @classmethod
    def _event_endpoint(cls, value: str) -> str:
        """The base address and the full one are both common; either gives the event endpoint."""
        try:
            parts = urlsplit(value)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # its text quotes the input
            valid = False
        if not valid:
            raise ValueError("is not a URL of the form https://host:8088")
        if parts.query or parts.fragment or parts.username or parts.password:
            raise ValueError("must hold no user, query or fragment; the token has a setting of its own")
        path = parts.path.rstrip("/")
        if path.endswith("/services/collector/raw"):
            raise ValueError("names the raw endpoint; events go to /services/collector/event")
        for known in (EVENT_PATH + "/1.0", EVENT_PATH, "/services/collector"):
            if path.endswith(known):
                path = path.removesuffix(known)
                break
        return urlunsplit((parts.scheme, parts.netloc, path + EVENT_PATH, "", ""))

    @field_validator("token")
    @classmethod
    def _token_alone(cls, value: SecretStr) -> SecretStr:
        token = value.get_secret_value()
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("is not a HEC token: give it alone, without the word Splunk and without spaces")
        return value


@dataclass(frozen=True, slots=True)
class Envelope:
    index: int  # in the batch
    body: bytes


class SplunkHec:
    """A Sink. Holds no state between batches."""

    kind = "splunk_hec"

    def __init__(self, config: SplunkHecConfig, client: httpx.AsyncClient) -> None:
        self.name = config.name
        self.batch_items_max = config.batch_items_max
        self._config = config
        self._client = client
        self._shape = FORMATS[config.format]
        self._sourcetype = config.sourcetype or f"authwatch:{config.format}"

    def __repr__(self) -> str:
        return f"SplunkHec(name={self.name!r})"

    async def send(self, items: Sequence[Event]) -> Sent:
        progress = Progress()
        envelopes = list(self._envelopes(items, progress))
        for part in self._parts(envelopes):
            await self._send_part(part, progress)
        return progress.sent()

    async def check(self) -> str:
        """An empty post: Splunk looks at the token first and then says that there is no data. Its health address would
        say nothing of the token."""
        response = await self._post(())
        code, _ = _read_answer(response)
        if response.status == 400 and code == NO_DATA_CODE:
            return f"Splunk at {response.host} takes the token"
        _raise(response, code)

    def _envelopes(self, items: Sequence[Event], progress: Progress) -> Iterator[Envelope]:
        for index, event in enumerate(items):
            try:
                body = self._encode(event)
            except (ValueError, TypeError) as exc:
                progress.unfit(index, f"cannot be written as JSON: {type(exc).__name__}")
                continue
            if len(body) > BODY_BYTES_MAX:
                progress.unfit(index, f"{len(body)} bytes, Splunk takes at most {BODY_BYTES_MAX}")
            else:
                yield Envelope(index, body)

    def _encode(self, event: Event) -> bytes:
        envelope: dict[str, Any] = {
            "time": milliseconds(event.occurred_at) / 1000,
            "host": self._config.host,
            "source": "authwatch",
            "sourcetype": self._sourcetype,
            "event": self._shape(event),
        }
        if self._config.index is not None:
            envelope["index"] = self._config.index
        return json.dumps(envelope, separators=(",", ":"), allow_nan=False).encode("ascii")

    def _parts(self, envelopes: Sequence[Envelope]) -> Iterator[Sequence[Envelope]]:
        """By count and by bytes, in order."""
        part: list[Envelope] = []
        size = 0
        for envelope in envelopes:
            if part and (len(part) >= self.batch_items_max or size + len(envelope.body) > BODY_BYTES_MAX):
                yield part
                part, size = [], 0
            part.append(envelope)
            size += len(envelope.body)
        if part:
            yield part

    async def _send_part(self, part: Sequence[Envelope], progress: Progress) -> None:
        """Bounded: every turn either finishes a piece, takes an item out of it, or halves it."""
        pieces = [part]
        while pieces:
            piece = pieces.pop()
            response = await self._post(piece)
            code, at = _read_answer(response)
            if 200 <= response.status < 300 and code == SUCCESS_CODE:
                progress.accepted += len(piece)
            elif response.status == 413 or (response.status == 400 and code in ITEM_CODES):
                bad = at if response.status == 400 and at is not None and at < len(piece) else None
                if bad is None and len(piece) > 1:  # not said which: halve until it stands alone
                    half = len(piece) // 2
                    pieces += [piece[half:], piece[:half]]  # the earlier half is popped first
                    continue
                bad = bad or 0
                reason = response.excerpt or f"refused with {response.status}"
                progress.accepted += bad  # Splunk keeps what stood before the bad one
                progress.refused(piece[bad].index, reason, host=response.host, status=response.status)
                if piece[bad + 1 :]:
                    pieces.append(piece[bad + 1 :])
            else:
                _raise(response, code)

    async def _post(self, piece: Sequence[Envelope]) -> Response:
        content = b"".join(envelope.body for envelope in piece)  # concatenated: an array would be refused
        headers = {
            "authorization": f"Splunk {self._config.token.get_secret_value()}",
            "content-type": "application/json",
        }
        if len(content) >= GZIP_BYTES_MIN:
            content = gzip.compress(content, compresslevel=5, mtime=0)
            headers["content-encoding"] = "gzip"
        timeout_seconds = self._config.timeout_seconds
        return await post(
            self._client, self._config.url, content=content, headers=headers, timeout_seconds=timeout_seconds
        )


def _read_answer(response: Response) -> tuple[int | None, int | None]:
    """`(code, invalid-event-number)`, each None where the answer does not say so."""
    try:
        answer = json.loads(response.body)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(answer, dict):
        return None, None
    code, at = answer.get("code"), answer.get("invalid-event-number")
    return (
        code if isinstance(code, int) and not isinstance(code, bool) else None,
        at if isinstance(at, int) and not isinstance(at, bool) and at >= 0 else None,
    )


def _raise(response: Response, code: int | None) -> NoReturn:
    hint = HINTS.get(code, "") if code is not None else ""
    if response.status == 404:
        hint = "is HEC enabled, and is this its address?"
    raise_for_status(response, hint=hint)
    if code is None:  # a 200 that is not HEC's, such as the login page of a proxy: nothing says our events were kept
        raise DeliveryFailed(
            f"{response.host} answered {response.status}, but not as Splunk HEC does; check the sink's url",
            code="answer_unexpected",
            status=response.status,
        )
    raise DeliveryFailed(
        f"{response.host} answered {response.status} with HEC code {code}: {response.excerpt}"
        + (f"; {hint}" if hint else ""),
        code=f"hec_{code}",
        permanent=code not in BUSY_CODES,
        status=response.status,
    )
