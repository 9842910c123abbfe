"""The five metrics: what each is made of, and its value. Pure.

A value is null where nothing was reported that it could be made of: no call is no rate, and a refresh that only the
provider's webhook told of has no latency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.report import ERROR_CLASSES
from service.rules.triggers.quantile import quantiles_of

QUANTILES = {"p50_seconds": 0.5, "p99_seconds": 0.99}
WANTED = tuple(QUANTILES.values())


@dataclass(frozen=True, slots=True)
class Sums:
    """What was counted of some series in some time: columns of a rollup, null for nothing, and sketches as they are
    stored, each its buckets in their order and then how many are in each."""

    counts: Mapping[str, int | float | None]
    sketches: list[Sequence[int]] = field(default_factory=list)

    def __getitem__(self, name: str) -> int | float:
        return self.counts.get(name) or 0

    @property
    def sketch(self) -> tuple[Sequence[int], Sequence[int]]:
        """The buckets in their order, and how many are in each."""
        if len(self.sketches) == 1:
            [one] = self.sketches
            return one[: len(one) // 2], one[len(one) // 2 :]
        found: dict[int, int] = {}
        for one in self.sketches:
            half = len(one) // 2
            for size, count in zip(one[:half], one[half:], strict=True):
                found[size] = found.get(size, 0) + count
        ordered = sorted(found)
        return ordered, [found[size] for size in ordered]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """`columns` are added up, of `largest` the maximum is taken, `sizes` is the sketch; `point` makes an item of them."""

    name: str
    unit: str
    columns: tuple[str, ...]
    point: Callable[[Sums], dict[str, Any]]
    summary: str
    sizes: str | None = None
    largest: str | None = None


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def quantiles(sums: Sums) -> tuple[dict[str, float | None], int]:
    """And of how many values."""
    sizes, counts = sums.sketch
    return dict(zip(QUANTILES, quantiles_of(sizes, counts, WANTED), strict=True)), sum(counts)


def success_rate(sums: Sums) -> dict[str, Any]:
    return {"value": ratio(sums["calls_succeeded"], sums["calls"]), "count": sums["calls"]}


def refresh_rate(sums: Sums) -> dict[str, Any]:
    rate = ratio(sums["refreshes_succeeded"], sums["refreshes"])
    said, timed = quantiles(sums)
    return {"value": rate, "count": sums["refreshes"], **said, "timed": timed}


def partial_rate(sums: Sums) -> dict[str, Any]:
    return {"value": ratio(sums["partials"], sums["writes"]), "count": sums["writes"], "partials": sums["partials"]}


def retry_rate(sums: Sums) -> dict[str, Any]:
    """Retries over calls, those of each class over the same calls: the classes add up to the whole."""
    calls = sums["calls"]
    by_class = {
        name.removeprefix("retries_"): ratio(retries, calls)
        for name in sums.counts
        if name.startswith("retries_") and (retries := sums[name])
    }
    retries = sum(sums[name] for name in sums.counts if name.startswith("retries_"))
    return {"value": ratio(retries, calls), "count": calls, "by_error_class": by_class}


def delivery_lag(sums: Sums) -> dict[str, Any]:
    said, _ = quantiles(sums)
    most = sums.counts.get("lag_seconds_max")
    return {"value": said["p99_seconds"], "count": sums["deliveries"], **said, "max_seconds": most}


RETRIES = tuple(f"retries_{name}" for name in ERROR_CLASSES)
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="tool_call_success_rate",
            unit="ratio",
            columns=("calls", "calls_succeeded"),
            point=success_rate,
            summary="tool calls that succeeded, over those that were reported",
        ),
        Metric(
            name="refresh_success_rate",
            unit="ratio",
            columns=("refreshes", "refreshes_succeeded"),
            sizes="refresh_sizes",
            point=refresh_rate,
            summary="token refreshes that succeeded, over those that providers and reports told of, and how long they took",
        ),
        Metric(
            name="partial_execution_rate",
            unit="ratio",
            columns=("writes", "partials"),
            point=partial_rate,
            summary="writes whose result was not there, or not so, over all writes",
        ),
        Metric(
            name="retry_rate",
            unit="ratio",
            columns=("calls", *RETRIES),
            point=retry_rate,
            summary="retries over tool calls, in all and by error class",
        ),
        Metric(
            name="delivery_lag",
            unit="seconds",
            columns=("deliveries",),
            sizes="lag_sizes",
            largest="lag_seconds_max",
            point=delivery_lag,
            summary="how long after it happened a webhook came; the value is the 0.99 quantile",
        ),
    )
}
