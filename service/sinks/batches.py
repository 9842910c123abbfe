"""A batch as it goes over the wire: each item encoded once, and pieces bounded by count and by bytes, in order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from service.event import Event
from service.sinks.base import Progress


@dataclass(frozen=True, slots=True)
class Encoded:
    """`index`: in the batch that came. `body`: as it is sent, before compression."""

    index: int
    event: Event
    body: bytes


Piece = Sequence[Encoded]


def encode(
    items: Sequence[Event], write: Callable[[Event], bytes], progress: Progress, bytes_max: int
) -> list[Encoded]:
    """What can be sent of it; the rest is put aside in `progress`."""
    found: list[Encoded] = []
    for index, event in enumerate(items):
        try:
            body = write(event)
        except (ValueError, TypeError, RecursionError) as exc:
            progress.unfit(index, f"cannot be written as JSON: {type(exc).__name__}")
            continue
        if len(body) > bytes_max:
            progress.unfit(index, f"{len(body)} bytes, at most {bytes_max} are sent")
        else:
            found.append(Encoded(index, event, body))
    return found


def pieces_of(encoded: Sequence[Encoded], items_max: int, bytes_max: int) -> Iterator[Piece]:
    piece: list[Encoded] = []
    size = 0
    for one in encoded:
        if piece and (len(piece) >= items_max or size + len(one.body) > bytes_max):
            yield piece
            piece, size = [], 0
        piece.append(one)
        size += len(one.body)
    if piece:
        yield piece


def halves(piece: Piece) -> tuple[Piece, Piece]:
    half = len(piece) // 2
    return piece[:half], piece[half:]
