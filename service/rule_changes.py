"""What a changed rule set means for what is open: episodes of conditions that are gone end as `rule_changed`, never as
recovered, and accounts that may be judged differently now are judged again soon.

In batches and as often as wanted: the publishing transaction makes the first step, the sweep makes the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import ARRAY, Boolean, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences
from service.consequences import Consequences
from service.event import WELL, AccountKey
from service.rules import Ruleset
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import deadlines as deadline_store
from service.store import groups as group_store
from service.store.alerts import Alert

CLOSED_AT_ONCE_MAX = 500
REJUDGED_AT_ONCE_MAX = 1000
RULE_CHANGED = "rule_changed"

# Alerts of our own have no rule version. Those from before conditions were kept are of the rule as it is, if it is.
ENDED = text(
    """
    SELECT a.id FROM alerts a
    LEFT JOIN unnest(:ids, :conditions, :loud) AS r (id, condition, loud) ON r.id = a.rule_id
    WHERE a.condition_ended_at IS NULL AND a.rule_version IS NOT NULL
        AND (r.id IS NULL OR a.condition_version <> r.condition OR (a.shadow AND r.loud))
    ORDER BY a.fired_at, a.id LIMIT :limit
    """
).bindparams(
    bindparam("ids", type_=ARRAY(Text())),
    bindparam("conditions", type_=ARRAY(Text())),
    bindparam("loud", type_=ARRAY(Boolean())),
)


async def close_changed(
    conn: AsyncConnection, ruleset: Ruleset, now: datetime, notifiers: Sequence[str]
) -> Consequences:
    """Ends a batch of the open episodes whose rule is gone, disabled or has another condition; none left: nothing.

    Takes the locks of their accounts. Holds stay, as after a resolve by hand: the accounts are judged again, and what is
    well by then is let go by the ordinary rule. The caller appends `decisions` to the log as its last act.
    """
    found = await ended(conn, ruleset)
    out = Consequences()
    if not found:
        await look_at_groups_again(conn, ruleset, now)
        return out
    unlocked = (await alert_store.load_many(conn, found)).values()
    await account_store.lock(
        conn,
        {alert.account.account_id for alert in unlocked if alert.account},
        {alert.connection_id for alert in unlocked},
    )
    await consequences.lock(conn)
    await look_at_groups_again(conn, ruleset, now)
    # Read again under the locks: the evaluator may have ended some of them meanwhile.
    alerts = [
        alert
        for alert in (await alert_store.load_many(conn, found)).values()
        if alert.condition_ended_at is None and is_over(ruleset, alert)
    ]
    keys = {alert.account for alert in alerts if alert.account is not None}
    rows = await account_store.load(conn, keys)
    changed, loud = [], []
    for alert in sorted(alerts, key=lambda alert: (alert.fired_at, alert.id)):
        over = replace(alert, condition_ended_at=now)
        if alert.state != "resolved":  # a person may have resolved it before
            over = replace(over, state="resolved", resolved_at=now, resolved_reason=RULE_CHANGED)
            if not alert.shadow:  # the row alone says what a shadow rule would have done
                account = rows.get(alert.account) if alert.account else None
                out.decisions.append(consequences.alert_decision(over, "alert.resolved", now, account))
                loud.append(alert.id)
        changed.append(over)
    await alert_store.save(conn, changed)
    await consequences.notify(conn, out, loud, notifiers, now)
    await deadline_store.put(conn, dict.fromkeys(sorted(rows), now))
    await group_store.set_due(conn, [alert.id for alert in changed if alert.account is None], now)
    return out


async def look_at_groups_again(conn: AsyncConnection, ruleset: Ruleset, now: datetime) -> None:
    """Groups that were judged by another condition are judged by this one soon."""
    await group_store.look_again(conn, {rule.id: rule.condition_version for rule in ruleset.grouped}, now)


async def ended(conn: AsyncConnection, ruleset: Ruleset) -> list[str]:
    """Ids of the alerts that are open though their condition is not in the set, the oldest first; a batch of them."""
    rules = ruleset.rules
    rows = await conn.execute(
        ENDED,
        {
            "ids": [rule.id for rule in rules],
            "conditions": [rule.condition_version for rule in rules],
            "loud": [not rule.shadow for rule in rules],
            "limit": CLOSED_AT_ONCE_MAX,
        },
    )
    return [str(row.id) for row in rows]


def is_over(ruleset: Ruleset, alert: Alert) -> bool:
    """Also what a shadow rule noticed that is one no longer: whoever should have heard of it hears of it anew."""
    rule = ruleset.by_id.get(alert.rule_id)
    if rule is None or (alert.shadow and not rule.shadow):
        return True
    return alert.condition_version is not None and alert.condition_version != rule.condition_version


PAGE = text(
    f"""
    SELECT source, environment_id, account_id, connection_id,
        status IS DISTINCT FROM '{WELL}' OR failures_in_a_row > 0 OR last_event_at >= :since AS is_due
    FROM accounts WHERE (source, environment_id, account_id) > (:source, :environment_id, :account_id)
    ORDER BY source, environment_id, account_id LIMIT :limit
    """
)


async def rejudge_soon(
    conn: AsyncConnection, since: datetime, after: Sequence[str], now: datetime
) -> tuple[str, ...] | None:
    """Has a batch of the accounts after that key judged at once, as far as a rule could say something of them: those not
    well, those that fail, and those heard of since. The key it came to; None at the end of the accounts."""
    source, environment_id, account_id = after or ("", "", "")
    rows = (
        await conn.execute(
            PAGE,
            {
                "since": since,
                "source": source,
                "environment_id": environment_id,
                "account_id": account_id,
                "limit": REJUDGED_AT_ONCE_MAX,
            },
        )
    ).all()
    due = [row for row in rows if row.is_due]
    if due:
        await account_store.lock(conn, {row.account_id for row in due}, {row.connection_id for row in due})
        keys = [AccountKey(row.source, row.environment_id, row.account_id) for row in due]
        await deadline_store.put(conn, dict.fromkeys(keys, now))
    if len(rows) < REJUDGED_AT_ONCE_MAX:
        return None
    last = rows[-1]
    return (last.source, last.environment_id, last.account_id)
