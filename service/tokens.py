"""`authwatch tokens`: API tokens with scopes; each is shown once, and only its hash is kept."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import click

from service.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

SCOPES = ("read", "write", "siem", "telemetry", "admin")
NAME_CHARS_MAX = 100
UNDEFINED_TABLE = "42P01"
T = TypeVar("T")


@click.group()
def tokens() -> None:
    """Make, list and revoke API tokens."""


def readable(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    """A name that can be stored, and read in the list and in the audit log."""
    if not name.strip() or not name.isprintable() or len(name) > NAME_CHARS_MAX:
        raise click.BadParameter(f"a name is 1 to {NAME_CHARS_MAX} printable characters")
    return name


@tokens.command()
@click.option("--name", required=True, callback=readable, help="Whose it is; it stands in the audit log.")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), required=True, help="May be given several times."
)
def create(name: str, scopes: tuple[str, ...]) -> None:
    """Make a token and show it, this once, on stdout."""

    async def make(conn: AsyncConnection) -> tuple[str, str]:
        from service.store import tokens as store

        row, text = await store.create(conn, name, frozenset(scopes))
        await note(conn, "token.create", row.id, f"{name}: {', '.join(sorted(scopes))}")
        return row.id, text

    token_id, text = in_database(make)
    click.echo(text)
    click.echo(f"made {token_id} with the scopes {', '.join(sorted(scopes))}; it is not shown again", err=True)


@tokens.command("list")
def list_() -> None:
    """Every token, never the token itself."""

    async def read(conn: AsyncConnection) -> list[tuple[str, ...]]:
        from service.store import tokens as store

        return [
            (
                token.id,
                token.name,
                ",".join(sorted(token.scopes)),
                when(token.created_at),
                when(token.last_used_at),
                when(token.revoked_at),
            )
            for token in await store.everyone(conn)
        ]

    rows = [("id", "name", "scopes", "created", "last used", "revoked"), *in_database(read)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@tokens.command()
@click.argument("token_id")
def revoke(token_id: str) -> None:
    """Make a token stop working, at once."""

    async def end(conn: AsyncConnection) -> bool:
        from service.store import tokens as store

        done = await store.revoke(conn, token_id)
        if done:
            await note(conn, "token.revoke", token_id)
        return done

    if not in_database(end):
        click.echo(f"no live token {token_id}; see `authwatch tokens list`", err=True)
        sys.exit(1)
    click.echo(f"revoked {token_id}", err=True)


def when(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else "-"


async def note(conn: AsyncConnection, action: str, subject: str, reason: str | None = None) -> None:
    """The change and its audit entry are one transaction."""
    from service.steer import audit
    from service.store import log, readers

    await log.append(conn, [audit("cli", action, subject, await readers.clock(conn), reason)])


def in_database(work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """One transaction on DATABASE_URL; a database that is away is one sentence."""
    from sqlalchemy.exc import ProgrammingError

    from service.settings import Environment
    from service.store.session import begin, open_engine

    url = Environment(os.environ).url("DATABASE_URL", "postgresql", "postgres")
    if url is None:
        raise ConfigError("DATABASE_URL is missing: set it, or name the service's folder with --data-dir")

    async def run() -> T:
        engine = open_engine(url, connections_max=1)
        try:
            async with begin(engine) as conn:
                return await work(conn)
        except ProgrammingError as exc:
            if getattr(exc.orig, "sqlstate", None) != UNDEFINED_TABLE:
                raise
            raise ConfigError("this database has no tables of Authwatch yet; run `authwatch migrate`") from None
        finally:
            await engine.dispose()

    return asyncio.run(run())
