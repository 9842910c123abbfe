"""`authwatch retention plan | run`: what would go and what holds it back; a run that a person asks for."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from sqlalchemy.ext.asyncio import AsyncEngine

from service.errors import AuthwatchError
from service.retention import Plan
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from service.retain import Done

T = TypeVar("T")
NAMES_SHOWN_MAX = 20


@click.group()
def retention() -> None:
    """What is old enough to go, and what holds it back."""


@retention.command("plan")
def show() -> None:
    """Say what the next run would drop; nothing is changed."""
    from service.retain import look
    from service.store.session import begin

    async def read(engine: AsyncEngine, settings: Settings) -> Plan:
        async with begin(engine) as conn:
            return (await look(conn, settings.retention, list(settings.sinks))).plan

    say(on_database(read), "would be dropped")


@retention.command()
@click.option("--confirm", is_flag=True, help="Drop also what retention refuses to drop by itself.")
def run(confirm: bool) -> None:
    """Run it now, as the worker does once an hour."""
    from service.retain import configured, retain
    from service.store import retention_state
    from service.store.session import begin

    async def work(engine: AsyncEngine, settings: Settings) -> Done | None:
        async with begin(engine) as conn:
            of_worker = (await retention_state.read(conn)).configured
        if of_worker is not None and (
            found := differing(of_worker, configured(settings.retention, list(settings.sinks)))
        ):
            raise AuthwatchError(
                f"the worker runs with another {found} than this shell's configuration says; set AUTHWATCH_CONFIG and the"
                " variables as the worker has them, or restart the worker with these first",
                code="configuration_differs",
            )
        return await retain(
            engine, settings.retention, list(settings.sinks), list(settings.notifiers), confirmed=confirm
        )

    done = on_database(work)
    if done is None:
        raise AuthwatchError("another run of retention is under way; try again later")
    say(done.plan, "dropped")
    for what in done.unfinished:
        click.echo(f"not finished: {what}")
    if done.plan.refused is not None:
        click.echo("nothing was dropped; check the clock, then use --confirm", err=True)
        sys.exit(1)


def differing(worker: dict[str, Any], ours: dict[str, Any]) -> str:
    """The names of what is not the same, for a sentence; empty when all is."""
    kept = [f"retention.{name}" for name, each in ours["retention"].items() if worker["retention"].get(name) != each]
    return ", ".join([*kept, *(["list of sinks"] if worker["sinks"] != ours["sinks"] else [])])


def say(plan: Plan, what: str) -> None:
    if plan.refused is not None:
        click.echo(f"refused: {plan.refused}")
    names = [drop.day.name + (f" (lost for {', '.join(drop.lost_by)})" if drop.lost_by else "") for drop in plan.drops]
    click.echo(f"{what}: {len(names)} partitions")
    for name in names[:NAMES_SHOWN_MAX]:
        click.echo(f"  {name}")
    if len(names) > NAMES_SHOWN_MAX:
        click.echo(f"  and {len(names) - NAMES_SHOWN_MAX} more")
    for held in plan.held[:NAMES_SHOWN_MAX]:
        click.echo(f"held: {held.day.name}: {held.by}")


def on_database(work: Callable[[AsyncEngine, Settings], Awaitable[T]]) -> T:
    from service.store.session import open_engine

    async def doing() -> T:
        settings = load_settings(os.environ)
        engine = open_engine(settings.database_url.get_secret_value(), connections_max=2)
        try:
            return await work(engine, settings)
        finally:
            await engine.dispose()

    return asyncio.run(doing())
