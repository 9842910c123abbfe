"""A batch as it goes over the wire: each item encoded once, in pieces bounded by count and by bytes, one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from service.errors import DeliveryFailed
from service.event import Event
from service.sinks.base import Progress, Sent, with_breath


@dataclass(frozen=True, slots=True)
class Encoded:
    """`index`: in the batch that came. `body`: as it is sent, before compression."""

    index: int
    event: Event
    body: bytes


Piece = Sequence[Encoded]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one request, before compression. `between_bytes`: what is added to each item, such as a comma or the end of a line."""

    items_max: int
    bytes_max: int
    between_bytes: int = 0


async def pieces_of(
    items: Sequence[Event], write: Callable[[Event], bytes], bounds: Bounds, progress: Progress
) -> AsyncIterator[Piece]:
    """In order; each is encoded when the one before it is sent. What cannot be sent is put aside in `progress`."""
    piece: list[Encoded] = []
    size = 0
    async for index, event in with_breath(items):
        try:
            body = write(event)
        except (ValueError, TypeError) as exc:
            progress.unfit(index, f"cannot be written as JSON: {type(exc).__name__}")
            continue
        length = len(body) + bounds.between_bytes
        if length > bounds.bytes_max:
            progress.unfit(index, f"{len(body)} bytes, at most {bounds.bytes_max} are sent")
            continue
        if piece and (len(piece) >= bounds.items_max or size + length > bounds.bytes_max):
            yield piece
            piece, size = [], 0
        piece.append(Encoded(index, event, body))
        size += length
    if piece:
        yield piece


async def send_each(
    pieces: AsyncIterator[Piece], send: Callable[[Piece, Progress], Awaitable[None]], progress: Progress, *, keyed: bool
) -> Sent:
    """A piece that fails for now leaves those before it sent. `keyed`: the other side drops what comes to it twice."""
    async for piece in pieces:
        try:
            await send(piece, progress)
        except DeliveryFailed as failure:
            return progress.up_to(failure, piece[-1].index, keyed=keyed)
        progress.settled(piece[-1].index + 1)
    return progress.sent()


def halves(piece: Piece) -> tuple[Piece, Piece]:
    half = len(piece) // 2
    return piece[:half], piece[half:]
