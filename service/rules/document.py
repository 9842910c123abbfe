"""A rule file as written: plain values, and where in the text each of them stands. Pure.

Only the events of ruamel's parser are used, and what a scalar means is decided here, by YAML 1.2 and less: `on`, `no`,
`1e3`, `12:30:45` and `2026-01-01` are words. Built in a loop and within bounds, so that no file can take long or deep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
)
from ruamel.yaml.reader import ReaderError

DEPTH_MAX = 20
ITEMS_MAX = 1_000  # of one list, or keys of one mapping
EVENTS_MAX = 30_000  # of the parser, a second's worth; a thousand short rules are 23,000
VALUES_MAX = 20_000  # with every alias written out
ALIASES_MAX = 1_000
LINE_MAX = 3_000  # characters: the scanner takes long over long tokens
NAME_MAX = 100  # of an anchor
SOURCE_MAX = 160  # of a line that is shown

INT = re.compile(r"[-+]?[0-9]+")
FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
DIGITS_MAX = 18
TEXT_TAG = "tag:yaml.org,2002:str"
# An escape such as `"\0"` can write what Postgres keeps in no text, and what would steer a terminal.
UNKEPT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
Path: TypeAlias = Sequence[str | int]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake (or, with `warning`, something that is seldom meant), where it is, and how to mend it. Lines and columns
    count from 1; `length` characters of the line `source` are what is meant, from `offset` on."""

    file: str
    line: int
    column: int
    message: str
    mend: str | None = None
    source: str = ""
    offset: int = 0
    length: int = 1
    warning: bool = False

    def __str__(self) -> str:
        mend = f"; {self.mend}" if self.mend else ""
        return f"{self.file}:{self.line}:{self.column}: {self.message}{mend}"


@dataclass(slots=True)
class Node:
    """A value in [start, end) of the text: a scalar, a list of `items`, or a mapping of `keys` to their own node and
    their value's."""

    start: int
    end: int
    scalar: Any = None
    items: list[Node] | None = None
    keys: dict[str, tuple[Node, Node]] | None = None


class Unreadable(ValueError):
    """Not YAML, or YAML that no rule file needs, at an index of the text."""

    def __init__(self, index: int, message: str, mend: str | None = None) -> None:
        super().__init__(message)
        self.index, self.message, self.mend = index, message, mend


@dataclass(slots=True)
class Document:
    name: str
    text: str
    root: Node = field(default_factory=lambda: Node(0, 0))

    def plain(self) -> Any:
        """The values alone. Raises Unreadable where aliases unfold to too much."""
        return to_plain(self.root, [VALUES_MAX])

    def at(self, path: Path, *, on_key: bool = False, word: str | None = None) -> tuple[int, int]:
        """[start, end) of what a path leads to, or of the deepest part of it that is there: the value, or its key."""
        node, key, rest = self.root, None, list(path)
        while rest:
            part = rest[0]
            if node.items is not None:
                if isinstance(part, int) and 0 <= part < len(node.items):
                    key, node = None, node.items[part]
            elif node.keys is not None:
                if part in node.keys:
                    key, node = node.keys[str(part)]
                elif not isinstance(part, int):  # an index: a single value stands for a list of one
                    break
            elif not isinstance(part, int):
                break
            rest.pop(0)
        empty = node.scalar is None and node.start == node.end  # nothing is written there to point at
        if key is not None and not rest and (on_key or empty):
            node = key
        if word and (found := find_word(self.text, word, node.start, node.end)) is not None:
            return found, found + len(word)
        return node.start, node.end

    def key_of(self, path: Path) -> tuple[int, int]:
        """Where something is missing from what the path leads to: its key, or for an item of a list its begin."""
        return self.at(path, on_key=True)

    def problem(
        self, where: tuple[int, int], message: str, mend: str | None = None, *, warning: bool = False
    ) -> Problem:
        start = min(where[0], len(self.text))
        begin = self.text.rfind("\n", 0, start) + 1
        end = self.text.find("\n", start)
        line = self.text[begin : end if end >= 0 else None].rstrip("\r")
        cut = max(0, start - begin - SOURCE_MAX // 2)
        shown = printable(line[cut : cut + SOURCE_MAX])
        offset = min(start - begin - cut, len(shown))  # an end of the file may lie behind the line's
        return Problem(
            file=self.name,
            line=self.text.count("\n", 0, start) + 1,
            column=start - begin + 1,
            message=printable(message),
            mend=None if mend is None else printable(mend),
            source=shown,
            offset=offset,
            length=max(1, min(where[1] - start, len(shown.rstrip()) - offset)),
            warning=warning,
        )


def printable(text: str) -> str:
    """What a file holds is shown in terminals and logs, and must not steer them."""
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def find_word(text: str, word: str, start: int, end: int) -> int | None:
    """A placeholder of that name, or else the word itself."""
    if found := re.compile(r"\{\{\s*(" + re.escape(word) + r")(?!\w)").search(text, start, end):
        return found.start(1)
    index = text.find(word, start, end)
    return index if index >= 0 else None


def read_document(raw: bytes, name: str) -> Document | Problem:
    """Never raises, whatever the bytes."""
    try:
        document = Document(name, raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        index = len(raw[: error.start].decode("utf-8-sig", "replace"))
        seen = Document(name, raw.decode("utf-8-sig", "replace"))
        return seen.problem((index, index + 1), "not UTF-8", "save the file as UTF-8")
    try:
        check_text(document.text)
        document.root = build(YAML(typ="safe", pure=True).parse(document.text))
    except Unreadable as error:
        return document.problem((error.index, error.index + 1), error.message, error.mend)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        index = mark.index if mark is not None else 0
        said = (error.problem or "it cannot be read").splitlines()[0]
        if (opened := unclosed(error)) is not None:
            return document.problem((opened, opened + 1), "not YAML: what begins here is not closed", "close it")
        return document.problem((index, index + 1), f"not YAML: {said}", mend_of(document.text, error, index, said))
    except ReaderError as error:
        return document.problem(
            (error.position, error.position + 1), "a character that YAML does not allow", "take it out"
        )
    except (YAMLError, ValueError, IndexError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        # What the scanner itself trips over, such as a `%YAML` line or an escape beyond Unicode.
        return document.problem((0, 1), f"not YAML: it cannot be read ({type(error).__name__})")
    return document


def unclosed(error: MarkedYAMLError) -> int | None:
    """Where the quote or bracket stands for whose end the whole file was looked through: there is the mistake."""
    said = error.problem or ""
    at_end = "<stream end>" in said or "unexpected end of stream" in said
    return error.context_mark.index if at_end and error.context_mark is not None else None


def mend_of(text: str, error: MarkedYAMLError, index: int, said: str) -> str | None:
    if text[index : index + 1] == "\t":
        return "indent with spaces"
    if "mapping values are not allowed" in said:
        return 'put text that holds ": " in quotes, or mend the indentation'
    if said.startswith("expected ','") and (opened := error.context_mark) is not None:
        return f"put a comma here, or close what begins at {opened.line + 1}:{opened.column + 1}"
    if text[index : index + 1] in ("{", "@", "`", "%", "*"):
        return "put the text in quotes"
    return None


def check_text(text: str) -> None:
    begin = 0
    for line in text.split("\n"):
        if len(line) > LINE_MAX:
            raise Unreadable(begin, f"a line longer than {LINE_MAX} characters", "break it")
        if line.startswith("%"):
            raise Unreadable(begin, "a YAML directive", "take the line out; rule files are YAML 1.2 without it")
        begin += len(line) + 1


def build(events: Iterable[Event]) -> Node:
    """The one document's root. Raises Unreadable, and what the parser raises."""
    root: Node | None = None
    open_: list[tuple[Node, Node | None]] = []  # collections not yet closed, each with the key that waits for its value
    anchors: dict[str, Node] = {}
    aliases = documents = 0
    for count, event in enumerate(events):
        start, end = event.start_mark.index, event.end_mark.index
        if count > EVENTS_MAX:
            raise Unreadable(start, "too much for one file", "split it")
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise Unreadable(start, "a second document begins here", "put it into a file of its own")
            continue
        if isinstance(event, MappingEndEvent | SequenceEndEvent):
            open_.pop()[0].end = end
            continue
        if isinstance(event, AliasEvent):
            aliases += 1
            if aliases > ALIASES_MAX:
                raise Unreadable(start, "repeats too much", "write it plainly")
            found = anchors.get(event.anchor)
            if found is None:
                raise Unreadable(
                    start, f"*{event.anchor[:NAME_MAX]} has no anchor before it", "quote text that begins with *"
                )
            node = found
        elif isinstance(event, ScalarEvent):
            node = Node(start, end, scalar_of(event, as_key=awaits_key(open_)))
        elif isinstance(event, CollectionStartEvent):
            if event.tag is not None:
                raise Unreadable(start, f"the tag {event.tag} means nothing here", "take it out")
            if awaits_key(open_):
                raise Unreadable(start, "a key is text, not a list or a mapping", "quote text that begins with { or [")
            node = Node(start, end)
            if isinstance(event, MappingStartEvent):
                node.keys = {}
            else:
                node.items = []
        else:
            continue
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.anchor is not None:
            if len(event.anchor) > NAME_MAX:
                raise Unreadable(start, f"an anchor longer than {NAME_MAX} characters", "name it shorter")
            anchors[event.anchor] = node
        if open_:
            place_in(open_, node, alias=isinstance(event, AliasEvent), start=start)
        else:
            root = node
        if isinstance(event, CollectionStartEvent):
            open_.append((node, None))
            if len(open_) > DEPTH_MAX:
                raise Unreadable(
                    start, f"nests deeper than {DEPTH_MAX} levels", "no rule needs that; close what is open"
                )
    if root is None:
        raise Unreadable(0, "the file is empty", "a rule file starts with `version: 1` and `rules:`")
    return root


def awaits_key(open_: list[tuple[Node, Node | None]]) -> bool:
    return bool(open_) and open_[-1][0].keys is not None and open_[-1][1] is None


def place_in(open_: list[tuple[Node, Node | None]], node: Node, *, alias: bool, start: int) -> None:
    """Into the innermost open collection, as an item, a key or a value."""
    parent, key = open_[-1]
    if parent.items is not None:
        parent.items.append(node)
        if len(parent.items) > ITEMS_MAX:
            raise Unreadable(start, f"more than {ITEMS_MAX} items in one list", "split it")
        return
    assert parent.keys is not None
    if key is not None:
        parent.keys[key.scalar] = (key, node)
        open_[-1] = (parent, None)
        return
    if alias:
        raise Unreadable(start, "a key that is an alias", "write the key itself")
    if node.scalar == "<<":
        raise Unreadable(start, "`<<` is no merge in YAML 1.2", "write the keys out")
    if node.scalar in parent.keys:
        raise Unreadable(start, f'"{node.scalar[:NAME_MAX]}" is given twice here', "take one out")
    if len(parent.keys) >= ITEMS_MAX:
        raise Unreadable(start, f"more than {ITEMS_MAX} keys in one place", "split it")
    open_[-1] = (parent, node)


def scalar_of(event: ScalarEvent, *, as_key: bool) -> Any:
    """What a scalar means. A key is always text: `on: x` has the key "on", and `1: x` the key "1"."""
    text: str = event.value
    start = event.start_mark.index
    if (unkept := UNKEPT.search(text)) is not None:
        raise Unreadable(
            start, f"holds the character U+{ord(unkept[0]):04X}, which no text may", "take it out, or write it plainly"
        )
    if event.tag is not None and str(event.tag) not in (TEXT_TAG, "!"):
        raise Unreadable(start, f"the tag {event.tag} means nothing here", "take it out, or quote the text")
    if as_key:
        if not text:
            raise Unreadable(start, "a key has no name", "write its name before the colon")
        return text
    if event.style is not None or event.tag is not None:
        return text
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INT.fullmatch(text) or FLOAT.fullmatch(text):
        if len(text) > DIGITS_MAX:
            raise Unreadable(start, "a number too long to be exact", "put it in quotes if it is text")
        return int(text) if INT.fullmatch(text) else float(text)
    return text


def to_plain(node: Node, left: list[int], depth: int = 0) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth > DEPTH_MAX:
        raise Unreadable(node.start, "nests too deep or repeats too much", "write it plainly")
    if node.keys is not None:
        return {key: to_plain(value, left, depth + 1) for key, (_, value) in node.keys.items()}
    if node.items is not None:
        return [to_plain(item, left, depth + 1) for item in node.items]
    return node.scalar
