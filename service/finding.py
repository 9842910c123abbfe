"""What a check of one part found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`ok` None: a hint, not a fault."""

    ok: bool | None
    what: str
    said: str
