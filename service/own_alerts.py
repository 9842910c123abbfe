"""Alerts about ourselves: a status nobody taught us, a short id that came to mean two accounts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey, new_id
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import workflows as workflow_store
from service.store.alerts import Alert, dedup_key
from service.subjects import Subject

KNOWN_STATUSES = frozenset({"ACTIVE", "EXPIRED", "PENDING_AUTH", "PENDING_VERIFICATION", "DISCONNECTED", "DELETED"})


async def own_alerts(conn: AsyncConnection, subjects: Mapping[AccountKey, Subject], now: datetime) -> list[Alert]:
    """What we must say about ourselves: a status nobody taught us, a short id that came to mean two accounts."""
    made: list[Alert] = []
    said: set[str] = set()
    for key, subject in subjects.items():
        status = subject.after.status
        about = f"{key.source}:{status}"
        # Only where an event is new: then the one evaluator speaks, and two transactions never say the same at once.
        if subject.new and status is not None and status not in KNOWN_STATUSES and about not in said:
            said.add(about)
            alert = await own_alert(
                conn,
                "unknown-account-status",
                about,
                f'{key.source} reports the account status "{status}", which is unknown here; the gate treats it as not well',
                "Check the provider's release notes; the account keeps that status until the next event.",
                now,
            )
            made.extend(alert)
        if subject.before is None and subject.new and key.account_id not in said:
            others = [other for other in await account_store.namesakes(conn, key.account_id) if other.key != key]
            if others and (waiting := await workflow_store.written_short(conn, key.account_id)):
                said.add(key.account_id)
                made.extend(
                    await own_alert(
                        conn,
                        "ambiguous-account-id",
                        key.account_id,
                        f"{key.account_id} now names {len(others) + 1} accounts, and workflow {waiting[0]} names it by that short id",
                        f"Put the workflow again with the full form, such as {others[0].key} or {key}.",
                        now,
                    )
                )
    return made


async def own_alert(
    conn: AsyncConnection, rule_id: str, group_key: str, summary: str, what_to_do: str, now: datetime
) -> list[Alert]:
    if await alert_store.open_of_group(conn, rule_id, group_key) is not None:
        return []
    number = (await alert_store.last_episodes(conn, {(rule_id, group_key)})).get((rule_id, group_key), 0) + 1
    return [
        Alert(
            id=new_id(),
            rule_id=rule_id,
            rule_version=None,
            severity="P3",
            account=None,
            connection_id=None,
            group={"about": group_key},
            group_key=group_key,
            episode=number,
            dedup_key=dedup_key(rule_id, group_key, number),
            state="firing",
            summary=summary,
            what_to_do=what_to_do,
            opened_at=now,
            fired_at=now,
            pauses=False,
        )
    ]
