"""How many events of an account its last two hours can hold, told from three numbers in its row. Pure.

A rule that counts to a hundred has nothing to say about an account of which five events are known; its history need not
be read to know that. The numbers may be too high (an event that came twice, one that retention dropped), never too low.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

HOUR = timedelta(hours=1)  # no window longer than this is told by these numbers
HOUR_SECONDS = 3600
UNKNOWN = 1_000_000  # of rows older than the numbers: whoever asks must read the history


@dataclass(frozen=True, slots=True)
class Heard:
    """By `occurred_at`: the newest hour of which anything is known (since 1970), its events, and those of the hour before."""

    hour: int
    in_hour: int
    before: int


def hear(known: Heard | None, last_event_at: datetime | None, new: Iterable[datetime]) -> tuple[Heard | None, int]:
    """(what is known after these events, the most that a window of an hour or less which ends with one of them can hold).
    `last_event_at`: of the row; a row that has it and no numbers is older than they are."""
    heard, most = known, 0
    if heard is None and last_event_at is not None:
        heard = Heard(hour_of(last_event_at), UNKNOWN, UNKNOWN)
    for at in sorted(new):
        hour = hour_of(at)
        if heard is None or hour > heard.hour + 1:
            heard = Heard(hour, 1, 0)
        elif hour == heard.hour:
            heard = Heard(hour, heard.in_hour + 1, heard.before)
        elif hour == heard.hour + 1:
            heard = Heard(hour, 1, heard.in_hour)
        elif hour == heard.hour - 1:
            heard = Heard(heard.hour, heard.in_hour, heard.before + 1)
        most = max(most, heard.in_hour + heard.before)
    return heard, most


def hour_of(at: datetime) -> int:
    return int(at.timestamp()) // HOUR_SECONDS
