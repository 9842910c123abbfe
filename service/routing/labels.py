"""The labels of an alert, by which routes, silences and inhibition know it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

# Set by us, whatever a rule's own labels or its group say.
OURS = (
    "alertname",
    "rule_id",
    "severity",
    "source",
    "environment_id",
    "account_id",
    "connection_id",
    "provider",
    "organization_id",
    "drill",
)


def make_labels(
    *,
    rule_id: str,
    severity: str,
    own: Mapping[str, str],
    group: Mapping[str, str],
    values: Mapping[str, str | None],
    drill: bool,
) -> dict[str, str]:
    """`own`: of the rule; `group`: what the alert is grouped by; `values`: of its account or connection. A label that
    would be empty is left out, which means the same to a matcher."""
    named = {**group, **own} | {name: value for name, value in values.items() if value}
    named |= {"alertname": rule_id, "rule_id": rule_id, "severity": severity}
    if drill:
        named["drill"] = "true"
    return {name: value for name, value in named.items() if value}
