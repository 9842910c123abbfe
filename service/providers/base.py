"""What a provider's adapter promises: verify the raw bytes, then say what they mean. No I/O, no clock of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from service.event import ProviderEvent
from service.signatures import Secret, Verified


class Provider(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def details(self) -> Mapping[str, str]:
        """Every name that may be in the `details` of its events, and what it holds: `time`, `text` or `number`."""
        ...

    def parse_secret(self, text: str, *, name: str) -> Secret:
        """Raises ConfigError, naming the secret and never showing it."""
        ...

    def verify(
        self, headers: Sequence[tuple[bytes, bytes]], body: bytes, secrets: Sequence[Secret], now: datetime
    ) -> Verified:
        """Raises SignatureInvalid and nothing else, whatever the bytes."""
        ...

    def normalise(self, body: bytes, message_id: str) -> ProviderEvent:
        """Raises PayloadUnreadable for a genuine body that cannot be read, and nothing else."""
        ...

    def example(
        self,
        kind: str,
        *,
        account_id: str | None,
        connection_id: str | None,
        event_id: str,
        now: datetime,
        status: str | None = None,
    ) -> bytes:
        """A documented event of that kind or provider type, for `authwatch send`; BadRequest lists what there is."""
        ...
