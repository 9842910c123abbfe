"""`authwatch rules check`: what is wrong in rule files, before they are deployed."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from service.rules.document import Problem
from service.rules.files import PATH, read_rules


@click.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=PATH)
@click.option("--strict", is_flag=True, help="Warnings count as well.")
def check(paths: tuple[Path, ...], strict: bool) -> None:
    """Say what is wrong in PATH, and where, and how to mend it.

    Each PATH is a rule file or a folder of them, and all are read as one; without any, what AUTHWATCH_RULES names, or
    alert_rules. Exit status: 0 if all is good, 1 if anything is wrong, 2 if there is nothing to read.
    """
    read = read_rules(*paths)
    problems, warnings = read.problems, read.warnings
    for problem in sorted([*problems, *warnings], key=lambda one: (one.file, one.line, one.column)):
        show(problem)
    files, good = len(read.files), len(read.rules)
    said = [count(len(problems), "problem"), count(len(warnings), "warning")]
    found = ", ".join(one for one in said if not one.startswith("0 "))
    if problems:
        click.echo(f"{found} in {count(files, 'file')}")
    else:
        click.echo(f"{count(good, 'rule')} in {count(files, 'file')}: good{f', {found}' if found else ''}")
    sys.exit(1 if problems or (strict and warnings) else 0)


def show(problem: Problem) -> None:
    """file:line:col, as editors and CI read it; the words meant, underlined; the mend."""
    level = click.style("warning", fg="yellow") if problem.warning else click.style("error", fg="red")
    click.echo(f"{problem.file}:{problem.line}:{problem.column}: {level}: {problem.message}")
    if problem.source:
        before = "".join(char if char == "\t" else " " for char in problem.source[: problem.offset])
        click.echo(f"    {problem.source}")
        click.echo(f"    {before}{'^' * max(1, min(problem.length, len(problem.source) - problem.offset))}")
    if problem.mend:
        click.echo(f"    mend: {problem.mend}")


def count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
