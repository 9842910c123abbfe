"""Events for tests of the pure rules: a word, and a second at which it happened."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from service.event import Event
from service.rules import Rule
from service.rules.given import Episode, Given, Judged
from service.rules.story import Initial, tell

BEGAN = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
SAID = {
    "failed": ("token.refresh_failed", None),
    "succeeded": ("token.refresh_succeeded", "ACTIVE"),
    "ACTIVE": ("account.authorized", "ACTIVE"),
    "EXPIRED": ("account.reauth_required", "EXPIRED"),
    "PENDING_AUTH": ("account.reauth_started", "PENDING_AUTH"),
    "DISCONNECTED": ("account.disconnected", "DISCONNECTED"),
    "DELETED": ("account.deleted", "DELETED"),
}
CALLED = ("tool_call.completed", None)
words = st.sampled_from(("failed", "failed", "failed", *SAID))


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def make_event(
    number: int,
    word: str,
    seconds: float,
    *,
    account: str = "ca_1",
    connection: str = "conn_1",
    details: dict[str, Any] | None = None,
) -> Event:
    """`word`: one of SAID, a call of a tool, or a status of which nothing else is known."""
    kind, status = CALLED if word.startswith("called") else SAID.get(word, ("account.updated", word))
    return Event(
        id=f"id_{number:03}",
        position=number + 1,
        source="scalekit",
        origin="webhook",
        event_id=f"evt_{number:03}",
        type=kind,
        kind=kind,
        account_id=account,
        connection_id=connection,
        provider=None,
        identifier=None,
        organization_id=None,
        environment_id="env_1",
        status=status,
        old_status=None,
        occurred_at=at(seconds),
        received_at=at(seconds),
        lag_seconds=0.0,
        clock_suspect=False,
        account_status=status,
        details=details or {},
    )


def make_events(story: Iterable[tuple[str, float]]) -> list[Event]:
    return [make_event(number, word, seconds) for number, (word, seconds) in enumerate(story)]


def judge(
    rule: Rule,
    story: Iterable[tuple[str, float]],
    *,
    now: float = 10_000,
    judge_from: float = 0,
    open_since: float | None = None,
    dependents: bool = True,
) -> Judged:
    steps = tell(Initial(), make_events(story)).steps
    return rule.judge(
        Given(
            open_since=None if open_since is None else at(open_since),
            samples=[sample for step in steps for sample in rule.samples(step)],
            steps=steps,
            judge_from=at(judge_from),
            now=at(now),
            dependents=dependents,
        )
    )


def spans(judged: Judged) -> list[tuple[float, float | None]]:
    def seconds(instant: datetime | None) -> float | None:
        return None if instant is None else (instant - BEGAN).total_seconds()

    def span(episode: Episode) -> tuple[float, float | None]:
        return (episode.opened_at - BEGAN).total_seconds(), seconds(episode.ended_at)

    return [span(episode) for episode in judged.episodes]
