"""Standard Webhooks signatures, pure and on raw bytes: made, and verified with every live secret in constant time.

Our own code and not a library's: bad input makes the common libraries raise undocumented exceptions, and one accepts a
secret with an empty key. They are the referees in the tests instead.
Source: Standard Webhooks specification 1.0.0 (`id.timestamp.body`, HMAC-SHA256, `v1,` base64, several by space).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets as random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

from service.errors import ConfigError, SignatureInvalid

WINDOW_SECONDS = 300
INSTANTS_MAX = 1024
SECRET_PREFIX = "whsec_"
KEY_BYTES_MIN, KEY_BYTES_MAX = 24, 64
SIGNATURES_MAX = 16
HEADER_BYTES_MAX = 4096
ID_BYTES_MAX = 256
TIMESTAMP = re.compile(rb"[0-9]{1,11}")
MESSAGE_ID = re.compile(rb"[\x21-\x7e]{1,256}")
PREFIXES = (b"webhook-", b"svix-")
PARTS = (b"id", b"timestamp", b"signature")
TRIPLES = tuple(tuple(prefix + part for part in PARTS) for prefix in PREFIXES)
NAMES = frozenset(name for triple in TRIPLES for name in triple)


@dataclass(frozen=True, slots=True)
class Secret:
    """A signing key and the name it is known by; the key never prints."""

    name: str
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Verified:
    """`attempted_at` is when the sender signed this attempt, by its clock."""

    secret_name: str
    message_id: str
    attempted_at: datetime


def parse_secret(text: str, *, name: str) -> Secret:
    """`whsec_` and the strict base64 of 24 to 64 bytes; ConfigError names the secret and never shows it."""
    if not text.startswith(SECRET_PREFIX):
        raise ConfigError(
            f"the webhook secret {name} does not start with {SECRET_PREFIX}; copy it whole from the provider"
        )
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(
            f"the webhook secret {name} is not base64 after {SECRET_PREFIX}; copy it whole from the provider"
        ) from None
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise ConfigError(
            f"the webhook secret {name} has {len(key)} bytes; it needs {KEY_BYTES_MIN} to {KEY_BYTES_MAX}"
        )
    return Secret(name, key)


def check_secret(text: str, *, name: str) -> None:
    """As `parse_secret` takes it, for a validator of settings: ValueError says what is wrong, and not the secret."""
    try:
        parse_secret(text, name=name)
    except ConfigError as exc:
        raise ValueError(str(exc)) from None


def make_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(random.token_bytes(32)).decode()


def sign(secret: Secret, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    digest = hmac.digest(secret.key, signed_content(message_id.encode(), str(timestamp).encode(), body), hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def signed_content(message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
    return b"%b.%b.%b" % (message_id, timestamp, body)


def verify(headers: Sequence[tuple[bytes, bytes]], body: bytes, secrets: Sequence[Secret], now: datetime) -> Verified:
    """Raises SignatureInvalid and nothing else, whatever the bytes. `headers` as ASGI gives them."""
    if not secrets:
        raise SignatureInvalid("this source has no secret", code="no_secret")
    message_id, timestamp, signature = read_headers(headers)
    attempted_at = read_timestamp(timestamp, now)
    offered = read_signatures(signature)
    content = signed_content(message_id, timestamp, body)
    matched: str | None = None
    for secret in secrets:
        expected = hmac.digest(secret.key, content, hashlib.sha256)
        # Every secret against every signature, always: how long it takes tells nothing.
        for candidate in offered:
            if hmac.compare_digest(expected, candidate) and matched is None:
                matched = secret.name
    if matched is None:
        raise SignatureInvalid("no signature matches a live secret", code="signature_wrong")
    return Verified(matched, message_id.decode("ascii"), attempted_at)


def read_headers(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes, bytes]:
    """The three headers, by whichever prefix is complete; `webhook-` first. A doubled header is no header of ours."""
    seen: dict[bytes, bytes] = {}
    for raw_name, value in headers:
        name = raw_name.lower()
        if name in NAMES:
            if name in seen or len(value) > HEADER_BYTES_MAX:
                raise SignatureInvalid("a signature header is doubled or too long", code="signature_malformed")
            seen[name] = value
    for id_name, timestamp_name, signature_name in TRIPLES:
        message_id, timestamp, signature = seen.get(id_name), seen.get(timestamp_name), seen.get(signature_name)
        if message_id and timestamp and signature:
            if MESSAGE_ID.fullmatch(message_id) is None:
                raise SignatureInvalid(
                    "the message id is not printable ASCII of at most 256 characters", code="id_malformed"
                )
            return message_id, timestamp, signature
    raise SignatureInvalid(
        "the webhook-id, webhook-timestamp and webhook-signature headers are needed", code="signature_missing"
    )


def read_timestamp(timestamp: bytes, now: datetime) -> datetime:
    """Whole seconds in ASCII digits, at most WINDOW_SECONDS from now either way."""
    if TIMESTAMP.fullmatch(timestamp) is None:
        raise SignatureInvalid("the timestamp is not a whole number of seconds", code="timestamp_malformed")
    seconds = int(timestamp)
    difference = int(now.timestamp()) - seconds
    if difference > WINDOW_SECONDS:
        raise SignatureInvalid("the timestamp is too old; is the sender's clock right?", code="timestamp_too_old")
    if difference < -WINDOW_SECONDS:
        raise SignatureInvalid(
            "the timestamp is in the future; is the sender's clock right?", code="timestamp_in_future"
        )
    return instant_of(seconds)


@lru_cache(maxsize=INSTANTS_MAX)
def instant_of(seconds: int) -> datetime:
    """Those of one moment carry the same second."""
    return datetime.fromtimestamp(seconds, UTC)


def read_signatures(header: bytes) -> list[bytes]:
    """The digests of the `v1` entries; entries of other versions (`v1a`) are passed over."""
    entries = header.split(b" ")
    if len(entries) > SIGNATURES_MAX:
        raise SignatureInvalid("too many signatures", code="signature_malformed")
    offered: list[bytes] = []
    for entry in entries:
        version, comma, value = entry.partition(b",")
        if version != b"v1" or not comma:
            continue
        try:
            digest = binascii.a2b_base64(value, strict_mode=True)
        except ValueError:  # binascii.Error is one
            continue
        if len(digest) == hashlib.sha256().digest_size:
            offered.append(digest)
    if not offered:
        raise SignatureInvalid("no v1 signature of 32 bytes in base64", code="signature_malformed")
    return offered
