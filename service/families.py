"""The five metrics as Prometheus families: the worst accounts by name and the rest as one, providers the same. Pure.

What is unknown has no sample: a rate of no calls is not zero. How many series there can be is bounded by us: a label
holds one of our words, or one of the few names that are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

from service.event import AccountKey
from service.metrics import METRICS, Sums
from service.redact import redact_text
from service.report import ERROR_CLASSES

ACCOUNTS_NAMED_MAX = 20  # of each of the five metrics
PROVIDERS_NAMED_MAX = 50
WINDOW = timedelta(minutes=15)  # what a rate is made of
REST = "rest"  # everybody who is not named; no account is written so: its id has two colons
NOBODY = "unknown"  # a report that did not say its provider
QUANTILES = {"p50_seconds": "0.5", "p99_seconds": "0.99"}
ACCOUNTS_TOLD = f"the {ACCOUNTS_NAMED_MAX} worst by name, all others as account_id={REST}"
PROVIDERS_TOLD = f"the first {PROVIDERS_NAMED_MAX} by name, all others as provider={REST}"
LAST = f"of the last {WINDOW.total_seconds() / 60:.0f} minutes"


@dataclass(slots=True)
class Counted:
    """`counts`: columns of a rollup, without those of which nothing was reported. `sizes`: sketch -> bucket -> how many."""

    counts: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, Counter[int]] = field(default_factory=dict)

    def add_sizes(self, name: str, buckets: Mapping[int, int]) -> None:
        self.sizes.setdefault(name, Counter()).update(buckets)

    def add(self, other: Counted) -> None:
        for name, count in other.counts.items():
            if name == "lag_seconds_max":
                self.counts[name] = max(count, self.counts.get(name, 0.0))
            else:
                self.counts[name] = self.counts.get(name, 0.0) + count
        for name, buckets in other.sizes.items():
            self.add_sizes(name, buckets)

    def less(self, parts: Iterable[Counted]) -> Counted:
        """What is left without these; nothing is less than nothing, where the two were read a moment apart."""
        left = Counted(dict(self.counts), {name: Counter(buckets) for name, buckets in self.sizes.items()})
        left.counts.pop("lag_seconds_max", None)  # a maximum cannot be taken apart
        for part in parts:
            for name, count in part.counts.items():
                if name in left.counts:
                    left.counts[name] = max(0.0, left.counts[name] - count)
            for name, buckets in part.sizes.items():
                left.sizes[name] = left.sizes.get(name, Counter()) - buckets
        return left

    def point(self, metric: str) -> dict[str, float | None]:
        """An item of `/v1/metrics/{name}`."""
        known = METRICS[metric]
        buckets = self.sizes.get(known.sizes, Counter()) if known.sizes else Counter[int]()
        ordered = sorted(size for size, count in buckets.items() if count > 0)
        sketch = [*ordered, *(buckets[size] for size in ordered)]
        return known.point(Sums(self.counts, [sketch] if sketch else []))

    def __getitem__(self, column: str) -> float:
        return self.counts.get(column, 0.0)

    @property
    def retries(self) -> float:
        return sum(self[f"retries_{name}"] for name in ERROR_CLASSES)


@dataclass(frozen=True, slots=True)
class OfAccounts:
    """One metric by account. `worst`: who is named first; who is at zero is not named."""

    metric: str
    name: str
    documentation: str
    worst: Callable[[Counted], float]


OF_ACCOUNTS = (
    OfAccounts(
        "tool_call_success_rate",
        "authwatch_account_tool_call_success_ratio",
        "Tool calls that succeeded, over all",
        lambda one: one["calls"] - one["calls_succeeded"],
    ),
    OfAccounts(
        "refresh_success_rate",
        "authwatch_account_refresh_success_ratio",
        "Token refreshes that succeeded, over all",
        lambda one: one["refreshes"] - one["refreshes_succeeded"],
    ),
    OfAccounts(
        "partial_execution_rate",
        "authwatch_account_partial_execution_ratio",
        "Writes whose result is missing or not as written, over all writes",
        lambda one: one["partials"],
    ),
    OfAccounts(
        "retry_rate", "authwatch_account_retries_per_tool_call", "Retries over tool calls", lambda one: one.retries
    ),
    OfAccounts(
        "delivery_lag",
        "authwatch_account_delivery_lag_seconds",
        "How long after it happened a webhook came, 0.99 quantile",
        lambda one: one["lag_seconds_max"],
    ),
)
RATIOS_OF_PROVIDERS = (
    ("tool_call_success_rate", "authwatch_tool_call_success_ratio", "Tool calls that succeeded, over all"),
    ("refresh_success_rate", "authwatch_refresh_success_ratio", "Token refreshes that succeeded, over all"),
    (
        "partial_execution_rate",
        "authwatch_partial_execution_ratio",
        "Writes whose result is missing or not as written, over all writes",
    ),
)
QUANTILES_OF_PROVIDERS = (
    ("refresh_success_rate", "authwatch_refresh_duration_seconds", "How long token refreshes took, as reported"),
    ("delivery_lag", "authwatch_webhook_lag_seconds", "How long after it happened a webhook came"),
)


def by_account(total: Counted, candidates: Mapping[AccountKey, Counted]) -> list[Family]:
    """`total`: of all accounts, those that are counted by nobody's name too; `candidates`: who may be among the worst."""
    shown = merged((redact_text(str(key)), one) for key, one in candidates.items())
    families: list[Family] = []
    for what in OF_ACCOUNTS:
        bad = sorted(((what.worst(one), name) for name, one in shown.items()), key=lambda pair: (-pair[0], pair[1]))
        named = [name for how_bad, name in bad[:ACCOUNTS_NAMED_MAX] if how_bad > 0]
        family = GaugeMetricFamily(
            what.name, f"{what.documentation}, {LAST}: {ACCOUNTS_TOLD}", labels=["account_id"], unit=unit_of(what.name)
        )
        rest = total.less(shown[name] for name in named)
        for name, one in [*((name, shown[name]) for name in named), (REST, rest)]:
            value = one.point(what.metric)["value"]
            if value is not None:
                family.add_metric([name], value)
        families.append(family)
    return families


def by_provider(counted: Mapping[str, Counted]) -> list[Family]:
    """Gauges of the window, by the names that `named_providers` gave."""
    families: list[Family] = []
    for metric, name, words in RATIOS_OF_PROVIDERS:
        ratio = gauge(name, words, "provider")
        for provider, one in counted.items():
            value = one.point(metric)["value"]
            if value is not None:
                ratio.add_metric([provider], value)
        families.append(ratio)
    retries = gauge("authwatch_retries_per_tool_call", "Retries over tool calls, by why", "provider", "error_class")
    for provider, one in counted.items():
        if one["calls"]:
            for error_class in ERROR_CLASSES:
                retries.add_metric([provider, error_class], one[f"retries_{error_class}"] / one["calls"])
    families.append(retries)
    for metric, name, words in QUANTILES_OF_PROVIDERS:
        quantiles = gauge(name, words, "provider", "quantile")
        for provider, one in counted.items():
            point = one.point(metric)
            for field_name, quantile in QUANTILES.items():
                value = point[field_name]
                if value is not None:
                    quantiles.add_metric([provider, quantile], value)
        families.append(quantiles)
    return families


def totals(counted: Mapping[str, Counted]) -> list[Family]:
    """Counters: they start at zero with each UTC day, which `increase` and `rate` take for what it is."""
    calls = counter("authwatch_tool_calls", "Tool calls reported", "provider", "outcome")
    writes = counter("authwatch_tool_call_writes", "Tool calls that write", "provider")
    partials = counter("authwatch_partial_executions", "Writes whose result is missing or not as written", "provider")
    retries = counter("authwatch_tool_call_retries", "Retries of tool calls, by why", "provider", "error_class")
    refreshes = counter("authwatch_token_refreshes", "Token refreshes, told or reported", "provider", "outcome")
    for provider, one in counted.items():
        for family, whole, good in (
            (calls, "calls", "calls_succeeded"),
            (refreshes, "refreshes", "refreshes_succeeded"),
        ):
            if whole in one.counts:
                family.add_metric([provider, "success"], one[good])
                family.add_metric([provider, "error"], one[whole] - one[good])
        if "writes" in one.counts:
            writes.add_metric([provider], one["writes"])
            partials.add_metric([provider], one["partials"])
        if "calls" in one.counts:
            for error_class in ERROR_CLASSES:
                retries.add_metric([provider, error_class], one[f"retries_{error_class}"])
    return [calls, writes, partials, retries, refreshes]


def bounds() -> list[Family]:
    """Known whatever Postgres does."""
    return [
        GaugeMetricFamily(
            "authwatch_metrics_accounts_named_max",
            f"Accounts named by each of the account metrics: {ACCOUNTS_TOLD}",
            value=ACCOUNTS_NAMED_MAX,
        ),
        GaugeMetricFamily(
            "authwatch_metrics_providers_named_max",
            f"Providers named by the provider metrics: {PROVIDERS_TOLD}",
            value=PROVIDERS_NAMED_MAX,
        ),
        GaugeMetricFamily(
            "authwatch_metrics_window_seconds",
            "The time before the scrape that ratios and quantiles are made of, to the begin of a minute",
            value=WINDOW.total_seconds(),
        ),
    ]


def named_providers(counted: Mapping[str, Counted], names: Sequence[str]) -> dict[str, Counted]:
    """The same under the names that are shown; what is not among `names` is one."""
    known = set(names[:PROVIDERS_NAMED_MAX])
    return merged(
        (NOBODY if not provider else redact_text(provider) if provider in known else REST, one)
        for provider, one in counted.items()
    )


def merged(counted: Iterable[tuple[str, Counted]]) -> dict[str, Counted]:
    """Two that are shown by one name are one, since a series is given once."""
    found: dict[str, Counted] = {}
    for name, one in counted:
        found.setdefault(name, Counted()).add(one)
    return found


def whole(counted: Mapping[str, Counted]) -> Counted:
    return merged(("", one) for one in counted.values()).get("", Counted())


def gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, f"{words}, {LAST}: {PROVIDERS_TOLD}", labels=labels, unit=unit_of(name))


def counter(name: str, words: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, f"{words} of the UTC day: {PROVIDERS_TOLD}", labels=labels)


def unit_of(name: str) -> str:
    return next((unit for unit in ("seconds", "ratio") if name.endswith(f"_{unit}")), "")
