"""`authwatch rules diff`: what an edit changes, and what becomes of open alerts."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from service.rules.differ import Change, differ
from service.rules.files import PATH, UNREADABLE, Read, read_rules

MARKS = {"added": "+", "removed": "-", "changed": "~"}
COLOURS = {"added": "green", "removed": "red", "changed": "yellow"}
VALUE_MAX = 100


@click.command()
@click.argument("old", type=PATH)
@click.argument("new", required=False, type=PATH)
def diff(old: Path, new: Path | None) -> None:
    """Compare the rules of OLD and NEW: what was added, removed and changed, and what becomes of open alerts.

    Each is a rule file or a folder of them; without NEW, what AUTHWATCH_RULES names, or alert_rules. Exit status: 0 if they
    say the same, 1 if they differ, 2 if one cannot be read.
    """
    before, after = good(read_rules(old)), good(read_rules(new))
    changes = differ(before.rules, after.rules)
    for change in changes:
        show(change)
    counts = [f"{sum(1 for one in changes if one.what == what)} {what}" for what in MARKS]
    click.echo(", ".join(counts) if changes else f"no difference: {len(after.rules)} rules say the same")
    sys.exit(1 if changes else 0)


def good(read: Read) -> Read:
    """Only rules that load can be compared."""
    for problem in read.problems:
        click.echo(str(problem), err=True)
    if read.problems:
        sys.exit(UNREADABLE)
    return read


def show(change: Change) -> None:
    click.echo(click.style(f"{MARKS[change.what]} {change.id}: {change.what}", fg=COLOURS[change.what]))
    for key, old, new in change.keys:
        click.echo(f"    {key}: {short(old)} -> {short(new)}")
    click.echo(f"    {change.consequence}")


def short(value: str) -> str:
    return value if len(value) <= VALUE_MAX else f"{value[:VALUE_MAX]}..."
