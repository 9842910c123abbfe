"""`classify`: from what a provider answered to its class and the one right response. Pure, and never raises for any input.

The table (`table.py`) decides by what the provider said; then four rules hold for every row: retries are counted, a 400
or 422 is never sent again as it was, a write is repeated only through the provider's own mechanism and after a look at the
state, and nothing of a body is given back.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from service.playbook import retry_after, said
from service.playbook.answer import NEVER, Answer, Retry, respond
from service.playbook.names import family_of
from service.playbook.said import Said
from service.playbook.table import KNOWN_CODES, firm_rows_for, rows_for
from service.playbook.words import ANY, POLICIES, RESPONSES, ErrorClass, Outcome, Row
from service.playbook.writes import Call, call_of, carefully

__all__ = ["Answer", "Retry", "classify", "of_a_class"]

ATTEMPT_MAX = 1000
LOOKED: dict[str | None, Outcome] = {"missing": "missing", "mismatch": "mismatch", "pending": "pending"}
JITTER_SHARE = 0.1  # of a wait that the provider asked for, so that those told the same do not come back together
JITTER_SECONDS_MIN, JITTER_SECONDS_MAX = 1.0, 30.0
# GitHub's and Salesforce's windows are of an hour; what asks for more is a used-up day, or milliseconds under another name.
UNATTENDED_WAIT_SECONDS_MAX = 2 * 3600
NEVER_AGAIN_AS_IT_WAS = (400, 422)

STATUS = "If the account's status is not ACTIVE, ask its owner to authorize it again."
REFRESHED = f"It was refreshed and fails again: stop, and show the error. {STATUS}"
LATER = (
    "Do not retry: a 400 or a 422 is never sent again by itself. Queue the step until the provider is well again, and"
    " show the error to the tool's owner if it stays."
)
TOO_LONG = (
    f"Do not wait for it unattended: the provider asks for more than {UNATTENDED_WAIT_SECONDS_MAX // 3600} hours, or means"
    " milliseconds. Queue the step, and let a person look."
)
# What an agent calls a failure of which it says no more.
REPORTED: dict[ErrorClass, Row] = {
    error_class: Row(
        id=f"reported-{error_class.replace('_', '-')}",
        provider=ANY,
        error_class=error_class,
        action=action,
        meaning="The agent that made the call says so.",
        sources=(),
    )
    for error_class, action in RESPONSES.items()
}


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
    text or JSON-like data, as sent. `operation`: `read`, or one of `writes.READS` in any case; all else, and nothing, is
    taken for a write. `attempt` counts the calls that failed so far, this one included; `verification` is what a look at
    the state showed after the call; `idempotency_key` is whether the provider's own mechanism was used, None where nobody
    says. `now` (aware) is only for waits given as a date by an answer without a `Date` of its own.
    """
    family, status = family_of(provider), status_of(http_status)
    by_name = said.lowered(headers)
    found = said.read(by_name, body, KNOWN_CODES, succeeded=status is not None and 200 <= status < 300)
    call = call_of(provider, operation, verification, idempotency_key)
    if status is not None and status < 300 and found.refused and found.status is not None:
        status = found.status
    row = row_of(family, status, found, by_name, outcome_of(status, found, call))
    code = next((code for code in row.codes if code.lower() in found.codes), None)
    retry = retry_of(row, status, attempt, retry_after.asked(by_name, found.fields, now))
    answer = answer_of(row, retry, family, code, call)
    if row.described:
        answer = as_described(answer, found)
    return carefully(counted(answer, row), call)


def of_a_class(
    error_class: ErrorClass,
    provider: object,
    *,
    operation: object = None,
    attempt: object = 1,
    verification: object = None,
    idempotency_key: object = None,
) -> Answer:
    """The one right response to a failure of which only the class is known. The arguments are those of `classify`."""
    row, call = REPORTED[error_class], call_of(provider, operation, verification, idempotency_key)
    answer = answer_of(row, retry_of(row, None, attempt, None), family_of(provider), None, call)
    return carefully(counted(answer, row), call)


def row_of(family: str, status: int | None, found: Said, headers: dict[str, str], outcome: Outcome | None) -> Row:
    """The first that fits. A code of OAuth's that is never retried counts before a row of the provider's own that is."""
    row = next(row for row in rows_for(family) if fits(row, status, found, headers, outcome))
    if row.provider == ANY or row.policy == "never":
        return row
    return next((firm for firm in firm_rows_for(family) if fits(firm, status, found, headers, outcome)), row)


def answer_of(row: Row, retry: Retry, family: str, code: str | None, call: Call) -> Answer:
    return Answer(
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
        operation=call.operation,
    )


def counted(answer: Answer, row: Row) -> Answer:
    """With the words for retries that are used up, or that there are none of."""
    retry = answer.retry
    if retry.circuit_open and row.action != "open_circuit":
        return respond(answer, "open_circuit", TOO_LONG if "human_review" in retry.requires else None)
    if answer.action == "refresh_once" and retry.retries_left == 0:
        return respond(answer, "stop_and_surface", REFRESHED)
    if answer.action in ("wait_and_retry", "retry_with_backoff") and retry.retries_max == 0:
        return respond(answer, "stop_and_surface", LATER)
    return answer


def status_of(value: object) -> int | None:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 200 <= value < 600:
        return None
    return value


def outcome_of(status: int | None, found: Said, call: Call) -> Outcome | None:
    """What became of a call that answered 2xx; None for any other."""
    if status is None or status >= 300:
        return None
    if found.parts_failed and found.parts_ok:
        return "parts_failed"
    if found.refused or found.parts_failed:
        return "refused"
    if call.checked in LOOKED:
        return LOOKED[call.checked]
    return "unverified" if call.writes and call.checked != "verified" else "fine"


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
    return replace(respond(answer, "reauthorize"), error_class="refresh_failed", retry=NEVER)


def named(answer: Answer) -> str:
    return (answer.credential or "token").replace("_", " ")


def retry_of(row: Row, status: int | None, attempt: object, asked: retry_after.Asked | None) -> Retry:
    policy = POLICIES[row.policy]
    tries = attempt if isinstance(attempt, int) and not isinstance(attempt, bool) else 1
    tries = min(max(tries, 1), ATTEMPT_MAX)
    left = max(policy.retries_max - (tries - 1), 0)
    if policy.retries_max == 0:
        return replace(NEVER, circuit_open=row.action == "open_circuit")
    if row.policy == "after_refresh":
        needs = ("refresh",) if left else ()
        return Retry(allowed=left > 0, retries_max=policy.retries_max, retries_left=left, requires=needs)
    if row.policy == "partial":
        return Retry(allowed=left > 0, retries_max=policy.retries_max, retries_left=left)
    if status in NEVER_AGAIN_AS_IT_WAS:
        return NEVER  # whatever else it says: what waits here is the step, and no loop
    too_long = asked is not None and asked.seconds > UNATTENDED_WAIT_SECONDS_MAX
    if left == 0 or too_long:
        return Retry(
            allowed=False,
            retries_max=policy.retries_max,
            retries_left=left,
            within_seconds=policy.within_seconds,
            wait_seconds=asked.seconds if asked else None,
            wait_asked_by=asked.by if asked else None,
            circuit_open=True,
            requires=("human_review",) if too_long else (),
        )
    ceiling = min(policy.backoff_max_seconds, policy.backoff_base_seconds * policy.backoff_factor ** (tries - 1))
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
