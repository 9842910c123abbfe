"""The gate, pure: may this tool call go ahead, from what is known of the workflow and the account."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from service.event import WELL, AccountKey

BEHIND_AFTER_SECONDS = 10.0
# contract.md: from the account's state, alert or not.
REASONS = {
    "EXPIRED": "account_expired",
    "DISCONNECTED": "account_disconnected",
    "DELETED": "account_deleted",
    "PENDING_AUTH": "account_pending",
    "PENDING_VERIFICATION": "account_pending",
}


# What the gate has to know of each, whether it was read whole or in one statement (service/store/gate.py).
class Workflow(Protocol):
    @property
    def workflow_id(self) -> str: ...
    @property
    def active(self) -> bool: ...


class Hold(Protocol):
    @property
    def workflow_id(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def account(self) -> AccountKey | None: ...
    @property
    def alert_id(self) -> str | None: ...
    @property
    def reason(self) -> str: ...


class Account(Protocol):
    @property
    def key(self) -> AccountKey: ...
    @property
    def status(self) -> str | None: ...
    @property
    def status_since(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked about; `None` ids were not given. `holds` are the workflow's open ones."""

    workflow_id: str | None
    workflow: Workflow | None
    holds: Sequence[Hold]
    account_id: str | None
    account: Account | None
    alert_ids: Sequence[str]  # unresolved alerts of the account
    on_unknown: Literal["deny", "allow"]
    evaluation_lag_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    allow: bool
    reason: str | None
    detail: str
    alert_ids: tuple[str, ...] = ()


def decide(asked: Asked) -> Answer:
    """What is known to be broken first, what is not known last."""
    return (
        denied_by_workflow(asked)
        or denied_by_account(asked)
        or denied_by_ignorance(asked)
        or Answer(True, None, "nothing stands against it")
    )


def denied_by_workflow(asked: Asked) -> Answer | None:
    workflow = asked.workflow
    if workflow is None:
        return None
    if not workflow.active:
        return Answer(False, "workflow_inactive", f"workflow {workflow.workflow_id} is not active")
    whole = [hold for hold in asked.holds if hold.scope == "workflow"]
    if whole:
        return Answer(
            False, "workflow_paused", f"workflow {workflow.workflow_id} is paused: {whole[0].reason}", alerts_of(whole)
        )
    return None


def denied_by_account(asked: Asked) -> Answer | None:
    account = asked.account
    if account is None:
        return None
    reason = REASONS.get(account.status or "")
    if reason is not None:
        since = f" since {account.status_since:%Y-%m-%d %H:%M:%S} UTC" if account.status_since else ""
        return Answer(
            False, reason, f"account {account.key.account_id} is {account.status}{since}", tuple(asked.alert_ids)
        )
    held = [hold for hold in asked.holds if hold.scope == "account" and hold.account == account.key]
    if held:
        detail = f"workflow {held[0].workflow_id} is paused for account {account.key.account_id}: {held[0].reason}"
        return Answer(False, "workflow_paused", detail, alerts_of(held))
    return None


def denied_by_ignorance(asked: Asked) -> Answer | None:
    """What we do not know, or do not know yet, is denied unless the caller asked otherwise."""
    if asked.on_unknown == "allow":
        return None
    if asked.workflow_id is not None and asked.workflow is None:
        return Answer(
            False, "unknown_workflow", f"no workflow {asked.workflow_id} is registered; PUT /v1/workflows/... first"
        )
    if asked.account_id is not None and (asked.account is None or asked.account.status is None):
        return Answer(False, "unknown_account", f"no event has told the state of account {asked.account_id} yet")
    if asked.account is not None and asked.account.status != WELL:
        return Answer(
            False,
            "unknown_account",
            f'account {asked.account_id} has the status "{asked.account.status}", which is not known here',
        )
    if asked.evaluation_lag_seconds > BEHIND_AFTER_SECONDS:
        return Answer(
            False, "evaluation_behind", f"events wait to be evaluated for {asked.evaluation_lag_seconds:.0f} s"
        )
    return None


def alerts_of(holds: Sequence[Hold]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(hold.alert_id for hold in holds if hold.alert_id))


def unasked(on_unknown: Literal["deny", "allow"]) -> Answer:
    """The database cannot be asked: what has happened since is not known, evaluated or not."""
    said = "the database cannot be asked now, so nothing is known of this workflow and this account"
    if on_unknown == "allow":
        return Answer(True, None, f"{said}; allowed because of on_unknown=allow")
    return Answer(False, "evaluation_behind", f"{said}; denied because of on_unknown=deny")
