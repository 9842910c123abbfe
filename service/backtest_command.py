"""`authwatch rules backtest`: what rule files would have made of the log that is stored."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from service.backtest import Backtest, Tally
    from service.rules import Ruleset

SINCE = re.compile(r"(\d{1,5})([smhd])")
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
LINE_EVERY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Since:
    """A length back from now, or an instant."""

    written: str
    length: timedelta | None = None
    instant: datetime | None = None

    def before(self, now: datetime) -> datetime:
        return self.instant if self.instant is not None else now - (self.length or timedelta(0))


class SinceType(click.ParamType[Since]):
    name = "30d|time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Since:
        if isinstance(value, Since):
            return value
        if match := SINCE.fullmatch(str(value)):
            length = timedelta(seconds=int(match[1]) * UNITS[match[2]])
            if not length:
                self.fail(f"{value!r} leaves no time before now to look at", param, ctx)
            return Since(str(value), length=length)
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither a length such as 30d nor a time such as 2026-11-24T02:00:00Z", param, ctx)
        if at.tzinfo is None:
            self.fail(f"{value!r} does not say its offset; write it with a Z, such as 2026-11-24T02:00:00Z", param, ctx)
        if at >= datetime.now(UTC):
            self.fail(f"{value!r} leaves no time before now to look at", param, ctx)
        return Since(str(value), instant=at.astimezone(UTC))


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--since", type=SinceType(), default="30d", show_default=True, help="How far back to count episodes.")
@click.option("--rule", "rule_ids", multiple=True, help="Only this rule; may be given several times.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for a script.")
def backtest(path: Path | None, since: Since, rule_ids: tuple[str, ...], as_json: bool) -> None:
    """Judge the stored log anew by the rules in PATH (a file or a folder; default AUTHWATCH_RULES or alert_rules).

    Reads only. Says for each rule how many episodes there would have been, how long the longest was, how many messages
    and pauses, and of which accounts. Workflows are taken as they are now. Exit status 1 when a rule file has a mistake,
    2 when there is nothing to judge by.
    """
    import psycopg

    from service.backtest import run
    from service.settings import Environment

    url = Environment(os.environ).url("DATABASE_URL", "postgresql", "postgres")
    if url is None:
        raise ConfigError(
            "DATABASE_URL is missing: set it, or name with --data-dir the folder of a running `authwatch up`"
        )
    ruleset = load(path, rule_ids)
    began = time.monotonic()
    try:
        with progress_bar() as progress:
            done = run(url, ruleset, since.before, progress=progress)
    except psycopg.OperationalError as exc:
        raise Unavailable("the database cannot be read now; look at DATABASE_URL and at the server") from exc
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as exc:
        raise Unavailable(
            "the database that DATABASE_URL names has not this version's tables; run `authwatch migrate`"
        ) from exc
    seconds = time.monotonic() - began
    click.echo(json.dumps(as_values(done, seconds), indent=2) if as_json else as_text(done, seconds))


def load(path: Path | None, rule_ids: tuple[str, ...]) -> Ruleset:
    """Exits with status 1 after saying each mistake, 2 where there is no rule; one that is not there is a bad parameter."""
    from service.rules import Ruleset
    from service.rules.files import Nothing, read_rules, rules_folder

    read = read_rules(path)
    for problem in read.problems:
        click.echo(str(problem), err=True)
    if read.problems:
        sys.exit(1)
    rules = Ruleset(read.rules).rules
    if not rules:
        raise Nothing(f"{path or rules_folder()} is nothing to judge by: every rule in it is switched off")
    known = [rule.id for rule in rules]
    for wanted in rule_ids:
        if wanted not in known:
            raise click.BadParameter(f'no rule "{wanted}"; there are {", ".join(known) or "none"}', param_hint="--rule")
    return Ruleset(rule for rule in rules if not rule_ids or rule.id in rule_ids)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line every few seconds elsewhere; always on standard error."""
    if not sys.stderr.isatty():
        began = said = time.monotonic()

        def line(done: int, about: int) -> None:
            nonlocal said
            if time.monotonic() - said >= LINE_EVERY_SECONDS:
                said = time.monotonic()
                click.echo(f"{done} of about {about} events, {said - began:.0f} s", err=True)

        yield line
        return
    with click.progressbar(length=1, label="events", file=sys.stderr, show_pos=True) as bar:

        def move(done: int, about: int) -> None:
            if done < bar.pos:
                bar.pos, bar.finished = 0, False  # the second pass, which the first one has not done
            bar.length = about
            bar.update(done - bar.pos)

        yield move


def as_values(done: Backtest, seconds: float) -> dict[str, Any]:
    from service.event import rfc3339

    return {
        "since": rfc3339(done.since),
        "until": rfc3339(done.until),
        "events": done.rows,
        "seconds": round(seconds, 2),
        "rules": [of_rule(tally, done) for tally in done.tallies],
        "not_in_the_log": list(done.not_in_the_log),
    }


def of_rule(tally: Tally, done: Backtest) -> dict[str, Any]:
    from service.backtest import WORST_SHOWN

    days = max((done.until - done.since).total_seconds() / 86_400, 1 / 86_400)
    return {
        "id": tally.rule.id,
        "severity": tally.rule.severity,
        "shadow": tally.rule.shadow,
        "episodes": tally.episodes,
        "discovered_late": tally.discovered_late,
        "open_at_end": tally.open_at_end,
        "longest_seconds": tally.longest.total_seconds(),
        "messages": tally.messages,
        "pauses": tally.pauses,
        "alerts_per_day": round((tally.episodes - tally.discovered_late) / days, 3),
        "groups_refused": tally.groups_refused,
        "objective_seconds": tally.rule.objective.detect_within.total_seconds() if tally.rule.objective else None,
        "objective_missed": tally.objective_missed if tally.rule.objective else None,
        "worst": [{"group": group, "episodes": count} for group, count in tally.worst.most_common(WORST_SHOWN)],
    }


def as_text(done: Backtest, seconds: float) -> str:
    from service.event import rfc3339

    lines = [
        f"{done.rows} events read in {seconds:.1f} s; episodes from {rfc3339(done.since)} to {rfc3339(done.until)}"
    ]
    for tally in done.tallies:
        values = of_rule(tally, done)
        lines.append("")
        lines.append(f"{values['id']} ({values['severity']}{', shadow' if values['shadow'] else ''})")
        lines.append(
            f"  {values['episodes']} episodes, {values['discovered_late']} of them discovered late,"
            f" {values['open_at_end']} open at the end, the longest {timedelta(seconds=round(values['longest_seconds']))}"
        )
        lines.append(
            f"  {values['messages']} messages to each notifier, {values['pauses']} pauses,"
            f" {values['alerts_per_day']:g} alerts a day"
        )
        if values["worst"]:
            lines.append("  worst: " + ", ".join(f"{one['group']} ({one['episodes']})" for one in values["worst"]))
        if values["objective_seconds"] is not None:
            lines.append(
                f"  objective of {values['objective_seconds']:g} s: missed by {values['objective_missed']}, by late delivery"
            )
        if values["groups_refused"]:
            lines.append(f"  {values['groups_refused']} samples of groups beyond what a rule may have")
    if done.not_in_the_log:
        lines += ["", f"measured live, so that the log cannot tell: {', '.join(done.not_in_the_log)}"]
    return "\n".join(lines)
