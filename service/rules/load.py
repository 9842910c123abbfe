"""Reads rule files: every mistake with its file, line, column and mend; one bad file harms no other, nor its own past.

ruamel.yaml, because it reads YAML by the 1.2 rules (`on` and `no` are words) and knows where every key stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt
from ruamel.yaml.scalarstring import ScalarString

from service.rules.match import nearest
from service.rules.model import Action, Annotations, Objective, PauseWorkflows, Resolve, Rule
from service.rules.ruleset import Ruleset
from service.rules.triggers import TRIGGERS
from service.rules.triggers.state import StateMatch

FILE_BYTES_MAX = 256 * 1024
FILES_MAX = 500
DEPTH_MAX = 20
NODES_MAX = 20_000
SUFFIXES = (".yml", ".yaml")
# Where a key is unknown, the model of its parent says what is known there.
MODELS: dict[str, type[BaseModel]] = {
    "rules": Rule,
    **TRIGGERS,
    "resolve": Resolve,
    "annotations": Annotations,
    "objective": Objective,
    "actions": Action,
    "pause_workflows": PauseWorkflows,
    "match": StateMatch,
}


class RuleFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(ge=1, le=1)
    rules: list[Rule] = Field(max_length=1000)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake, where it is, and how to mend it. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one file gave: rules and where each one's id stands, or the problems that kept it from giving any."""

    rules: tuple[Rule, ...]
    problems: tuple[Problem, ...]
    places: tuple[tuple[int, int], ...] = ()


class RuleBook:
    """The rules in force. Each file keeps its last good version; `reload` is cheap when nothing changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        self._good: dict[Path, Loaded] = {}
        self._clashes: tuple[Problem, ...] = ()
        self._problems: dict[Path, tuple[Problem, ...]] = {}
        self._set = Ruleset()
        self._missing: tuple[Problem, ...] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Enabled rules, in order of file and place."""
        return self._set.rules

    @property
    def ruleset(self) -> Ruleset:
        return self._set

    @property
    def version(self) -> str:
        return self._set.version

    def reload(self) -> tuple[Problem, ...]:
        """Reads what changed since the last call; the problems that stand now."""
        try:
            paths = sorted(path for path in self._folder.iterdir() if path.suffix in SUFFIXES and path.is_file())[
                :FILES_MAX
            ]
            self._missing = ()
        except OSError as exc:
            # The rules in force stay in force.
            self._missing = (
                Problem(
                    str(self._folder),
                    1,
                    1,
                    f"the rules folder cannot be read ({type(exc).__name__}); set AUTHWATCH_RULES",
                ),
            )
            return self.problems
        changed = False
        for gone in set(self._stamps) - set(paths):
            changed = True
            for known in (self._stamps, self._good, self._problems):
                known.pop(gone, None)
        for path in paths:
            try:
                stat = path.stat()
                stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if self._stamps.get(path) == stamp:
                    continue
                loaded = load_file(path)
            except OSError as exc:
                loaded = Loaded((), (Problem(path.name, 1, 1, f"cannot be read ({type(exc).__name__})"),))
                stamp = (0, 0, 0)
            changed = True
            self._stamps[path] = stamp
            self._problems[path] = loaded.problems
            if not loaded.problems:
                self._good[path] = loaded
        if changed:
            self._set = Ruleset(self._in_force())
        return self.problems

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
            for rule, (line, column) in zip(good.rules, good.places, strict=True):
                if rule.id in found:
                    used = f'rule id "{rule.id}" is already used in {found[rule.id][0].name}; give it another'
                    clashes.append(Problem(path.name, line, column, used))
                else:
                    found[rule.id] = (path, rule)
        self._clashes = tuple(clashes)
        return tuple(rule for _, rule in found.values())


def load_file(path: Path) -> Loaded:
    raw = path.read_bytes()
    if len(raw) > FILE_BYTES_MAX:
        return Loaded((), (Problem(path.name, 1, 1, f"larger than {FILE_BYTES_MAX} bytes; split it"),))
    return load_text(raw, path.name)


def load_text(raw: bytes, name: str) -> Loaded:
    """Never raises for what the text holds."""
    try:
        tree = YAML(typ="rt", pure=True).load(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return Loaded((), (Problem(name, 1, 1, "not UTF-8; save it as UTF-8"),))
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return Loaded(
            (), (Problem(name, line, column, f"not YAML: {(exc.problem or 'it cannot be read').splitlines()[0]}"),)
        )
    except (YAMLError, ValueError, RecursionError):
        return Loaded((), (Problem(name, 1, 1, "not YAML: it cannot be read"),))
    if not isinstance(tree, CommentedMap):
        return Loaded((), (Problem(name, 1, 1, "a rule file starts with `version: 1` and `rules:`"),))
    try:
        plain = to_plain(tree, Budget())
        file = RuleFile.model_validate(plain)
    except ValidationError as exc:
        return Loaded(
            (), tuple(explain(error, tree, name) for error in exc.errors(include_url=False, include_input=False))
        )
    except TooMuch:
        return Loaded((), (Problem(name, 1, 1, "nests too deep or repeats too much; write it plainly"),))
    ids = [rule.id for rule in file.rules]
    for number, rule_id in enumerate(ids):
        if rule_id in ids[:number]:
            line, column = place(tree, ("rules", number, "id"))
            return Loaded((), (Problem(name, line, column, f'rule id "{rule_id}" is used twice in this file'),))
    places = tuple(place(tree, ("rules", number, "id")) for number in range(len(ids)))
    return Loaded(tuple(file.rules), (), places)


class TooMuch(ValueError):
    """A file built of aliases of aliases."""


@dataclass(slots=True)
class Budget:
    nodes: int = NODES_MAX


def to_plain(value: Any, budget: Budget, depth: int = 0) -> Any:
    """ruamel's nodes as plain values, within bounds."""
    budget.nodes -= 1
    if budget.nodes < 0 or depth > DEPTH_MAX:
        raise TooMuch
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_plain(item, budget, depth + 1) for item in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, ScalarString):
        return str(value)
    if isinstance(value, ScalarInt):
        return int(value)
    if isinstance(value, ScalarFloat):
        return float(value)
    return value


def explain(error: Any, tree: CommentedMap, name: str) -> Problem:
    """One of pydantic's errors as a sentence with its place."""
    path = tuple(part for part in error["loc"])
    line, column = place(tree, path)
    key = str(path[-1]) if path else ""
    kind, message = error["type"], str(error["msg"])
    if kind == "extra_forbidden":
        parent = next((str(part) for part in reversed(path[:-1]) if isinstance(part, str) and part in MODELS), None)
        model = MODELS[parent] if parent else RuleFile
        known = [field.alias or field_name for field_name, field in model.model_fields.items()]
        return Problem(name, line, column, f'unknown key "{key}"; {nearest(key, known)}')
    if kind == "missing":
        return Problem(name, line, column, f'"{key}" is missing here')
    if kind == "value_error":
        return Problem(name, line, column, message.removeprefix("Value error, "))
    text = message[:1].lower() + message[1:]
    return Problem(name, line, column, f"{key}: {text}")


def place(tree: Any, path: Sequence[Any]) -> tuple[int, int]:
    """Line and column, from 1, of the deepest part of the path that is there."""
    node, line, column = tree, 1, 1
    for part in path:
        if isinstance(node, CommentedSeq) and not isinstance(part, int):
            continue
        if isinstance(node, CommentedMap):
            if part not in node:
                if isinstance(part, int):
                    continue  # a single value stands for a list of one
                break
            line, column = (number + 1 for number in node.lc.key(part))
            node = node[part]
        elif isinstance(node, CommentedSeq):
            if not 0 <= part < len(node):
                break
            line, column = (number + 1 for number in node.lc.item(part))
            node = node[part]
        else:
            break
    return line, column
