"""The rule set in force: what every process judges by, whatever its own copy of the files says.

Postgres has it (service/store/rule_sets.py). A process whose folder changes publishes what is good in it; every judging
transaction asks which version is in force and holds it until it ends. So all of them change over at one commit, and a
broken file, an old copy on another host or a worker that starts anew changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service import rule_changes, rule_text
from service.consequences import Consequences
from service.observe import log as logger
from service.rule_folder import Folder, Look, Saved
from service.rules import Problem, Rule, Ruleset, load_text
from service.rules.load import FILE_BYTES_MAX, Loaded
from service.store import readers
from service.store import rule_sets as store
from service.store.log import Decision
from service.store.rule_sets import RuleFile, RuleVersion

PROBLEMS_SHOWN_MAX = 20  # of one file
NAMED_MAX = 20  # rules in one audit line
STILL_HERE = text("SELECT 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A rule, disabled ones too, and the file it stands in."""

    file: str
    rule: Rule
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """`unread`: files whose published text this code cannot read; nothing is ended for want of their rules."""

    version: int
    ruleset: Ruleset
    placed: Mapping[str, Placed]
    unread: tuple[str, ...] = ()


NOTHING = InForce(version=0, ruleset=Ruleset(), placed={})


class RuleSets:
    """This process's memory of the set: its folder, the files it has read, the version it knows. Nothing here is truth."""

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path)
        self._loaded: dict[tuple[str, str], Loaded] = {}
        self._known = NOTHING

    async def current(self, conn: AsyncConnection) -> InForce:
        version = await store.hold(conn)
        if version == 0:
            version = await self._publish_first(conn)
        if version == 0:
            return NOTHING
        if self._known.version != version:
            self._known = await self._read(conn, version)
            for name in self._known.unread:
                logger.error(
                    "rules.unread", file=name, mend="this version cannot read what is in force; publish it anew"
                )
        return self._known

    async def load(self, name: str, raw: bytes, conn: AsyncConnection | None = None) -> Loaded:
        """Read once; in a thread, because a file of hundreds of rules takes seconds."""
        key = (name, digest(raw))
        found = self._loaded.get(key)
        if found is None:
            found = self._loaded[key] = await asyncio.to_thread(load, raw, name)
            if conn is not None:
                await conn.execute(STILL_HERE)  # a transaction that says nothing for long is ended by the server
        return found

    async def assemble(
        self, files: Mapping[str, RuleFile], conn: AsyncConnection
    ) -> tuple[InForce, dict[str, Problem]]:
        """The set of these files, whose version is not known yet, and the clashes: the first file to use an id keeps it."""
        placed: dict[str, Placed] = {}
        clashes: dict[str, Problem] = {}
        unread: list[str] = []
        for name, file in files.items():
            if file.text is None:
                continue
            loaded = await self.load(name, file.text.encode(), conn)
            if loaded.problems:
                unread.append(name)
                continue
            written = rule_text.texts(loaded.rules, loaded.places, file.text)
            for rule, (line, column), own in zip(loaded.rules, loaded.places, written, strict=True):
                if rule.id in placed:
                    used = f'rule id "{rule.id}" is already used in {placed[rule.id].file}; give it another'
                    clashes.setdefault(name, Problem(name, line, column, used))
                else:
                    placed[rule.id] = Placed(file=name, rule=rule, text=own)
        ruleset = Ruleset(one.rule for one in placed.values())
        return InForce(version=0, ruleset=ruleset, placed=placed, unread=tuple(unread)), clashes

    async def _read(self, conn: AsyncConnection, version: int) -> InForce:
        files = await store.files(conn)
        made, _ = await self.assemble(files, conn)
        kept = {(name, digest(file.text.encode())) for name, file in files.items() if file.text is not None}
        self._loaded = {key: loaded for key, loaded in self._loaded.items() if key in kept}
        return replace(made, version=version)

    async def _publish_first(self, conn: AsyncConnection) -> int:
        """In the transaction that wants to judge: before anything is judged there is something to judge by. What is open
        is not touched, which is the sweep's; this may be rolled back, and so the folder does not count as taken."""
        look = self.folder.look(datetime.now(UTC), whole=True)
        if look is None:
            return 0
        await store.lock(conn)
        if (await store.state(conn)) is None:
            await publish(conn, self, look)
        state = await store.state(conn)
        return state.version if state is not None else 0


class HasRuleSets(Protocol):
    @property
    def rule_sets(self) -> RuleSets: ...


async def in_force(conn: AsyncConnection, runtime: HasRuleSets) -> Ruleset:
    """What to judge by in this transaction; it stays in force until the transaction ends.

    Called before the accounts' locks are taken: who publishes holds the set alone, and takes accounts' locks under it.
    """
    return (await runtime.rule_sets.current(conn)).ruleset


async def publish(conn: AsyncConnection, sets: RuleSets, look: Look) -> InForce | None:
    """Writes what is news in this look of the folder; the set where it changed by that. `store.lock` must be held.

    Only rows of the rule set's own tables are written: who calls it ends what the change ended, and logs it.
    """
    rows = await store.files(conn)
    first = await store.state(conn) is None
    now = await readers.clock(conn)
    before, _ = await sets.assemble(rows, conn)
    after_rows, by = dict(rows), {}
    for saved in await news(conn, sets, rows, look):
        after_rows[saved.name] = await file_of(conn, sets, saved, rows.get(saved.name), now)
        by[saved.name] = saved.by
    after, clashes = await sets.assemble(dict(sorted(after_rows.items())), conn)
    for name, file in after_rows.items():
        if file.good:
            clash = clashes.get(name)
            after_rows[name] = replace(file, problem=str(clash) if clash else None)
    changed = [file for name, file in after_rows.items() if rows.get(name) != file]
    await store.save_files(conn, changed, now)
    if not first and all(text_of(rows, file.name) == file.text for file in changed):
        return None
    version = await store.put_state(conn, after.ruleset.version, now, None if first else since(before, after, now))
    await store.add_versions(conn, versions(before, after, version, by, now))
    return replace(after, version=version)


async def news(conn: AsyncConnection, sets: RuleSets, rows: Mapping[str, RuleFile], look: Look) -> list[Saved]:
    """What of this look is to be published. A change that this process saw is; what it found at its start only where it
    is newer than what was published, since an old copy on another host must not bring old rules back."""
    wanted: list[Saved] = []
    stale: list[str] = []
    for saved in look.saved:
        row = rows.get(saved.name)
        if row is None and saved.raw is None:
            continue
        if row is not None and row.sha256 == saved.sha256:
            # The same bytes may be good or bad to another version of this code.
            if saved.raw is None or row.good == (not (await sets.load(saved.name, saved.raw, conn)).problems):
                continue
            wanted.append(saved)
        elif row is None or saved.seen or saved.modified_at > row.modified_at:
            wanted.append(saved)
        else:
            stale.append(saved.name)
    if look.first and not look.is_restless:
        for name, row in rows.items():
            if row.sha256 is None or name in look.names:
                continue
            if look.modified_at > row.changed_at:
                gone = Saved(name=name, raw=None, modified_at=look.modified_at, by=look.by, seen=False)
                wanted.append(gone)
            else:
                stale.append(name)
    if stale:
        logger.warning(
            "rules.stale_folder",
            files=stale[:NAMED_MAX],
            mend="what is in force is newer than these files; save (or touch) them here to publish them",
        )
    return wanted


async def file_of(conn: AsyncConnection, sets: RuleSets, saved: Saved, row: RuleFile | None, now: datetime) -> RuleFile:
    """The row that this file gets: a good text takes the place of the last good one, a bad one only says what is wrong."""
    text: str | None = None
    problems: Sequence[Problem] = ()
    if saved.raw is not None:
        problems = (await sets.load(saved.name, saved.raw, conn)).problems
        text = (row.text if row is not None else None) if problems else saved.raw.decode()
    return RuleFile(
        name=saved.name,
        text=text,
        sha256=saved.sha256,
        modified_at=saved.modified_at if saved.raw is not None else max(saved.modified_at, now),
        changed_at=now,
        changed_by=saved.by,
        good=not problems,
        problem="\n".join(map(str, problems[:PROBLEMS_SHOWN_MAX])) or None,
    )


def text_of(rows: Mapping[str, RuleFile], name: str) -> str | None:
    return rows[name].text if name in rows else None


def since(before: InForce, after: InForce, now: datetime) -> datetime | None:
    """How far back the rules look that judge by another condition than before; None where all conditions are as they were."""
    new = [
        rule
        for rule in after.ruleset.rules
        if rule.id not in before.ruleset.by_id
        or before.ruleset.by_id[rule.id].condition_version != rule.condition_version
    ]
    return now - max(rule.lookback for rule in new) if new else None


def versions(
    before: InForce, after: InForce, set_version: int, by: Mapping[str, str], now: datetime
) -> list[RuleVersion]:
    """A row for each rule that says something else than before, came or went."""
    found: list[RuleVersion] = []
    for rule_id in sorted({*before.placed, *after.placed}):
        old, new = before.placed.get(rule_id), after.placed.get(rule_id)
        if old is not None and new is not None and old.rule.version == new.rule.version:
            continue
        file = new.file if new is not None else old.file if old is not None else ""
        found.append(
            RuleVersion(
                rule_id=rule_id,
                set_version=set_version,
                version=new.rule.version if new else None,
                condition_version=new.rule.condition_version if new else None,
                file=file,
                text=new.text if new else None,
                change="added" if old is None else "changed" if new is not None else "removed",
                at=now,
                by=by.get(file) or next(iter(by.values()), "unknown"),
                diff=rule_text.diff(old.text if old else None, new.text if new else None, rule_id),
            )
        )
    return found


async def take_in(
    conn: AsyncConnection, sets: RuleSets, look: Look, notifiers: Sequence[str]
) -> tuple[InForce | None, Consequences]:
    """Publishes a look and makes the first step of what follows, in one transaction; the caller appends the decisions."""
    await store.lock(conn)
    first = await store.state(conn) is None
    if first:  # whoever looked may have looked before, and found nothing new
        look = sets.folder.look(datetime.now(UTC), whole=True) or look
    made = await publish(conn, sets, look)
    if made is None:
        return None, Consequences()
    now = await readers.clock(conn)
    out = Consequences()
    if not made.unread:
        out = await rule_changes.close_changed(conn, made.ruleset, now, notifiers)
    if not first:
        out.decisions.append(audit(await store.versions_in(conn, made.version), made.version, now))
    return made, out


def audit(changed: Iterable[RuleVersion], set_version: int, now: datetime) -> Decision:
    """Who edited the rules, on the log that the SIEM reads."""
    rows = list(changed)
    said = [f"{row.change} {row.rule_id}" for row in rows[:NAMED_MAX]]
    if len(rows) > NAMED_MAX:
        said.append(f"and {len(rows) - NAMED_MAX} more")
    return Decision(
        kind="audit",
        subject_id=f"rules:{set_version}",
        occurred_at=now,
        details={
            "actor": ", ".join(dict.fromkeys(row.by for row in rows)) or "unknown",
            "action": "rules.publish",
            "subject": f"rules:{set_version}",
            "reason": ", ".join(said) or "no rule says anything else than before",
        },
    )


async def warm(sets: RuleSets, look: Look) -> None:
    """Reads what is new before a transaction waits for it."""
    for saved in look.saved:
        if saved.raw is not None:
            await sets.load(saved.name, saved.raw)


def load(raw: bytes, name: str) -> Loaded:
    if len(raw) > FILE_BYTES_MAX:
        return Loaded((), (Problem(name, 1, 1, f"larger than {FILE_BYTES_MAX} bytes; split it"),))
    return load_text(raw, name)


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
