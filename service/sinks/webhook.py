"""Anybody's own receiver: batches of the log as one JSON body, `{"items": [...]}`, signed by Standard Webhooks.

The `webhook-id` is made of the sink's name and of the ids of its items: a batch of unknown fate is sent again with the same
items under the same id, and a receiver that drops ids it has seen holds each item once. Not of positions: a database that
was restored gives them out again, and another `match` has other items between the same ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

import httpx
from pydantic import Field, SecretStr, field_validator

from service import outbound
from service.event import Event
from service.signatures import SECRET_PREFIX, check_secret, parse_secret, sign
from service.sinks.base import Progress, Sent, SinkConfig
from service.sinks.batches import Bounds, Piece, halves, pieces_of, send_each
from service.sinks.formats import ENCODED

BATCH_ITEMS_MAX = 500
BODY_BYTES_MAX = 1_000_000  # what web servers and functions commonly take
AROUND = len(b'{"items":[]}')
URL_CHARS_MAX = 2_000
TOO_LARGE = 413
ITEM_STATUSES = frozenset({TOO_LARGE, 400, 422})  # what is in the body does not suit it: which item is found by halving
HINTS = {
    401: "does it have the same secret?",
    403: "does it have the same secret?",
    404: "is this the receiver's address?",
    410: "it takes no more webhooks; remove or replace it in `sinks`",
}


class WebhookSinkConfig(SinkConfig):
    """The URL is kept like a secret: with many receivers its path is one."""

    kind: Literal["webhook"] = "webhook"
    url: SecretStr
    secret: SecretStr
    batch_items_max: int = Field(default=BATCH_ITEMS_MAX, ge=1, le=BATCH_ITEMS_MAX)

    @field_validator("url")
    @classmethod
    def _url_can_be_right(cls, url: SecretStr) -> SecretStr:
        outbound.check_url(url.get_secret_value())
        if len(url) > URL_CHARS_MAX:
            raise ValueError(f"longer than {URL_CHARS_MAX} characters")
        return url

    @field_validator("secret")
    @classmethod
    def _secret_can_be_right(cls, secret: SecretStr) -> SecretStr:
        check_secret(secret.get_secret_value(), name="of this sink")
        return secret


class WebhookSink:
    """A Sink. Holds no state between batches."""

    kind = "webhook"

    def __init__(self, config: WebhookSinkConfig, client: httpx.AsyncClient) -> None:
        self.name = config.name
        self.batch_items_max = config.batch_items_max
        self._url = config.url.get_secret_value()
        given = config.secret.get_secret_value()
        self._secret = parse_secret(given, name="of this sink")
        self._private = (given, given.removeprefix(SECRET_PREFIX))
        self._encoded = ENCODED[config.format]
        self._timeout_seconds = config.timeout_seconds
        self._client = client

    def __repr__(self) -> str:
        return f"WebhookSink(name={self.name!r})"

    async def send(self, items: Sequence[Event]) -> Sent:
        """The same items always go in the same pieces, and so under the same ids."""
        progress = Progress()
        bounds = Bounds(self.batch_items_max, BODY_BYTES_MAX - AROUND, between_bytes=1)
        return await send_each(
            pieces_of(items, self._encoded, bounds, progress), self._send_piece, progress, keyed=False
        )

    async def check(self) -> str:
        """An empty batch: a receiver that takes it has found the signature right."""
        response = await self._post("msg_check", b'{"items":[]}')
        outbound.raise_for_status(response, hint=HINTS.get(response.status, ""))
        return f"{urlsplit(self._url).hostname} took an empty batch"

    async def _send_piece(self, whole: Piece, progress: Progress) -> None:
        """Bounded: every turn either finishes a piece, takes an item out of it, or halves it."""
        pieces = [whole]
        while pieces:
            piece = pieces.pop()
            body = b'{"items":[%b]}' % b",".join(one.body for one in piece)
            response = await self._post(message_id(self.name, [one.event.id for one in piece]), body)
            if response.status not in ITEM_STATUSES:
                outbound.raise_for_status(response, hint=HINTS.get(response.status, ""))
                progress.accepted += len(piece)
            elif len(piece) > 1:
                earlier, later = halves(piece)
                pieces += [later, earlier]  # the last is popped first
                continue
            else:
                reason = response.excerpt or f"refused with {response.status}"
                progress.refused(piece[0].index, reason, host=response.host, status=response.status)
            progress.settled(piece[-1].index + 1)

    async def _post(self, message_id: str, body: bytes) -> outbound.Response:
        timestamp = int(datetime.now(UTC).timestamp())
        response = await outbound.post(
            self._client,
            self._url,
            content=body,
            headers={
                "content-type": "application/json",
                "webhook-id": message_id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": sign(self._secret, message_id, timestamp, body),
            },
            timeout_seconds=self._timeout_seconds,
        )
        # A receiver has the key and may say it; the excerpt is cut somewhere, and may be cut within one.
        said = response.body.decode("utf-8", "replace")
        return replace(response, excerpt="") if any(secret in said for secret in self._private) else response


def message_id(name: str, ids: Sequence[str]) -> str:
    """Letters and digits alone, as in service/notify/webhook.py: a sink's name may hold a dot."""
    return f"msg_{hashlib.sha256(json.dumps([name, *ids]).encode()).hexdigest()[:40]}"
