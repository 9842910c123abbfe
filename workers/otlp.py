"""The pushing story: what /metrics tells of the database goes to an OTLP collector, by one worker at a time.

Whoever finds that nobody pushed for an interval takes the turn. What a turn does not get across is not kept: gauges are
of now, counters are cumulative, and the next push tells of both.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from service import outbound
from service.errors import DeliveryFailed
from service.exposition import day_of, five_metrics, how_we_are, reading
from service.families import bounds
from service.observe import log as logger
from service.otlp import OtlpSettings, body_of, headers_of, refused
from service.runtime import Runtime
from service.store import readers, telemetry

PART = "otlp"


@dataclass(slots=True)
class Pushing:
    runtime: Runtime
    settings: OtlpSettings
    not_before: float = 0.0  # by time.monotonic(): a collector asked for so much patience

    async def step(self) -> bool:
        """Whether something was taken by the collector. No transaction is open while it is asked."""
        if time.monotonic() < self.not_before:
            return False
        body = await self.body()
        if body is None:
            return False
        try:
            answer = await outbound.post(
                self.runtime.http,
                self.settings.url.get_secret_value(),
                content=body,
                headers=headers_of(self.settings),
                timeout_seconds=self.settings.timeout.total_seconds(),
            )
            outbound.raise_for_status(answer, hint="see OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_HEADERS")
        except DeliveryFailed as exc:
            if exc.retry_after_seconds is not None:
                self.not_before = time.monotonic() + exc.retry_after_seconds
            logger.warning("otlp.refused", code=exc.code, problem=str(exc))
            return False
        try:
            points, why = refused(answer.body)
        except ValueError as exc:
            logger.warning("otlp.answer_unreadable", problem=str(exc))
            return False
        if points or why:
            logger.warning("otlp.partly_refused", points=points, problem=why)
        return True

    async def body(self) -> bytes | None:
        """What to push now; None while it is not our turn."""
        async with reading(self.runtime.engine) as conn:
            now = await readers.clock(conn)
            if not await telemetry.take_turn(conn, PART, now, self.settings.interval):
                return None
        async with reading(self.runtime.engine) as conn:
            now = await readers.clock(conn)
            ready = [*await how_we_are(conn, list(self.runtime.sinks)), *bounds(), *await five_metrics(conn)]
        return body_of(ready, self.settings, now=now, since=day_of(now))
