"""`verify_with: sdk`: the provider's own SDK as a second gate, behind our verifier and never instead of it.

Off by default: SDK 2.21.0 costs about 60 MB of memory, accepts a secret whose key is empty, and raises undocumented
errors on bad input. All of that is harmless behind our own check, which has refused such requests before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

from service.errors import ConfigError, SignatureInvalid

NAMES = ("id", "timestamp", "signature")


def sdk_verifier() -> Callable[[Mapping[str, str], bytes, Sequence[str]], None]:
    """A check of (lower-case headers, body, secrets); raises SignatureInvalid with code `sdk_refused` and nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its dependencies' deprecations are not ours to mend
            from scalekit import ScalekitClient
    except ImportError:
        raise ConfigError(
            "`verify_with: sdk` needs the provider's SDK: pip install 'authwatch[scalekit]', or take the line out"
        ) from None
    # Its constructor signs in over the network; the check needs nothing of that.
    client = object.__new__(ScalekitClient)

    def check(headers: Mapping[str, str], body: bytes, secrets: Sequence[str]) -> None:
        plain = {f"webhook-{name}": headers.get(f"webhook-{name}") or headers.get(f"svix-{name}", "") for name in NAMES}
        for secret in secrets:
            try:
                if client.verify_webhook_payload(secret, plain, body) is True:
                    return
            except Exception:  # noqa: BLE001, S112 - it documents one exception and raises many; each is a refusal
                continue
        raise SignatureInvalid("the provider's SDK refuses this signature", code="sdk_refused")

    return check
