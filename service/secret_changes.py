"""A signing secret that is put in or taken out is an entry of the audit log: once, however many processes see it.

Seen where the files are taken (service/reload.py). The first secrets a source is ever seen with are no change. A source
with no secret here is switched off here, which says nothing of the other processes.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.sources import Source
from service.steer import audit
from service.store import log, readers
from service.store.audit_tables import known_secrets
from service.store.log import Decision
from service.store.session import begin

CONFIGURATION = "the configuration"  # who changes a secret: whoever may write its file
LOCK = 7_305_201_018  # of who compares: two processes take the same file at the same moment


def live_secrets(sources: Mapping[str, Source]) -> dict[str, dict[str, str]]:
    """Of each source that has any: fingerprint -> name. Never a key."""
    return {
        name: {fingerprint: shown for shown, fingerprint in source.fingerprints.items()}
        for name, source in sources.items()
        if source.fingerprints
    }


async def note(engine: AsyncEngine, live: Mapping[str, Mapping[str, str]]) -> None:
    """Raises Unavailable: then it is tried again."""
    if not live:
        return
    async with begin(engine) as conn:
        await log.append(conn, await compare(conn, live))


async def compare(conn: AsyncConnection, live: Mapping[str, Mapping[str, str]]) -> list[Decision]:
    await conn.execute(select(func.pg_advisory_xact_lock(LOCK)))
    row = known_secrets.c
    before: dict[str, dict[str, str]] = {}
    for found in await conn.execute(select(known_secrets).where(row.source.in_(list(live)))):
        before.setdefault(found.source, {})[found.fingerprint] = found.shown_name
    now, decisions = await readers.clock(conn), list[Decision]()
    for source, secrets in sorted(live.items()):
        known = before.get(source, {})
        added = {one: name for one, name in secrets.items() if one not in known}
        gone = {one: name for one, name in known.items() if one not in secrets}
        for one, name in secrets.items():
            if known.get(one) != name:
                statement = insert(known_secrets).values(source=source, fingerprint=one, shown_name=name, since=now)
                await conn.execute(
                    statement.on_conflict_do_update(index_elements=("source", "fingerprint"), set_={"shown_name": name})
                )
        if gone:
            await conn.execute(delete(known_secrets).where(row.source == source, row.fingerprint.in_(list(gone))))
        if known:
            decisions += [
                audit(CONFIGURATION, "secret.add", f"{source}/{name}", now, f"fingerprint {one}")
                for one, name in added.items()
            ]
            decisions += [
                audit(CONFIGURATION, "secret.remove", f"{source}/{name}", now, f"fingerprint {one}")
                for one, name in gone.items()
            ]
    return decisions
