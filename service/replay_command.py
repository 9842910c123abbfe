"""`authwatch replay`: takes in, after a mend, what was quarantined or refused."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import datetime

import click

from service.recover_command import Instant


@click.command()
@click.option("--rejected", is_flag=True, help="Requests refused for their signature, now that the secret is mended.")
@click.option("--source", help="Only of this source.")
@click.option("--since", type=Instant(), help="Only what was received at or after this time.")
@click.option("--id", "event_id", type=click.UUID, help="Only this quarantined event.")
@click.option("--dry-run", is_flag=True, help="Read and verify, take nothing.")
def replay(rejected: bool, source: str | None, since: datetime | None, event_id: object | None, dry_run: bool) -> None:
    """Read quarantined receipts again, or with --rejected verify refused requests again as of when they were received.

    May be stopped and repeated at any time: nothing is taken twice. Exit status 1 when something quarantined still cannot
    be read, or there is nothing of that --id.
    """
    from service.observe import configure_logging

    if rejected and event_id is not None:
        raise click.BadParameter("--id names a quarantined event; leave out --rejected")
    configure_logging({"AUTHWATCH_LOG_LEVEL": "WARNING"})
    sys.exit(asyncio.run(run(rejected, source, since, str(event_id) if event_id else None, dry_run)))


async def run(rejected: bool, source: str | None, since: datetime | None, event_id: str | None, dry_run: bool) -> int:
    from service.replay import Replayed, replay_quarantined, replay_rejected
    from service.settings import load_settings
    from service.sources import open_sources
    from service.store.session import open_engine

    settings = load_settings(os.environ)
    sources = open_sources(settings.sources)
    if source is not None and source not in sources:
        raise click.BadParameter(f'no source "{source}"; configured: {", ".join(sources) or "none"}')
    engine = open_engine(settings.database_url.get_secret_value(), connections_max=1)

    def progress(done: Replayed) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done.looked_at} looked at, {done.taken} readable", err=True, nl=False)

    try:
        if rejected:
            done = await replay_rejected(
                engine, sources, source=source, since=since, dry_run=dry_run, progress=progress
            )
        else:
            done = await replay_quarantined(
                engine,
                sources,
                source=source,
                since=since,
                event_row_id=event_id,
                dry_run=dry_run,
                progress=progress,
            )
    finally:
        await engine.dispose()
    what = "genuine" if rejected else "readable"
    click.echo(
        f"{done.looked_at} looked at, {done.taken} {what}"
        + (" and would be taken" if dry_run else f" and taken ({done.known} of them were here already)")
    )
    for reason, count in sorted(done.left.items()):
        click.echo(f"{count} left: {reason}")
    # That some refused requests are nobody's is what one expects at a door.
    return 1 if not rejected and (done.left or (event_id is not None and not done.looked_at)) else 0
