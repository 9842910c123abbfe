"""Alerts about ourselves and our sources: what no rule file says, because the product must say it whoever wrote the rules.

`about` is the alert's group: at most one alert of a rule and a group is open at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences
from service.consequences import Consequences
from service.event import AccountKey, new_id
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import dependents as dependent_store
from service.store.alerts import Alert, dedup_key
from service.subjects import Subject

KNOWN_STATUSES = frozenset({"ACTIVE", "EXPIRED", "PENDING_AUTH", "PENDING_VERIFICATION", "DISCONNECTED", "DELETED"})
LOCK = 7_305_201_004  # of who opens or closes these outside the evaluator: two workers never say the same at once


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAlert:
    """Something we must say. `summary` and `what_to_do` are sentences for the on-call and hold no secret."""

    rule_id: str
    about: str
    summary: str
    what_to_do: str
    severity: Literal["P1", "P2", "P3", "P4"] = "P3"
    account: AccountKey | None = None


async def lock(conn: AsyncConnection) -> None:
    """Taken first by who calls `open_own` or `close_own`, before row locks; the log's lock stays the last."""
    await conn.execute(select(func.pg_advisory_xact_lock(LOCK)))


async def open_own(
    conn: AsyncConnection, wanted: Sequence[OwnAlert], *, now: datetime, notifiers: Sequence[str]
) -> Consequences:
    """Opens those that are not open and queues their messages; the caller appends `decisions` as its last act."""
    out = Consequences()
    opened = await make(conn, wanted, now)
    await alert_store.save(conn, opened)
    for alert in opened:
        out.decisions.append(consequences.alert_decision(alert, "alert.firing", now, None))
    out.fired = len(opened)
    await consequences.notify(conn, out, [alert.id for alert in opened], notifiers, now)
    return out


async def close_own(
    conn: AsyncConnection,
    rule_id: str,
    *,
    keep: Collection[str],
    reason: str = "recovered",
    now: datetime,
    notifiers: Sequence[str],
) -> Consequences:
    """Resolves every open alert of that rule whose group is not in `keep`."""
    out = Consequences()
    ended: list[Alert] = []
    loud: list[str] = []
    for alert in await alert_store.open_of_rule(conn, rule_id):
        if alert.group_key in keep:
            continue
        over = replace(alert, condition_ended_at=now)
        if alert.state != "resolved":  # a person may have resolved it before its condition ended
            over = replace(over, state="resolved", resolved_at=now, resolved_reason=reason)
            out.decisions.append(consequences.alert_decision(over, "alert.resolved", now, None))
            loud.append(alert.id)
        ended.append(over)
    await alert_store.save(conn, ended)
    await consequences.notify(conn, out, loud, notifiers, now)
    return out


async def make(conn: AsyncConnection, wanted: Sequence[OwnAlert], now: datetime) -> list[Alert]:
    made: list[Alert] = []
    for own in {(own.rule_id, own.about): own for own in wanted}.values():
        if await alert_store.open_of_group(conn, own.rule_id, own.about) is not None:
            continue
        pair = (own.rule_id, own.about)
        number = (await alert_store.last_episodes(conn, {pair})).get(pair, 0) + 1
        made.append(
            Alert(
                id=new_id(),
                rule_id=own.rule_id,
                rule_version=None,
                severity=own.severity,
                account=own.account,
                connection_id=None,
                group={"about": own.about},
                group_key=own.about,
                episode=number,
                dedup_key=dedup_key(own.rule_id, own.about, number),
                state="firing",
                summary=own.summary,
                what_to_do=own.what_to_do,
                opened_at=now,
                fired_at=now,
                pauses=False,
            )
        )
    return made


async def about_accounts(conn: AsyncConnection, subjects: Mapping[AccountKey, Subject], now: datetime) -> list[Alert]:
    """The evaluator's own: a status nobody taught us, a short id that came to mean two accounts.

    Only where an event is new: then the one evaluator speaks, and two transactions never say the same at once.
    """
    wanted: list[OwnAlert] = []
    first_seen = {key.account_id for key, subject in subjects.items() if subject.new and subject.before is None}
    shared = await account_store.shared_ids(conn, first_seen)  # their rows are saved by now
    for key, subject in subjects.items():
        if not subject.new:
            continue
        status = subject.after.status
        if status is not None and status not in KNOWN_STATUSES:
            wanted.append(
                OwnAlert(
                    rule_id="unknown-account-status",
                    about=f"{key.source}:{status}",
                    summary=f'{key.source} reports the account status "{status}", which is unknown here; the gate treats it as not well',
                    what_to_do="Check the provider's release notes; the account keeps that status until the next event.",
                )
            )
        if subject.before is None and key.account_id in shared:
            others = [other for other in await account_store.namesakes(conn, key.account_id) if other.key != key]
            if others and (waiting := await dependent_store.written_short(conn, key.account_id)):
                wanted.append(
                    OwnAlert(
                        rule_id="ambiguous-account-id",
                        about=key.account_id,
                        summary=f"{key.account_id} now names {len(others) + 1} accounts, and workflow {waiting[0]} names it by that short id",
                        what_to_do=f"Put the workflow again with the full form, such as {others[0].key} or {key}.",
                    )
                )
    return await make(conn, wanted, now)
