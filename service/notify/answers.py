"""Answers of other people's servers, as far as they may be shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from service.outbound import Response


def without_secrets(answer: Response, secrets: Iterable[str]) -> Response:
    """An answer that says one of our secrets back is not shown at all: it is cut somewhere, and may be cut within one."""
    body = answer.body.decode("utf-8", "replace")
    return replace(answer, excerpt="") if any(secret in body for secret in secrets) else answer
