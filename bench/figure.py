"""A figure: what was measured round by round, its control in the same run, and whether it was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """`ours` and `control` hold one value a round, in `unit`. `reached` says the deciding number and what it had to be."""

    name: str
    unit: str
    ours: Sequence[float]
    control_name: str
    control: Sequence[float]
    ratio: float | None
    reach: str
    met: bool
    digits: int = 0
    notes: list[str] = field(default_factory=list)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank); values need no order."""
    if not values:
        raise ValueError("there is no quantile of nothing")
    ordered = sorted(values)
    rank = -(-len(ordered) * round(share * 10_000) // 10_000)
    return ordered[max(rank, 1) - 1]


def ratio_of(ours: Sequence[float], control: Sequence[float]) -> float:
    """The median of the rounds' own ratios: what the machine's other users do falls on both of a round."""
    return median(mine / its for mine, its in zip(ours, control, strict=True))


def shown(values: Sequence[float], digits: int) -> str:
    """Median and, of several rounds, the least and the greatest."""
    if not values:
        return "-"
    middle = f"{median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
