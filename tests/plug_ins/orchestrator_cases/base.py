"""What an orchestrator's cases file says, so that one suite proves it: tests/plug_ins/test_orchestrators_conform.py.

A new kind adds one file of its name beside this one, with a `CASES` in it, and a strict fake in tests/fakes/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from service.orchestrators.base import Orchestrator

# done: taken. retry: surely without effect, later perhaps. ambiguous: perhaps with one, and safe to repeat. permanent: this
# ask never. gone: there is no such workflow (code `workflow_gone`). refused: the credentials (`http_401` or `http_403`).
Verdict = Literal["done", "retry", "ambiguous", "permanent", "gone", "refused"]
# Every orchestrator that speaks HTTP says what each of these is to it, as the answer to a pause.
STATUSES_MIN = frozenset({301, 307, 400, 401, 403, 404, 405, 408, 409, 410, 413, 422, 429, 500, 502, 503, 504})
# gRPC has none of them; these are its own words for the same troubles.
GRPC_STATUSES_MIN = frozenset(
    {
        *("INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "FAILED_PRECONDITION"),
        *("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNIMPLEMENTED", "CANCELLED"),
    }
)
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The fake holds one workflow, `ref`, running, of which nobody has paused anything.

    `section`: of the config file, for a fake at that address; its `name` is "ops". `open`: against it, giving up after so
    many seconds. `fake`: makes one; it is served as ASGI by its `app`, or where `serve` is given by that, which gives its
    address. `paused`: whether `ref` starts nothing there now. `looks`: all of `ref` there that a resume has to put back, to be
    compared. `writes`: how many calls really changed something there since it was made. `by_hand`: a person pauses it, or
    starts it again. `delete`: it is deleted there. `fill`: so many more workflows are added.

    `answers(fake, status, headers, body)`: the next call, whichever it is, is answered so before it does anything; so are all
    with `always=True`. `slow`: what changes something is done, and answered so many seconds later. `break_off`: the next call
    that changes something is done, and the connection closed in place of an answer.

    `statuses`: what each answer to a pause means. `credentials_refused`: the status that says so.
    `asked`: False where it can only be told (`state` and `list_workflows` know nothing, and `check` proves nothing).
    """

    section: Callable[[str], dict[str, Any]]
    secrets: tuple[str, ...]
    ref: str
    gone_ref: str
    fake: Callable[[], Any]
    open: Callable[[str, httpx.AsyncClient, float], Orchestrator]
    paused: Callable[[Any], bool]
    looks: Callable[[Any], Any]
    writes: Callable[[Any], int]
    by_hand: Callable[[Any, bool], None]
    answers: Callable[..., None]
    slow: Callable[[Any, float], None]
    break_off: Callable[[Any], None]
    statuses: Mapping[int | str, Verdict]
    delete: Callable[[Any], None] = lambda _fake: None
    fill: Callable[[Any, int], None] = lambda _fake, _count: None
    serve: Callable[[Any], AbstractAsyncContextManager[str]] | None = None
    statuses_min: frozenset[int | str] = field(default_factory=lambda: frozenset[int | str](STATUSES_MIN))
    credentials_refused: int | str = 401
    too_many: int | str | None = 429  # with a Retry-After header; None where nothing of the kind is said
    asked: bool = True
    nowhere: str = NOWHERE
    timeout_seconds: float = 0.3
