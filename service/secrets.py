"""`authwatch secrets list`: which signing secret is in use, and which is safe to remove. Names only, never a key."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from service.tokens import in_database, when

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from service.store.secrets import Use

# Longer than any retry the provider documents (about 22 minutes), and than a night without events.
QUIET = timedelta(hours=24)
NUMBERS = (2, 5)  # columns of the table
UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One secret of one source. `position` counts from the newest; None when it is no longer configured."""

    source: str
    name: str
    position: int | None
    first_used_at: datetime | None
    last_used_at: datetime | None
    uses: int
    safe_to_remove: bool
    advice: str


@click.group()
def secrets() -> None:
    """The webhooks' signing secrets, by name."""


@secrets.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def list_(as_json: bool) -> None:
    """Every live secret: when it was first and last used, and whether it is safe to remove."""
    from service.settings import Environment, load_sources
    from service.sources import open_sources

    # As the files say now; a receiver that runs takes them within a second or two.
    sources = open_sources(load_sources(Environment(os.environ)))
    live = {name: source.fingerprints for name, source in sources.items()}

    async def read(conn: AsyncConnection) -> tuple[list[Use], datetime]:
        from service.store import readers
        from service.store import secrets as store

        return await store.everyone(conn), await readers.clock(conn)

    lines = judge(live, *in_database(read))
    if as_json:
        click.echo(json.dumps({"items": [to_json(line) for line in lines]}, indent=2))
        return
    if not lines:
        click.echo("no source is configured, and none ever was used", err=True)
    for row in table(lines):
        click.echo(row)


def judge(live: Mapping[str, Mapping[str, str]], uses: Sequence[Use], now: datetime) -> list[Line]:
    """`live` is each source's secrets, name and fingerprint, newest first. What was used and is no longer configured
    comes after them."""
    found = {(use.source, use.fingerprint): use for use in uses}
    lines: list[Line] = []
    for source, names in live.items():
        of_source = [found.get((source, fingerprint)) for fingerprint in names.values()]
        for index, name in enumerate(names):
            safe, advice = advise(of_source, index, now)
            lines.append(line_of(source, name, index + 1, of_source[index], safe, advice))
    for use in uses:
        configured = live.get(use.source, {})
        if use.fingerprint not in configured.values():
            said = f"no longer configured; last used {ago(now - use.last_at)}"
            # Its name may stand for another key by now.
            name = f"{use.name} ({use.fingerprint})" if use.name in configured else use.name
            lines.append(line_of(use.source, name, None, use, False, said))
    return lines


def advise(uses: Sequence[Use | None], index: int, now: datetime) -> tuple[bool, str]:
    """(safe to remove, the sentence) for one of a source's secrets, newest first.

    A request signed with several counts for the newest that matches, so an older one's last use is when it was needed.
    """
    use, newer = uses[index], [other for other in uses[:index] if other is not None]
    latest = max((other.last_at for other in newer), default=None)
    since = min((other.first_at for other in newer), default=now)
    if use is None:
        if latest is not None and now - since >= QUIET:
            return True, f"never used, and a newer one is in use since {when(since)}: safe to remove"
        if latest is not None:
            return False, f"never used; a newer one is in use since {when(since)}: wait until it was for a day"
        if any(other is not None for other in uses[index + 1 :]):
            return False, "never used; an older one still is: is it registered with the provider?"
        return False, "never used: is it registered with the provider?"
    last = f"last used {ago(now - use.last_at)}"
    if latest is not None and latest > use.last_at:
        if now - max(use.last_at, since) >= QUIET:
            return True, f"{last}; the newer one is in use since {when(since)}: safe to remove"
        return False, f"{last}; the newer one is in use since {when(since)}: wait until this one was quiet for a day"
    if any(other is not None and other.last_at > use.last_at for other in uses[index + 1 :]):
        return False, f"{last}; an older one was used since: has the provider gone back to it?"
    if index and latest is None:
        return False, f"in use, {last}; the newer one was never used"
    return False, f"in use, {last}"


def line_of(source: str, name: str, position: int | None, use: Use | None, safe: bool, advice: str) -> Line:
    return Line(
        source=source,
        name=name,
        position=position,
        first_used_at=use.first_at if use else None,
        last_used_at=use.last_at if use else None,
        uses=use.count if use else 0,
        safe_to_remove=safe,
        advice=advice,
    )


def ago(age: timedelta) -> str:
    seconds = age.total_seconds()
    for size, unit in UNITS:
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "less than a minute ago"


def to_json(line: Line) -> dict[str, object]:
    return {
        "source": line.source,
        "name": line.name,
        "position": line.position,
        "first_used_at": line.first_used_at.isoformat() if line.first_used_at else None,
        "last_used_at": line.last_used_at.isoformat() if line.last_used_at else None,
        "uses": line.uses,
        "safe_to_remove": line.safe_to_remove,
        "advice": line.advice,
    }


def table(lines: Sequence[Line]) -> list[str]:
    rows = [("source", "secret", "place", "first used (UTC)", "last used (UTC)", "uses", "advice")]
    for line in lines:
        place = "-" if line.position is None else str(line.position)
        times = (when(line.first_used_at), when(line.last_used_at))
        rows.append((line.source, line.name, place, *times, str(line.uses), line.advice))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
