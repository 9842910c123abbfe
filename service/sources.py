"""Sources: each configured endpoint with its provider and its live secrets. Light, so that `up` judges them first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from service.errors import ConfigError
from service.limits import RateLimit
from service.providers import PROVIDERS
from service.providers.base import Provider
from service.settings import SourceSettings, harmless
from service.signatures import Secret, Verified

PROBE_PREFIX = "authwatch_probe_"  # only who holds the secret can sign such a message id
NAME_CHARS_TELLING = 6  # a name that long is no part of a secret by chance


@dataclass(frozen=True, slots=True)
class Source:
    """A configured endpoint. `gate` is the provider's own SDK as a second check, or None. `limit` is taken from only by
    requests that were verified, so that whoever cannot sign cannot use it up."""

    name: str
    provider: Provider
    secrets: Sequence[Secret]
    gate: Callable[[Sequence[tuple[bytes, bytes]], bytes], None] | None
    limit: RateLimit | None = None
    fingerprints: Mapping[str, str] = field(init=False, repr=False)  # of the secrets, by name

    def __post_init__(self) -> None:
        by_name = {secret.name: fingerprint(secret.key) for secret in self.secrets}
        object.__setattr__(self, "fingerprints", by_name)  # as a frozen dataclass must

    def verify(self, headers: Sequence[tuple[bytes, bytes]], body: bytes, now: datetime) -> Verified:
        """Our own strict verifier always runs, and runs first."""
        verified = self.provider.verify(headers, body, self.secrets, now)
        if self.gate is not None:
            self.gate(headers, body)
        return verified

    def origin_of(self, message_id: str) -> str:
        return "probe" if message_id.startswith(PROBE_PREFIX) else "webhook"


class Sources(Mapping[str, Source]):
    """The sources in force. `swap` puts a whole new set in their place at once; a request sees the old or the new."""

    def __init__(self, by_name: Mapping[str, Source]) -> None:
        self._by_name = dict(by_name)

    def swap(self, by_name: Mapping[str, Source]) -> None:
        self._by_name = dict(by_name)

    def get(self, name: str, default: None = None) -> Source | None:  # type: ignore[override]
        """Asked for every request: no exception on the way, as `Mapping` would take."""
        return self._by_name.get(name)

    def __getitem__(self, name: str) -> Source:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def open_sources(sections: Mapping[str, SourceSettings]) -> dict[str, Source]:
    """Raises ConfigError for the first that cannot be right."""
    return {name: open_source(name, section) for name, section in sections.items()}


def open_secrets(source: str, provider: Provider, section: SourceSettings) -> list[Secret]:
    """Named and told apart; ConfigError for one that is empty, short, not base64, or there twice."""
    opened: list[Secret] = []
    for number, given in enumerate(section.secrets, 1):
        text = given.get_secret_value()
        if given.name is not None and len(given.name) >= NAME_CHARS_TELLING and given.name in text:
            raise ConfigError(f"sources.{source}: the name of secret {number} is a part of the secret; names are shown")
        secret = provider.parse_secret(text, name=given.name or f"{source}-{number}")
        secret = replace(secret, name=given.name or fingerprint(secret.key))
        for earlier in opened:
            if earlier.key == secret.key:
                raise ConfigError(
                    f"sources.{source}: the secret {earlier.name} is there twice; take one of the two out"
                )
            if earlier.name == secret.name:
                raise ConfigError(f"sources.{source}: two secrets are named {secret.name}; give each a name of its own")
        opened.append(secret)
    return opened


def fingerprint(key: bytes) -> str:
    """What stays with a key whatever it is named and wherever it stands, and tells nothing of it; the name of a secret
    that was given none.

    32 bits of a hash of at least 192 random ones.
    """
    return hashlib.sha256(b"authwatch secret name" + key).hexdigest()[:8]


def open_source(name: str, section: SourceSettings) -> Source:
    """Raises ConfigError for an unknown provider and whatever `open_secrets` refuses."""
    provider = PROVIDERS.get(section.provider)
    if provider is None:
        raise ConfigError(
            f'sources.{name}: unknown provider "{harmless(section.provider)}"; known: {", ".join(PROVIDERS)}'
        )
    secrets = open_secrets(name, provider, section)
    gate: Callable[[Sequence[tuple[bytes, bytes]], bytes], None] | None = None
    if section.verify_with == "sdk":
        # Imported only on demand: the SDK is an extra and costs 60 MB of memory.
        from service.providers.scalekit_sdk import sdk_verifier

        check = sdk_verifier()
        texts = [secret.get_secret_value() for secret in section.secrets]

        def gate(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
            check({key.decode("latin-1").lower(): value.decode("latin-1") for key, value in headers}, body, texts)

    limit = RateLimit(section.rate_limit_per_second) if section.rate_limit_per_second else None
    return Source(name=name, provider=provider, secrets=secrets, gate=gate, limit=limit)
