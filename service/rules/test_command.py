"""`authwatch rules test`: every inline test of every rule file, on a virtual clock."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from service.rules.inline_tests import Outcome, clock, run
from service.rules.load import SUFFIXES, load_file
from service.rules.model import Rule

TIMELINE_LINES_MAX = 60


@click.command("test")
@click.argument("path", required=False, type=click.Path(path_type=Path))
def test_rules(path: Path | None) -> None:
    """Run the inline tests of PATH (a file or a folder; default AUTHWATCH_RULES or alert_rules).

    Exit 0: all were met. 1: one was not. 2: a file cannot be read or has a mistake, or there is nothing to test.
    """
    target = path or Path(os.environ.get("AUTHWATCH_RULES", "alert_rules"))
    rules, bad = read(target)
    outcomes = []
    for rule in rules:
        for one in rule.tests:
            outcomes.append(run(rule, one))
            tell(outcomes[-1])
    failed = sum(1 for outcome in outcomes if not outcome.ok)
    untested = [rule.id for rule in rules if not rule.tests]
    if untested:
        click.echo(f"without tests: {', '.join(untested)}")
    click.echo(f"{len(outcomes) - failed} of {len(outcomes)} tests of {len(rules)} rules passed")
    sys.exit(2 if bad or not outcomes else 1 if failed else 0)


def read(target: Path) -> tuple[list[Rule], bool]:
    """The rules of all files that are good, and whether one was not."""
    rules: list[Rule] = []
    bad = False
    try:
        files = sorted(one for one in target.iterdir() if one.suffix in SUFFIXES) if target.is_dir() else [target]
    except OSError as exc:
        click.echo(f"{target}: cannot be read ({type(exc).__name__})", err=True)
        return [], True
    if not files:
        click.echo(f"{target}: no rule files here", err=True)
    for file in files:
        try:
            loaded = load_file(file)
        except OSError as exc:
            click.echo(f"{file}: cannot be read ({type(exc).__name__})", err=True)
            bad = True
            continue
        for problem in loaded.problems:
            click.echo(f"{file.parent / problem.file}:{problem.line}:{problem.column}: {problem.message}", err=True)
        bad = bad or bool(loaded.problems)
        rules += loaded.rules
    return rules, bad


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
