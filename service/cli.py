"""The command line `authwatch`. Each command imports what it needs when it runs, so that none waits for another's."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from service.command_line import Commands, data_dir_option, load
from service.datadir import PARTS
from service.errors import AuthwatchError, ConfigError

EXIT_FAILED, EXIT_CONFIG = 1, 2
# Commands that live beside what they are about; `service` names no worker module, it only finds it by name.
ELSEWHERE = {
    "send": "service.send:send",
    "tokens": "service.tokens:tokens",
    "secrets": "service.secrets:secrets",
    "rules": "service.rules.cli:rules",
    "doctor": "service.doctor:doctor",
    "retention": "service.retention_cli:retention",
    "recover": "service.recover_command:recover",
    "replay": "service.replay_command:replay",
    "playbook": "service.playbook.render:playbook",
    "routes": "service.routes_cli:routes",
    "audit": "service.audit_cli:audit",
    "sinks": "service.sinks_cli:sinks",
}
WORKER_MAIN = "workers.main:main"


def main() -> None:
    """The console script: a mistake in the configuration is one sentence and exit status 2, other failures 1."""
    try:
        authwatch(prog_name="authwatch")
    except ConfigError as error:
        click.echo(f"authwatch: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    except AuthwatchError as error:
        click.echo(f"authwatch: {error}", err=True)
        sys.exit(EXIT_FAILED)


def _need_database() -> str:
    from service.settings import Environment

    url = Environment(os.environ).url("DATABASE_URL", "postgresql", "postgres")
    if url is None:
        raise ConfigError(
            "DATABASE_URL is missing: set it, or name with --data-dir the folder of a running `authwatch up`"
            f" ({os.environ['AUTHWATCH_DATA_DIR']} has no env file that gives it)"
        )
    return url


@click.group(
    cls=Commands,
    elsewhere=ELSEWHERE,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="authwatch")
def authwatch() -> None:
    """Authwatch keeps an auth provider's webhooks, and pauses, tells and copies when a connected account breaks."""


class Parts(click.ParamType[frozenset[str]]):
    name = "part,part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[str]:
        if isinstance(value, frozenset):
            return value
        named = [part.strip() for part in str(value).split(",") if part.strip()]
        for part in named:
            if part not in PARTS:
                self.fail(f"{part!r} is not a part; the parts are {', '.join(PARTS)}", param, ctx)
        if not named:
            self.fail(f"name at least one of {', '.join(PARTS)}", param, ctx)
        return frozenset(named)


HOST = click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
PORT = click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65_535))
WORKERS = click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="The number of receiver processes."
)


@authwatch.command(params=[data_dir_option(expose_value=True, load=False)])
@HOST
@PORT
@WORKERS
@click.option("--parts", type=Parts(), default=",".join(PARTS), show_default=True, help="The parts to run.")
def up(host: str, port: int, workers: int, parts: frozenset[str], data_dir: Path) -> None:
    """Run the whole service, or some of its parts, with a Postgres and a Redis of its own where none is given."""
    from service.up import Options, run

    sys.exit(run(Options(host=host, port=port, data_dir=data_dir, workers=workers, parts=parts)))


@authwatch.command(params=[data_dir_option()])
@HOST
@PORT
@WORKERS
def serve(host: str, port: int, workers: int) -> None:
    """Run the receiver: the front door and the API."""
    _outlive_hangups()
    from service.serve import serve as run

    _need_database()
    run(host, port, workers)


@authwatch.command(params=[data_dir_option()])
def worker() -> None:
    """Run the worker: evaluates, acts, ships and sweeps."""
    _outlive_hangups()
    _need_database()
    ended = load(WORKER_MAIN)()
    if inspect.iscoroutine(ended):
        ended = asyncio.run(ended)
    sys.exit(ended if isinstance(ended, int) else 0)


def _outlive_hangups() -> None:
    """SIGHUP means "look at the files now", and whoever sends it cannot know how far our start has come."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@authwatch.command(params=[data_dir_option()])
def migrate() -> None:
    """Bring the database's schema up to this version."""
    from service.migrate import upgrade

    upgrade(_need_database())


if __name__ == "__main__":
    main()
