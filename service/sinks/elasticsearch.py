"""Elasticsearch and OpenSearch: `create` by `_bulk` into a data stream, each item's own outcome heeded.

httpx by way of `outbound`: the official clients retry with a sleep of their own, and Elasticsearch's refuses OpenSearch.
An item's `_id` is its event id, so that one sent twice is a 409 and held once, as long as the stream has not rolled over
between the two: an id is known within one backing index only.
"""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Sequence
from typing import Any, Literal, NoReturn
from urllib.parse import quote, urlsplit

import httpx
import orjson
from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from service.errors import DeliveryFailed
from service.event import Event, rfc3339
from service.outbound import EXCERPT_CHARS_MAX, Response, call, check_url, raise_for_status
from service.redact import redact_text
from service.sinks.base import Progress, Sent, SinkConfig
from service.sinks.batches import Bounds, Encoded, Piece, halves, pieces_of, send_each
from service.sinks.formats import ENCODED, FormatName

BATCH_ITEMS_MAX = 500
BODY_BYTES_MAX = 2_000_000  # before gzip; servers take 10 to 100 MB, and an item is rarely of a thousandth of that
BOUNDS = Bounds(BATCH_ITEMS_MAX, BODY_BYTES_MAX)
ANSWER_BYTES_MAX = 2_000_000  # a line for each item, and an error's reason for some
GZIP_BYTES_MIN = 4096
# Resent at once, within a send, only while the other side takes some of them each time.
ROUNDS_MAX = 5
ERRORS_ONLY = "filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason"
# What Elasticsearch allows in the name of a data stream, less the dot in front, which is for its own.
STREAM = re.compile(r"(?![-_+.])[^A-Z\\/*?\"<>| ,#:\x00-\x1f\x7f]{1,255}")
TAKEN = frozenset({200, 201, 409})  # 409: it is there already
NOT_NOW = frozenset({408, 429})  # and every 5xx
# Of an item, and yet nothing about it: the same would be said of any other.
NOT_THE_ITEM = frozenset({401, 403, 404})
WRONG_ADDRESS = "is this the address of Elasticsearch, with nothing behind it but a path prefix?"


class ElasticsearchConfig(SinkConfig):
    """`api_key`: as Kibana shows it (encoded), or `id:key`. Without it, and without `username` and `password`, calls go
    out with no authentication at all."""

    kind: Literal["elasticsearch"] = "elasticsearch"
    name: str = Field(default="elasticsearch", min_length=1, max_length=64)
    format: FormatName = "ecs"
    url: str
    stream: str = Field(default="logs-authwatch.events-default", max_length=255)
    api_key: SecretStr | None = Field(default=None, min_length=8)
    username: str | None = Field(default=None, min_length=1, max_length=255)
    password: SecretStr | None = Field(default=None, min_length=1)
    compress: bool = True

    @field_validator("url")
    @classmethod
    def _base_address(cls, value: str) -> str:
        check_url(value)
        if urlsplit(value).query:
            raise ValueError("must hold no query; the key and the stream have settings of their own")
        return value.rstrip("/").removesuffix("/_bulk")

    @field_validator("stream")
    @classmethod
    def _a_name_of_a_stream(cls, value: str) -> str:
        if not STREAM.fullmatch(value) or len(value.encode()) > 255:
            raise ValueError("is no name of a data stream: small letters, such as logs-authwatch.events-default")
        return value

    @field_validator("api_key")
    @classmethod
    def _key_alone(cls, value: SecretStr | None) -> SecretStr | None:
        key = value.get_secret_value() if value is not None else ""
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("is no API key: give it alone, without the word ApiKey and without spaces")
        return value

    @field_validator("username")
    @classmethod
    def _no_colon(cls, value: str | None, _info: ValidationInfo) -> str | None:
        if value is not None and ":" in value:
            raise ValueError("holds a colon, which basic authentication cannot carry")
        return value

    @model_validator(mode="after")
    def _one_way_in(self) -> ElasticsearchConfig:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together; one of them is missing")
        if self.api_key is not None and self.username is not None:
            raise ValueError("give an api_key, or username and password, and not both")
        return self

    def authorization(self) -> str | None:
        if self.api_key is not None:
            key = self.api_key.get_secret_value()
            return f"ApiKey {base64.b64encode(key.encode()).decode() if ':' in key else key}"
        if self.username is not None and self.password is not None:
            pair = f"{self.username}:{self.password.get_secret_value()}"
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        return None


class Elasticsearch:
    """A Sink. Holds no state between batches."""

    kind = "elasticsearch"
    batch_items_max = BATCH_ITEMS_MAX

    def __init__(self, config: ElasticsearchConfig, client: httpx.AsyncClient) -> None:
        self.name = config.name
        self._config = config
        self._client = client
        self._shape = ENCODED[config.format]
        self._url = f"{config.url}/{quote(config.stream, safe='')}/_bulk?{ERRORS_ONLY}"
        self._authorization = config.authorization()

    def __repr__(self) -> str:
        return f"Elasticsearch(name={self.name!r})"

    async def send(self, items: Sequence[Event]) -> Sent:
        progress = Progress()
        pieces = pieces_of(items, self._write, BOUNDS, progress)
        return await send_each(pieces, self._send_piece, progress, keyed=True)

    async def check(self) -> str:
        """An empty bulk: who we are is looked at first, and then it is refused for being empty. It does not show whether
        the key may write to the stream, which only a document would."""
        response = await self._post(())
        error = _read(response).get("error")
        if response.status == 400 and isinstance(error, dict):
            how = "takes our credentials" if self._authorization else "asks for no credentials"
            return f"{response.host} {how}; events go to the data stream {self._config.stream}"
        self._raise(response)

    def _write(self, event: Event) -> bytes:
        """Two lines. A data stream wants an `@timestamp`, which ECS has and the others get."""
        body = self._shape(event)
        if self._config.format != "ecs":
            body = b'{"@timestamp":"%b",%b' % ((rfc3339(event.occurred_at) or "").encode(), body[1:])
        return b'{"create":{"_id":%b}}\n%b\n' % (orjson.dumps(event.id), body)

    async def _send_piece(self, piece: Piece, progress: Progress) -> None:
        """Bounded: every turn finishes a piece, or halves it, or sends again what is left of it while that shrinks."""
        waiting: list[tuple[Piece, int]] = [(piece, 1)]
        while waiting:
            part, round_ = waiting.pop()
            response = await self._post(part)
            if response.status == 413 and len(part) > 1:
                earlier, later = halves(part)
                waiting += [(later, round_), (earlier, round_)]
                continue
            if response.status == 413:
                reason = response.excerpt or "refused with 413, too large"
                progress.refused(part[0].index, reason, host=response.host, status=413)
                continue
            left = self._settle(part, response, progress)
            if left:
                if len(left) == len(part) or round_ == ROUNDS_MAX:
                    raise DeliveryFailed(
                        f"{response.host} has no room for {len(left)} of {len(part)} items just now",
                        code="items_not_now",
                        status=429,
                    )
                waiting.append((left, round_ + 1))

    def _settle(self, part: Piece, response: Response, progress: Progress) -> list[Encoded]:
        """Counts and puts aside by the items' own outcomes; gives back those that are for later."""
        outcomes = self._outcomes(response, len(part))
        left: list[Encoded] = []
        bad: list[tuple[Encoded, int, str]] = []
        for one, (status, reason) in zip(part, outcomes, strict=True):
            if status in TAKEN:
                progress.accepted += 1
            elif status in NOT_NOW or status >= 500:
                left.append(one)
            elif status in NOT_THE_ITEM:
                raise DeliveryFailed(
                    f"{response.host} answered {status} for an item: {reason}; {self._hint(status)}",
                    code=f"item_{status}",
                    permanent=True,
                    status=status,
                )
            else:
                bad.append((one, status, reason))
        # After all that were taken are counted: whether it takes anything is asked when one is put aside.
        for one, status, reason in bad:
            progress.refused(one.index, reason, host=response.host, status=status)
        return left

    def _outcomes(self, response: Response, count: int) -> list[tuple[int, str]]:
        if not 200 <= response.status < 300:
            self._raise(response)
        answer = _read(response)
        items, errors = answer.get("items"), answer.get("errors")
        if not isinstance(errors, bool) or not isinstance(items, list) or len(items) != count:
            self._raise(response)
        found = [_outcome(item) for item in items]
        if None in found:
            self._raise(response)
        return [outcome for outcome in found if outcome is not None]

    async def _post(self, piece: Piece) -> Response:
        content = b"".join([one.body for one in piece])  # the last line, too, ends with a newline
        headers = {"content-type": "application/x-ndjson"}
        if self._authorization is not None:
            headers["authorization"] = self._authorization
        if self._config.compress and len(content) >= GZIP_BYTES_MIN:
            content = gzip.compress(content, compresslevel=3, mtime=0)
            headers["content-encoding"] = "gzip"
        return await call(
            self._client,
            "POST",
            self._url,
            content=content,
            headers=headers,
            timeout_seconds=self._config.timeout_seconds,
            response_bytes_max=ANSWER_BYTES_MAX,
        )

    def _hint(self, status: int) -> str:
        stream = self._config.stream
        return {
            401: "the API key, or the user and password, is not known there; check it",
            403: f"it may not write to {stream}; allow it create_doc and auto_configure there",
            404: f"is this its address, and is there an index template that makes {stream} a data stream?",
        }.get(status, "")

    def _raise(self, response: Response) -> NoReturn:
        hint = self._hint(response.status)
        if response.status == 400 and isinstance(_read(response).get("error"), str):
            hint = WRONG_ADDRESS  # "no handler found for uri"
        raise_for_status(response, hint=hint)
        raise DeliveryFailed(
            f"{response.host} answered {response.status}, but not as a bulk is answered; check the sink's url",
            code="answer_unexpected",
            status=response.status,
        )


def _outcome(item: Any) -> tuple[int, str] | None:
    """(status, why) of one line; None where it is none."""
    said = item.get("create") if isinstance(item, dict) else None
    status = said.get("status") if isinstance(said, dict) else None
    if not isinstance(said, dict) or not isinstance(status, int) or isinstance(status, bool):
        return None
    error = said.get("error")
    if not isinstance(error, dict):
        return status, f"refused with {status}"
    why = redact_text(f"{error.get('type')}: {error.get('reason')}")
    why = "".join(char if char.isprintable() else " " for char in why)
    return status, why if len(why) <= EXCERPT_CHARS_MAX else f"{why[:EXCERPT_CHARS_MAX]}..."


def _read(response: Response) -> dict[str, Any]:
    try:
        answer = orjson.loads(response.body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
