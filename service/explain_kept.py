"""What rows say where judging again says too little: the last reading of a gauge, and a person's word. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service.episodes import by_hand
from service.rules import Rule
from service.rules.explaining import Explanation, State, length, seconds, when
from service.rules.gauging import gauge_of
from service.store import gauges as gauge_store
from service.store.accounts import Account
from service.store.alerts import Alert
from service.store.gauges import GaugeState

KEPT = timedelta(seconds=60)  # a reading that stays as it is, is written anew twice in that time


async def explain_reading(
    conn: AsyncConnection, rule: Rule, account: Account | None, group: Mapping[str, str], at: datetime
) -> Explanation | None:
    """None where nothing of that time is kept: only the alerts that it raised say what it read then."""
    key = (
        str(account.key) if account is not None and rule.by_account else ",".join(group[name] for name in rule.group_by)
    )
    state = await gauge_store.state_of(conn, rule.id, key)
    if state is None or state.condition_version != rule.condition_version:
        return None
    return of_state(rule, state) if state.read_at <= at <= state.read_at + KEPT else None


def of_state(rule: Rule, state: GaugeState) -> Explanation:
    """Pure."""
    gauge = gauge_of(rule)
    read = f"{gauge.metric} read {state.value:.4g} at {when(state.read_at)}, needs {gauge.needs}"
    if state.alert_id is not None:
        return Explanation(state="firing", because=(read,), value=state.value, needs=gauge.needs, until=state.read_at)
    if state.pending_since is not None:
        waits = f"true for {seconds(state.read_at - state.pending_since)} of {length(rule.for_)}"
        return Explanation(
            state="pending",
            because=(read,),
            missing=(waits,),
            value=state.value,
            needs=gauge.needs,
            since=state.pending_since,
            until=state.read_at,
        )
    return Explanation(state="inactive", missing=(read,), value=state.value, needs=gauge.needs, until=state.read_at)


def without_alert(rule: Rule, stored: Sequence[Alert]) -> tuple[State, str]:
    """What it is where the rule would fire by all that happened, and no alert stands for it. `stored`: those of its group
    until then, newest first. Pure."""
    if rule.shadow:
        return "firing", "the rule is in shadow: it records and sends nothing"
    if by_hand(rule) and stored and stored[0].condition_ended_at is not None:
        said = f"a person resolved alert {stored[0].id} at {when(stored[0].condition_ended_at)}"
        return "resolved", f"{said}: what was before has been dealt with, and only what comes after it counts"
    return "firing", "no alert stands for it: it was not evaluated then, or by another version of the rule"
