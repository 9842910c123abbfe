"""Anchored regular expressions of matchers, in the words of Go's RE2 and in its time: linear in the value, whatever the pattern.

Python's own engine can take for ever over `(a+)+$`, and an admin's pattern must never hold up who tells people. So a
pattern becomes a small automaton here, and its states are walked all at once. What RE2 cannot do either (look-around,
references to groups) and what no label needs is refused when the pattern is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

PATTERN_CHARS_MAX = 1_000
STATES_MAX = 4_000  # of the automaton, with every {n,m} written out
REPEAT_MAX = 1_000  # RE2's own bound
REPEATED_STATES_MAX = 1_000  # made by {n,m}: nearly all of them may have to be walked at each character
DEPTH_MAX = 50
STEPS_KEPT_MAX = 10_000

Test = Callable[[str], bool]

DIGIT = [("0", "9")]
WORD = [("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z")]
SPACE = [("\t", "\n"), ("\f", "\r"), (" ", " ")]
CLASSES = {"d": DIGIT, "w": WORD, "s": SPACE}
CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}


class BadPattern(ValueError):
    """A pattern that cannot be read, or that is too large; a sentence for its author."""


@dataclass(frozen=True, slots=True)
class Chars:
    """Which characters: those in `ranges`, or with `others` all but those."""

    ranges: tuple[tuple[str, str], ...]
    others: bool = False
    fold: bool = False

    def __call__(self, char: str) -> bool:
        forms = (char, char.lower(), char.upper()) if self.fold else (char,)
        return any(low <= form <= high for form in forms for low, high in self.ranges) != self.others


@dataclass(slots=True)
class State:
    """Goes on to `to` over a character that `chars` takes; without `chars`, over nothing, at `only` (`begin`, `end`)."""

    chars: Test | None = None
    only: str | None = None
    to: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Piece:
    """A part of the automaton under construction: where it begins, and the states whose way on is open."""

    start: int
    ends: list[int]


class Pattern:
    """A compiled pattern; `matches` says whether it is the whole value."""

    def __init__(self, text: str) -> None:
        """Raises BadPattern."""
        if len(text) > PATTERN_CHARS_MAX:
            raise BadPattern(f"a regular expression longer than {PATTERN_CHARS_MAX} characters")
        self.text = text
        reader = Reader(text)
        piece = reader.whole()
        self._states = reader.states
        self._accept = len(self._states)
        self._states.append(State())
        for end in piece.ends:
            self._states[end].to.append(self._accept)
        self._start = piece.start
        self._kept: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def matches(self, value: str) -> bool:
        if not value:
            return self._accept in self._reach([self._start], {"begin", "end"})
        now = self._reach([self._start], {"begin"})
        last = len(value) - 1
        for place, char in enumerate(value):
            if place == last:
                return self._accept in self._reach(self._over(now, char), {"end"})
            known = self._kept.get((now, char))
            if known is None:
                known = self._reach(self._over(now, char), set())
                if len(self._kept) < STEPS_KEPT_MAX:
                    self._kept[now, char] = known
            now = known
            if not now:
                return False
        return False

    def _over(self, states: Iterable[int], char: str) -> list[int]:
        found = []
        for number in states:
            state = self._states[number]
            if state.chars is not None and state.chars(char):
                found += state.to
        return found

    def _reach(self, states: Iterable[int], at: set[str]) -> frozenset[int]:
        """With all that is reached over nothing."""
        waiting, found = list(states), set[int]()
        while waiting:
            number = waiting.pop()
            if number in found:
                continue
            found.add(number)
            state = self._states[number]
            if state.chars is None and (state.only is None or state.only in at):
                waiting += state.to
        return frozenset(found)


class Reader:
    """Reads a pattern by descent, bounded in depth, and builds its states."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0
        self._fold = self._dot_all = False
        self._repeated = 0
        self.states: list[State] = []

    def whole(self) -> Piece:
        piece = self.alternatives()
        if self._at < len(self._text):
            raise BadPattern("a ) without its (")
        return piece

    def alternatives(self) -> Piece:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise BadPattern(f"parentheses deeper than {DEPTH_MAX}")
        flags = self._fold, self._dot_all
        branches = [self.sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self.sequence())
        self._fold, self._dot_all = flags
        self._depth -= 1
        if len(branches) == 1:
            return branches[0]
        start = self._state(State(to=[branch.start for branch in branches]))
        return Piece(start, [end for branch in branches for end in branch.ends])

    def sequence(self) -> Piece:
        first = self._state(State())
        piece = Piece(first, [first])
        while self._peek() not in ("", "|", ")"):
            began = self._at
            atom = self.atom()
            if atom is None:
                continue
            piece = self._join(piece, self.repeated(atom, began))
        return piece

    def repeated(self, atom: Piece, began: int) -> Piece:
        """An atom and what says how often; RE2 refuses a second such word, and so do we."""
        ended = self._at
        bounds = self.bounds()
        if bounds is None:
            return atom
        if self._peek() == "?":  # prefers less: for the whole value it makes no difference
            self._at += 1
        after = self._at
        if self.bounds() is not None:
            raise BadPattern(f'"{self._text[ended : self._at]}" repeats what already repeats')
        self._at = after
        least, most = bounds
        copies = [atom]
        fold, dot_all = self._fold, self._dot_all
        while len(copies) < max(least, most or least, 1):
            copies.append(self._again(began, ended))
            self._fold, self._dot_all = fold, dot_all
        self._at = after
        if most == 0:
            first = self._state(State())
            return Piece(first, [first])
        return self._chain(copies, least, most)

    def _chain(self, copies: list[Piece], least: int, most: int | None) -> Piece:
        first = self._state(State())
        piece, skipped = Piece(first, [first]), list[int]()
        for number, copy in enumerate(copies, 1):
            if number > least:
                skipped += piece.ends
            piece = self._join(piece, copy)
        if most is None:  # the last may come again and again
            loop = self._state(State(to=[copies[-1].start]))
            for end in piece.ends:
                self.states[end].to.append(loop)
            piece = Piece(piece.start, [loop])
        return Piece(piece.start, [*piece.ends, *skipped])

    def bounds(self) -> tuple[int, int | None] | None:
        """(at least, at most or None for without end) where `*`, `+`, `?` or `{n,m}` stands here."""
        char = self._peek()
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if char in simple:
            self._at += 1
            return simple[char]
        if char != "{":
            return None
        inside, brace, _ = self._text[self._at + 1 :].partition("}")
        low, comma, high = inside.partition(",")
        if not brace or not low.isascii() or not low.isdigit() or (high and not (high.isascii() and high.isdigit())):
            return None  # RE2 reads it as the characters they are
        if len(low) > 4 or len(high) > 4 or int(low) > REPEAT_MAX or int(high or 0) > REPEAT_MAX:
            raise BadPattern(f"repeats more than {REPEAT_MAX} times")
        least, most = int(low), int(high) if high else None if comma else int(low)
        if most is not None and most < least:
            raise BadPattern(f"{{{inside}}} has its bounds the wrong way round")
        self._at += len(inside) + 2
        return least, most

    def atom(self) -> Piece | None:
        char = self._next()
        if char == "(":
            return self.group()
        if char == "[":
            return self._one(self.brackets())
        if char == ".":
            return self._one(Chars(() if self._dot_all else (("\n", "\n"),), others=True))
        if char in "^$":
            place = self._state(State(only="begin" if char == "^" else "end"))
            return Piece(place, [place])
        if char in "*+?":
            raise BadPattern(f'"{char}" has nothing before it to repeat')
        if char == "\\":
            return self.escape()
        return self._one(self._exactly(char))

    def group(self) -> Piece | None:
        before = self._fold, self._dot_all
        if self._peek() == "?":
            self._at += 1
            if self._text.startswith("P<", self._at) or self._text[self._at : self._at + 1] == "<":
                name, closed, _ = self._text[self._at :].partition(">")
                if not closed or name in ("<", "P<") or name[:2] in ("<=", "<!"):
                    raise BadPattern("(?<= and (?<! are not known here; look-behind cannot be bounded")
                self._at += len(name) + 1
            else:
                flags = ""
                while self._peek() not in ("", ":", ")"):
                    flags += self._next()
                if not set(flags) <= set("ism-U") or not self._peek():
                    raise BadPattern(f"(?{flags[:10]} is not known here")
                on, _, off = flags.partition("-")
                self._fold = ("i" in on or self._fold) and "i" not in off
                self._dot_all = ("s" in on or self._dot_all) and "s" not in off
                if self._next() == ")":
                    return None  # from here to the end of the group around it
        piece = self.alternatives()
        if self._next() != ")":
            raise BadPattern("a ( without its )")
        self._fold, self._dot_all = before
        return piece

    def brackets(self) -> Chars:
        others = self._peek() == "^"
        self._at += others
        ranges: list[tuple[str, str]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            low = self.bracket_part(ranges)
            if low is None:
                continue
            high = low
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                end = self.bracket_part([])
                if end is None or end < low:
                    raise BadPattern("a range in [ ] that runs backwards")
                high = end
            ranges.append((low, high))
        self._at += 1
        return Chars(tuple(ranges), others=others, fold=self._fold)

    def bracket_part(self, ranges: list[tuple[str, str]]) -> str | None:
        """One character, or None after a class, whose ranges were added."""
        char = self._next()
        if not char:
            raise BadPattern("a [ without its ]")
        if char == "[" and self._peek() == ":":
            raise BadPattern("classes such as [[:alpha:]] are not known here; write [A-Za-z]")
        if char != "\\":
            return char
        char = self._next()
        if char in CLASSES:
            ranges += CLASSES[char]
            return None
        if char.lower() in CLASSES:
            ranges += complement(CLASSES[char.lower()])
            return None
        return CONTROLS.get(char) or self._literal(char)

    def escape(self) -> Piece:
        char = self._next()
        if char and char.lower() in CLASSES:
            return self._one(Chars(tuple(CLASSES[char.lower()]), others=char.isupper()))
        if char in ("A", "z"):
            place = self._state(State(only="begin" if char == "A" else "end"))
            return Piece(place, [place])
        return self._one(self._exactly(CONTROLS.get(char) or self._literal(char)))

    def _literal(self, char: str) -> str:
        if not char:
            raise BadPattern("a \\ at the end")
        if char.isascii() and char.isalnum():
            raise BadPattern(f"\\{char} is not known here")
        return char

    def _exactly(self, char: str) -> Chars:
        return Chars(((char, char),), fold=self._fold)

    def _one(self, chars: Test) -> Piece:
        place = self._state(State(chars=chars))
        return Piece(place, [place])

    def _again(self, began: int, ended: int) -> Piece:
        """The same atom once more."""
        self._at, before = began, len(self.states)
        atom = self.atom()
        self._repeated += len(self.states) - before
        if self._repeated > REPEATED_STATES_MAX:
            raise BadPattern(f"it repeats more than {REPEATED_STATES_MAX} parts in all; repeat less")
        assert atom is not None
        assert self._at == ended
        return atom

    def _join(self, first: Piece, second: Piece) -> Piece:
        for end in first.ends:
            self.states[end].to.append(second.start)
        return Piece(first.start, second.ends)

    def _state(self, state: State) -> int:
        if len(self.states) >= STATES_MAX:
            raise BadPattern(f"it unfolds to more than {STATES_MAX} states; repeat less")
        self.states.append(state)
        return len(self.states) - 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char


def complement(ranges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    found, low = [], 0
    for first, last in sorted(ranges):
        if ord(first) > low:
            found.append((chr(low), chr(ord(first) - 1)))
        low = ord(last) + 1
    return [*found, (chr(low), "\U0010ffff")]
