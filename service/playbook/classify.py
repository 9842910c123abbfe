"""`classify`: from what a provider answered to its class and the one right response. Pure, and never raises for any input.

The table (`table.py`) decides by what the provider said; then three rules hold for every row: retries are counted, a write
is repeated only through the provider's own mechanism and after a look at the state, and nothing of a body is given back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from service.playbook import retry_after, said
from service.playbook.names import family_of
from service.playbook.safe_writes import SafeWrite, safe_write
from service.playbook.said import Said
from service.playbook.table import KNOWN_CODES, rows_for
from service.playbook.words import (
    ACTIONS,
    POLICIES,
    Action,
    Affects,
    Credential,
    ErrorClass,
    Outcome,
    Row,
    TokenState,
)

ATTEMPT_MAX = 1000
LOOKED: dict[str | None, Outcome] = {"missing": "missing", "mismatch": "mismatch", "pending": "pending"}
VERIFICATIONS = ("verified", "pending", "missing", "mismatch", "none")
JITTER_SHARE = 0.1  # of a wait that the provider asked for, so that those told the same do not come back together
JITTER_SECONDS_MIN, JITTER_SECONDS_MAX = 1.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Whether the same call may be sent again, now that `attempt` of them failed.

    Wait `wait_seconds` plus a random part of up to `jitter_seconds_max`; `wait_asked_by` says who asked for it, None
    where it is our own backoff. `allowed`: send it again, after a refresh where `requires` names one. Not allowed and
    `requires` names something: do that and ask again, with `state_check` reported as `verification` and
    `provider_idempotency` as `idempotency_key`. `circuit_open`: the retries are used up.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`state` is the token's. `code` is the provider's code that decided, one of the table's, None where a status or a
    message did."""

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
    safe_write: SafeWrite | None = None

    def to_json(self) -> dict[str, Any]:
        """The answer of POST /v1/classify."""
        made = asdict(self)
        return {"class": made.pop("error_class"), "token_state": made.pop("state"), **made}


def classify(
    provider: object,
    http_status: object,
    headers: object = None,
    body: object = None,
    *,
    operation: object = None,
    attempt: object = 1,
    verification: object = None,
    idempotency_key: object = None,
    now: datetime | None = None,
) -> Answer:
    """The class and the one right response.

    `provider` in any spelling; `http_status` None where there was no answer; `headers` a mapping or pairs; `body` bytes,
    text or JSON-like data, as sent. `operation` is `read` or `write`; `attempt` counts the calls that failed so far, this
    one included; `verification` is what a look at the state showed after the call; `idempotency_key` is whether the
    provider's own mechanism was used, None where nobody says. `now` (aware) is only for waits given as a date by an
    answer without a `Date` of its own.
    """
    family, status = family_of(provider), status_of(http_status)
    by_name = said.lowered(headers)
    found = said.read(by_name, body, KNOWN_CODES, succeeded=status is not None and 200 <= status < 300)
    reads = isinstance(operation, str) and operation == "read"
    checked = verification if isinstance(verification, str) and verification in VERIFICATIONS and not reads else None
    writes = (isinstance(operation, str) and operation == "write") or checked not in (None, "none")
    if status is not None and status < 300 and found.refused and found.status is not None:
        status = found.status
    outcome = outcome_of(status, found, checked, writes)
    row = next(row for row in rows_for(family) if fits(row, status, found, by_name, outcome))
    code = next((code for code in row.codes if code.lower() in found.codes), None)
    tries = attempt if isinstance(attempt, int) and not isinstance(attempt, bool) else 1
    retry = retry_of(row, min(max(tries, 1), ATTEMPT_MAX), retry_after.asked(by_name, found.fields, now))
    answer = Answer(
        error_class=row.error_class,
        action=row.action,
        what_to_do=row.sentence,
        meaning=row.meaning,
        state=row.state,
        credential=row.credential,
        affects=row.affects,
        provider=family,
        code=code,
        row=row.id,
        sources=row.sources,
        retry=retry,
    )
    if row.described:
        answer = as_described(answer, found)
    if retry.circuit_open and row.action != "open_circuit":
        answer = respond(answer, "open_circuit")
    elif answer.action == "refresh_once" and retry.retries_left == 0:
        answer = respond(
            answer, "stop_and_surface", "It was refreshed and fails again: stop, and show the error. " + STATUS
        )
    if writes:
        used = bool(idempotency_key) if isinstance(idempotency_key, bool | str) else None
        answer = of_a_write(replace(answer, safe_write=safe_write(provider)), checked, used)
    return answer


STATUS = "If the account's status is not ACTIVE, ask its owner to authorize it again."


def status_of(value: object) -> int | None:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 200 <= value < 600:
        return None
    return value


def outcome_of(status: int | None, found: Said, checked: str | None, writes: bool) -> Outcome | None:
    """What became of a call that answered 2xx; None for any other."""
    if status is None or status >= 300:
        return None
    if found.parts_failed and found.parts_ok:
        return "parts_failed"
    if found.refused or found.parts_failed:
        return "refused"
    if checked in LOOKED:
        return LOOKED[checked]
    return "unverified" if writes and checked != "verified" else "fine"


def fits(row: Row, status: int | None, found: Said, headers: dict[str, str], outcome: Outcome | None) -> bool:
    if outcome == "parts_failed" and outcome not in row.outcomes:
        return False  # the codes inside belong to its parts
    return (
        (not row.codes or any(code in row.folded for code in found.codes))
        and (not row.statuses or status in row.statuses or (status is None and bool(row.codes)))
        and (not row.phrases or any(phrase in text for phrase in row.phrases for text in found.texts))
        and (not row.outcomes or outcome in row.outcomes)
        and (not row.limited or retry_after.limited(headers))
    )


def as_described(answer: Answer, found: Said) -> Answer:
    """Expired or revoked where the provider's own description says one and not the other. It says nothing by a "not"."""
    if answer.provider == "microsoft":
        return answer  # Microsoft asks that nobody depend on its texts
    text = " ".join(found.texts)
    expired, revoked = "expired" in text, "revoked" in text
    if expired == revoked or " not " in text or "n't" in text:
        return answer
    if expired:
        return replace(answer, state="expired", meaning=f"The provider says that this {named(answer)} has expired.")
    answer = replace(answer, state="revoked", meaning=f"The provider says that this {named(answer)} was revoked.")
    if answer.error_class == "refresh_failed":
        return answer
    # A refresh would only tell the same: the grant behind a revoked access token is gone.
    never = Retry(allowed=False, retries_max=0, retries_left=0)
    return replace(respond(answer, "reauthorize"), error_class="refresh_failed", retry=never)


def named(answer: Answer) -> str:
    return (answer.credential or "token").replace("_", " ")


def respond(answer: Answer, action: Action, sentence: str | None = None) -> Answer:
    return replace(answer, action=action, what_to_do=sentence or ACTIONS[action])


def retry_of(row: Row, attempt: int, asked: retry_after.Asked | None) -> Retry:
    policy = POLICIES[row.policy]
    left = max(policy.retries_max - (attempt - 1), 0)
    if policy.retries_max == 0:
        return Retry(allowed=False, retries_max=0, retries_left=0, circuit_open=row.action == "open_circuit")
    if row.policy == "after_refresh":
        needs = ("refresh",) if left else ()
        return Retry(allowed=left > 0, retries_max=policy.retries_max, retries_left=left, requires=needs)
    if row.policy == "partial":
        return Retry(allowed=left > 0, retries_max=policy.retries_max, retries_left=left)
    if left == 0:
        return Retry(
            allowed=False,
            retries_max=policy.retries_max,
            retries_left=0,
            within_seconds=policy.within_seconds,
            wait_seconds=asked.seconds if asked else None,
            wait_asked_by=asked.by if asked else None,
            circuit_open=True,
        )
    ceiling = min(policy.backoff_max_seconds, policy.backoff_base_seconds * policy.backoff_factor ** (attempt - 1))
    wait, jitter = ceiling / 2, ceiling / 2
    if asked is not None:
        wait = asked.seconds
        jitter = min(max(JITTER_SHARE * wait, JITTER_SECONDS_MIN), JITTER_SECONDS_MAX)
    elif row.wait_seconds_min > wait:
        wait = row.wait_seconds_min
    return Retry(
        allowed=True,
        retries_max=policy.retries_max,
        retries_left=left,
        within_seconds=policy.within_seconds,
        wait_seconds=round(wait, 3),
        jitter_seconds_max=round(jitter, 3),
        wait_asked_by=asked.by if asked else None,
    )


def of_a_write(answer: Answer, checked: str | None, key: bool | None) -> Answer:
    """A write is repeated only through the provider's own mechanism and after a look at the state; else a human looks."""
    retry = answer.retry
    if retry.retries_max == 0:
        return answer  # it is not repeated anyway
    if checked == "verified":
        stop = Retry(allowed=False, retries_max=0, retries_left=0)
        return replace(respond(answer, "continue", "The write is there: do not repeat it, go on."), retry=stop)
    if retry.circuit_open:
        return respond(
            answer, "open_circuit", ACTIONS["open_circuit"] + " Before it is resumed, read whether the write is there."
        )
    if retry.retries_left == 0:
        return respond(answer, "human_review") if answer.error_class == "partial_execution" else answer
    if checked == "pending":
        return replace(respond(answer, "check_state"), retry=replace(retry, allowed=False, requires=("state_check",)))
    offered = answer.safe_write
    possible = offered is not None and offered.mechanism != "none" and key is not False and checked != "mismatch"
    refreshes = answer.action == "refresh_once"
    if not possible:
        sentence = f"{answer.what_to_do} {HUMAN}" if refreshes else None
        blocked = replace(retry, allowed=False, retries_left=0, requires=("human_review",))
        return replace(respond(answer, answer.action if refreshes else "human_review", sentence), retry=blocked)
    needs = [need for need in retry.requires if need == "refresh"]
    needs += ["state_check"] if checked != "missing" else []
    needs += ["provider_idempotency"] if not key else []
    if needs in ([], ["refresh"]):
        return answer
    sentence = f"{answer.what_to_do} {AGAIN}" if refreshes else None
    return replace(
        respond(answer, answer.action if refreshes else "check_state_then_retry", sentence),
        retry=replace(retry, allowed=False, requires=tuple(needs)),
    )


HUMAN = "This provider has no safe way to repeat a write: let a person look before the write is sent again."
AGAIN = (
    "Before the write is sent again, read whether it is there, and use the provider's own mechanism with the same key."
)
