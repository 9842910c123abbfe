"""What is wrong with a part of a rule, said so that the loader can point at the very word. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

WORD_MAX = 60


class Mistake(ValueError):
    """Raised by validators. `path` leads on from what is validated to the offending part, as keys and list indices.

    `on_key`: the key itself is wrong, not its value. `word`: a part of the text there. `mend`: what to write instead.
    """

    def __init__(
        self,
        message: str,
        mend: str | None = None,
        *,
        path: Sequence[str | int] = (),
        on_key: bool = False,
        word: str | None = None,
    ) -> None:
        super().__init__(f"{message}; {mend}" if mend else message)
        self.message, self.mend = message, mend
        self.path, self.on_key, self.word = tuple(path), on_key, word

    def under(self, *path: str | int) -> Mistake:
        """The same, seen from further out."""
        return Mistake(self.message, self.mend, path=(*path, *self.path), on_key=self.on_key, word=self.word)


# What the provider's payload calls it, and other systems' words, where no likeness leads to ours.
PAYLOAD = "data."
MEANT = {"data.id": "account_id", "id": "account_id", "connected_account_id": "account_id"}
DETAILS = "details.NAME"


def nearest(word: object, known: Sequence[str]) -> str:
    """`did you mean "within"?`, or what there is."""
    found = payload_word(str(word)[:WORD_MAX], known) or close(str(word), known)
    return f'did you mean "{found}"?' if found else f"known: {', '.join(known)}"


def payload_word(word: str, known: Sequence[str]) -> str | None:
    """`data.provider` is our provider, and `data.outcome` a detail."""
    if (meant := MEANT.get(word)) is not None and meant in known:
        return meant
    name = word.removeprefix(PAYLOAD)
    if name == word or not name:
        return None
    if name in known:
        return name
    return f"details.{name}" if DETAILS in known else None


def close(word: str, known: Sequence[str]) -> str | None:
    """Upper and lower case make no difference to what was meant."""
    by_lower = {name.lower(): name for name in reversed(known)}
    found = difflib.get_close_matches(word[:WORD_MAX].lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def quoted(value: object) -> str:
    """A value as the file has it, short enough for one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    text = text if len(text) <= WORD_MAX else f"{text[:WORD_MAX]}..."
    return f'"{text}"' if isinstance(value, str) else text
