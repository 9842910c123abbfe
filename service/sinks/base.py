"""What a SIEM destination promises: a batch is taken whole, or in part with the poison named, or DeliveryFailed is raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import httpx
from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.errors import DeliveryFailed
from service.event import Event
from service.sinks.formats import FormatName
from service.sinks.matching import Wants, read_match

TIMEOUT_SECONDS = 15.0
# Refusals in a row, with nothing taken, after which the fault is not the items': better late than all put aside.
REFUSED_IN_A_ROW_MAX = 20
# What was sent may have been kept all the same: the receiver broke off, or a proxy waited no longer for its answer.
PERHAPS_KEPT = frozenset({500, 502, 504})
BREATH_ITEMS = 50  # encoded in about three milliseconds


class SinkConfig(BaseModel):
    """The base of every kind's section in the config file; input is hidden in errors because it may be a secret.

    `match`: what of the log this sink is sent (service/sinks/matching.py); whoever ships asks it, the sink need not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=64)
    match: Any = None
    format: FormatName = "ocsf"
    timeout_seconds: float = Field(default=TIMEOUT_SECONDS, gt=0, le=60)

    @field_validator("match")
    @classmethod
    def _match_can_be_right(cls, value: Any) -> Any:
        if value is not None:
            read_match(value)
        return value


def wants_of(section: Any) -> Wants:
    """Of a section that its `Config` has taken. A probe of ours never reaches a SIEM, whatever was asked for."""
    given = section.get("match")
    if given is None:
        return lambda event: event.origin != "probe"
    wants = read_match(given)
    return lambda event: event.origin != "probe" and wants(event)


@dataclass(frozen=True, slots=True)
class Poison:
    """The item at `index` of the batch can never be taken; the ones around it were. `reason` is safe to show.

    `ours`: found here before anything was sent, such as an item that is too large; it says nothing of the other side.
    `dropped`: the other side answered that all is well but for this one, and by its protocol that is never sent again
    (OTLP's partial success); so it is put aside, however many there are.
    """

    index: int
    reason: str
    ours: bool = False
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """The batch is dealt with: `accepted` items were taken, `poison` is to be put aside.

    `upto`: only the first so many items are dealt with, because a later part of the batch failed; what comes after them
    is sent again. None: all. `in_doubt`: so many of what is sent again may have arrived.
    """

    accepted: int
    poison: tuple[Poison, ...] = ()
    upto: int | None = None
    in_doubt: int = 0


@dataclass(slots=True)
class Progress:
    """What a sink has come to within one batch, where it sends it in parts."""

    accepted: int = 0
    poison: list[Poison] = field(default_factory=list)
    done: Sent = field(default_factory=lambda: Sent(0, upto=0))

    def unfit(self, index: int, reason: str) -> None:
        """Found here: it is not even sent."""
        self.poison.append(Poison(index, reason, ours=True))

    def refused(self, index: int, reason: str, *, host: str, status: int | None = None) -> None:
        """The other side refused this one alone. Raises DeliveryFailed where it refuses whatever it is sent."""
        self.poison.append(Poison(index, reason))
        theirs = sum(not poison.ours for poison in self.poison)
        if self.accepted == 0 and theirs >= REFUSED_IN_A_ROW_MAX:
            raise all_refused(host, theirs, reason, status=status)

    def settled(self, upto: int) -> None:
        """The batch's first so many items are dealt with, whatever becomes of those after them."""
        self.done = self.sent(upto=upto)

    def up_to(self, failure: DeliveryFailed, last: int, *, keyed: bool = False) -> Sent:
        """What was dealt with before the failure: it is not sent again for it. `last`: the index up to which more may have
        arrived; `keyed`: the other side drops what comes to it twice. Raises the failure where nothing was dealt with,
        or where nothing was taken and it is no failure of the moment."""
        if not self.done.upto or (failure.permanent and not self.done.accepted):
            raise failure
        doubtful = may_have_arrived(failure) and not keyed
        return replace(self.done, in_doubt=last + 1 - self.done.upto if doubtful else 0)

    def sent(self, *, upto: int | None = None) -> Sent:
        """`upto`: of the batch's first so many items alone."""
        poison = sorted(self.poison, key=lambda one: one.index)
        return Sent(self.accepted, tuple(one for one in poison if upto is None or one.index < upto), upto)


def may_have_arrived(failure: DeliveryFailed) -> bool:
    return failure.ambiguous or (failure.status in PERHAPS_KEPT and not failure.permanent)


def all_refused(host: str, count: int, reason: str, *, status: int | None = None) -> DeliveryFailed:
    return DeliveryFailed(
        f"{host} refused {count} items in a row and took none: {reason}; the fault is most likely in the sink's"
        " configuration, so none was put aside",
        code="all_refused",
        permanent=True,
        status=status,
    )


async def with_breath(items: Sequence[Event]) -> AsyncIterator[tuple[int, Event]]:
    """`(index, item)` of each; whoever judges events in the same process has its turn in between."""
    for index, item in enumerate(items):
        if index % BREATH_ITEMS == BREATH_ITEMS - 1:
            await asyncio.sleep(0)
        yield index, item


class Sink(Protocol):
    """A configured destination.

    At least once: after DeliveryFailed the whole batch is sent again, and an item carries its event id so that the
    SIEM can drop what it has seen.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def batch_items_max(self) -> int: ...

    async def send(self, items: Sequence[Event]) -> Sent: ...

    async def check(self) -> str:
        """One sentence for `authwatch doctor`; leaves nothing there. Raises `DeliveryFailed` with the mend."""
        ...


@runtime_checkable
class Closing(Protocol):
    """A sink that holds a connection of its own: it is closed when the process stops."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SinkKind:
    """One line of the registry: `Config` validates a section (its `kind` and `name` included), `open(config, client)`
    makes the sink of it."""

    Config: type[SinkConfig]
    open: Callable[[Any, httpx.AsyncClient], Sink]
