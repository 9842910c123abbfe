"""`authwatch sinks`: where each SIEM destination stands, whether it takes what it is sent, and sending it the past again."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from service.errors import AuthwatchError, NotFound
from service.recover_command import Instant
from service.tokens import when

if TYPE_CHECKING:
    from service.runtime import Runtime

CHECK_SECONDS_MAX = 75.0
POISON_SHOWN_MAX = 50
T = TypeVar("T")


class Place(click.ParamType[int | datetime]):
    """A position of the log, or a time."""

    name = "time|position"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | datetime:
        text = str(value)
        if text.isascii() and text.isdecimal():
            return int(text[:18])
        return Instant().convert(value, param, ctx)


@click.group()
def sinks() -> None:
    """The SIEM destinations of the configuration."""


@sinks.command("list")
def list_() -> None:
    """Each sink: what it is sent, how far it is, and what it last refused."""
    rows, errors = with_runtime(read_all)
    head = ("name", "kind", "format", "match", "position", "lag items", "lag seconds", "poison", "sent again", "state")
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for name, error in errors.items():
        click.echo(f"{name}: {error}")


async def read_all(runtime: Runtime) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    from service import health
    from service.sinks import SINKS
    from service.store.session import begin

    async with begin(runtime.engine) as conn:
        parts = await health.of_sinks(conn, list(runtime.sinks))
    rows: list[tuple[str, ...]] = [
        (
            name,
            sink.kind,
            str(runtime.settings.sinks[name].get("format", SINKS[sink.kind].Config.model_fields["format"].default)),
            shown(runtime.settings.sinks[name].get("match")),
            str(parts[name]["position"]),
            health.lag_words(parts[name]),
            f"{parts[name]['lag_seconds']:.0f}",
            str(parts[name]["poison"]),
            str(parts[name]["sent_again"]),
            str(parts[name]["state"]),
        )
        for name, sink in runtime.sinks.items()
    ]
    return rows, {name: part["last_error"] for name, part in parts.items() if part["last_error"]}


def shown(match: Any) -> str:
    text = "everything" if match is None else json.dumps(match, separators=(", ", ": "), default=str)
    return text if len(text) <= 60 else text[:57] + "..."


@sinks.command()
@click.argument("name", required=False)
def test(name: str | None) -> None:
    """Ask a sink, or all of them, whether it would take what it is sent; exit 1 if one would not."""

    async def ask(runtime: Runtime) -> list[tuple[str, str | None, str]]:
        return [await checked(one, sink) for one, sink in chosen(runtime, name).items()]

    answers = with_runtime(ask)
    for one, wrong, said in answers:
        click.echo(f"{'BAD ' if wrong else 'ok  '} {one}: {wrong or said}")
    sys.exit(1 if any(wrong for _, wrong, _ in answers) else 0)


async def checked(name: str, sink: Any) -> tuple[str, str | None, str]:
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            return name, None, await sink.check()
    except TimeoutError:
        return name, f"no answer within {CHECK_SECONDS_MAX:.0f} s", ""
    except AuthwatchError as exc:
        return name, f"{exc} ({exc.code})", ""


@sinks.command()
@click.argument("name", required=False)
def poison(name: str | None) -> None:
    """What a sink refused for good, the newest first: it was put aside so that what came after it went through."""
    from service.store import shipping
    from service.store.session import begin

    async def read(runtime: Runtime) -> list[Any]:
        chosen(runtime, name)
        async with begin(runtime.engine) as conn:
            return await shipping.put_aside(conn, sink=name, before=None, limit=POISON_SHOWN_MAX)

    rows = with_runtime(read)
    for row in rows:
        sink = row.reader.removeprefix(shipping.PREFIX)
        click.echo(f"{when(row.at)}  {sink}  position {row.position}  event {row.event_row_id}: {row.reason}")
    if not rows:
        click.echo("nothing is put aside")


@sinks.command()
@click.argument("name")
@click.option(
    "--from", "start", type=Place(), required=True, help="The first to send again: its time, or its position."
)
@click.option("--dry-run", is_flag=True, help="Say how many it would be, and change nothing.")
def replay(name: str, start: int | datetime, dry_run: bool) -> None:
    """Send a sink again what it was sent before, from a time or a position on.

    May be done while the worker runs. Every item carries the id it had, by which a SIEM knows it again.
    """

    async def back(runtime: Runtime) -> tuple[int, int, bool]:
        from service.steer import audit
        from service.store import events, log, readers, shipping
        from service.store.session import begin

        chosen(runtime, name)
        async with begin(runtime.engine) as conn:
            wanted = start - 1 if isinstance(start, int) else await events.position_since(conn, start)
            floor = await readers.position(conn, readers.RETENTION)
            to = max(wanted, floor, 0)
            state = (await shipping.states(conn, [name])).get(name)
            if state is None or to >= state.position:
                stands = state.position if state is not None else 0
                raise AuthwatchError(
                    f"{name} stands at position {stands} and has not been sent anything from there on yet;"
                    " --from must lie before that",
                    code="nothing_to_replay",
                )
            count = (
                await shipping.count_between(conn, to, state.position)
                if dry_run
                else await shipping.replay(conn, name, to, await readers.clock(conn))
            )
            if not dry_run:
                reason = f"from position {to + 1}: {count} items"
                await log.append(conn, [audit("cli", "sink.replay", name, await readers.clock(conn), reason)])
            return count, to, to > max(wanted, 0)

    count, to, cut = with_runtime(back)
    if cut:
        click.echo("the log no longer holds what came before: it begins there", err=True)
    would = "would be" if dry_run else "are"
    click.echo(
        f"up to {count} items from position {to + 1} on {would} sent again to {name}, fewer where `match` leaves some out;"
        " they carry the ids they had"
    )


def chosen(runtime: Runtime, name: str | None) -> dict[str, Any]:
    if name is None:
        return runtime.sinks
    if name not in runtime.sinks:
        known = ", ".join(runtime.sinks) or "none"
        raise NotFound(f'no sink "{name}"; configured: {known}', code="sink_unknown")
    return {name: runtime.sinks[name]}


def with_runtime(work: Callable[[Runtime], Awaitable[T]]) -> T:
    from service.observe import configure_logging
    from service.runtime import open_runtime
    from service.settings import load_settings

    configure_logging({"AUTHWATCH_LOG_LEVEL": "ERROR"})

    async def run() -> T:
        async with open_runtime(load_settings(os.environ), connections_max=2) as runtime:
            return await work(runtime)

    return asyncio.run(run())
