"""When a write may be repeated: only through the provider's own mechanism and after a look at the state. Pure.

A call of which nobody says that it reads is taken for a write, and the answer says so: a read taken for a write costs a
look, and a write taken for a read may be done twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from service.playbook.answer import NEVER, Answer, respond
from service.playbook.safe_writes import safe_write
from service.playbook.words import ACTIONS, Operation

READS = frozenset({"read", "get", "list", "search", "query"})
WRITES = frozenset({"write", "create", "update", "delete", "post", "put", "patch", "insert", "upsert", "send"})
VERIFICATIONS = ("verified", "pending", "missing", "mismatch", "none")
OPERATION_CHARS_MAX = 40

HUMAN = "This provider has no safe way to repeat a write: let a person look before the write is sent again."
AGAIN = (
    "Before the write is sent again, read whether it is there, and use the provider's own mechanism with the same key."
)
ASSUMED = "Nobody said that this call reads, so it is taken for a write."


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What the caller says of the call. `said`: somebody said what it is; else `operation` is the careful guess.
    `checked` is what a look at the state showed after a write, None for none. `key`: whether the provider's own
    mechanism was used, None where nobody says."""

    provider: object
    operation: Operation
    said: bool
    checked: str | None
    key: bool | None

    @property
    def writes(self) -> bool:
        return self.operation == "write"


def call_of(provider: object, operation: object, verification: object, idempotency_key: object) -> Call:
    """`operation` in any case; a state that was looked at after a call says that the call wrote."""
    written = operation.strip().lower() if isinstance(operation, str) and len(operation) <= OPERATION_CHARS_MAX else ""
    reads = written in READS
    checked = verification if isinstance(verification, str) and verification in VERIFICATIONS and not reads else None
    return Call(
        provider=provider,
        operation="read" if reads else "write",
        said=reads or written in WRITES or checked not in (None, "none"),
        checked=checked,
        key=bool(idempotency_key) if isinstance(idempotency_key, bool | str) else None,
    )


def carefully(answer: Answer, call: Call) -> Answer:
    """The same answer for a read; for a write, held back until it is safe to repeat. Where nobody said which it is, the
    answer says so if that made a difference."""
    if not call.writes:
        return answer
    offered = replace(answer, safe_write=safe_write(call.provider))
    held = of_a_write(offered, call.checked, call.key)
    if call.said:
        return held
    if held == offered and answer.row != "write-unverified":
        return answer
    return replace(held, what_to_do=f"{held.what_to_do} {ASSUMED}")


def of_a_write(answer: Answer, checked: str | None, key: bool | None) -> Answer:
    """A write is repeated only through the provider's own mechanism and after a look at the state; else a human looks."""
    retry = answer.retry
    if retry.retries_max == 0:
        return answer  # it is not repeated anyway
    if checked == "verified":
        return replace(respond(answer, "continue", "The write is there: do not repeat it, go on."), retry=NEVER)
    if retry.circuit_open:
        sentence = f"{answer.what_to_do} Before it is resumed, read whether the write is there."
        return respond(answer, "open_circuit", sentence)
    if retry.retries_left == 0:
        return respond(answer, "human_review") if answer.error_class == "partial_execution" else answer
    if checked == "pending":
        return replace(respond(answer, "check_state"), retry=replace(retry, allowed=False, requires=("state_check",)))
    offered = answer.safe_write
    possible = offered is not None and offered.mechanism != "none" and key is not False and checked != "mismatch"
    refreshes = answer.action == "refresh_once"
    if not possible:
        sentence = f"{answer.what_to_do} {HUMAN}" if refreshes else ACTIONS["human_review"]
        blocked = replace(retry, allowed=False, retries_left=0, requires=("human_review",))
        return replace(respond(answer, answer.action if refreshes else "human_review", sentence), retry=blocked)
    needs = [need for need in retry.requires if need == "refresh"]
    needs += ["state_check"] if checked != "missing" else []
    needs += ["provider_idempotency"] if not key else []
    if needs in ([], ["refresh"]):
        return answer
    sentence = f"{answer.what_to_do} {AGAIN}" if refreshes else ACTIONS["check_state_then_retry"]
    return replace(
        respond(answer, answer.action if refreshes else "check_state_then_retry", sentence),
        retry=replace(retry, allowed=False, requires=tuple(needs)),
    )
