"""`authwatch rules drill`: fires a rule for practice, end to end, and says who heard of it and how soon."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from service.errors import ConfigError

if TYPE_CHECKING:
    from service.drill import Told
    from service.runtime import Runtime
    from service.store.alerts import Alert

LENGTH = re.compile(r"(\d{1,4})([smh])")
UNITS = {"s": 1, "m": 60, "h": 3_600}
LOOK_EVERY_SECONDS = 0.1
NOBODY = "is a worker running? See GET /v1/health"
OVER_WAIT_SECONDS = 10.0  # for the messages to be edited once it is over


class Length(click.ParamType[timedelta]):
    name = "60s|5m"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = LENGTH.fullmatch(str(value))
        if match is None or not int(match[1]):
            self.fail(f"{value!r} is not a length such as 60s or 5m", param, ctx)
        return timedelta(seconds=int(match[1]) * UNITS[match[2]])


@click.command()
@click.argument("rule_id")
@click.option("--account-id", help="Word the messages as if of this account; nothing happens to it.")
@click.option("--for", "lasts", type=Length(), default="60s", show_default=True, help="How long it fires; at most 1h.")
@click.option("--workflow", "workflow_id", help='Really pause this workflow for as long; its id begins with "drill".')
def drill(rule_id: str, account_id: str | None, lasts: timedelta, workflow_id: str | None) -> None:
    """Fire RULE_ID for practice, with messages, log and SIEM copies as in earnest, each marked as a drill.

    Waits until every notifier was told, then until it is over. It ends by itself also when this command is killed. Exit
    status 1 when a notifier was not told within that time.
    """
    from service.observe import configure_logging

    configure_logging({"AUTHWATCH_LOG_LEVEL": "WARNING"})
    sys.exit(asyncio.run(run(rule_id, account_id, lasts, workflow_id)))


async def run(rule_id: str, account_id: str | None, lasts: timedelta, workflow_id: str | None) -> int:
    """The exit status. Raises BadParameter for what is not there, and AuthwatchError."""
    from service import drill, queue, rule_sets
    from service.runtime import open_runtime
    from service.settings import load_settings
    from service.store import accounts
    from service.store.session import begin

    settings = load_settings(os.environ)
    if settings.database_url is None:
        raise ConfigError("DATABASE_URL is missing: set it, or name the folder of a running `authwatch up`")
    async with open_runtime(settings, connections_max=2) as runtime:
        async with begin(runtime.engine) as conn:
            ruleset = await rule_sets.in_force(conn, runtime)
            rule = ruleset.by_id.get(rule_id)
            if rule is None:
                known = ", ".join(sorted(ruleset.by_id)) or "none"
                raise click.BadParameter(f'no rule "{rule_id}" is in force; there are {known}', param_hint="RULE_ID")
            began = time.monotonic()  # after the rules were read, which takes this command longer than a worker
            account = await accounts.find(conn, account_id) if account_id is not None else None
            if account_id is not None and account is None:
                raise click.BadParameter(f"no event has named {account_id} yet", param_hint="--account-id")
            alert = await drill.start(
                conn,
                rule,
                account=account,
                lasts=lasts,
                workflow_id=workflow_id,
                notifiers=list(runtime.notifiers),
                actor=f"drill by {getpass.getuser()}",
            )
        runtime.nudger.nudge(queue.ACT)
        runtime.nudger.nudge(queue.SHIP)
        click.echo(
            f"committed after {time.monotonic() - began:.2f} s: alert {alert.id}, {rule.severity}, {alert.summary}"
        )
        if workflow_id is not None:
            click.echo(f"workflow {workflow_id} is paused: the gate denies it until the drill is over")
        try:
            missed = await wait_told(runtime, alert, lasts.total_seconds())
            await wait_over(lasts.total_seconds() - (time.monotonic() - began))
        finally:
            async with begin(runtime.engine) as conn:
                await drill.end(conn, alert.id, list(runtime.notifiers), reason="drill_over")
            runtime.nudger.nudge(queue.ACT)
            runtime.nudger.nudge(queue.SHIP)
            click.echo(f"over after {time.monotonic() - began:.1f} s: resolved" + (", let go" if workflow_id else ""))
        await wait_edited(runtime, alert)
    return 1 if missed else 0


async def wait_told(runtime: Runtime, alert: Alert, seconds: float) -> bool:
    """Says of each notifier when it had its message; whether one of them had not within that time."""
    from service import drill
    from service.store.session import begin

    if not runtime.notifiers:
        click.echo("nobody was told: no notifier is configured; set SLACK_BOT_TOKEN and SLACK_CHANNEL", err=True)
        return True
    said: set[str] = set()
    until = time.monotonic() + seconds
    while True:
        async with begin(runtime.engine) as conn:
            told = await drill.told(conn, alert)
        for one in told:
            if one.notifier not in said and one.state in ("done", "failed"):
                said.add(one.notifier)
                click.echo(line(one))
        if (told and len(said) == len(told)) or time.monotonic() >= until:
            break
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    if not told:
        tried = await waiting(runtime, alert)
        for name in runtime.notifiers if tried else ():
            click.echo(f"{name} was not told within {seconds:g} s: nobody has tried: {NOBODY}", err=True)
        if not tried:
            click.echo("nobody was told: a silence mutes it, or its route leads to nobody", err=True)
        return True
    for one in told:
        if one.notifier not in said:
            why = one.error or f"nobody has tried: {NOBODY}"
            click.echo(f"{one.notifier} was not told within {seconds:g} s: {why}", err=True)
    return not all(one.is_told for one in told)


async def waiting(runtime: Runtime, alert: Alert) -> bool:
    """Whether nobody has decided yet who is to be told of it."""
    from service.store import notifications
    from service.store.session import begin

    async with begin(runtime.engine) as conn:
        return await notifications.is_news(conn, alert.id)


def line(one: Told) -> str:
    if one.is_told:
        return f"{one.notifier} was told after {one.seconds or 0.0:.2f} s"
    return f"{one.notifier} was not told: {one.error}"


async def wait_over(seconds: float) -> None:
    """With a bar on a terminal."""
    until = time.monotonic() + seconds
    if not sys.stderr.isatty():
        await asyncio.sleep(max(0.0, seconds))
        return
    with click.progressbar(length=max(1, round(seconds)), label="it fires", file=sys.stderr) as bar:
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(1.0, left))
            bar.update(1)


async def wait_edited(runtime: Runtime, alert: Alert) -> None:
    """The same messages, edited to say that it is over."""
    from service.store import actions
    from service.store.session import begin

    until = time.monotonic() + OVER_WAIT_SECONDS
    while time.monotonic() < until:
        async with begin(runtime.engine) as conn:
            open_ = [one for one in await actions.of_alert(conn, alert.id) if one.state in actions.OPEN]
        if not open_ and not await waiting(runtime, alert):
            if runtime.notifiers:
                click.echo("every message says that it is over")
            return
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    names = ", ".join(sorted({one.destination for one in open_}))
    click.echo(f"not yet told that it is over: {names}; the worker goes on trying", err=True)
