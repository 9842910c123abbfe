"""What `authwatch doctor` says about rules: those of the folder here, those in force, and where the two differ.

Everybody judges by what was last published into the database, whatever a folder says: an edit that no worker sees, and an
old copy on another host, are in force nowhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import rfc3339
from service.finding import Finding
from service.rules import RuleBook
from service.rules.load import rule_files
from service.store import rule_sets as store
from service.store.rule_sets import RuleFile

if TYPE_CHECKING:
    from service.runtime import Runtime

FOLDER, IN_FORCE = "rules", "rules in force"
PUBLISHED_WITHIN = timedelta(seconds=5)  # it takes two


@dataclass(frozen=True, slots=True)
class OnDisk:
    sha256: str
    saved_at: datetime


def of_folder(book: RuleBook, folder: Path) -> list[Finding]:
    problems = [Finding(False, FOLDER, str(problem)) for problem in book.problems]
    return problems or [Finding(True, FOLDER, f"{len(book.rules)} in {folder}")]


async def of_set(conn: AsyncConnection, runtime: Runtime) -> list[Finding]:
    """Publishes nothing, as who judges would where nothing was published yet."""
    state, files = await store.state(conn), await store.files(conn)
    if state is None:
        return [Finding(None, IN_FORCE, "none was ever published; `authwatch worker` does that when it starts")]
    made, _ = await runtime.rule_sets.assemble(files, conn)
    known = len(made.ruleset.rules)
    said = f"{known or 'none'}, published {rfc3339(state.at)}"
    found = [Finding(known > 0 or None, IN_FORCE, said if known else f"{said}; nothing will ever alert")]
    for name in made.unread:
        said = f"{name} cannot be read by this version of Authwatch; save it anew, or go back to the version before"
        found.append(Finding(False, IN_FORCE, said))
    here = on_disk(runtime.settings.rules_folder)
    for broken in {problem.file for problem in runtime.rules.problems}:
        here.pop(broken, None)  # said already, and its last good version is meant to differ
        files.pop(broken, None)
    return found + list(differences(files, here, datetime.now(UTC)))


def on_disk(folder: Path) -> dict[str, OnDisk]:
    """By name; nothing where the folder cannot be read, which is said already."""
    try:
        return {
            path.name: OnDisk(
                hashlib.sha256(path.read_bytes()).hexdigest(), datetime.fromtimestamp(path.stat().st_mtime, UTC)
            )
            for path in rule_files(folder)
        }
    except OSError:
        return {}


def differences(published: Mapping[str, RuleFile], here: Mapping[str, OnDisk], now: datetime) -> Iterator[Finding]:
    """A newer file that is not in force is a fault; an older copy of one that is may lie about on any host."""
    for name, row in published.items():
        if here and row.sha256 is not None and name not in here:
            said = f"{name} is in force and not in the folder here; it was saved by {row.changed_by}, {rfc3339(row.modified_at)}"
            yield Finding(None, IN_FORCE, said)
    for name, file in here.items():
        old = published.get(name)
        if old is not None and old.sha256 == file.sha256:
            if old.problem is not None:
                yield Finding(False, IN_FORCE, f"without {name} as it is here: {old.problem.splitlines()[0]}")
        elif old is not None and file.saved_at <= old.modified_at:
            said = (
                f"{name} here is older than what is in force, which {old.changed_by} saved {rfc3339(old.modified_at)}"
            )
            yield Finding(None, IN_FORCE, f"{said}; to publish this one, save it anew")
        elif now - file.saved_at > PUBLISHED_WITHIN:
            said = f"{name} here was saved {rfc3339(file.saved_at)} and is not in force"
            yield Finding(False, IN_FORCE, f"{said}; does `authwatch worker` run, and does it read this folder?")
