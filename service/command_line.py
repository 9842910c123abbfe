"""What every command line of ours is made of: commands that live beside what they are about, and `--data-dir`."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from service.datadir import DEFAULT, load_into


def load_data_dir(context: click.Context, parameter: click.Parameter, path: Path) -> Path:
    """What the environment leaves out comes from the `env` file of a data dir."""
    load_into(os.environ, path)
    return path


def data_dir_option(*, expose_value: bool = False, load: bool = True) -> click.Option:
    return click.Option(
        ["--data-dir"],
        type=click.Path(file_okay=False, path_type=Path),
        default=DEFAULT,
        envvar="AUTHWATCH_DATA_DIR",
        show_default=True,
        is_eager=True,
        expose_value=expose_value,
        callback=load_data_dir if load else None,
        help="The folder of `authwatch up`: its `env` file says what the environment leaves out.",
    )


class Commands(click.Group):
    """A group of its own commands and of those `elsewhere`: name -> `module:name`, imported only when asked for."""

    def __init__(self, *args: Any, elsewhere: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._elsewhere = elsewhere

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *(name for name, where in self._elsewhere.items() if exists(where))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = self._elsewhere.get(cmd_name)
        if where is None or not exists(where):
            return super().get_command(ctx, cmd_name)
        return with_data_dir(load(where))


def exists(where: str) -> bool:
    try:
        return importlib.util.find_spec(where.partition(":")[0]) is not None
    except ModuleNotFoundError:  # the package above it is not there
        return False


def load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def with_data_dir(command: click.Command) -> click.Command:
    """Gives a command, or each of a group's, the option --data-dir, unless it has one of its own."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            with_data_dir(below)
    elif not any(parameter.name == "data_dir" for parameter in command.params):
        command.params.append(data_dir_option())
    return command
