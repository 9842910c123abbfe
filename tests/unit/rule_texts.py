"""Rule texts for tests, and what is wrong with them after one change."""

from __future__ import annotations

GOOD = """\
version: 1
rules:
- id: failing
  severity: P2
  count:
    match: {kind: token.refresh_failed}
    within: 15m
    gte: 3
  annotations: {summary: "It fails for {{ identifier }}"}
"""
MATCH = "{kind: token.refresh_failed}"
HEAD = "  severity: P2\n"
CONDITIONS = {
    "count": "{match: {kind: other}, within: 5m, gte: 2}",
    "ratio": "{good: {status: ACTIVE}, total: {kind: other}, within: 5m, lt: 0.9, min_total: 10}",
    "quantile": "{match: {kind: other}, field: lag_seconds, q: 0.99, within: 5m, gt: 30, min_total: 10}",
    "gauge": "{metric: delivery_lag_seconds, gt: 30}",
    "state": "{of: account, match: {status: EXPIRED}}",
    "absence": "{after: {kind: other}, expect: {kind: account.created}, within: 10m}",
}


def rule(condition: str, more: str = "", *, of: str | None = None) -> str:
    """A whole file of one rule with that condition; `of` is its text where it is not the plain one."""
    body = CONDITIONS[condition] if of is None else of
    return f"version: 1\nrules:\n- id: x\n  severity: P3\n  {condition}: {body}\n{more}  annotations: {{summary: s}}\n"


def with_change(old: str, new: str, text: str = GOOD) -> str:
    assert old in text
    return text.replace(old, new, 1)
