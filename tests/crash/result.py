"""The table of a run, for the terminal and as Markdown for RESULTS.md."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import results
from tests.crash.found import Found
from tests.crash.plan import Knobs
from tests.crash.reader import FeedReader
from tests.crash.sender import Ledger
from tests.crash.weather import Struck, Weather

# After these nothing can be accepted until something has come back.
INTAKE = ("receiver", "postgres", "backend")


@dataclass(frozen=True, slots=True)
class Line:
    what: str
    value: str


def recovery_seconds(struck: Sequence[Struck], ledger: Ledger) -> list[float]:
    """From each kill of what accepting needs to the first event accepted or known after it, sorted."""
    taken = sorted(answer.at for answer in ledger.taken())
    seconds = []
    for one in struck:
        if one.felt and one.blow.what == "kill" and one.blow.target in INTAKE:
            place = bisect_right(taken, one.at)
            if place < len(taken):
                seconds.append(taken[place] - one.at)
    return sorted(seconds)


def lines(
    knobs: Knobs,
    weather: Weather,
    ledger: Ledger,
    reader: FeedReader,
    found: Found,
    seconds: float,
    leases_expired: int | None,
) -> list[Line]:
    kills = Counter(one.blow.target for one in weather.struck if one.felt and one.blow.what == "kill")
    others = Counter(one.blow.name for one in weather.struck if one.felt and one.blow.what != "kill")
    statuses = ledger.statuses()
    words = Counter(answer.word for answer in ledger.taken())
    recovered = recovery_seconds(weather.struck, ledger)
    again = sum(map(len, found.hec_posts)) - len({position for post in found.hec_posts for position in post})
    unfelt = Counter(f"{one.blow.name} ({one.reason})" for one in weather.struck if not one.felt)
    made = [
        Line("when, at which commit", f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, {commit()}"),
        Line("seed", str(knobs.seed)),
        Line("duration", f"{seconds:.0f} s on {os.cpu_count()} cores, Python {platform.python_version()}"),
        Line("events", f"{knobs.events} in {ledger.started} requests, sent {len(ledger.answers)} times"),
        Line("kill -9", f"{sum(kills.values())}: {several(kills)}"),
        Line("other blows", f"{sum(others.values())}: {several(others)}"),
        Line("202 accepted", str(words["accepted"])),
        Line("202 quarantined", str(words["quarantined"])),
        Line("200 duplicate", str(words["duplicate"])),
        Line("503", str(statuses[503])),
        Line("no answer", str(statuses[0])),
        Line("401, forged", str(statuses[401])),
        Line("recovery after a kill of receiver or Postgres, p50 / max", spread(recovered)),
        Line(
            "feed",
            f"{len(found.feed)} rows pulled, through {reader.statuses[503]} x 503, {reader.statuses[0]} x no answer",
        ),
        Line("alerts", f"{len(found.alerts)}, of them over when found: {sum(a.discovered_late for a in found.alerts)}"),
        Line(
            "Slack posts",
            f"{len(found.slack_posts)}, of them marked as a possible repeat: {sum(m for _, m in found.slack_posts)}",
        ),
        Line("pauses and resumes", f"{len(found.effects)}, each once"),
        Line("SIEM push", f"{len(found.hec_posts)} posts; rows sent again: {again}"),
    ]
    made.append(
        Line(
            "workers' leases that had to expire",
            f"{leases_expired}, taken over by two workers beside each other"
            if leases_expired is not None
            else "not tried in the short form",
        )
    )
    made.append(Line("not tried", "several hosts; a worker killed while another one runs"))
    if full := weather.house.disk_was_full():
        made.append(Line("writes refused by the full disk", str(full)))
    if found.conflicts is not None:
        made.append(Line("conflicting bodies kept", str(len(found.conflicts))))
    if unfelt:
        made.append(Line("not felt", several(unfelt)))
    return made


def several(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counted.items()))


def spread(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.1f} s / {seconds[-1]:.1f} s" if seconds else "-"


def as_text(table: Sequence[Line]) -> str:
    width = max(len(line.what) for line in table)
    return "\n".join(f"{line.what:<{width}}  {line.value}" for line in table)


def commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        shown = [
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
    return f"{shown[0]} with changes" if shown[1] else shown[0]


def forget(path: Path) -> None:
    """At the start, so that a run that breaks leaves no result of an earlier one."""
    path.unlink(missing_ok=True)
    if path.resolve() == results.CRASH:
        results.put_crash()


def write_markdown(path: Path, table: Sequence[Line], problems: Sequence[str]) -> None:
    verdict = "Nothing lost, nothing doubled." if not problems else f"{len(problems)} problems:"
    rows = [f"| {line.what} | {line.value} |" for line in table]
    text = [verdict, *(f"- {one}" for one in problems), "", "| | |", "|---|---|", *rows, ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text), encoding="utf-8")
    if path.resolve() == results.CRASH:
        results.put_crash()
