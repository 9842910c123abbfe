"""The gauges' part of the sweep: once a second what rules ask for is measured, judged, and said or taken back.

One transaction a look, under the lock of all who open alerts outside the evaluator: two workers that look at once look
one after the other, and the second finds what the first did. What is held from one look to the next is in the
database alone (`service/rules/gauging.py` says what it means).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences, own_alerts, rule_sets
from service.consequences import Consequences
from service.event import new_id
from service.observe import log as logger
from service.rules import Rule
from service.rules.gauging import Held, Readings, flaps, gauge_of, grouped, step
from service.runtime import Runtime
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import gauges as gauge_store
from service.store import log, readers
from service.store.accounts import parse_key
from service.store.alerts import Alert, dedup_key
from service.store.gauges import GaugeState, Standing
from service.store.session import begin
from workers.measure import MEASURES, OF_HABITS, Look
from workers.watch import learn

READ_AT_AGE_MAX = timedelta(seconds=30)  # a value that stays the same is not written every second


@dataclass(slots=True)
class Outcome:
    """What one look has come to. `ended`: alert id -> when and why; `opened` waits for the number of its episode."""

    states: list[GaugeState] = field(default_factory=list)
    forgotten: set[tuple[str, str]] = field(default_factory=set)
    opened: list[Alert] = field(default_factory=list)
    ended: dict[str, tuple[datetime, str]] = field(default_factory=dict)


async def look_at_gauges(runtime: Runtime) -> None:
    async with begin(runtime.engine) as conn:
        asked = {gauge_of(rule).metric for rule in (await rule_sets.in_force(conn, runtime)).gauges}
    if OF_HABITS & asked:
        await learn(runtime)
    notifiers = list(runtime.notifiers)
    async with begin(runtime.engine) as conn:
        rules = (await rule_sets.in_force(conn, runtime)).gauges
        metrics = {gauge_of(rule).metric for rule in rules}
        await own_alerts.lock(conn)
        now = await readers.clock(conn)
        known = await gauge_store.load(conn)
        look = Look(conn, runtime, now)
        measured = {metric: await MEASURES[metric](look) for metric in sorted(metrics)}
        in_force = {rule.id for rule in rules}
        standing = await gauge_store.standing(
            conn, in_force, {state.alert_id for state in known.values() if state.alert_id is not None}
        )
        out = Outcome()
        # A rule that left the set: whoever changes the set closes its alerts and says why.
        out.forgotten.update(key for key in known if key[0] not in in_force)
        for rule in rules:
            mine = {key: state for (rule_id, key), state in known.items() if rule_id == rule.id}
            await judge_rule(conn, rule, measured[gauge_of(rule).metric], mine, standing, now, out)
        await write(conn, out, now=now, notifiers=notifiers)


async def judge_rule(
    conn: AsyncConnection,
    rule: Rule,
    readings: Readings | None,
    known: Mapping[str, GaugeState],
    standing: Sequence[Standing],
    now: datetime,
    out: Outcome,
) -> None:
    """Every group that is measured, and those that no longer are. Of what cannot be known just now nothing changes."""
    changed = {alert.id for alert in standing if alert.changed}
    states = {
        key: state
        for key, state in known.items()
        if state.condition_version == rule.condition_version and state.alert_id not in changed
    }
    out.forgotten.update((rule.id, key) for key in known if key not in states)
    end_strangers(rule, states, standing, now, out)
    if readings is None:
        return
    lasting = {alert.id for alert in standing if alert.lasts and not alert.resolved}
    groups = grouped(rule, readings)
    for key, (group, value) in groups.items():
        state = states.get(key) or GaugeState(
            rule_id=rule.id,
            group_key=key,
            condition_version=rule.condition_version,
            group=group,
            alert_id=None,
            pending_since=None,
            false_since=None,
            flapping=False,
            value=value,
            read_at=now,
        )
        after = await judge_group(conn, rule, state, value, now, lasting, out)
        if key not in states or after != replace(state, read_at=now) or now - state.read_at > READ_AT_AGE_MAX:
            out.states.append(after)
    for key in states.keys() - groups.keys():
        out.forgotten.add((rule.id, key))
        if (alert_id := states[key].alert_id) is not None:
            out.ended[alert_id] = (now, "gone")
    out.forgotten -= {(rule.id, key) for key in groups}


def end_strangers(
    rule: Rule, states: Mapping[str, GaugeState], standing: Sequence[Standing], now: datetime, out: Outcome
) -> None:
    """Alerts of the rule that no state stands for: of its condition as it was before, or of the built-in that said this
    before there was the rule; or a person's word was written over our end of it, in the same instant."""
    held = {state.alert_id for state in states.values()}
    for alert in standing:
        if alert.rule_id == rule.id and alert.lasts and alert.id not in held:
            ours = alert.ruled and alert.group_key in states
            out.ended[alert.id] = (now, "recovered" if ours else "rule_changed")


async def judge_group(
    conn: AsyncConnection,
    rule: Rule,
    state: GaugeState,
    value: float,
    now: datetime,
    lasting: Collection[str],
    out: Outcome,
) -> GaugeState:
    held = Held(
        is_open=state.alert_id is not None,
        pending_since=state.pending_since,
        false_since=state.false_since,
        flapping=state.flapping,
    )
    by_hand = state.alert_id is not None and state.alert_id not in lasting
    held, turn = step(rule, held, value, now, by_hand=by_hand)
    alert_id = state.alert_id
    if turn is not None and turn.opens:
        held = replace(held, flapping=flaps(await gauge_store.recent_turns(conn, rule.id, state.group_key), turn.at))
        alert = make_alert(rule, state, value, turn.at, now)
        alert_id = alert.id
        out.opened.append(alert)
    elif turn is not None and alert_id is not None:
        out.ended[alert_id] = (turn.at, "recovered")
        alert_id = None
    return replace(
        state,
        alert_id=alert_id,
        pending_since=held.pending_since,
        false_since=held.false_since,
        flapping=held.flapping,
        value=value,
        read_at=now,
    )


def make_alert(rule: Rule, state: GaugeState, value: float, opened_at: datetime, now: datetime) -> Alert:
    """Its episode's number and its connection are given when it is written."""
    said = f"{value:.0f}" if abs(value) >= 10 else f"{value:.3g}"
    written = state.group.get("account_id")
    account = parse_key(written) if written is not None and written.count(":") >= 2 else None
    group = {**state.group, "account_id": account.account_id} if account is not None else state.group
    values = {**group, "group": ", ".join(group.values()), "value": said}
    return Alert(
        id=new_id(),
        rule_id=rule.id,
        rule_version=rule.version,
        severity=rule.severity,
        account=account,
        connection_id=None,
        group=group,
        group_key=state.group_key,
        episode=0,
        dedup_key="",
        state="firing",
        summary=rule.render(rule.summary, values),
        what_to_do=rule.render(rule.what_to_do, values) if rule.what_to_do else None,
        opened_at=opened_at,
        fired_at=now,
        value=value,
        pauses=False,
        condition_version=rule.condition_version,
        labels=dict(rule.labels),
        shadow=rule.shadow,
    )


async def write(conn: AsyncConnection, out: Outcome, *, now: datetime, notifiers: Sequence[str]) -> None:
    said = Consequences()
    changed: list[Alert] = []
    loud: list[str] = []
    for alert in await gauge_store.locked(conn, out.ended):
        if alert.condition_ended_at is not None:
            continue  # a person's word ended it
        at, reason = out.ended[alert.id]
        over = replace(alert, condition_ended_at=max(at, alert.opened_at))
        if alert.state != "resolved":
            over = replace(over, state="resolved", resolved_at=now, resolved_reason=reason)
            if not alert.shadow:  # of what was opened in shadow the row alone tells
                said.decisions.append(consequences.alert_decision(over, "alert.resolved", now, None))
                loud.append(alert.id)
        changed.append(over)
        logger.info("gauge.resolved", rule=alert.rule_id, group=alert.group_key, reason=reason)
    numbers = await alert_store.last_episodes(conn, {(alert.rule_id, alert.group_key) for alert in out.opened})
    # Routes, silences and groups go by the connection of an account, whatever found it broken.
    owners = await account_store.load(conn, {alert.account for alert in out.opened if alert.account is not None})
    for alert in out.opened:
        number = numbers.get((alert.rule_id, alert.group_key), 0) + 1
        owner = owners.get(alert.account) if alert.account is not None else None
        alert = replace(
            alert,
            connection_id=owner.connection_id if owner is not None else None,
            episode=number,
            dedup_key=dedup_key(alert.rule_id, alert.group_key, number),
        )
        if not alert.shadow:
            said.decisions.append(consequences.alert_decision(alert, "alert.firing", now, None))
            loud.append(alert.id)
        changed.append(alert)
        logger.warning("gauge.firing", rule=alert.rule_id, group=alert.group_key, value=alert.value)
    await alert_store.save(conn, changed)
    await gauge_store.forget(conn, out.forgotten)
    await gauge_store.save(conn, out.states)
    await consequences.notify(conn, said, loud, notifiers, now)
    await log.append(conn, said.decisions)
