"""`authwatch rules check`: the mistakes in rule files, before they are deployed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from service.rules.load import SUFFIXES, load_file


@click.group()
def rules() -> None:
    """Check rule files."""


@rules.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
def check(path: Path | None) -> None:
    """Say what is wrong in PATH (a file or a folder; default AUTHWATCH_RULES or alert_rules), exit 1 if anything is."""
    target = path or Path(os.environ.get("AUTHWATCH_RULES", "alert_rules"))
    files = sorted(one for one in target.iterdir() if one.suffix in SUFFIXES) if target.is_dir() else [target]
    bad, good = 0, 0
    for file in files:
        try:
            loaded = load_file(file)
        except OSError as exc:
            click.echo(f"{file}: cannot be read ({type(exc).__name__})", err=True)
            bad += 1
            continue
        for problem in loaded.problems:
            click.echo(f"{file.parent / problem.file}:{problem.line}:{problem.column}: {problem.message}", err=True)
        bad += len(loaded.problems)
        good += len(loaded.rules)
    if not files:
        click.echo(f"{target}: no rule files here", err=True)
    click.echo(f"{good} rules in {len(files)} files are good" if not bad else f"{bad} problems")
    sys.exit(1 if bad or not files else 0)
