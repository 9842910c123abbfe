"""Which tokens the database has vouched for in the last minute: who may still ask the gate while it is away.

Only hashes are kept, never a token. While the database is there it is asked each time, so a revoked token is refused at
once, and forgotten here too.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from service.store.tokens import Token

KEPT_SECONDS = 60.0
TOKENS_MAX = 10_000


class VerifiedTokens:
    def __init__(self) -> None:
        self._by_digest: OrderedDict[bytes, tuple[float, Token]] = OrderedDict()

    def told(self, digest: bytes, token: Token | None, now: float | None = None) -> None:
        """What the database said of it just now; `now` is `time.monotonic()`."""
        self._by_digest.pop(digest, None)
        if token is not None:
            self._by_digest[digest] = (time.monotonic() if now is None else now, token)
            if len(self._by_digest) > TOKENS_MAX:
                self._by_digest.popitem(last=False)

    def recall(self, digest: bytes, now: float | None = None) -> Token | None:
        """Only where the database cannot be asked."""
        at, token = self._by_digest.get(digest, (0.0, None))
        if token is None or (time.monotonic() if now is None else now) - at > KEPT_SECONDS:
            self._by_digest.pop(digest, None)
            return None
        return token
