"""What a gauge reads, as far as it is kept: the last reading of each group. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service.rules import Rule
from service.rules.explaining import Explanation, length, seconds, when
from service.rules.gauging import gauge_of
from service.store import gauges as gauge_store
from service.store.accounts import Account
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
    if not state.read_at - KEPT <= at <= state.read_at + KEPT:
        return None
    return of_state(rule, state)


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
