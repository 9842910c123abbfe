"""The five metrics: what each is made of, and its value. Pure.

A value is null where nothing was reported that it could be made of: no call is no rate, and a refresh that only the
provider's webhook told of has no latency.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.report import ERROR_CLASSES
from service.rules.triggers.quantile import quantile_of

QUANTILES = {"p50_seconds": 0.5, "p99_seconds": 0.99}


@dataclass(frozen=True, slots=True)
class Sums:
    """What was counted of some series in some time: columns of a rollup, null for nothing, and its sketch's buckets."""

    counts: Mapping[str, int | float | None]
    sizes: Mapping[int, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int | float:
        return self.counts.get(name) or 0


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


def quantiles(sums: Sums) -> dict[str, float | None]:
    return {name: quantile_of(sums.sizes, q) for name, q in QUANTILES.items()}


def merged(sketches: Iterable[Mapping[str, int] | None]) -> dict[int, int]:
    """Of sketches as JSON has them."""
    found: Counter[str] = Counter()
    for sketch in sketches:
        if sketch:
            if found:
                found.update(sketch)
            else:
                found = Counter(sketch)
    return {int(size): count for size, count in found.items()}


def success_rate(sums: Sums) -> dict[str, Any]:
    return {"value": ratio(sums["calls_succeeded"], sums["calls"]), "count": sums["calls"]}


def refresh_rate(sums: Sums) -> dict[str, Any]:
    timed = sum(sums.sizes.values())
    rate = ratio(sums["refreshes_succeeded"], sums["refreshes"])
    return {"value": rate, "count": sums["refreshes"], **quantiles(sums), "timed": timed}


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
    said = quantiles(sums)
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
