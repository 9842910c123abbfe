"""Armed deadlines: what accounts still owe, one row for each absence rule and account that waits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import orjson
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey
from service.rules.given import Armed
from service.store.keys import key_values, same_account
from service.store.rule_tables import armed


@dataclass(slots=True)  # not frozen, for the speed of building one
class Owed:
    condition_version: str
    armed: Armed


OF_ACCOUNTS = select(armed).where(same_account(armed))
SAVE = text(
    """
    INSERT INTO armed (source, environment_id, account_id, rule_id, condition_version, armed_at, event_row_id, due_at)
    SELECT source, environment_id, account_id, rule_id, condition_version, armed_at, event_row_id, due_at
    FROM jsonb_populate_recordset(NULL::armed, CAST(:rows AS jsonb))
    ON CONFLICT (source, environment_id, account_id, rule_id) DO UPDATE SET
        condition_version = excluded.condition_version, armed_at = excluded.armed_at,
        event_row_id = excluded.event_row_id, due_at = excluded.due_at
    """
)
REMOVE = text(
    """
    DELETE FROM armed a USING jsonb_populate_recordset(NULL::armed, CAST(:rows AS jsonb)) AS gone
    WHERE a.source = gone.source AND a.environment_id = gone.environment_id
        AND a.account_id = gone.account_id AND a.rule_id = gone.rule_id
    """
)


async def of_accounts(conn: AsyncConnection, keys: Collection[AccountKey]) -> dict[AccountKey, dict[str, Owed]]:
    """What waits, by account and rule id."""
    found: dict[AccountKey, dict[str, Owed]] = {}
    if not keys:
        return found
    for row in await conn.execute(OF_ACCOUNTS, key_values(keys)):
        key = AccountKey(row.source, row.environment_id, row.account_id)
        waits = Armed(row.armed_at, str(row.event_row_id), row.due_at)
        found.setdefault(key, {})[row.rule_id] = Owed(row.condition_version, waits)
    return found


async def change(conn: AsyncConnection, changed: Mapping[tuple[AccountKey, str], Owed | None]) -> None:
    """None takes the row away."""
    rows, gone = [], []
    for (key, rule_id), owed in changed.items():
        names = dict(zip(("source", "environment_id", "account_id"), key, strict=True)) | {"rule_id": rule_id}
        if owed is None:
            gone.append(names)
        else:
            waits = owed.armed
            rows.append(
                names
                | {
                    "condition_version": owed.condition_version,
                    "armed_at": waits.at,
                    "event_row_id": waits.id,
                    "due_at": waits.due,
                }
            )
    if gone:
        await conn.execute(REMOVE, {"rows": orjson.dumps(gone).decode()})
    if rows:
        await conn.execute(SAVE, {"rows": orjson.dumps(rows).decode()})
