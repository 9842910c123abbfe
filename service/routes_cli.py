"""`authwatch routes`: where an alert with given labels goes, and the whole tree, by the config file alone."""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import timedelta

import click

from service.routing.matchers import BadMatcher, Matcher, parse_matcher
from service.routing.tree import GROUP_BY, Node, Routing, picture
from service.settings import Environment, built_in_notifiers, config_file, routing_of

EXIT_MISMATCH = 1


@click.group()
def routes() -> None:
    """Who hears what: the route tree of the config file that AUTHWATCH_CONFIG names."""


@routes.command()
def show() -> None:
    """Draw the route tree: what each route matches, its receiver, and the notifiers behind it."""
    routing = read_routing()
    if not routing.configured:
        click.echo("no route in the config file: every notifier hears every alert at once")
    click.echo(picture(routing))


@routes.command()
@click.argument("labels", nargs=-1, metavar="NAME=VALUE...")
@click.option("--verify-receivers", metavar="A,B", help="Fail unless these are the receivers, in this order.")
def test(labels: tuple[str, ...], verify_receivers: str | None) -> None:
    """Say which receivers an alert with these labels goes to, such as `severity=P2 team=payments`.

    Prints the receivers with commas between them, as `amtool config routes test` does, then each route that takes it.
    """
    named = dict(read_label(label) for label in labels)
    routing = read_routing()
    found = routing.root.match(named)
    receivers = ",".join(node.receiver for node in found)
    click.echo(receivers)
    for node in found:
        click.echo(f"  {said(node, routing)}")
    if verify_receivers is not None and verify_receivers.replace(" ", "") != receivers:
        click.echo(f"expected {verify_receivers}", err=True)
        sys.exit(EXIT_MISMATCH)


def read_label(text: str) -> tuple[str, str]:
    """As matchers are written, quoted or not: what a person copies from a route means the same here."""
    label: Matcher | None = None
    with contextlib.suppress(BadMatcher):
        label = parse_matcher(text)
    if label is None or label.op != "=":
        raise click.UsageError(f'"{text}" is no label; write NAME=VALUE, such as severity=P2')
    return label.name, label.value


def read_routing() -> Routing:
    """Raises ConfigError, with the line where the mistake is one of routing."""
    env = Environment(os.environ)
    file = config_file(env)
    return routing_of(file, list(file.notifiers or built_in_notifiers(env)), env)


def said(node: Node, routing: Routing) -> str:
    by = f"[{', '.join(node.group_by)}]" if node.group_by is not None else f"[{', '.join(GROUP_BY)}] (by default)"
    parts = [
        f"{node.path}: {', '.join(routing.notifiers_of(node.receiver)) or 'nobody'}",
        f"group_by {by}",
        f"group_wait {words(node.group_wait)}",
        f"group_interval {words(node.group_interval)}",
        f"repeat_interval {words(node.repeat_interval) if node.repeat_interval else 'never'}",
        *(f"escalates to {step.to} after {words(step.after)}" for step in node.escalate),
        *(f"muted in {name}" for name in node.mute),
        *(f"only in {name}" for name in node.active),
    ]
    return ", ".join(parts)


def words(span: timedelta) -> str:
    seconds = span.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:g}s"
