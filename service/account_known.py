"""An account that only reports told of turns out to be one that a provider tells of: what stands under the reports' own
name (`report::ca_1`) follows it there.

New reports are the provider's account's from then on, so that nothing would ever end what the old ones began.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences
from service.consequences import Consequences
from service.event import AccountKey
from service.report import SOURCE
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import deadlines as deadline_store
from service.store import log
from service.store.alerts import Alert
from service.store.columns import literal
from service.store.keys import key_values

KNOWN_AT_ONCE_MAX = 100
ACCOUNT_KNOWN = "account_known"

# By its short id, where one account alone has it, or by the full form.
FOUND = text(
    """
    SELECT r.environment_id, r.account_id, min(a.source) AS known_source,
        min(a.environment_id) AS known_environment_id, min(a.account_id) AS known_account_id
    FROM accounts r JOIN accounts a
        ON a.account_id = ANY (ARRAY[r.account_id, regexp_replace(r.account_id, '^[^:]*:[^:]*:', '')])
    WHERE r.source = :ours AND a.source <> :ours
        AND r.account_id IN (a.account_id, a.source || ':' || a.environment_id || ':' || a.account_id)
    GROUP BY 1, 2 HAVING count(*) = 1 ORDER BY 1, 2 LIMIT :limit
    """
)
PAIRS = """unnest(CAST(:key_sources AS text[]), CAST(:key_environment_ids AS text[]), CAST(:key_account_ids AS text[]),
    CAST(:known_sources AS text[]), CAST(:known_environment_ids AS text[]), CAST(:known_account_ids AS text[]))
    AS p (source, environment_id, account_id, known_source, known_environment_id, known_account_id)"""
MOVE_HOLDS = text(
    f"""
    UPDATE holds h SET source = p.known_source, environment_id = p.known_environment_id, account_id = p.known_account_id
    FROM {PAIRS}
    WHERE h.released_at IS NULL AND h.account_id = p.account_id AND h.source = p.source
        AND h.environment_id = p.environment_id
    """
)
# A short id was bound to the reports' account if that was the first of its name.
MOVE_DEPENDENCIES = text(
    f"""
    UPDATE dependencies d SET source = p.known_source, environment_id = p.known_environment_id,
        target_id = p.known_account_id
    FROM {PAIRS}
    WHERE d.kind = 'account' AND d.target_id = p.account_id AND d.source = p.source
        AND d.environment_id = p.environment_id
    """
)
FORGET = tuple(
    text(
        f"""
        DELETE FROM {table} t USING {PAIRS}
        WHERE t.source = p.source AND t.environment_id = p.environment_id AND t.account_id = p.account_id
        """
    )
    for table in ("deadlines", "armed", "accounts")
)
# What a gauge opened, its next reading ends: it reads the account by its new name.
MEASURED = text("SELECT alert_id FROM gauge_states WHERE alert_id = ANY (CAST(:ids AS uuid[]))")


async def follow_known(conn: AsyncConnection, notifiers: Sequence[str]) -> Consequences:
    """Moves a batch of such accounts, and takes all locks that it needs; appends its decisions to the log.

    Open alerts end as `account_known`. Holds and dependencies become the provider's account's, which is judged again
    at once: by the ordinary rule its holds go once it is well, and a break of its own is noticed.
    """
    out = Consequences()
    pairs = await known_by_now(conn)
    if not pairs:
        return out
    now = await account_store.lock(conn, {key.account_id for pair in pairs.items() for key in pair})
    await consequences.lock(conn)
    await end_alerts(conn, out, pairs, now, notifiers)
    names = {
        **key_values(pairs),
        "known_sources": literal([known.source for known in pairs.values()]),
        "known_environment_ids": literal([known.environment_id for known in pairs.values()]),
        "known_account_ids": literal([known.account_id for known in pairs.values()]),
    }
    for statement in (MOVE_HOLDS, MOVE_DEPENDENCIES, *FORGET):
        await conn.execute(statement, names)
    await deadline_store.bring_forward(conn, dict.fromkeys(sorted(pairs.values()), now))
    await log.append(conn, out.decisions)
    return out


async def known_by_now(conn: AsyncConnection) -> dict[AccountKey, AccountKey]:
    """The reports' accounts that are some provider's: whose."""
    rows = await conn.execute(FOUND, {"ours": SOURCE, "limit": KNOWN_AT_ONCE_MAX})
    return {
        AccountKey(SOURCE, row.environment_id, row.account_id): AccountKey(
            row.known_source, row.known_environment_id, row.known_account_id
        )
        for row in rows
    }


async def end_alerts(
    conn: AsyncConnection,
    out: Consequences,
    pairs: Mapping[AccountKey, AccountKey],
    now: datetime,
    notifiers: Sequence[str],
) -> None:
    stored = await alert_store.of_accounts(conn, dict.fromkeys(pairs, now))
    lasting = [alert for of_key in stored.values() for alert in of_key if alert.condition_ended_at is None]
    measured = await measured_of(conn, [alert.id for alert in lasting])
    rows = await account_store.load(conn, list(pairs.values()))
    ended: list[Alert] = []
    loud: list[str] = []
    for alert in lasting:
        if alert.id in measured or alert.account is None:
            continue
        over = replace(alert, condition_ended_at=now)
        if alert.state != "resolved":  # a person may have resolved it before
            over = replace(over, state="resolved", resolved_at=now, resolved_reason=ACCOUNT_KNOWN)
            if not alert.shadow:
                known = rows.get(pairs[alert.account])
                out.decisions.append(consequences.alert_decision(over, "alert.resolved", now, known))
                loud.append(alert.id)
        ended.append(over)
    await alert_store.save(conn, ended)
    await consequences.notify(conn, out, loud, notifiers, now)


async def measured_of(conn: AsyncConnection, alert_ids: Collection[str]) -> set[str]:
    if not alert_ids:
        return set()
    rows = await conn.execute(MEASURED, {"ids": literal(list(alert_ids))})
    return {str(row.alert_id) for row in rows}
