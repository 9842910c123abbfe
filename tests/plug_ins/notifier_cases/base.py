"""What a notifier's cases file says, so that one suite proves it: tests/plug_ins/test_notifiers_conform.py.

A new kind adds one file of its name beside this one, with a `CASES` in it, and its fake in tests/fakes/ if it speaks as no
other does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from service.notify.base import Notifier

# done: taken. retry: surely not taken, later perhaps. ambiguous: perhaps taken. permanent: this message never.
# refused: no message is, until a person mends it.
Verdict = Literal["done", "retry", "ambiguous", "permanent", "refused"]
# Every notifier that speaks HTTP says what each of these is to it.
STATUSES_MIN = frozenset({400, 401, 403, 404, 408, 410, 413, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class Cases:
    """`section`: of the config file, for a fake at that base URL. `open`: against it, giving up after so many seconds.

    `seen`: everything a reader sees (the fake, what was printed). `effects`: how many readers were told by a post, however
    often it was sent. `answers`: makes the fake answer the next call with a status and headers, and with a body, before it
    does anything, or after.
    """

    section: Callable[[str], dict[str, Any]]
    seen: Callable[[Any, str], str]
    secrets: tuple[str, ...]
    fake: Callable[[], Any] | None = None
    open: Callable[[str, httpx.AsyncClient, float], Notifier] | None = None
    effects: Callable[[Any], int] = lambda _fake: 0
    answers: Callable[..., None] = lambda *_args, **_named: None
    slow: Callable[[Any, float], None] = lambda _fake, _seconds: None
    break_off: Callable[[Any], None] = lambda _fake: None
    statuses: Mapping[int, Verdict] = field(default_factory=dict)
    facts: tuple[str, ...] = ("Token refresh is failing", "clark@example.com", "Nightly report", "What to do")
    opened_as: str = "2026-11-22 10:00:00 UTC"
    resolved_as: str = "Resolved at 2026-11-22 10:09:00 UTC"
    timeout_seconds: float = 0.3
    retry_after_dates: bool = True  # Slack says seconds alone
