"""Silences made and ended, and the one thing they may keep from happening beside messages: pauses, when they say so.

What `mutes_pauses` means, exactly: while such a silence mutes an alert, no hold is placed because of it, by no event and
by no PUT. What was paused before stays paused, and the gate still denies by the account's own state. When the silence
ends and the trouble lasts, the holds are placed then.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import BadRequest, Conflict, NotFound
from service.event import AccountKey
from service.routing.intervals import Clock, TimeInterval
from service.routing.labels import make_labels
from service.routing.model import DeclaredSilence
from service.routing.mute import Silence, silenced_by
from service.routing.tree import Routing
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import deadlines as deadline_store
from service.store import groups as group_store
from service.store import silences as silence_store
from service.store.accounts import Account
from service.store.alerts import Alert
from service.store.log import Decision
from service.store.owned import Owner
from service.store.workflows import Hold

SILENCE_MAX = timedelta(days=366)
LOOK_AGAIN = timedelta(minutes=1)  # at what a recurring silence kept from being paused
FOR_EVER = datetime(9999, 1, 1, tzinfo=UTC)  # of a recurring silence in the config file
CONFIG_FILE = "the config file"  # who made a declared silence, on the audit log
NAMESPACE = uuid.UUID("8a1f3a52-4a0f-4c53-9a4a-0d4d6f0c7b15")


async def labels_of(conn: AsyncConnection, alerts: Iterable[Alert]) -> dict[str, dict[str, str]]:
    """The labels of each, by its id."""
    known = list(alerts)
    accounts = await account_store.load(conn, {alert.account for alert in known if alert.account is not None})
    return {alert.id: labels_with(alert, accounts.get(alert.account) if alert.account else None) for alert in known}


def labels_with(alert: Alert, account: Account | Owner | None) -> dict[str, str]:
    key = alert.account
    return make_labels(
        rule_id=alert.rule_id,
        severity=alert.severity,
        own=alert.labels,
        group=alert.group,
        values={
            "source": key.source if key else alert.group.get("source"),
            "environment_id": key.environment_id if key else alert.group.get("environment_id"),
            "account_id": key.account_id if key else None,
            "connection_id": alert.connection_id,
            "provider": account.provider if account else None,
            "organization_id": account.organization_id if account else None,
        },
        drill=alert.drill,
    )


async def create(conn: AsyncConnection, silence: Silence, routing: Routing, actor: str) -> list[Decision]:
    """Raises BadRequest. The caller appends the decisions to the log as its last act."""
    now = silence.created_at
    if silence.end <= max(now, silence.start) or silence.end - silence.start > SILENCE_MAX:
        raise BadRequest(
            f"end: after the start, not yet past, and within {SILENCE_MAX.days} days of the start", code="invalid_body"
        )
    for name in silence.time_intervals:
        if name not in routing.clocks:
            known = ", ".join(routing.clocks) or "none is in the config file"
            raise BadRequest(
                f'time_intervals: no time interval named "{name}"; known: {known}', code="unknown_time_interval"
            )
    if await silence_store.count_live(conn, now) >= silence_store.SILENCES_MAX:
        raise Conflict(
            f"{silence_store.SILENCES_MAX} silences are in force; end some, or match more with one",
            code="too_many_silences",
        )
    await silence_store.save(conn, silence, intervals_of(silence.time_intervals, routing))
    return [audit(actor, "silence.create", silence, now)]


async def end(conn: AsyncConnection, silence_id: str, actor: str, now: datetime) -> tuple[Silence, list[Decision]]:
    """Over from now on; what it kept from being told or paused is looked at again. Ending it twice changes nothing."""
    silence = await silence_store.load(conn, silence_id, locked=True)
    if silence is None:
        raise NotFound("no silence of that id", code="unknown_silence")
    if silence.declared and silence.state(now) != "expired":
        raise Conflict("this silence stands in the config file; take it out there", code="silence_declared")
    if silence.state(now) == "expired":
        return silence, []
    await silence_store.end(conn, [silence_id], now)
    if silence.mutes_pauses:
        await look_at_pauses(conn, silence, now)
    return replace(silence, start=min(silence.start, now), end=now), [audit(actor, "silence.end", silence, now)]


async def look_at_pauses(conn: AsyncConnection, silence: Silence, now: datetime) -> None:
    """The evaluator judges at once what this silence concerned."""
    standing = [alert for alert in await alert_store.standing(conn) if alert.pauses]
    labels = await labels_of(conn, standing)
    concerned = [alert for alert in standing if silence.concerns(labels[alert.id])]
    await deadline_store.bring_forward(conn, {alert.account: now for alert in concerned if alert.account is not None})
    await group_store.set_due(conn, [alert.id for alert in concerned if alert.account is None], now)


def intervals_of(names: Sequence[str], routing: Routing) -> list[TimeInterval]:
    return [TimeInterval(name=name, time_intervals=routing.clocks[name].intervals) for name in names]


def declared(silence: DeclaredSilence, routing: Routing, now: datetime) -> Silence:
    """Its id is made of what it says, so that the same text is the same silence after every start."""
    intervals = [part for name in silence.time_intervals for part in routing.clocks[name].intervals]
    said = {
        "matchers": [str(matcher) for matcher in silence.matchers],
        "intervals": [interval.model_dump(mode="json") for interval in intervals],
        **silence.model_dump(mode="json", exclude={"matchers"}),
    }
    return Silence(
        id=str(uuid.uuid5(NAMESPACE, orjson.dumps(said, option=orjson.OPT_SORT_KEYS).decode())),
        matchers=silence.matchers,
        start=silence.start or datetime.fromtimestamp(0, UTC),
        end=silence.end or FOR_EVER,
        author=silence.author,
        comment=silence.comment,
        created_at=now,
        clock=Clock(tuple(intervals)) if intervals else None,
        time_intervals=silence.time_intervals,
        mutes_pauses=silence.mutes_pauses,
        declared=True,
    )


def all_declared(routing: Routing, now: datetime) -> dict[str, Silence]:
    """Those of the config file that are not over, by id."""
    found = [declared(silence, routing, now) for silence in routing.silences]
    return {one.id: one for one in found if one.end > now}


def declared_ids(routing: Routing, now: datetime) -> set[str]:
    return set(all_declared(routing, now)) if routing.silences else set()


async def keep_declared(conn: AsyncConnection, routing: Routing, now: datetime) -> list[Decision]:
    """The rows are what the config file of this worker says. The caller appends the decisions to the log as its last act."""
    wanted = all_declared(routing, now)
    there = await silence_store.declared_live(conn, now)
    for silence_id in sorted(set(wanted) - there):
        one = wanted[silence_id]
        await silence_store.save(conn, one, intervals_of(one.time_intervals, routing))
    decisions = [
        audit(CONFIG_FILE, "silence.create", wanted[silence_id], now) for silence_id in sorted(set(wanted) - there)
    ]
    gone = sorted(there - set(wanted))
    if gone:
        ended = await silence_store.load_many(conn, gone)
        await silence_store.end(conn, gone, now)
        for one in ended.values():
            if one.mutes_pauses:
                await look_at_pauses(conn, one, now)
        decisions += [audit(CONFIG_FILE, "silence.end", one, now) for one in ended.values()]
    return decisions


async def may_pause(
    conn: AsyncConnection,
    missing: Sequence[Hold],
    alerts: Mapping[str, Alert],
    now: datetime,
) -> tuple[list[Hold], dict[AccountKey, datetime]]:
    """Those of these holds that no silence forbids, and when what the others are about must be looked at again: by account,
    or by connection."""
    if not missing:
        return [], {}
    silences = await silence_store.live_on_pauses(conn, now)
    if not silences:
        return list(missing), {}
    concerned = {hold.alert_id: alerts[hold.alert_id] for hold in missing if hold.alert_id and hold.alert_id in alerts}
    labels = await labels_of(conn, concerned.values())
    allowed: list[Hold] = []
    again: dict[AccountKey, datetime] = {}
    for hold in missing:
        muting = [
            silence
            for silence in silences
            if hold.alert_id in labels and silence_mutes(silence, labels[hold.alert_id or ""], now)
        ]
        if not muting:
            allowed.append(hold)
            continue
        at = min(now + LOOK_AGAIN if silence.clock is not None else silence.end for silence in muting)
        about = hold.account or hold.connection
        if about is not None:
            again[about] = min(at, again.get(about, at))
    return allowed, again


def silence_mutes(silence: Silence, labels: Mapping[str, str], now: datetime) -> bool:
    return bool(silenced_by((silence,), labels, now))


def audit(actor: str, action: str, silence: Silence, now: datetime) -> Decision:
    return Decision(
        kind="audit",
        subject_id=silence.id,
        occurred_at=now,
        details={
            "actor": actor,
            "action": action,
            "subject": silence.id,
            "reason": silence.comment,
            "matchers": [str(matcher) for matcher in silence.matchers],
            "mutes_pauses": silence.mutes_pauses,
            "until": silence.end.isoformat(),
        },
    )
