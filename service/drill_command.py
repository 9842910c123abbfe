"""`authwatch rules drill`: fires a rule for practice."""

from __future__ import annotations

import click


@click.command()
def drill() -> None:
    """To come."""
