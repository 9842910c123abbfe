"""The folder of rule files as this process sees it: what changed since it looked last, who saved it and when.

A look changes nothing by itself: what it found is found again until it is said to be `taken`, so that a database that was
away loses no edit.
"""

from __future__ import annotations

import hashlib
import pwd
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from service.rules.load import FILE_BYTES_MAX, FILES_MAX, rule_files

# A file that just changed may be in the middle of being written, and one that just vanished of being renamed.
SETTLE_SECONDS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One file that is not as it was. `raw` None: it is gone. `seen`: this process saw it change; else it was so at its
    start. `by`: the login name of the file's owner, of the folder's where the file is gone."""

    name: str
    raw: bytes | None
    modified_at: datetime
    by: str
    seen: bool

    @property
    def sha256(self) -> str | None:
        return hashlib.sha256(self.raw).hexdigest() if self.raw is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """`names`: every file that is there. `modified_at`: when a file last came or went; `is_restless`: that was just now, so
    that one that is not there may be back in a moment."""

    saved: tuple[Saved, ...]
    names: frozenset[str]
    modified_at: datetime
    is_restless: bool
    by: str
    first: bool
    marks: dict[str, tuple[int, ...]]

    @property
    def says_something(self) -> bool:
        return self.first or bool(self.saved)


class Folder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: dict[str, tuple[int, ...]] | None = None  # None before the first look that was taken

    def look(self, now: datetime, *, whole: bool = False) -> Look | None:
        """None while the folder cannot be read: what is in force stays so. `whole`: everything, as at a start. `now` is this
        host's clock, which files are saved by."""
        known = None if whole else self._marks
        try:
            at = self._path.stat()
            paths = rule_files(self._path)
        except OSError:
            return None
        if not paths and self._marks:
            return None  # a mount that failed looks like this: nobody takes all rules away without a word
        marks: dict[str, tuple[int, ...]] = {}
        saved: list[Saved] = []
        for path in [path for path in paths if is_storable(path.name)][:FILES_MAX]:
            mark, found = self._file(path, known, now, whole)
            if mark is not None:
                marks[path.name] = mark
            if found is not None:
                saved.append(found)
        by, modified_at = login_of(at.st_uid), datetime.fromtimestamp(at.st_mtime, UTC)
        for name in sorted(set(known or ()) - set(marks)):
            if is_recent(at.st_mtime, now):
                marks[name] = (known or {})[name]  # looked for again a second later
            else:
                saved.append(Saved(name=name, raw=None, modified_at=modified_at, by=by, seen=True))
        return Look(
            saved=tuple(saved),
            names=frozenset(marks),
            modified_at=modified_at,
            is_restless=is_recent(at.st_mtime, now),
            by=by,
            first=known is None,
            marks=marks,
        )

    def taken(self, look: Look) -> None:
        """Of a first look in a restless folder nobody can say what is gone: the next one is the first again."""
        self._marks = None if look.first and look.is_restless else look.marks

    def _file(
        self, path: Path, known: dict[str, tuple[int, ...]] | None, now: datetime, whole: bool
    ) -> tuple[tuple[int, ...] | None, Saved | None]:
        """Its mark, and what was saved where that is news."""
        before = (known or {}).get(path.name)
        try:
            stat = path.stat()
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if mark == before:
                return mark, None
            if not whole and is_recent(stat.st_mtime, now):
                return before or (0,), None  # looked at again a second later
            with path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
            after = path.stat()
        except OSError:
            # Gone between two glances, or not ours to read: as it was, and looked at again.
            return before or (0,), None
        if mark != (after.st_mtime_ns, after.st_size, after.st_ino):
            return before or (0,), None
        modified_at = datetime.fromtimestamp(stat.st_mtime, UTC)
        by = login_of(stat.st_uid)
        return mark, Saved(name=path.name, raw=raw, modified_at=modified_at, by=by, seen=known is not None)


def is_recent(modified_at: float, now: datetime) -> bool:
    """A time that is still to come is not: a clock was put back, and nobody waits until then."""
    return 0 <= now.timestamp() - modified_at < SETTLE_SECONDS


def login_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"  # a container need not know its owners


def is_storable(name: str) -> bool:
    return name.isprintable()  # neither a control character nor half a surrogate pair
