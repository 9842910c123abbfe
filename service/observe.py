"""What we say about ourselves: JSON logs with ids bound to the context, and Prometheus counters of this process.

No secret, token or payload field goes into either; what a label may hold is bounded by us, never by a caller.
"""

from __future__ import annotations

import logging
import os
import sys
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Mapping, Sequence
from functools import lru_cache

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.log_file import LogFile

log: structlog.stdlib.BoundLogger = structlog.get_logger("authwatch")

LABELS_MAX = 1024
LOG_FILE_BYTES_MAX = 20 * 1024 * 1024
LAG_BUCKETS_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800, 3600, 21600, 86400)

accepted_total = Counter(
    "authwatch_events_accepted", "Verified events committed, by source and kind", ["source", "kind"]
)
duplicates_total = Counter(
    "authwatch_events_duplicate",
    "Events answered as duplicates, by source and whether the body was the same",
    ["source", "same_body"],
)
rejected_total = Counter(
    "authwatch_requests_rejected", "Requests at the front door that were not kept, by reason", ["source", "reason"]
)


class BatchHistogram(Histogram):
    """A histogram that takes a batch at once: what hundreds of events have in common is counted once for all of them."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """The same as `observe` for each of them."""
        for bucket, count in Counts(bisect_left(self._upper_bounds, amount) for amount in amounts).items():
            self._buckets[bucket].inc(count)
        self._sum.inc(sum(amounts))


lag_seconds = BatchHistogram(
    "authwatch_delivery_lag_seconds", "received_at - occurred_at, by kind", ["kind"], buckets=LAG_BUCKETS_SECONDS
)
requests_seconds = BatchHistogram(
    "authwatch_webhook_seconds",
    "Time to answer the front door",
    ["status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


@lru_cache(maxsize=LABELS_MAX)
def accepted(source: str, kind: str) -> Counter:
    """The labelled counter, found once: looking it up costs more than counting."""
    return accepted_total.labels(source, kind)


@lru_cache(maxsize=LABELS_MAX)
def lag(kind: str) -> BatchHistogram:
    return lag_seconds.labels(kind)


@lru_cache(maxsize=LABELS_MAX)
def answered(status: int) -> BatchHistogram:
    return requests_seconds.labels(str(status))


def rejected(source: str, reason: str, status: int, seconds: float) -> None:
    rejected_total.labels(source, reason).inc()
    answered(status).observe(seconds)


def configure_logging(variables: Mapping[str, str] = os.environ) -> None:
    """JSON lines to AUTHWATCH_LOG_FILE when set (`up` does that), else to stderr."""
    path = variables.get("AUTHWATCH_LOG_FILE")
    handler: logging.Handler = LogFile(path, LOG_FILE_BYTES_MAX) if path else logging.StreamHandler(sys.stderr)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(variables.get("AUTHWATCH_LOG_LEVEL", "INFO").upper())
    # Request URLs of these may carry what must not be logged.
    for chatty in ("httpx", "httpcore", "slack_sdk", "aiohttp", "arq"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def render_metrics() -> bytes:
    """This process's metrics; of all receiver processes together when they share PROMETHEUS_MULTIPROC_DIR."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest(REGISTRY)
