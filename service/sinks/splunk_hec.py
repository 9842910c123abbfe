"""Splunk's HTTP Event Collector: events go out as concatenated envelopes, and a bad one is put aside alone.

httpx by way of `outbound`; the known HEC packages are logging handlers that drop what they cannot send. HEC's 200 means
accepted and not yet indexed; who wants more has `acknowledgement: true` (service/sinks/splunk_ack.py).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Literal, NoReturn
from urllib.parse import urlsplit, urlunsplit

import httpx
from pydantic import Field, SecretStr, field_validator

from service.errors import DeliveryFailed
from service.event import Event
from service.outbound import Response, post, raise_for_status
from service.sinks.base import Progress, Sent, SinkConfig
from service.sinks.batches import Bounds, Piece, halves, pieces_of
from service.sinks.formats import ENCODED
from service.sinks.ocsf import milliseconds
from service.sinks.splunk_ack import Acknowledgements

EVENT_PATH = "/services/collector/event"
# Of the log at a time: claiming it and moving on costs as much for one item as for all of these.
BATCH_ITEMS_MAX = 2000
PART_ITEMS_MAX = 500  # in one request
BATCHES_PER_ACKNOWLEDGEMENT = 3  # an acknowledgement takes Splunk seconds: more is sent before it is waited for
BODY_BYTES_MAX = 1_000_000  # before gzip; Splunk Cloud takes about 1 MB
GZIP_BYTES_MIN = 4096
GZIP_LEVEL = 1  # a tenth larger than 5 and three times as fast: it is most of what a batch costs
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
    10: "the token demands a channel; switch indexer acknowledgement off for it, or on here with acknowledgement: true",
    14: "indexer acknowledgement is off for this token; switch it on in Splunk, or off here",
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
    acknowledgement: bool = False
    acknowledgement_seconds: float = Field(default=45.0, gt=0, le=60)

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


class SplunkHec:
    """A Sink. Holds no state between batches but the channel that acknowledgements are asked for on."""

    kind = "splunk_hec"

    def __init__(self, config: SplunkHecConfig, client: httpx.AsyncClient) -> None:
        self.name = config.name
        self.batch_items_max = config.batch_items_max
        self._config = config
        self._client = client
        self._encoded = ENCODED[config.format]
        self._bounds = Bounds(min(config.batch_items_max, PART_ITEMS_MAX), BODY_BYTES_MAX)
        self._acks: Acknowledgements | None = None
        if config.acknowledgement:
            self.batch_items_max *= BATCHES_PER_ACKNOWLEDGEMENT
            self._acks = Acknowledgements(
                client, config.url.removesuffix("/event") + "/ack", config.acknowledgement_seconds
            )
        named = {
            "host": config.host,
            "source": "authwatch",
            "sourcetype": config.sourcetype or f"authwatch:{config.format}",
            **({"index": config.index} if config.index is not None else {}),
        }
        self._envelope = json.dumps(named)[1:-1].encode()

    def __repr__(self) -> str:
        return f"SplunkHec(name={self.name!r})"

    async def send(self, items: Sequence[Event]) -> Sent:
        progress = Progress()
        last = 0
        try:
            async for part in pieces_of(items, self._encode, self._bounds, progress):
                last = part[-1].index
                await self._send_part(part, progress)
            if self._acks is not None:
                await self._acks.wait(self._headers(), _raise)
        except DeliveryFailed as failure:
            if self._acks is None:
                return progress.up_to(failure, last)
            # What was accepted and is not acknowledged is sent again, and may be there twice.
            failure.ambiguous |= progress.accepted > 0 and not failure.permanent
            raise
        return progress.sent()

    async def check(self) -> str:
        """An empty post: Splunk looks at the token first and then says that there is no data. Its health address would
        say nothing of the token."""
        response = await self._post(())
        code, _ = _read_answer(response)
        if response.status == 400 and code == NO_DATA_CODE:
            if self._acks is not None:
                await self._acks.check(self._headers(), _raise)
            return f"Splunk at {response.host} takes the token"
        _raise(response, code)

    def _encode(self, event: Event) -> bytes:
        at = milliseconds(event.occurred_at)
        return b'{"time":%d.%03d,%b,"event":%b}' % (*divmod(at, 1000), self._envelope, self._encoded(event))

    async def _send_part(self, part: Piece, progress: Progress) -> None:
        """Bounded: every turn either finishes a piece, takes an item out of it, or halves it."""
        pieces = [part]
        while pieces:
            piece = pieces.pop()
            response = await self._post(piece)
            code, at = _read_answer(response)
            if 200 <= response.status < 300 and code == SUCCESS_CODE:
                if self._acks is not None:
                    self._acks.note(response)
                progress.accepted += len(piece)
                progress.settled(piece[-1].index + 1)
            elif response.status == 413 or (response.status == 400 and code in ITEM_CODES):
                bad = at if response.status == 400 and at is not None and at < len(piece) else None
                if bad is None and len(piece) > 1:  # not said which: halve until it stands alone
                    earlier, later = halves(piece)
                    pieces += [later, earlier]  # the last is popped first
                    continue
                bad = bad or 0
                if piece[bad + 1 :]:
                    pieces.append(piece[bad + 1 :])
                if self._acks is None:
                    progress.accepted += bad  # Splunk keeps what stood before the bad one
                elif bad:
                    pieces.append(piece[:bad])  # and yet acknowledges none of it: better twice than perhaps not
                reason = response.excerpt or f"refused with {response.status}"
                progress.refused(piece[bad].index, reason, host=response.host, status=response.status)
                progress.settled(piece[bad].index + 1)
            else:
                _raise(response, code)

    def _headers(self) -> dict[str, str]:
        headers = {
            "authorization": f"Splunk {self._config.token.get_secret_value()}",
            "content-type": "application/json",
        }
        return headers | (self._acks.headers if self._acks is not None else {})

    async def _post(self, piece: Piece) -> Response:
        content = b"".join(envelope.body for envelope in piece)  # concatenated: an array would be refused
        headers = self._headers()
        if len(content) >= GZIP_BYTES_MIN:
            content = gzip.compress(content, compresslevel=GZIP_LEVEL, mtime=0)
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
