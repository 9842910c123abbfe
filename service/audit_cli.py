"""`authwatch audit verify | list | adopt`: is the audit log as it was written, what does it say, who vouches for it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click

from service.audit import Broken, Walk, instant, is_hash, seal_of, words_of
from service.errors import ConfigError
from service.event import Event
from service.tokens import UNDEFINED_TABLE, in_database

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from service.audit_verify import Verdict

PROGRESS_SECONDS = 5.0
LISTED_MAX = 1_000
EXIT_BROKEN = 1
T = TypeVar("T")


@click.group()
def audit() -> None:
    """The audit log: a chain of hashes in which no entry can be changed or lost unseen."""


def a_time(_context: click.Context, _parameter: click.Parameter, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter("a day or a time as 2026-11-30 or 2026-11-30T12:00:00Z") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def a_hash(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and not is_hash(text):
        raise click.BadParameter("64 hexadecimal digits, as an earlier `authwatch audit verify` printed them")
    return text


SINCE = click.option("--since", callback=a_time, metavar="TIME", help="From the first entry received then on.")


@audit.command()
@SINCE
@click.option("--expect", callback=a_hash, metavar="HASH", help="A hash noted before, which must still be there.")
def verify(since: datetime | None, expect: str | None) -> None:
    """Go through the chain: exit 0 when it is sound, 1 with the first thing that is wrong."""
    from service.audit_verify import verify as go_through

    said_at = time.monotonic()

    def progress(walk: Walk) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= PROGRESS_SECONDS:
            said_at = time.monotonic()
            at = f", up to {instant(walk.newest.received_at)}" if walk.newest is not None else ""
            click.echo(f"{walk.count} entries{at}", err=True)

    verdict = on_engine(lambda engine: go_through(engine, since=since, expect=expect, progress=progress))
    click.echo(sentence(verdict))
    if verdict.broken is not None:
        sys.exit(EXIT_BROKEN)


def sentence(verdict: Verdict) -> str:
    walk, broken = verdict.walk, verdict.broken
    if broken is not None:
        return f"broken: {where(broken)}{broken.what} [{broken.check}]; {walk.count} entries before it are sound"
    if walk.first is None or walk.newest is None:
        return "sound: the chain has no entry yet"
    beside = f"; {walk.adopted} of other processes were vouched for" if walk.adopted else ""
    beside += f"; {walk.unchained} older ones are from before the chain and cannot be checked" if walk.unchained else ""
    return f"sound: {walk.count} entries, from {named(walk.first)} to {named(walk.newest)}{beside}"


def where(broken: Broken) -> str:
    if broken.position is None:
        return ""
    at = f", received {instant(broken.at)}" if broken.at is not None else ""
    return f"at position {broken.position}{at}: "


def named(event: Event) -> str:
    own = seal_of(event)
    assert own is not None
    return f"number {own.number} ({instant(event.received_at)}, {own.hash})"


@audit.command("list")
@SINCE
@click.option("--subject", metavar="ID", help="Only what was done to this workflow, alert, token or silence.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, LISTED_MAX))
def list_(since: datetime | None, subject: str | None, limit: int) -> None:
    """The newest entries: when, who, what, to what, why."""

    async def read(conn: AsyncConnection) -> list[Event]:
        from service.store import audit_entries

        return await audit_entries.newest(conn, limit, since=since, subject=subject)

    for event in in_database(read):
        line = (f"{event.occurred_at:%Y-%m-%d %H:%M:%S}", *words_of(event))
        click.echo("  ".join("".join(char if char.isprintable() else " " for char in word) for word in line))


@audit.command()
@click.option("--actor", required=True, help="Who looked at them; it stands in the audit log.")
@click.option("--reason", required=True, help="Why they are right.")
def adopt(actor: str, reason: str) -> None:
    """Vouch for entries without a hash, as processes of an older version leave them during an upgrade."""

    async def vouch(conn: AsyncConnection) -> list[Event]:
        from service.store import audit_entries, readers

        found = await audit_entries.unsealed(conn)
        await audit_entries.adopt(conn, found, f"cli:{actor}", reason, await readers.clock(conn))
        return found

    found = in_database(vouch)
    for event in found:
        click.echo(f"{event.position}  {instant(event.received_at)}  {'  '.join(words_of(event))}")
    click.echo(f"vouched for {len(found)} entries", err=True)


def on_engine(work: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    """Several transactions on DATABASE_URL, one after another."""
    from sqlalchemy.exc import ProgrammingError

    from service.settings import Environment
    from service.store.session import open_engine

    url = Environment(os.environ).url("DATABASE_URL", "postgresql", "postgres")
    if url is None:
        raise ConfigError("DATABASE_URL is missing: set it, or name the service's folder with --data-dir")

    async def run() -> T:
        engine = open_engine(url, connections_max=1)
        try:
            return await work(engine)
        except ProgrammingError as exc:
            if getattr(exc.orig, "sqlstate", None) != UNDEFINED_TABLE:
                raise
            raise ConfigError("this database has no audit chain yet; run `authwatch migrate`") from None
        finally:
            await engine.dispose()

    return asyncio.run(run())
