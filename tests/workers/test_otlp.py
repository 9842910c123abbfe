"""Metrics pushed by OTLP: to a strict receiver, by one worker at a time, and nobody waits for one that is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from service.children import choose_port
from service.errors import ConfigError
from service.otlp import OtlpSettings, otlp_settings
from service.store import readers, telemetry
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import Running, until
from tests.fakes import serve
from tests.fakes.otlp import FakeOtlp
from tests.workers.house import House
from tests.workers.test_rollups import call, count_all, refresh
from workers.otlp import Pushing

KEY = "dd-0123456789abcdef0123456789abcdef"


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the story says."""
    said: list[dict[str, Any]] = []

    class Listener:
        def warning(self, event: str, **values: Any) -> None:
            said.append({"event": event, **values})

    monkeypatch.setattr("workers.otlp.logger", Listener())
    return said


@pytest.fixture
async def collector() -> AsyncIterator[tuple[FakeOtlp, str]]:
    fake = FakeOtlp()
    async with serve(fake.app) as url:
        yield fake, url


def settings(url: str, **more: str) -> OtlpSettings:
    found = otlp_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": url, **more})
    assert found is not None
    return found


async def interval_passed(house: House) -> None:
    async with begin(house.runtime.engine) as conn:
        await conn.execute(text("UPDATE heartbeats SET at = at - interval '61 seconds' WHERE part = 'otlp'"))


async def test_what_scrapes_see_is_pushed(house: House, collector: tuple[FakeOtlp, str]) -> None:
    fake, url = collector
    fake.wanted = {"dd-api-key": KEY, "x-of-us": "a,b"}
    await house.runtime.tool_calls.keep([call(1), call(2, outcome="error", retries=1, error_class="rate_limited")])
    await house.runtime.token_refreshes.keep([refresh(1, duration_ms=250)])
    await count_all(house)
    pushing = Pushing(
        house.runtime,
        settings(
            f"{url}/",
            OTEL_EXPORTER_OTLP_HEADERS=f"dd-api-key={KEY}, X-Of-Us=a%2Cb",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=prod,team=identity%20plane,service.name=other",
            OTEL_SERVICE_NAME="watch",
        ),
    )
    assert await pushing.step(), fake.refusals
    [found] = fake.pushes
    jira = ("provider", "jira")
    assert found["authwatch_tool_call_success_ratio"] == {(jira,): 0.5}
    assert found["authwatch_tool_calls"] == {(("outcome", "error"), jira): 1, (("outcome", "success"), jira): 1}
    assert found["authwatch_refresh_success_ratio"] == {(jira,): 1}
    assert found["authwatch_account_tool_call_success_ratio"] == {(("account_id", "report::ca_1"),): 0.5}
    assert (("reader", "evaluator"),) in found["authwatch_reader_lag_seconds"]
    assert "authwatch_partial_execution_ratio" not in found
    [of_resource] = fake.requests[0].resource_metrics
    assert {one.key: one.value.string_value for one in of_resource.resource.attributes} == {
        "deployment.environment.name": "prod",
        "team": "identity plane",
        "service.name": "watch",
    }
    units = {metric.name: metric.unit for metric in of_resource.scope_metrics[0].metrics}
    assert units["authwatch_refresh_duration_seconds"] == "s"
    assert units["authwatch_tool_call_success_ratio"] == "1"
    # The same again as protobuf inside gzip, and counted on.
    await house.runtime.tool_calls.keep([call(3)])
    await count_all(house)
    await interval_passed(house)
    zipped = settings(
        url, OTEL_EXPORTER_OTLP_HEADERS=f"dd-api-key={KEY},x-of-us=a%2Cb", OTEL_EXPORTER_OTLP_COMPRESSION="gzip"
    )
    assert await Pushing(house.runtime, zipped).step(), fake.refusals
    assert fake.pushes[1]["authwatch_tool_calls"][("outcome", "success"), jira] == 2


async def test_two_workers_push_once_an_interval(house: House, collector: tuple[FakeOtlp, str]) -> None:
    fake, url = collector
    workers = [Pushing(house.runtime, settings(url)) for _ in range(4)]
    for turn in range(1, 4):
        for _ in range(3):
            await asyncio.gather(*(worker.step() for worker in workers))
        assert len(fake.pushes) == turn
        await interval_passed(house)
    assert fake.refusals == []


async def test_who_read_the_clock_first_and_comes_second_has_no_turn(house: House) -> None:
    every = timedelta(seconds=60)
    async with begin(house.runtime.engine) as conn:
        now = await readers.clock(conn)
        assert await telemetry.take_turn(conn, "otlp", now, every)
        assert not await telemetry.take_turn(conn, "otlp", now - timedelta(milliseconds=5), every)
        assert not await telemetry.take_turn(conn, "otlp", now + timedelta(milliseconds=5), every)
        assert await telemetry.take_turn(conn, "otlp", now + every, every)


async def test_a_clock_that_was_put_back_does_not_silence_us(house: House, collector: tuple[FakeOtlp, str]) -> None:
    fake, url = collector
    pushing = Pushing(house.runtime, settings(url))
    assert await pushing.step()
    async with begin(house.runtime.engine) as conn:
        await conn.execute(text("UPDATE heartbeats SET at = at + interval '3 days' WHERE part = 'otlp'"))
    assert await pushing.step()
    assert len(fake.pushes) == 2


async def test_who_hangs_is_left_in_time_and_no_transaction_waits(
    house: House, collector: tuple[FakeOtlp, str]
) -> None:
    fake, url = collector
    fake.hang = True
    pushing = Pushing(house.runtime, settings(url, OTEL_EXPORTER_OTLP_TIMEOUT="500"))
    began = time.monotonic()
    step = asyncio.create_task(pushing.step())
    await asyncio.wait_for(fake.asked.wait(), 5)
    async with begin(house.runtime.engine) as conn:
        open_ones = await conn.execute(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND xact_start IS NOT NULL AND backend_type = 'client backend'"
            )
        )
        assert open_ones.scalar_one() == 0
    assert not await step
    assert time.monotonic() - began < 5
    fake.hang = False
    await interval_passed(house)
    assert await pushing.step()


async def test_who_is_away_is_asked_again_an_interval_later(house: House, logs: list[dict[str, Any]]) -> None:
    port = choose_port("127.0.0.1")
    pushing = Pushing(house.runtime, settings(f"http://127.0.0.1:{port}"))
    assert not await pushing.step()
    assert [(line["event"], line["code"]) for line in logs] == [("otlp.refused", "connect_failed")]
    fake = FakeOtlp()
    async with serve(fake.app, port=port):
        assert not await pushing.step()
        assert fake.arrived_at == []
        await interval_passed(house)
        assert await pushing.step()


async def test_who_asks_for_patience_gets_it(house: House, collector: tuple[FakeOtlp, str]) -> None:
    fake, url = collector
    fake.always = Response(status_code=429, headers={"retry-after": "600"})
    pushing = Pushing(house.runtime, settings(url))
    assert not await pushing.step()
    await interval_passed(house)
    assert not await pushing.step()
    assert len(fake.arrived_at) == 1
    assert pushing.not_before - time.monotonic() > 590


async def test_what_is_partly_refused_is_said(
    house: House, collector: tuple[FakeOtlp, str], logs: list[dict[str, Any]]
) -> None:
    fake, url = collector
    fake.partly = (7, f"too many series for Authorization: Bearer {KEY}")
    assert await Pushing(house.runtime, settings(url)).step()
    [line] = logs
    assert (line["event"], line["points"]) == ("otlp.partly_refused", 7)
    assert KEY not in str(line)


async def test_keys_are_neither_logged_nor_carried_elsewhere(house: House, logs: list[dict[str, Any]]) -> None:
    fake = FakeOtlp()
    async with serve(fake.app) as there:

        async def away(_request: Request) -> Response:
            return RedirectResponse(f"{there}/v1/metrics", status_code=307)

        async with serve(Starlette(routes=[Route("/v1/metrics", away, methods=["POST"])])) as url:
            keyed = settings(url, OTEL_EXPORTER_OTLP_HEADERS=f"dd-api-key={KEY}")
            assert not await Pushing(house.runtime, keyed).step()
        assert fake.arrived_at == []
        fake.echo = True
        await interval_passed(house)
        assert not await Pushing(house.runtime, settings(there, OTEL_EXPORTER_OTLP_HEADERS=f"dd-api-key={KEY}")).step()
    assert [line["code"] for line in logs] == ["redirected", "http_400"]
    assert KEY not in f"{logs}{keyed!r}{keyed}"


async def test_two_processes_push_as_often_as_one(tmp_path: Path, database_url: str) -> None:
    fake = FakeOtlp(wanted={"dd-api-key": KEY})
    async with serve(fake.app) as url:
        running = Running(
            tmp_path,
            {
                "DATABASE_URL": database_url,
                "SCALEKIT_WEBHOOK_SECRET": SECRET,
                "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
                "OTEL_EXPORTER_OTLP_ENDPOINT": url,
                "OTEL_EXPORTER_OTLP_HEADERS": f"dd-api-key={KEY}",
                "OTEL_METRIC_EXPORT_INTERVAL": "3000",
            },
        )
        running.start("worker", "worker-2")
        try:

            async def pushed() -> bool:
                return len(fake.pushes) >= 3

            await until(pushed, 60, running.logs)
        finally:
            running.stop()
        assert fake.refusals == []
        # Turns are 3 s apart by the database's clock; what comes after the turn may take a while here.
        assert fake.arrived_at[-1] - fake.arrived_at[0] > 3 * (len(fake.arrived_at) - 1) - 2
        assert KEY not in running.whole_logs()


def test_the_fake_takes_what_the_sdk_itself_sends_and_no_less() -> None:
    """The receiver is as strict as may be: what OpenTelemetry's own exporter sends passes it whole."""
    reader = PeriodicExportingMetricReader(
        exporter := OTLPMetricExporter(endpoint="http://127.0.0.1:9/v1/metrics", timeout=1),
        export_interval_millis=float("inf"),
    )
    provider = MeterProvider([reader], resource=Resource.create({"service.name": "referee"}))
    provider.get_meter("referee").create_counter("calls", unit="1").add(3, {"provider": "jira"})
    sent: list[Any] = []

    def kept(request: Any) -> MetricExportResult:
        sent.append(request)
        return MetricExportResult.SUCCESS

    exporter._export_batch = kept  # type: ignore[method-assign,assignment]
    reader.collect()
    provider.shutdown()
    fake = FakeOtlp()
    fake._keep(sent[0].SerializeToString())
    assert fake.pushes[0]["calls"] == {(("provider", "jira"),): 3}


# What the variables say.


def test_nobody_asks_for_it_unless_an_endpoint_is_named() -> None:
    url = "http://collector:4318"
    assert otlp_settings({}) is None
    assert otlp_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None
    assert otlp_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SDK_DISABLED": "true"}) is None
    assert otlp_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_METRICS_EXPORTER": "none"}) is None
    found = settings(url)
    assert found.interval == timedelta(seconds=60)
    assert found.timeout == timedelta(seconds=10)
    assert found.resource == {"service.name": "authwatch"}
    assert found.headers == {}


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/otlp"}, "https://c/otlp/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://c/in"}, "https://c/in"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://d/m"},
            "http://d/m",
        ),
    ],
)
def test_where_to(variables: dict[str, str], url: str) -> None:
    found = otlp_settings(variables)
    assert found is not None
    assert found.url.get_secret_value() == url


def test_what_is_said_of_metrics_alone_counts_first() -> None:
    found = settings(
        "http://c",
        OTEL_EXPORTER_OTLP_HEADERS="a=1,b=2",
        OTEL_EXPORTER_OTLP_METRICS_HEADERS="c=3",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_METRICS_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_METRICS_TIMEOUT="2000",
        OTEL_RESOURCE_ATTRIBUTES="service.name=mine",
    )
    assert {name: value.get_secret_value() for name, value in found.headers.items()} == {"c": "3"}
    assert found.timeout == timedelta(seconds=2)
    assert found.resource == {"service.name": "mine"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "s3cr3t-without-a-name"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "key=s3cr3t%0D%0Ax: y"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "k ey=s3cr3t"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "60s"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "10"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
    ],
)
def test_what_cannot_be_right_stops_the_start_without_its_value(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        otlp_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", name: value})
    assert name in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
