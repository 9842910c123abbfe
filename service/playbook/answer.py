"""What the playbook answers: the class, the one right response, and whether the same call may be sent again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from service.playbook.safe_writes import SafeWrite
from service.playbook.words import ACTIONS, Action, Affects, Credential, ErrorClass, Operation, TokenState


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Whether the same call may be sent again, now that `attempt` of them failed.

    Wait `wait_seconds` plus a random part of up to `jitter_seconds_max`; `wait_asked_by` says who asked for it, None
    where it is our own backoff. `allowed`: send it again, after a refresh where `requires` names one. Not allowed and
    `requires` names something: do that and ask again, with `state_check` reported as `verification` and
    `provider_idempotency` as `idempotency_key`. `circuit_open`: the retries are used up, or the wait asked for is too
    long to be waited for unattended, and then `requires` names `human_review`.
    """

    allowed: bool
    retries_max: int
    retries_left: int
    within_seconds: int | None = None
    wait_seconds: float | None = None
    jitter_seconds_max: float | None = None
    wait_asked_by: str | None = None
    circuit_open: bool = False
    requires: tuple[str, ...] = ()


NEVER = Retry(allowed=False, retries_max=0, retries_left=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`state` is the token's. `code` is the provider's code that decided, one of the table's, None where a status or a
    message did. `operation` is what the call was taken for: a write, unless somebody said that it was a read."""

    error_class: ErrorClass
    action: Action
    what_to_do: str
    meaning: str
    state: TokenState
    credential: Credential | None
    affects: Affects
    provider: str
    code: str | None
    row: str
    sources: tuple[str, ...]
    retry: Retry
    operation: Operation
    safe_write: SafeWrite | None = None

    def to_json(self) -> dict[str, Any]:
        """The answer of POST /v1/classify."""
        made = asdict(self)
        return {"class": made.pop("error_class"), "token_state": made.pop("state"), **made}


def respond(answer: Answer, action: Action, sentence: str | None = None) -> Answer:
    return replace(answer, action=action, what_to_do=sentence or ACTIONS[action])
