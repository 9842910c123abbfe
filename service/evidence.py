"""What a stored receipt proves today: its bytes and headers are verified again, as of when they were received.

Pure. The verdict and the hash are always over the true bytes; what is shown to whom is decided here too (`shown_body`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.errors import SignatureInvalid
from service.event import rfc3339
from service.headers import SIGNATURE_HEADERS
from service.redact import MASK, is_secret_name, redact, redact_text
from service.signatures import WINDOW_SECONDS
from service.sources import Source

# `received_at` is the database's clock at the commit, the window was held to the receiver's clock before it.
COMMIT_SECONDS_MAX = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One signed request as it is stored. `first_received_at` is of what was put aside and taken in later."""

    source: str
    received_at: datetime
    first_received_at: datetime | None = None
    attempted_at: datetime | None
    headers: Mapping[str, str]
    body: bytes
    body_sha256: bytes
    secret_name: str | None

    @property
    def came_at(self) -> datetime:
        """When the request was at our door: what its signature's time is held to."""
        return self.first_received_at or self.received_at


@dataclass(frozen=True, slots=True)
class Verdict:
    """`result` is `verified`, `hash_mismatch`, `not_signed`, `source_gone`, `secret_gone`, `signature_wrong`,
    `attempt_differs`, `outside_window`, or the front door's own reason (`signature_missing`, ...) for headers that it would refuse."""

    result: str
    detail: str


TIME_CODES = ("timestamp_too_old", "timestamp_in_future")
ATTEMPT_DIFFERS = Verdict(
    "attempt_differs", "the stored time of the attempt is not the one in the stored headers: one of the two was changed"
)


def verify_again(kept: Evidence, source: Source | None) -> Verdict:
    """With the secret that verified it then, if it is still configured; then with all that are.

    A name may stand for another key by now, and a key may have another name.
    """
    if hashlib.sha256(kept.body).digest() != kept.body_sha256:
        return Verdict("hash_mismatch", "the stored body is not the one that was received: its SHA-256 differs")
    if kept.secret_name is None:
        return Verdict("not_signed", "read from the provider's API; no signed request told of it")
    if source is None:
        return Verdict("source_gone", f"the source {kept.source} is no longer configured, nor are its secrets")
    named = [secret for secret in source.secrets if secret.name == kept.secret_name]
    headers = [
        (name.encode("latin-1", "replace"), text.encode("latin-1", "replace")) for name, text in kept.headers.items()
    ]
    try:
        verified = source.provider.verify(
            headers, kept.body, [*named, *source.secrets], kept.attempted_at or kept.came_at
        )
    except SignatureInvalid as exc:
        if exc.code in TIME_CODES and kept.attempted_at is not None:
            return ATTEMPT_DIFFERS
        if not named:
            return Verdict(
                "secret_gone", f"the secret {kept.secret_name} is no longer configured, and no live one matches"
            )
        if exc.code == "signature_wrong":
            return Verdict(
                exc.code,
                f"neither the secret {kept.secret_name} nor another live one matches: what is stored was changed, or the"
                " key was",
            )
        return Verdict(exc.code, str(exc))
    if kept.attempted_at is not None and kept.attempted_at != verified.attempted_at:
        return ATTEMPT_DIFFERS
    if abs((kept.came_at - verified.attempted_at).total_seconds()) > WINDOW_SECONDS + COMMIT_SECONDS_MAX:
        return Verdict(
            "outside_window", "the signature is right, but it was made more than 300 s away from the receipt"
        )
    if verified.secret_name != kept.secret_name:
        return Verdict("verified", f"by the secret now named {verified.secret_name}; it was {kept.secret_name} then")
    return Verdict("verified", f"by the secret {verified.secret_name}, as of when it was received")


def shown(kept: Evidence, source: Source | None, *, raw: bool) -> dict[str, Any]:
    """As JSON. `raw` is for who may read token-like fields."""
    verdict = verify_again(kept, source)
    body, masked = (kept.body, False) if raw else shown_body(kept.body)
    skew = (kept.came_at - kept.attempted_at).total_seconds() if kept.attempted_at else None
    return {
        "received_at": rfc3339(kept.received_at),
        "first_received_at": rfc3339(kept.first_received_at),
        "attempted_at": rfc3339(kept.attempted_at),
        "clock_skew_seconds": skew,
        "headers": {name: shown_header(name, value) for name, value in kept.headers.items()},
        "body_base64": base64.b64encode(body).decode() if body is not None else None,
        "body_masked": masked,
        "body_bytes": len(kept.body),
        "body_sha256": kept.body_sha256.hex(),
        "secret_name": kept.secret_name,
        "verification": {"result": verdict.result, "detail": verdict.detail},
    }


def shown_body(body: bytes) -> tuple[bytes | None, bool]:
    """(what anyone who reads events may see, whether that differs from the true bytes).

    The true bytes where nothing in them looks like a token, else the same JSON with such fields masked, written anew;
    None for what cannot be read as JSON: nobody can say what it holds.
    """
    twice = False

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        made = dict(pairs)
        # The last of a name is what is read, and the one before it would be shown unread.
        twice = twice or len(made) != len(pairs)
        return made

    try:
        value = json.loads(body, object_pairs_hook=once, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None, True
    masked = redact(value)
    return (body, False) if masked == value and not twice else (written(masked), True)


def written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def shown_header(name: str, value: str) -> str:
    """The signature is shown whole: it proves, and authorizes nothing that was not done already."""
    if name.encode("latin-1", "replace") in SIGNATURE_HEADERS:
        return value
    return MASK if is_secret_name(name) else redact_text(value)
