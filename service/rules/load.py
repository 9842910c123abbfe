"""Reads rule files: every mistake with its file, line, column and mend; one bad file harms no other, nor its own past."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from service.rules.advice import advise
from service.rules.document import Document, Problem, Unreadable, read_document
from service.rules.explain_mistakes import explain
from service.rules.fields import Strict
from service.rules.model import Rule
from service.rules.ruleset import Ruleset

FILE_BYTES_MAX = 256 * 1024
FILES_MAX = 500
RULES_MAX = 1000
TEXTS_KEPT = 64  # the shipped ones are fifteen
SUFFIXES = (".yml", ".yaml")
UNREADABLE_MEND = "let the user that Authwatch runs as read it"


class RuleFile(Strict):
    """What a rule file holds: the version of the language, and rules."""

    version: int = Field(ge=1, le=1)
    rules: list[Rule] = Field(max_length=RULES_MAX)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one file gave: rules, or the problems that kept it from giving any.

    `places`: line and column, from 1, at which each rule says its `id:`; `ids` are the same as a problem would show them.
    `warnings` keep nothing from anything. `text` is the file as it was read.
    """

    rules: tuple[Rule, ...] = ()
    problems: tuple[Problem, ...] = ()
    places: tuple[tuple[int, int], ...] = ()
    ids: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    text: str = ""


class RuleBook:
    """The rules in force. Each file keeps its last good version; `reload` is cheap when nothing changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        self._good: dict[Path, Loaded] = {}
        self._clashes: tuple[Problem, ...] = ()
        self._problems: dict[Path, tuple[Problem, ...]] = {}
        self._set = Ruleset()
        self._from: dict[str, str] = {}
        self._missing: tuple[Problem, ...] = ()
        self._unreadable: dict[Path, Problem] = {}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Enabled rules, in order of file and place."""
        return self._set.rules

    @property
    def ruleset(self) -> Ruleset:
        return self._set

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is seldom meant in the files that are in force."""
        return tuple(warning for path in sorted(self._good) for warning in self._good[path].warnings)

    def files(self) -> dict[str, str]:
        """The text of each file in force, by its name: the last good one where the file has a mistake now."""
        return {path.name: self._good[path].text for path in sorted(self._good)}

    def file_of(self, rule_id: str) -> str | None:
        """The name of the file that a rule in force, or a disabled one, came from."""
        return self._from.get(rule_id)

    @property
    def version(self) -> str:
        return self._set.version

    def reload(self) -> tuple[Problem, ...]:
        """Reads what changed since the last call; the problems that stand now."""
        try:
            paths = rule_files(self._folder)
            self._missing = tuple(
                Problem(path.name, 1, 1, f"more than {FILES_MAX} files; this one is not read", "put rules together")
                for path in paths[FILES_MAX : FILES_MAX + 1]
            )
            paths = paths[:FILES_MAX]
            if not paths and self._stamps:
                raise FileNotFoundError  # a mount that failed looks like this, and nobody takes all rules away unsaid
        except OSError as exc:
            # The rules in force stay in force.
            self._missing = (
                Problem(
                    str(self._folder),
                    1,
                    1,
                    f"the rules folder is empty or cannot be read ({type(exc).__name__})",
                    "put the files back, or name their folder by AUTHWATCH_RULES; to have no rule, disable each",
                ),
            )
            return self.problems
        changed = False
        for gone in set(self._stamps) - set(paths):
            changed = True
            for known in (self._stamps, self._good, self._problems, self._unreadable):
                known.pop(gone, None)
        for path in paths:
            try:
                stat = path.stat()
                stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if self._stamps.get(path) == stamp:
                    continue
                loaded = load_file(path)
                self._unreadable.pop(path, None)
            except OSError as exc:
                unreadable = Problem(path.name, 1, 1, f"cannot be read ({type(exc).__name__})", UNREADABLE_MEND)
                loaded = Loaded(problems=(unreadable,))
                stamp = (0, 0, 0)
                if not isinstance(exc, FileNotFoundError):  # which an editor was just replacing
                    self._unreadable[path] = unreadable
            changed = True
            self._stamps[path] = stamp
            self._problems[path] = loaded.problems
            if not loaded.problems:
                self._good[path] = loaded
        if changed:
            self._set = Ruleset(self._in_force())
        return self.problems

    @property
    def missing(self) -> tuple[Problem, ...]:
        """What is wrong with the folder itself."""
        return self._missing

    @property
    def unreadable(self) -> tuple[Problem, ...]:
        """Files that are there, and that this process may not read."""
        return tuple(self._unreadable[path] for path in sorted(self._unreadable))

    @property
    def problems(self) -> tuple[Problem, ...]:
        of_files = (problem for path in sorted(self._problems) for problem in self._problems[path])
        return (*self._missing, *of_files, *self._clashes)

    def _in_force(self) -> tuple[Rule, ...]:
        """The first file to use an id keeps it; the same id in another file is a mistake of that other file."""
        found: dict[str, tuple[Path, Rule]] = {}
        clashes: list[Problem] = []
        for path in sorted(self._good):
            good = self._good[path]
            for rule, place in zip(good.rules, good.ids, strict=True):
                if rule.id in found:
                    used = f'rule id "{rule.id}" is already used in {found[rule.id][0].name}'
                    clashes.append(replace(place, message=used, mend="give it another"))
                else:
                    found[rule.id] = (path, rule)
        self._clashes = tuple(clashes)
        self._from = {rule_id: path.name for rule_id, (path, _) in found.items()}
        return tuple(rule for _, rule in found.values())


def rule_files(folder: Path) -> list[Path]:
    """By name; what begins with a dot belongs to an editor. Raises OSError."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def load_file(path: Path) -> Loaded:
    """Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        raw = file.read(FILE_BYTES_MAX + 1)
    return load_text(raw, path.name)


@lru_cache(maxsize=TEXTS_KEPT)
def load_text(raw: bytes, name: str) -> Loaded:
    """Never raises for what the text holds. The same text is read once: the folder's book and the set in force both ask."""
    if len(raw) > FILE_BYTES_MAX:
        return Loaded(problems=(Problem(name, 1, 1, f"larger than {FILE_BYTES_MAX} bytes", "split it"),))
    document = read_document(raw, name)
    if isinstance(document, Problem):
        return Loaded(problems=(document,))
    if document.root.keys is None:
        said = document.problem(document.at(()), "this is no rule file", "it starts with `version: 1` and `rules:`")
        return Loaded(problems=(said,))
    try:
        plain = document.plain()
        file = RuleFile.model_validate(plain)
    except ValidationError as error:
        return Loaded(problems=explain(error, document, RuleFile))
    except Unreadable as error:
        return Loaded(problems=(document.problem((error.index, error.index + 1), error.message, error.mend),))
    problems = (*empty_keys(document, plain), *doubles(document, file))
    if problems:
        return Loaded(problems=problems)
    warnings = tuple(
        document.problem(
            document.at(("rules", number, *advice.path), on_key=advice.on_key, word=advice.word),
            advice.message,
            advice.mend,
            warning=True,
        )
        for number, rule in enumerate(file.rules)
        for advice in advise(rule)
    )
    paths = [("rules", number, "id") for number in range(len(file.rules))]
    keys = (document.problem(document.at(path, on_key=True), "") for path in paths)
    return Loaded(
        rules=tuple(file.rules),
        places=tuple((key.line, key.column) for key in keys),
        ids=tuple(document.problem(document.at(path), "") for path in paths),
        warnings=warnings,
        text=document.text,
    )


def doubles(document: Document, file: RuleFile) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, rule in enumerate(file.rules):
        if rule.id in seen:
            where = document.at(("rules", number, "id"))
            yield document.problem(where, f'rule id "{rule.id}" is used twice in this file', "give it another")
        seen.add(rule.id)


def empty_keys(document: Document, plain: Any) -> Iterator[Problem]:
    """A key without a value is one whose value was forgotten, even where it may be left out. In tests nothing is a value:
    what an event does not say."""
    for number, rule in enumerate(plain["rules"]):
        for path in nothings({key: value for key, value in rule.items() if key != "tests"}):
            where = document.at(("rules", number, *path), on_key=True)
            yield document.problem(where, f"{path[-1]} has no value", "write one, or take the key out")


def nothings(value: Any) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if item is None:
                yield (key,)
            yield from ((key, *path) for path in nothings(item))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from ((index, *path) for path in nothings(item))
