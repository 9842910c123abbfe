"""`authwatch recover`: fetches what a source sent while nobody was there to take it, and says what it brought."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

import click

from service.errors import ConfigError


class Instant(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-11-24T02:00:00Z", param, ctx)
        if at.tzinfo is None:
            self.fail(f"{value!r} does not say its offset; write it with a Z, such as 2026-11-24T02:00:00Z", param, ctx)
        return at.astimezone(UTC)


@click.command()
@click.option(
    "--since", type=Instant(), required=True, help="The first instant to fetch, such as 2026-11-24T02:00:00Z."
)
@click.option("--until", type=Instant(), help="The last instant; by default now.")
@click.option("--source", help="Where there are several sources of the provider: which.")
@click.option("--dry-run", is_flag=True, help="Fetch and compare, keep nothing.")
def recover(since: datetime, until: datetime | None, source: str | None, dry_run: bool) -> None:
    """Fetch the events of a span from the provider's API, then bring every account to the state it has there.

    May be stopped and repeated at any time: what is here already is not taken twice.
    """
    from service.observe import configure_logging

    configure_logging({"AUTHWATCH_LOG_LEVEL": "WARNING"})
    asyncio.run(run(since, until, source, dry_run))


async def run(since: datetime, until: datetime | None, source: str | None, dry_run: bool) -> None:
    """Prints progress and a summary. Raises BadParameter, ConfigError, and DeliveryFailed when the provider fails us."""
    from service.event import rfc3339
    from service.provider_apis import open_api, sources_of
    from service.recover import (
        Tally,
        environment_of,
        reconcile_all,
        recover_events,
        scope_of,
    )
    from service.runtime import open_runtime
    from service.settings import load_settings
    from service.store import readers, recoveries, retention_state
    from service.store.session import begin

    settings = load_settings(os.environ)
    async with open_runtime(settings, connections_max=2) as runtime:
        api = open_api(settings, runtime.http)
        if api is None:
            raise ConfigError(
                "the provider's API is needed: set SCALEKIT_ENV_URL, SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET"
            )
        name = chosen(sources_of(settings, api.provider), source)
        scope = scope_of(runtime.engine, runtime.nudger, runtime.sources[name], api, dry_run=dry_run)
        async with begin(runtime.engine) as conn:
            now = await readers.clock(conn)
            oldest = await retention_state.recover_floor(conn, now, settings.retention)
        upto = min(until or now, now)
        if since < oldest:
            raise click.BadParameter(
                f"no further back than {rfc3339(oldest)}: what is older may be here already without our knowing,"
                " and would be taken a second time",
                param_hint="--since",
            )
        if since >= upto:
            raise click.BadParameter("it must lie before --until and before now", param_hint="--since")

        seen = Tally()

        async def progress(at: datetime | None, _page_token: str | None, step: Tally) -> None:
            nonlocal seen
            seen = seen.plus(step)
            if at is not None:
                click.echo(f"{name}: events up to {rfc3339(at)}: {seen.found} found, {seen.added} new")
            else:
                click.echo(f"{name}: {seen.accounts} accounts compared, {seen.changed} not as here")

        environment = await environment_of(scope)
        total = await recover_events(scope, since, upto, progress)
        environment = environment or await environment_of(scope)
        if environment is None:
            click.echo(f"{name}: the provider names no environment yet, so that accounts are not compared", err=True)
        else:
            compared = await reconcile_all(scope, environment.id, None, progress, missing_too=environment.named)
            total = total.plus(compared)
        if not dry_run:
            async with begin(runtime.engine) as conn:
                await recoveries.cover(conn, name, since, upto, now)
        would = "would be taken" if dry_run else "taken"
        click.echo(
            f"{name}: {total.found} events found, {total.added} of them new and {would}"
            + (f" ({total.unreadable} unreadable, in quarantine)" if total.unreadable else "")
            + f"; {total.accounts} accounts compared, {total.changed} brought to the provider's state"
            + (" if it were not a dry run" if dry_run else "")
        )


def chosen(candidates: list[str], source: str | None) -> str:
    known = ", ".join(candidates) or "none"
    if source is not None:
        if source not in candidates:
            raise click.BadParameter(
                f"no source of this provider has that name; there is: {known}", param_hint="--source"
            )
        return source
    if len(candidates) != 1:
        raise click.BadParameter(f"name one; there is: {known}", param_hint="--source")
    return candidates[0]
