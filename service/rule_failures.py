"""A rule that cannot be judged harms no other: what it raised is noted, and the account is judged again later.

Nothing is lost by that: a rule is judged from the log, and the log is still there a minute later. The type of the error is
kept and never its text, which may hold what an event held.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from service.observe import log as logger
from service.rules import Rule

RETRY = timedelta(seconds=60)
QUIET = timedelta(minutes=5)  # so long without a failure, and with every retry made: the rule is well

T = TypeVar("T")


@dataclass(slots=True)
class Failures:
    """Of one transaction. `found`: rule id -> its version, and the type of the error."""

    found: dict[str, tuple[str, str]] = field(default_factory=dict)

    def attempt(self, rule: Rule, judge: Callable[[], T]) -> T | None:
        """What `judge` answers; None when it raised. Nothing that `judge` reads may come from the database: an error of
        that is the transaction's, not the rule's."""
        try:
            return judge()
        except Exception as exc:  # noqa: BLE001 - the rule's edge: whatever it raises is its own failure
            if rule.id not in self.found:
                logger.error("rule.failed", rule_id=rule.id, error=type(exc).__name__, at=raised_at(exc))
            self.found[rule.id] = (rule.version, type(exc).__name__)
            return None

    @staticmethod
    def retry_at(now: datetime) -> datetime:
        """When an account is judged again that a rule failed on."""
        return now + RETRY


def raised_at(exc: BaseException) -> str | None:
    """File and line, for who mends it; the rest of a traceback may hold what an event held."""
    frames = traceback.extract_tb(exc.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None
