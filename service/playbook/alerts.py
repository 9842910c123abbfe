"""What an alert says as "what to do now", from the event that raised it. Pure; it gives back nothing of the event's texts.

A provider's webhook may carry a reason, and Scalekit's carry none (facts/providers.md 1.2): then this says so, and gives
the one step that finds out. It never makes a reason up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.playbook.classify import Answer, classify, of_a_class
from service.playbook.standards import STATUSES
from service.playbook.words import ERROR_CLASSES

# What the adapters and the agents' reports may keep of a failure (service/providers, POST /v1/tool-calls).
CODE_DETAILS = ("error", "error_code", "code", "suberror", "errorCode", "reason", "error_codes")
TEXT_DETAILS = ("error_description", "message", "detail")
CALL = "tool_call.completed"
BARE = frozenset({*(row.id for row in STATUSES), "write-unverified"})  # rows that nothing but a status has decided

NO_REASON = (
    "The provider gave no reason. Look at the account's status first: if it is not ACTIVE, ask its owner to authorize it"
    " again; if it is, wait for the next refresh."
)
REFRESH_AGAIN = (
    "It says nothing against the token. Wait for the next refresh, and look at the provider's status page if many accounts"
    " fail."
)
BY_KIND = {
    "account.reauth_required": "Ask the account's owner to authorize it again. The provider gave no reason; no retry brings it"
    " back.",
    "account.disconnected": "Ask the account's owner whether that was meant. If not, let them authorize it again; if so, take"
    " the account out of the workflow.",
    "account.deleted": "Ask the account's owner whether that was meant. If not, let them connect it again; if so, take the"
    " account out of the workflow.",
    "auth.failed": "Send the account's owner a fresh link. If several people fail, check the connector's redirect address,"
    " scopes and credentials.",
    "auth.scope_changed": "Compare the scopes granted with those that the workflows need. If one is missing, ask the account's"
    " owner to consent again.",
}


def what_to_do(kind: str, details: Mapping[str, Any] | None = None, provider: str | None = None) -> str | None:
    """One or two sentences for the on-call, None for a kind that asks for nothing. `kind` is the event's, of contract.md;
    `details` are what is known of it, such as `error`, `http_status`, `error_class`."""
    known = told(kind, details, provider) if details else None
    if kind == "token.refresh_failed":
        return of_a_refresh(known) if known is not None else NO_REASON
    if kind == CALL:
        return of_a_call(details or {}, known, provider)
    if kind in ("account.reauth_required", "auth.failed") and known is not None and known.code is not None:
        return of_a_refresh(known)
    return BY_KIND.get(kind)


def with_playbook(
    written: str | None, kind: str, details: Mapping[str, Any] | None = None, provider: str | None = None
) -> str | None:
    """What the rule's author wrote, with the playbook's words before it where the provider gave a reason; without the
    author's, the playbook's."""
    if not written:
        return what_to_do(kind, details, provider)
    known = told(kind, details, provider) if details else None
    if known is None or known.code is None:
        return written
    said = what_to_do(kind, details, provider)
    return f"{said} {written}" if said and said not in written else written


def told(kind: str, details: Mapping[str, Any], provider: str | None) -> Answer | None:
    """The playbook's answer where the event says enough for one: a code of the table or a status of a failure."""
    body = {name: details[name] for name in (*CODE_DETAILS, *TEXT_DETAILS) if name in details}
    if "provider_error" in details:  # WorkOS passes on what the provider itself said (facts/providers.md 3.3)
        body |= {"error": details["provider_error"], "detail": details.get("provider_error_description")}
    answer = classify(provider, details.get("http_status"), None, body, **of_the_call(kind, details))
    return None if answer.row in ("no-answer", "fine", "redirected", "refused-in-a-success") else answer


def of_the_call(kind: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """What `classify` asks of the call itself. Everything but a tool's call is about a token, and repeats no write."""
    retries = details.get("retries")
    return {
        "operation": details.get("operation") if kind == CALL else "read",
        "attempt": retries + 1 if isinstance(retries, int) and retries >= 0 else 1,
        "verification": details.get("verification"),
        "idempotency_key": details.get("idempotency_key"),
    }


def of_a_refresh(answer: Answer) -> str:
    said = f"The provider said {answer.code}. " if answer.code is not None else ""
    if answer.error_class in ("upstream_5xx", "rate_limited"):
        return said + REFRESH_AGAIN
    if answer.code is None or answer.action == "refresh_once":
        # A bare status of a token endpoint is no reason, and refreshing is what has just failed.
        return said + NO_REASON if answer.code is None else said + NO_REASON.partition(". ")[2]
    return said + answer.what_to_do


def of_a_call(details: Mapping[str, Any], answer: Answer | None, provider: str | None) -> str | None:
    """A code says most, then the class that the agent gave it, who has seen the whole answer, and last a bare status: a
    refresh that failed is no 401 that a refresh may mend."""
    reported = details.get("error_class")
    for error_class in ERROR_CLASSES if answer is None or answer.row in BARE else ():
        if reported == error_class and (answer is None or error_class not in ("other", answer.error_class)):
            answer = of_a_class(error_class, provider, **of_the_call(CALL, details))
    if answer is None:
        return None
    return (f"The provider said {answer.code}. " if answer.code is not None else "") + answer.what_to_do
