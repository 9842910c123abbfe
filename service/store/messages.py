"""Where the message about an alert is at each notifier, so that later states edit it and never post again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
from sqlalchemy import DateTime, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class Message:
    """The one message about an alert at a destination, in the notifier's own words. `told`: keys of what it or its
    thread has told by now (service/thread.py); None: as it was."""

    alert_id: str
    destination: str
    channel: str
    ts: str
    said: str | None = None  # which state it told last
    told: tuple[str, ...] | None = None


SAVE = text(
    """
    INSERT INTO messages (alert_id, destination, channel, ts, posted_at, said)
    SELECT alert_id, destination, channel, ts, :now, said
    FROM jsonb_populate_recordset(NULL::messages, CAST(:rows AS jsonb))
    ORDER BY alert_id, destination
    ON CONFLICT (alert_id, destination) DO UPDATE SET
        channel = excluded.channel, ts = excluded.ts, said = excluded.said
    """
).bindparams(bindparam("now", type_=DateTime(timezone=True)))


async def save(conn: AsyncConnection, found: Sequence[Message], now: datetime) -> None:
    """Of two for one alert and destination the later counts."""
    if found:
        await conn.execute(SAVE, {"rows": as_json(found), "now": now})


def as_json(sent: Sequence[Message]) -> str:
    return orjson.dumps(list({(one.alert_id, one.destination): one for one in sent}.values())).decode()
