"""The rule files that a command is about: one file, or all of a folder, told as one. Reads files and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from service.rules.document import Problem
from service.rules.load import SUFFIXES, Loaded, load_file, rule_files
from service.rules.model import Rule
from service.settings import default_rules_folder

UNREADABLE = 2  # the exit status where there is nothing to read
PATH = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True)
class Read:
    """Every file with what it gave. `problems` and `warnings` name files as they were given on the command line. `left_out`:
    what somebody may have meant as a rule file, and nobody reads."""

    files: dict[Path, Loaded]
    left_out: tuple[Problem, ...] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(rule for loaded in self.files.values() for rule in loaded.rules)

    @property
    def problems(self) -> list[Problem]:
        return [*self._told("problems"), *self._clashes()]

    @property
    def warnings(self) -> list[Problem]:
        return [*self._told("warnings"), *self.left_out]

    def _told(self, which: str) -> Iterator[Problem]:
        for path, loaded in self.files.items():
            yield from (replace(one, file=str(path)) for one in getattr(loaded, which))

    def _clashes(self) -> Iterator[Problem]:
        used: dict[str, Path] = {}
        for path, loaded in self.files.items():
            for rule, place in zip(loaded.rules, loaded.ids, strict=True):
                if (first := used.setdefault(rule.id, path)) != path:
                    message = f'rule id "{rule.id}" is already used in {first}'
                    yield replace(place, file=str(path), message=message, mend="give it another")


class Nothing(click.ClickException):
    """There is nothing to read there: exit status 2."""

    exit_code = UNREADABLE


def rules_folder() -> Path:
    """What AUTHWATCH_RULES names, else `alert_rules` here, else the one that ships: as the service itself finds it."""
    named = os.environ.get("AUTHWATCH_RULES")
    return Path(named) if named else default_rules_folder()


def read_rules(*paths: Path | None) -> Read:
    """Raises Nothing where there is no rule file at one of `paths` (default: the folder of rules in force)."""
    read: dict[Path, Loaded] = {}
    left_out: list[Problem] = []
    for target in [path for path in paths if path is not None] or [rules_folder()]:
        try:
            files = rule_files(target) if target.is_dir() else [target]
            left_out += not_read(target) if target.is_dir() else ()
            read |= {file: load_file(file) for file in files if file not in read}
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            what = "is not there" if gone else f"cannot be read ({type(error).__name__})"
            raise Nothing(f"{error.filename or target} {what}; name a rule file, or a folder of them") from error
        if not files:
            raise Nothing(f"{target} holds no rule file; their names end in .yml or .yaml")
    return Read(read, tuple(left_out))


def not_read(folder: Path) -> Iterator[Problem]:
    """What lies in a folder of rules as if it were in force. Raises OSError."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if holds_rules(path):
                yield Problem(str(path), 1, 1, "a folder in the folder is not read", "move its files up", warning=True)
        elif path.suffix in SUFFIXES:
            if not path.exists():
                yield Problem(str(path), 1, 1, "a link that leads nowhere", "mend it, or take it out", warning=True)
        elif path.suffix.lower() in SUFFIXES:
            mend = f"name it {path.with_suffix(path.suffix.lower()).name}"
            yield Problem(str(path), 1, 1, "not read: rule files end in .yml or .yaml", mend, warning=True)


def holds_rules(folder: Path) -> bool:
    try:
        return any(one.suffix in SUFFIXES for one in folder.iterdir())
    except OSError:
        return False  # such as `lost+found`: what we may not read is not meant for us
