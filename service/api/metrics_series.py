"""`GET /v1/metrics/{name}`: one of the five metrics over time, of an account, of a provider, or of all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service.api.http import Call, Duration, Instant, Strict, Text, read_query, runtime_of
from service.errors import BadRequest, NotFound
from service.event import AccountKey, rfc3339
from service.metrics import METRICS, Sums
from service.report import SOURCE
from service.store import accounts, readers, rollups, series
from service.store.session import begin

POINTS_MAX = 1_500
SINCE_DEFAULT = timedelta(hours=1)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
# What a step is where none is asked for: the first that makes no more points than a chart shows.
STEPS = (MINUTE, timedelta(minutes=5), timedelta(minutes=15), HOUR, timedelta(hours=6), timedelta(days=1))
POINTS_WANTED = 750
STEP_MAX = timedelta(days=30)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MetricQuery(Strict):
    account_id: Text | None = Field(None, description="of this account; without it, of all accounts together")
    provider: Text | None = Field(None, description="of this OAuth provider, in any case of letters")
    since: Instant | None = Field(None, description="from this time on; an hour ago unless given")
    step: Duration | None = Field(
        None,
        description="whole minutes, such as 5m; beyond the minutes that are kept (24 h at least) whole hours",
        json_schema_extra={"type": "string"},
    )


async def get_metric(request: Request) -> Response:
    metric = METRICS.get(request.path_params["name"])
    if metric is None:
        raise NotFound(f"no metric of that name; known: {', '.join(METRICS)}", code="unknown_metric")
    query = read_query(request, MetricQuery)
    provider = query.provider.lower() if query.provider is not None else None
    async with begin(runtime_of(request).engine) as conn:
        now = await readers.clock(conn)
        since, step, table = span(query.since, query.step, now)
        if query.account_id is not None:
            account = await accounts.find(conn, query.account_id)
            key = account.key if account else unknown(query.account_id)
            ids = await series.of_account(conn, key, provider)
        else:
            ids = await series.of_providers(conn, provider)
        found = await series.points(conn, metric, ids, table=table, since=since, until=now, step=step)
    nothing = metric.point(Sums({}))
    items = []
    at = since
    while at <= now:
        items.append({"at": at, **(metric.point(found[at]) if at in found else nothing)})
        at += step
    said = {"name": metric.name, "unit": metric.unit, "step_seconds": step.total_seconds(), "items": items}
    # `at` is in UTC and written as `rfc3339` does, which for a thousand points takes milliseconds.
    return Response(orjson.dumps(said, option=orjson.OPT_UTC_Z), media_type="application/json")


def unknown(written: str) -> AccountKey:
    """Of an account that only reports tell of, or nobody yet."""
    return accounts.parse_key(written) if written.count(":") >= 2 else AccountKey(SOURCE, "", written)


def span(asked_since: datetime | None, asked_step: timedelta | None, now: datetime) -> tuple[datetime, timedelta, str]:
    """`(begin of the first step, step, table)`. BadRequest says how to ask for what can be answered."""
    since = asked_since or now - SINCE_DEFAULT
    if since > now:
        raise BadRequest("query: since: lies in the future; name an earlier time", code="invalid_query")
    since = max(since, now - rollups.HOURS_KEPT)
    minutes_from = datetime.combine(rollups.day_kept(now), datetime.min.time(), UTC)
    step = asked_step if asked_step is not None else default_step(since, now, minutes_from)
    if not MINUTE <= step <= STEP_MAX or step % MINUTE:
        raise BadRequest("query: step: write whole minutes up to 30d, such as 1m, 15m, 1h or 1d", code="invalid_query")
    by_minutes = since >= minutes_from
    if not by_minutes and step % HOUR:
        raise BadRequest(
            f"query: step: minutes are kept since {rfc3339(minutes_from)}; ask from then on, or write whole hours,"
            " such as step=1h",
            code="invalid_query",
        )
    begin = EPOCH + (since - EPOCH) // step * step
    count = (now - begin) // step + 1
    if count > POINTS_MAX:
        # Whatever the step, one more begins before `since` and one is under way.
        unit, letter = (MINUTE, "m") if by_minutes else (HOUR, "h")
        least = -(-(now - since) // ((POINTS_MAX - 2) * unit))
        raise BadRequest(
            f"query: step: makes {count} points, and {POINTS_MAX} at most are given; write a step of"
            f" {least}{letter} or more, or a later since",
            code="too_many_points",
        )
    return begin, step, series.HOURS if step % HOUR == timedelta() else series.MINUTES


def default_step(since: datetime, now: datetime, minutes_from: datetime) -> timedelta:
    fits = (step for step in STEPS if (now - since) / step <= POINTS_WANTED and (step >= HOUR or since >= minutes_from))
    return next(fits, STEPS[-1])


CALLS = (
    Call(
        "GET",
        "/v1/metrics/{name}",
        get_metric,
        "read",
        f"One of {', '.join(METRICS)}, over time; null where nothing is known",
        query=MetricQuery,
    ),
)
