"""Sources: each configured endpoint with its provider and its live secrets. Light, so that `up` judges them first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.errors import ConfigError
from service.providers import PROVIDERS
from service.providers.base import Provider
from service.settings import Settings, SourceSettings
from service.signatures import Secret, Verified

PROBE_PREFIX = "authwatch_probe_"  # only who holds the secret can sign such a message id


@dataclass(frozen=True, slots=True)
class Source:
    """A configured endpoint. `gate` is the provider's own SDK as a second check, or None."""

    name: str
    provider: Provider
    secrets: Sequence[Secret]
    gate: Callable[[Sequence[tuple[bytes, bytes]], bytes], None] | None

    def verify(self, headers: Sequence[tuple[bytes, bytes]], body: bytes, now: datetime) -> Verified:
        """Our own strict verifier always runs, and runs first."""
        verified = self.provider.verify(headers, body, self.secrets, now)
        if self.gate is not None:
            self.gate(headers, body)
        return verified

    def origin_of(self, message_id: str) -> str:
        return "probe" if message_id.startswith(PROBE_PREFIX) else "webhook"


def open_sources(settings: Settings) -> dict[str, Source]:
    """Raises ConfigError for the first that cannot be right."""
    return {name: open_source(name, section) for name, section in settings.sources.items()}


def open_source(name: str, section: SourceSettings) -> Source:
    """Raises ConfigError for an unknown provider, or a secret that is empty, short or not base64."""
    provider = PROVIDERS.get(section.provider)
    if provider is None:
        raise ConfigError(f'sources.{name}: unknown provider "{section.provider}"; known: {", ".join(PROVIDERS)}')
    texts = [secret.get_secret_value() for secret in section.secrets]
    secrets = [provider.parse_secret(text, name=f"{name}-{number}") for number, text in enumerate(texts, 1)]
    gate: Callable[[Sequence[tuple[bytes, bytes]], bytes], None] | None = None
    if section.verify_with == "sdk":
        # Imported only on demand: the SDK is an extra and costs 60 MB of memory.
        from service.providers.scalekit_sdk import sdk_verifier

        check = sdk_verifier()

        def gate(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
            check({key.decode("latin-1").lower(): value.decode("latin-1") for key, value in headers}, body, texts)

    return Source(name=name, provider=provider, secrets=secrets, gate=gate)
