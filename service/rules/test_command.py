"""`authwatch rules test`: every inline test of every rule file, on a virtual clock."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from service.rules.check_command import count, show
from service.rules.files import PATH, UNREADABLE, read_rules
from service.rules.inline_tests import Outcome, clock, run

TIMELINE_LINES_MAX = 60


@click.command("test")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=PATH)
def test_rules(paths: tuple[Path, ...]) -> None:
    """Run the inline tests of each PATH, a file or a folder; without any, what AUTHWATCH_RULES names, or alert_rules.

    Exit 0: all were met. 1: one was not. 2: a file cannot be read or has a mistake, or there is nothing to test.
    """
    read = read_rules(*paths)
    outcomes = []
    for rule in read.rules:
        for one in rule.tests:
            outcomes.append(run(rule, one))
            tell(outcomes[-1])
    problems = read.problems
    for problem in problems:
        show(problem)
    failed = sum(1 for outcome in outcomes if not outcome.ok)
    untested = [rule.id for rule in read.rules if not rule.tests]
    if untested:
        click.echo(f"without tests: {', '.join(untested)}")
    if outcomes:
        rules = count(len(read.rules), "rule")
        click.echo(f"{len(outcomes) - failed} of {count(len(outcomes), 'test')} of {rules} passed")
    elif read.rules:
        click.echo(f"no tests in {count(len(read.rules), 'rule')}; write them under `tests:`, see docs/rules.md")
    elif not problems:
        click.echo(f"no rule in {count(len(read.files), 'file')}, and so nothing to test")
    for file, loaded in read.files.items():
        if loaded.problems:
            click.echo(f"not run: {count(len(loaded.problems), 'mistake')} in {file}")
    sys.exit(UNREADABLE if problems or not outcomes else 1 if failed else 0)


def tell(outcome: Outcome) -> None:
    click.echo(f"{'ok    ' if outcome.ok else 'FAILED'}  {outcome.rule.id}: {outcome.test.name}")
    for missed in outcome.missed:
        click.echo(f"        at {clock(missed.at)}: expected {missed.expected}; seen {missed.seen}")
    if outcome.ok:
        return
    cut = len(outcome.timeline) - TIMELINE_LINES_MAX
    for line in outcome.timeline[:TIMELINE_LINES_MAX]:
        click.echo(f"        {line}")
    if cut > 0:
        click.echo(f"        and {cut} more")
