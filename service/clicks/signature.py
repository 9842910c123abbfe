"""Slack's request signature, pure and on raw bytes: verified with every live secret, in constant time.

Our own code and not slack-sdk's: its verifier raises where it should refuse (a timestamp that is no number, a body that
is not UTF-8, a signature that is not ASCII). It is the referee in the tests instead.
Source: docs.slack.dev, Verifying requests from Slack (`v0:timestamp:body`, HMAC-SHA256, hexadecimal).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from service.errors import SignatureInvalid

WINDOW_SECONDS = 300
TIMESTAMP_HEADER, SIGNATURE_HEADER = b"x-slack-request-timestamp", b"x-slack-signature"
TIMESTAMP = re.compile(rb"[0-9]{1,11}")
SIGNATURE = re.compile(rb"v0=[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Verified:
    """`by`: whose secrets match. `at`: when Slack signed it, by its clock, in whole seconds; the same in every replay."""

    by: tuple[str, ...]
    at: datetime


def verify(
    headers: Sequence[tuple[bytes, bytes]], body: bytes, secrets: Mapping[str, Sequence[str]], now: datetime
) -> Verified:
    """Raises SignatureInvalid and nothing else, whatever the bytes. `headers` as ASGI gives them; `secrets` by the name
    of the notifier they are of."""
    timestamp, offered = header(headers, TIMESTAMP_HEADER), header(headers, SIGNATURE_HEADER)
    if TIMESTAMP.fullmatch(timestamp) is None or SIGNATURE.fullmatch(offered) is None:
        raise SignatureInvalid("a signature header is not as Slack writes it", code="signature_malformed")
    seconds = int(timestamp)
    if abs(int(now.timestamp()) - seconds) > WINDOW_SECONDS:
        raise SignatureInvalid("signed too long ago, or ahead of time; is our clock right?", code="timestamp_off")
    content = b"v0:%b:%b" % (timestamp, body)
    matched: dict[str, None] = {}
    for name, keys in secrets.items():
        # Every secret is tried, always: how long it takes tells nothing.
        for key in keys:
            if hmac.compare_digest(expected(key, content), offered):
                matched[name] = None
    if not matched:
        raise SignatureInvalid("the signature matches no live signing secret", code="signature_wrong")
    return Verified(tuple(matched), datetime.fromtimestamp(seconds, UTC))


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The value of `X-Slack-Signature`: for our own probe."""
    return expected(secret, b"v0:%d:%b" % (timestamp, body)).decode()


def expected(secret: str, content: bytes) -> bytes:
    return b"v0=" + hmac.digest(secret.encode(), content, hashlib.sha256).hex().encode()


def header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The one of that name; a doubled one is none of Slack's."""
    values = [value for key, value in headers if key.lower() == name]
    if len(values) != 1:
        raise SignatureInvalid(
            "the X-Slack-Request-Timestamp and X-Slack-Signature headers are needed, once each",
            code="signature_missing",
        )
    return values[0]
