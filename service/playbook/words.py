"""The words of the playbook: its classes, actions and rows as values. No I/O, and nothing of the rest of the service."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

ErrorClass = Literal[
    "token_expired",
    "refresh_failed",
    "insufficient_scope",
    "rate_limited",
    "upstream_5xx",
    "malformed_params",
    "partial_execution",
    "other",
]
ERROR_CLASSES: tuple[ErrorClass, ...] = (
    "token_expired",
    "refresh_failed",
    "insufficient_scope",
    "rate_limited",
    "upstream_5xx",
    "malformed_params",
    "partial_execution",
    "other",
)
# `expired` and `revoked` only where the provider said that one; `expired_or_revoked` where its code covers both and it
# did not say which; `unknown` where it said nothing about it.
TokenState = Literal["expired", "revoked", "expired_or_revoked", "unknown"]
Credential = Literal["access_token", "refresh_token", "client"]
Affects = Literal["call", "account", "connection", "organization", "provider"]
Verification = Literal["verified", "pending", "missing", "mismatch", "none"]
Operation = Literal["read", "write"]
Outcome = Literal["missing", "mismatch", "pending", "parts_failed", "refused", "unverified", "fine"]
Action = Literal[
    "refresh_once",
    "reauthorize",
    "request_scope",
    "ask_admin",
    "fix_client",
    "wait_and_retry",
    "retry_with_backoff",
    "open_circuit",
    "fix_parameters",
    "check_state",
    "check_state_then_retry",
    "human_review",
    "stop_and_surface",
    "continue",
]
ACTIONS: dict[Action, str] = {
    "refresh_once": "Refresh the access token once, under a lock for this account, and repeat the call once. If that fails"
    " too, stop.",
    "reauthorize": "Ask the account's owner to authorize it again, and keep what depends on it paused. Do not retry.",
    "request_scope": "Compare the scopes granted with those the call needs, and ask the account's owner to consent to what"
    " is missing. Do not retry.",
    "ask_admin": "Ask the administrator of the account's organization to allow this. Do not retry.",
    "fix_client": "Check the connector's own client id, secret and settings at the provider; every account of it is"
    " affected. Do not retry.",
    "wait_and_retry": "Wait as long as the provider asks, or back off with jitter where it asks nothing. Three retries at"
    " most, then break the circuit.",
    "retry_with_backoff": "Back off with jitter and repeat the call. Two retries within 60 seconds at most, then break the"
    " circuit.",
    "open_circuit": "Stop calling: halt this step, tell of the provider and the account, and queue the step until the"
    " provider is well again.",
    "fix_parameters": "Do not retry: the same parameters fail again. Keep the raw parameters and the tool's schema, and hand"
    " both over for review.",
    "check_state": "Read the resource by the id that the write returned. Do not repeat the write before that.",
    "check_state_then_retry": "Read the resource first. Only if the write is not there, repeat it through the provider's own"
    " mechanism, with the same key.",
    "human_review": "Stop, and let a person look at the resource: repeating this write may do it twice.",
    "stop_and_surface": "Do not retry. Show the error to the tool's owner, who decides.",
    "continue": "Nothing is to be mended: go on.",
}
# The one right response to each class where nothing more is known.
RESPONSES: dict[ErrorClass, Action] = {
    "token_expired": "refresh_once",
    "refresh_failed": "reauthorize",
    "insufficient_scope": "request_scope",
    "rate_limited": "wait_and_retry",
    "upstream_5xx": "retry_with_backoff",
    "malformed_params": "fix_parameters",
    "partial_execution": "check_state",
    "other": "stop_and_surface",
}
Policy = Literal["never", "after_refresh", "rate_limit", "upstream", "partial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`retries_max`: beyond the first call. The circuit breaks when they are used up; `within_seconds` is their window.

    Backoff: before retry n one waits between half and all of min(backoff_max, backoff_base * factor**(n-1)) seconds,
    at random, so that what failed together does not come back together.
    """

    retries_max: int
    within_seconds: int | None = None
    breaks_circuit: bool = False
    backoff_base_seconds: float = 0.0
    backoff_factor: float = 2.0
    backoff_max_seconds: float = 0.0


POLICIES: dict[Policy, RetryPolicy] = {
    "never": RetryPolicy(retries_max=0),
    "after_refresh": RetryPolicy(retries_max=1),
    "rate_limit": RetryPolicy(retries_max=3, breaks_circuit=True, backoff_base_seconds=2.0, backoff_max_seconds=60.0),
    "upstream": RetryPolicy(
        retries_max=2, within_seconds=60, breaks_circuit=True, backoff_base_seconds=2.0, backoff_max_seconds=30.0
    ),
    "partial": RetryPolicy(retries_max=1),
}
POLICY_OF: dict[Action, Policy] = {
    "refresh_once": "after_refresh",
    "wait_and_retry": "rate_limit",
    "retry_with_backoff": "upstream",
    "check_state_then_retry": "partial",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the playbook: what the provider said, what it means, and the one right response.

    It fits when each of its conditions that is not empty does: one of `codes` was said (case does not count), the status is one
    of `statuses`, one of `phrases` (lower case) stands in the provider's message, `limited` headers are there, the call
    ended in one of `outcomes`. `state` is the token's; `described`: the provider's own description may say whether it expired or was revoked.
    `do` takes the place of the action's sentence. `sources` say where it is documented.
    """

    id: str
    provider: str
    error_class: ErrorClass
    action: Action
    meaning: str
    sources: tuple[str, ...]
    codes: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    phrases: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    limited: bool = False
    state: TokenState = "unknown"
    described: bool = False
    credential: Credential | None = None
    affects: Affects = "account"
    do: str | None = None
    wait_seconds_min: float = 0.0

    @property
    def folded(self) -> frozenset[str]:
        return folded(self.codes)

    @property
    def sentence(self) -> str:
        return self.do or ACTIONS[self.action]

    @property
    def policy(self) -> Policy:
        return POLICY_OF.get(self.action, "never")


@lru_cache(maxsize=1024)
def folded(codes: tuple[str, ...]) -> frozenset[str]:
    return frozenset(code.lower() for code in codes)


ANY = "any"
CLIENT_ERRORS = tuple(range(400, 500))
SERVER_ERRORS = tuple(range(500, 600))
SUCCESSES = tuple(range(200, 300))
# Some providers answer 200 and say in the body that it failed.
NOT_SERVER_ERRORS = (*SUCCESSES, *CLIENT_ERRORS)
