"""What a SIEM destination promises: a batch is taken whole, or in part with the poison named, or DeliveryFailed is raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from pydantic import BaseModel, ConfigDict, Field

from service.event import Event


class SinkConfig(BaseModel):
    """The base of every kind's section in the config file; input is hidden in errors because it may be a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=64)


@dataclass(frozen=True, slots=True)
class Poison:
    """The item at `index` of the batch can never be taken; the ones around it were. `reason` is safe to show."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The whole batch is dealt with: `accepted` items were taken, `poison` is to be put aside."""

    accepted: int
    poison: tuple[Poison, ...] = ()


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


@dataclass(frozen=True, slots=True)
class SinkKind:
    """One line of the registry: `Config` validates a section (its `kind` and `name` included), `open(config, client)`
    makes the sink of it."""

    Config: type[SinkConfig]
    open: Callable[[Any, httpx.AsyncClient], Sink]
