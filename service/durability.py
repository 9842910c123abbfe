"""Whether a commit is on the disk before it is answered: what "202 accepted" rests on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# With each of these our own server's disk has it; what a replica has is another question.
FLUSHED = ("on", "local", "remote_write", "remote_apply")
GOOD = {"synchronous_commit": FLUSHED, "fsync": ("on",), "full_page_writes": ("on",)}


@dataclass(frozen=True, slots=True)
class Given:
    """A setting as a session of ours has it; `source` is where it was set, in Postgres's words (`pg_settings`)."""

    name: str
    value: str
    source: str


def faults(settings: Sequence[Given], *, role: str, database: str) -> list[str]:
    """What is wrong, each with its mend."""
    found = []
    for given in settings:
        if given.value in GOOD[given.name]:
            continue
        mend = {
            "user": f'ALTER ROLE "{role}" RESET {given.name}',
            "database": f'ALTER DATABASE "{database}" RESET {given.name}',
            "database user": f'ALTER ROLE "{role}" IN DATABASE "{database}" RESET {given.name}',
            "command line": "take it out of the command line that starts Postgres",
            "client": "take it out of DATABASE_URL and PGOPTIONS",
        }.get(given.source, f"ALTER SYSTEM SET {given.name} = on, then SELECT pg_reload_conf()")
        found.append(f"{given.name} is {given.value}: {mend}")
    return found
