"""`authwatch orchestrators list | test | import`: what is configured, whether it answers, and what it runs."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import click

from service.errors import AuthwatchError
from service.orchestrators.proposals import Plan, Proposal, Wanted, body

if TYPE_CHECKING:
    from service.orchestrators.base import Orchestrator, Stops

EXIT_BAD = 1
ACTOR = "cli"
TEST_SECONDS_MAX = 20.0
SHOWN_MAX = 20  # of what is left as it is
T = TypeVar("T")
NONE_CONFIGURED = (
    "no orchestrator is configured; docs/orchestrators.md says how to write one into the file of AUTHWATCH_CONFIG"
)
WORDS = {True: "yes", False: "no", None: "it does not say"}


@click.group()
def orchestrators() -> None:
    """Where workflows run, and what a pause there stops."""


@orchestrators.command("list")
def list_() -> None:
    """Each configured orchestrator: its name, its kind, and what a pause stops there."""

    async def say(opened: Mapping[str, Orchestrator]) -> None:
        for name, one in opened.items():
            click.echo(f"{name} ({one.kind}): a pause stops {said(one.stops)}")

    with_orchestrators(say)


@orchestrators.command()
@click.argument("name", required=False)
@click.option("--ref", help="Say how this workflow stands there; it changes nothing.")
def test(name: str | None, ref: str | None) -> None:
    """Call each, or the one of that NAME, without changing anything; exit 1 if one does not take us."""

    async def call(opened: Mapping[str, Orchestrator]) -> int:
        if ref is not None and name is None and len(opened) > 1:
            raise click.UsageError("--ref is of one orchestrator; name it")
        bad = 0
        for one in [chosen(opened, name)] if name is not None else opened.values():
            bad += not await answers(one, ref)
        return bad

    sys.exit(EXIT_BAD if with_orchestrators(call) else 0)


async def answers(one: Orchestrator, ref: str | None) -> bool:
    """One line that begins with the verdict, of all that was asked; under it what else there is to know."""
    checked = state = None
    bad = ""
    try:
        async with asyncio.timeout(TEST_SECONDS_MAX):
            checked = await one.check()
            if ref is not None:
                state = await one.state(ref=ref)
    except TimeoutError:
        bad = f"no answer within {TEST_SECONDS_MAX:g} s; check its address and the network"
    except AuthwatchError as exc:
        bad = f"{exc} ({exc.code})"
    click.echo(f"BAD  {one.name}: {bad}" if bad else f"ok   {one.name}: {checked}")
    if bad and checked is not None:
        click.echo(f"     but for {ref} all is well: {checked}")
    if state is not None:
        stands = {True: "paused", False: "not paused", None: "it cannot be told whether it is paused"}
        click.echo(f"     {ref}: {stands[state.paused]}" + (f" ({state.detail})" if state.detail else ""))
    return not bad


@orchestrators.command("import")
@click.argument("name")
@click.option("--tag", help="Only workflows with this tag.")
@click.option("--name", "pattern", metavar="PATTERN", help="Only workflows whose name is like this, such as 'sync-*'.")
@click.option("--connection", "connections", multiple=True, metavar="ID", help="A connection that they depend on.")
@click.option("--account", "accounts", multiple=True, metavar="ID", help="An account that they depend on.")
@click.option("--apply", "applied", is_flag=True, help="Register them; without it nothing is changed.")
@click.option("--json", "as_json", is_flag=True, help="Print the proposed calls as JSON and not as curl lines.")
def import_(
    name: str,
    tag: str | None,
    pattern: str | None,
    connections: tuple[str, ...],
    accounts: tuple[str, ...],
    applied: bool,
    as_json: bool,
) -> None:
    """Propose, for each workflow of the orchestrator NAME, the `PUT /v1/workflows` that registers it.

    What is registered already is left as it is, under whatever id. May be repeated at any time.
    """
    if applied and not connections and not accounts:
        raise click.UsageError("give --connection or --account: a workflow that depends on nothing is never paused")
    wanted = Wanted(orchestrator=name, tag=tag, name=pattern, account_ids=accounts, connection_ids=connections)
    asyncio.run(run_import(wanted, applied=applied, as_json=as_json))


async def run_import(wanted: Wanted, *, applied: bool, as_json: bool) -> None:
    from service.importing import apply, look
    from service.observe import configure_logging
    from service.runtime import open_runtime
    from service.settings import load_settings

    configure_logging({"AUTHWATCH_LOG_LEVEL": "WARNING"})
    async with open_runtime(load_settings(os.environ), connections_max=2) as runtime:
        chosen(runtime.orchestrators, wanted.orchestrator)
        plan = await look(runtime, wanted)
        done = await apply(runtime, wanted, plan.new, ACTOR) if applied else []
    if as_json:
        click.echo(json.dumps(calls(plan), ensure_ascii=False, indent=2))
    else:
        for one in [] if applied else plan.new:
            click.echo(curl(wanted, one))
    tell(plan, done, applied=applied)


def calls(plan: Plan) -> list[dict[str, object]]:
    return [{"method": "PUT", "path": path_of(one), "body": body(plan.wanted, one)} for one in plan.new]


def path_of(one: Proposal) -> str:
    return f"/v1/workflows/{quote(one.workflow_id, safe='')}"


def curl(wanted: Wanted, one: Proposal) -> str:
    given = shlex.quote(json.dumps(body(wanted, one), ensure_ascii=False))
    return f'curl -fsS -X PUT "$AUTHWATCH_URL{path_of(one)}" -H "Authorization: Bearer $TOKEN" -d {given}'


def tell(plan: Plan, done: list[Proposal], *, applied: bool) -> None:
    """On stderr, so that the calls on stdout can be run as they are."""
    wanted = plan.wanted
    for one in plan.new:
        if one.instead_of is not None:
            click.echo(
                f"{one.name} ({one.ref}) is called {one.workflow_id}: {one.instead_of} is another workflow's", err=True
            )
    for known in plan.known[:SHOWN_MAX]:
        click.echo(f"left as it is: {known.name} ({known.ref}), registered as {known.workflow_id}", err=True)
    if len(plan.known) > SHOWN_MAX:
        click.echo(f"left as they are: {len(plan.known) - SHOWN_MAX} more", err=True)
    for workflow_id, ref in plan.gone[:SHOWN_MAX]:
        click.echo(f"not there any more: {ref}, registered as {workflow_id}; DELETE it, or PUT its new ref", err=True)
    if plan.cut:
        click.echo(f"{wanted.orchestrator} runs more than the {plan.looked_at} that were looked at", err=True)
    if not wanted.account_ids and not wanted.connection_ids and plan.new:
        click.echo("they depend on nothing yet: give --connection or --account, or edit the calls", err=True)
    new = f"{len(done)} registered" if applied else f"{len(plan.new)} to register"
    click.echo(
        f"{wanted.orchestrator}: {plan.looked_at} looked at, {new}, {len(plan.known)} left as they are", err=True
    )


def chosen(opened: Mapping[str, Orchestrator], name: str) -> Orchestrator:
    if name not in opened:
        raise click.BadParameter(f"no orchestrator of that name; there is: {', '.join(opened) or 'none'}")
    return opened[name]


def said(stops: Stops) -> str:
    return (
        f"scheduled starts: {WORDS[stops.scheduled_starts]}, starts by hand or API: {WORDS[stops.manual_starts]},"
        f" running work: {WORDS[stops.running_work]}"
    )


def with_orchestrators(work: Callable[[Mapping[str, Orchestrator]], Awaitable[T]]) -> T | None:
    """By the config file alone: neither needs a database."""
    from service.orchestrators import ORCHESTRATORS
    from service.outbound import open_client
    from service.runtime import open_plug_in
    from service.settings import Environment, config_file

    sections = config_file(Environment(os.environ)).orchestrators
    if not sections:
        click.echo(NONE_CONFIGURED)
        return None

    async def doing() -> T:
        async with open_client() as http:
            return await work(
                {
                    name: open_plug_in("orchestrators", ORCHESTRATORS, name, section, http)
                    for name, section in sections.items()
                }
            )

    return asyncio.run(doing())
