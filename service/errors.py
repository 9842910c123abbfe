"""The one error family: a stable `code`, whether trying again can help, and a sentence for a person.

HTTP status codes are chosen at the edge (`service/app.py`), from the class and never from the text.
"""

from __future__ import annotations


class AuthwatchError(Exception):
    """Base of everything we raise on purpose. `permanent` means: the same call can not succeed later by itself."""

    code = "error"
    permanent = True

    def __init__(self, message: str, *, code: str | None = None, permanent: bool | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if permanent is not None:
            self.permanent = permanent


class ConfigError(AuthwatchError):
    """A setting, config file or rule file that cannot be right; the message names it and its mend."""

    code = "config_invalid"


class SignatureInvalid(AuthwatchError):
    """The request is not from who it says, or not from now. `code` is the reason, used as a metric label."""

    code = "signature_invalid"


class PayloadUnreadable(AuthwatchError):
    """A genuine request whose body we cannot read: it is quarantined, never refused."""

    code = "payload_unreadable"


class BadRequest(AuthwatchError):
    code = "bad_request"


class RequestTimeout(AuthwatchError):
    """The caller did not finish its request in the time we give."""

    code = "request_timeout"
    permanent = False


class Unauthorized(AuthwatchError):
    code = "unauthorized"


class Forbidden(AuthwatchError):
    code = "forbidden"


class NotFound(AuthwatchError):
    code = "not_found"


class Conflict(AuthwatchError):
    code = "conflict"


class TooLarge(AuthwatchError):
    code = "too_large"


class Gone(AuthwatchError):
    code = "gone"


class Unavailable(AuthwatchError):
    """A part we need is away for now; nothing was kept and the caller should send again."""

    code = "unavailable"
    permanent = False

    def __init__(self, message: str, *, code: str | None = None, retry_after_seconds: int = 2) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(Unavailable):
    """More genuine requests than the source's configured rate; nothing was kept and the caller should send again."""

    code = "rate_limited"


class DeliveryFailed(AuthwatchError):
    """An outside system did not take what we sent.

    `permanent`: sending the same again cannot help. `ambiguous`: it may have arrived all the same.
    `retry_after_seconds`: what the other side asked for. `status`: its HTTP status where there was one.
    """

    code = "delivery_failed"
    permanent = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        permanent: bool = False,
        ambiguous: bool = False,
        retry_after_seconds: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message, code=code, permanent=permanent)
        self.ambiguous = ambiguous
        self.retry_after_seconds = retry_after_seconds
        self.status = status
