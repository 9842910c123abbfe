"""What a sink's cases file says, so that one suite proves it: tests/plug_ins/test_sinks_conform.py.

A new kind adds one file of its name beside this one, with a `CASES` in it, and its strict fake in tests/fakes/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

# What an answer to a whole batch comes to. done: all of it is taken. retry: DeliveryFailed, it is sent again by itself.
# refused: DeliveryFailed and permanent, the log waits for a person. aside: the items themselves are refused, each is
# put aside as poison (413 for one alone, or a code that blames the item).
Verdict = Literal["done", "retry", "refused", "aside"]
# Every sink that speaks HTTP says what each of these is to it.
STATUSES_MIN = frozenset(
    {301, 302, 303, 307, 308, 400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 415, 422, 425, 429, 500, 502, 503, 504}
)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A thing that goes wrong in the protocol's own words: `begin(fake)` makes it so for every call from now on.

    `code`: of the DeliveryFailed, where the verdict is one. `says`: a part of its sentence, the mend.
    """

    begin: Callable[[Any], None]
    verdict: Verdict
    code: str | None = None
    says: str = ""


def nothing(*_args: Any, **_named: Any) -> None:
    """For what a protocol does not have."""


@dataclass(frozen=True, kw_only=True)
class Cases:
    """`fake`: the other side, strict; HTTP ones have an `app` (ASGI) that the suite serves, others bring `serve`.

    `section(url)`: of the config file for a fake at that base URL; it has the `ocsf` format, and no `name`.
    `taken(fake)`: the event ids it holds, in its order; one it holds twice stands there twice.
    `said(fake)`: everything it was ever sent, decoded (not gzip, not protobuf), as one text.
    `requests(fake)`: (items, bytes before compression) of each batch that was taken, in order.
    `answers(fake, status, headers, body)`: every call from now on is answered so and nothing is kept; status None: as it
    should be again. Of protocols without statuses: leave it, and name troubles instead.
    `statuses`: what each status means, all of STATUSES_MIN and what else matters.
    `troubles`: by a name that reads well in a test's id.
    `refuse(fake, word)`: an item whose text holds the word is refused from now on, alone. None: no item can be.
    `slow(fake, seconds)`: the next answer comes that late, and the work is done all the same. `break_off(fake)`: the next
    call's work is done and its answer never arrives whole.
    """

    section: Callable[[str], dict[str, Any]]
    secrets: tuple[str, ...]
    fake: Callable[[], Any]
    taken: Callable[[Any], list[str]]
    said: Callable[[Any], str]
    requests: Callable[[Any], list[tuple[int, int]]]
    serve: Callable[[Any], AbstractAsyncContextManager[str]] | None = None
    answers: Callable[..., None] = nothing
    statuses: Mapping[int, Verdict] = field(default_factory=dict)
    troubles: Mapping[str, Trouble] = field(default_factory=dict)
    refuse: Callable[[Any, str], None] | None = None
    slow: Callable[[Any, float], None] | None = None
    break_off: Callable[[Any], None] | None = None
    # Sent twice, the same batch is held once: by an id per item, or by one per batch.
    drops_repeats: bool = False
    # An item larger than this is put aside without being sent. None: larger ones than 2 MB there are not.
    item_bytes_max: int | None = None
    # A request holds no more bytes than this, before compression, and no more items than that.
    request_bytes_max: int = 1_000_000
    request_items_max: int = 500
    # Sections that cannot be right: the keys to set, each alone, and refused by its name.
    wrong: tuple[dict[str, Any], ...] = ()
    # Sections that read well and do not work: the keys to set, and a part of what `check` and `send` then say.
    misconfigured: tuple[tuple[dict[str, Any], str], ...] = ()
    # Whether the sink heeds Retry-After.
    retry_after: bool = True
    timeout_seconds: float = 0.4
