"""The one right next step for an alert, from its rule and its evidence. Pure.

It names no reason that the provider did not give: without one it goes by the account's status, by how many fail together,
and by what kind of event it was (facts: service/playbook).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from service.notify.base import AlertView

Step = Literal["reauthorize", "fix_connector", "wait", "review_schema", "look", "resume"]

CONNECTOR_ACCOUNTS_MIN = 5  # of one connector that fail together: then it is not their owners (connection-failing.yml)
REFRESH_FAILURES_MIN = 3  # in a row: then a refresh that is still to come is not waited for (token-refresh-failing.yml)
BROKEN = frozenset({"DISCONNECTED", "EXPIRED", "PENDING_AUTH", "PENDING_VERIFICATION"})
# What the playbook answers to the provider's own word.
OF_ACTION: Mapping[str, Step] = {
    "reauthorize": "reauthorize",
    "request_scope": "reauthorize",
    "fix_client": "fix_connector",
    "wait_and_retry": "wait",
    "retry_with_backoff": "wait",
    "open_circuit": "wait",
    "fix_parameters": "review_schema",
}
WORDS: Mapping[Step, str] = {
    "reauthorize": "Re-authorize. The account's owner has to authorize it again.",
    "fix_connector": "Fix the connector's credentials. It is not the accounts' owners who did something: asking them would not help.",
    "wait": "Wait. What the provider said is about its load or its state, not about this account, and passes by itself.",
    "review_schema": "Review the schema. The provider refuses the parameters, and will refuse the same ones again.",
    "look": "Look by hand. Nothing here proves what would mend it.",
    "resume": "Resume by hand.",
}


def next_step(view: AlertView) -> Step | None:
    """None where nothing is left to do: it is a drill, or it is over and nothing waits for a person."""
    if view.drill:
        return None
    if any(line.waits for line in view.workflows):
        return "resume"
    if view.state == "resolved":
        return None
    if many_of_one_connector(view):
        return "fix_connector"
    if view.provider_action is not None:
        return OF_ACTION.get(view.provider_action, "look")
    if view.account_id is None:
        return "look"
    kinds = {one.kind: one.count for one in view.seen}
    if view.account_status == "DELETED" or "tool_call.completed" in kinds:
        return "look"
    if view.account_status in BROKEN:
        return "reauthorize"
    if "auth.failed" in kinds or kinds.get("token.refresh_failed", 0) >= REFRESH_FAILURES_MIN:
        return "reauthorize"
    return "look"


def many_of_one_connector(view: AlertView) -> bool:
    """One alert about a connector whose accounts fail together, or as many alerts of accounts of one connector. Calls that
    fail, or writes that are not there, say nothing against its credentials."""
    several = view.together
    if several is not None and several.total > 1:
        standing = several.firing + several.acknowledged
        of_accounts = several.all_accounts and not several.of_calls
        return view.connection_id is not None and of_accounts and standing >= CONNECTOR_ACCOUNTS_MIN
    of_connection = view.connection_id is not None or any(name == "connection_id" for name, _ in view.group)
    failures = sum(one.count for one in view.seen if one.kind != "tool_call.completed")
    return view.account_id is None and of_connection and failures >= CONNECTOR_ACCOUNTS_MIN
