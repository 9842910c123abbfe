"""`authwatch doctor`: looks at every part in use, and says for each what is wrong and how to mend it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from service.errors import AuthwatchError, ConfigError
from service.finding import Finding

if TYPE_CHECKING:
    import httpx

    from service.runtime import Runtime

CLOCK_DIFFERENCE_SECONDS_MAX = 2.0
PROBE_SEEN_SECONDS_MAX = 5.0
CHECK_SECONDS_MAX = 20.0
LAG_SECONDS_MAX = 60.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.option("--url", help="Where the service answers; by default AUTHWATCH_URL or AUTHWATCH_PUBLIC_URL.")
def doctor(url: str | None) -> None:
    """Check every part in use; exit 1 if anything is wrong."""
    from service.observe import configure_logging

    configure_logging({"AUTHWATCH_LOG_LEVEL": "CRITICAL"})  # what would be logged is said below, once
    bad = asyncio.run(examine(url, os.environ))
    click.echo("all is well" if not bad else f"{bad} to mend")
    sys.exit(1 if bad else 0)


async def examine(url: str | None, variables: Mapping[str, str]) -> int:
    bad = 0
    async for finding in findings(url, variables):
        mark = {True: "ok  ", False: "BAD ", None: "hint"}[finding.ok]
        click.echo(f"{mark} {finding.what}: {finding.said}")
        bad += finding.ok is False
    return bad


async def findings(url: str | None, variables: Mapping[str, str]) -> AsyncIterator[Finding]:
    from service.runtime import open_runtime
    from service.settings import load_settings

    try:
        settings = load_settings(variables)
    except ConfigError as exc:
        yield Finding(False, "settings", str(exc))
        return
    yield Finding(True, "settings", "read")
    try:
        async with open_runtime(settings, connections_max=2) as runtime:
            async for finding in of_parts(runtime, url, variables):
                yield finding
    except ConfigError as exc:
        yield Finding(False, "config", str(exc))


async def of_parts(runtime: Runtime, url: str | None, variables: Mapping[str, str]) -> AsyncIterator[Finding]:
    from service import doctor_clicks, doctor_routing

    database = await of_database(runtime)
    yield database
    readable = False
    if database.ok:
        yield await of_durability(runtime)
        migrations = await of_migrations(runtime)
        yield migrations
        readable = bool(migrations.ok)
        if readable:
            for finding in await of_clock_and_health(runtime):
                yield finding
    yield await of_redis(runtime)
    if runtime.sources:
        names = ", ".join(
            f"{name} ({len(source.secrets)} secret{'s' if len(source.secrets) > 1 else ''})"
            for name, source in runtime.sources.items()
        )
        yield Finding(True, "sources", names)
    else:
        yield Finding(
            False, "sources", "none is switched on; set SCALEKIT_WEBHOOK_SECRET to the provider's whsec_ secret"
        )
    yield of_public_url(runtime.settings.public_url)
    for finding in await of_rules(runtime, readable):
        yield finding
    for finding in doctor_routing.of_routing(runtime.settings.routing, list(runtime.notifiers), runtime.rules.rules):
        yield finding
    for where, plug_ins in (
        ("notifier", runtime.notifiers),
        ("sink", runtime.sinks),
        ("orchestrator", runtime.orchestrators),
    ):
        for name, plug_in in plug_ins.items():
            yield await of_plug_in(f"{where} {name}", plug_in)
    base = url or variables.get("AUTHWATCH_URL") or runtime.settings.public_url
    for finding in await doctor_clicks.of_clicks(runtime, base):
        yield finding
    yield await of_provider_api(runtime)
    if readable:
        for name in runtime.sources:
            yield await of_front_door(runtime, name, base)


async def of_database(runtime: Runtime) -> Finding:
    from service.store.session import ping

    try:
        await ping(runtime.engine, timeout_seconds=5)
    except AuthwatchError as exc:
        what = "does not answer" if exc.code == "database_unavailable" else str(exc)
        return Finding(False, "database", f"{what}; is DATABASE_URL right and Postgres up?")
    return Finding(True, "database", "takes a commit")


async def of_durability(runtime: Runtime) -> Finding:
    """As our own connections have it: a role and a database may have settings of their own."""
    from sqlalchemy import text

    from service.durability import GOOD, Given, faults
    from service.store.session import begin

    what = "durability"
    async with begin(runtime.engine) as conn:
        role, database = (await conn.execute(text("SELECT current_user, current_database()"))).one()
        asked = text("SELECT name, setting, source FROM pg_settings WHERE name = ANY(:names)")
        settings = [Given(*row) for row in await conn.execute(asked, {"names": list(GOOD)})]
    wrong = faults(settings, role=role, database=database)
    if wrong:
        return Finding(False, what, f"an accepted event may be lost when the database crashes; {'; '.join(wrong)}")
    return Finding(True, what, "a commit is on the disk before it is answered")


async def of_migrations(runtime: Runtime) -> Finding:
    from service import migrate

    try:
        waiting = await asyncio.to_thread(migrate.pending, runtime.settings.database_url.get_secret_value())
    except ConfigError as exc:
        return Finding(False, "migrations", str(exc))
    if waiting:
        return Finding(False, "migrations", f"{len(waiting)} pending; run `authwatch migrate`")
    return Finding(True, "migrations", "up to date")


async def of_clock_and_health(runtime: Runtime) -> list[Finding]:
    from service import health
    from service.store import readers
    from service.store.session import begin

    async with begin(runtime.engine) as conn:
        began = datetime.now(UTC)
        theirs = await readers.clock(conn)
        ours = began + (datetime.now(UTC) - began) / 2
        report = await health.report(conn, list(runtime.sinks))
    found = [of_clocks(theirs, ours)]
    for part in ("evaluator", "actions", "sweep"):
        value = report[part]
        if not value["alive"]:
            found.append(
                Finding(False, part, f"last seen {value['last_seen_at'] or 'never'}; start `authwatch worker`")
            )
        elif value["lag_seconds"] > LAG_SECONDS_MAX:
            found.append(
                Finding(
                    False,
                    part,
                    f"{health.lag_words(value)} wait, the oldest for {value['lag_seconds']:.0f} s; see its log",
                )
            )
        else:
            found.append(Finding(True, part, f"alive, {health.lag_words(value)} waiting"))
    if report["actions"]["failed"]:
        said = f"{report['actions']['failed']} failed for good; see `actions` in GET /v1/alerts"
        found.append(Finding(False, "failed actions", said))
    for name, value in report["sinks"].items():
        behind = value["lag_seconds"] > LAG_SECONDS_MAX or value["poison"]
        said = f"{health.lag_words(value)} waiting, {value['poison']} put aside"
        if behind and not value["last_error"]:
            said += "; is `authwatch worker` running?" if not value["poison"] else "; `authwatch sinks poison` says why"
        found.append(
            Finding(
                not behind,
                f"sink {name} lag",
                said + (f"; last error: {value['last_error']}" if value["last_error"] else ""),
            )
        )
    return found


def of_clocks(theirs: datetime, ours: datetime) -> Finding:
    difference = abs((theirs - ours).total_seconds())
    said = f"{difference:.1f} s between the database's and ours"
    if difference > CLOCK_DIFFERENCE_SECONDS_MAX:
        return Finding(False, "clock", f"{said}; run NTP on both, signatures depend on it")
    return Finding(True, "clock", said)


async def of_rules(runtime: Runtime, readable: bool) -> list[Finding]:
    """Those of the folder here and those in force, which are what the workers last published."""
    from service import doctor_rules
    from service.store.session import begin

    found = doctor_rules.of_folder(runtime.rules, runtime.settings.rules_folder)
    if readable:
        async with begin(runtime.engine) as conn:
            found += await doctor_rules.of_set(conn, runtime)
    return found


async def of_redis(runtime: Runtime) -> Finding:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    url = runtime.settings.redis_url
    if url is None:
        return Finding(None, "redis", "not configured: alerts take up to a second longer, nothing is lost")
    client = Redis.from_url(url.get_secret_value(), socket_connect_timeout=2, socket_timeout=2)
    try:
        await client.ping()
    except (RedisError, OSError, TimeoutError) as exc:
        return Finding(
            False,
            "redis",
            f"does not answer ({type(exc).__name__}): things are slower, nothing is lost; is REDIS_URL right?",
        )
    finally:
        await client.aclose()
    return Finding(True, "redis", "answers")


def of_public_url(public_url: str | None) -> Finding:
    if public_url is None:
        return Finding(None, "public URL", "AUTHWATCH_PUBLIC_URL is not set: links in messages lead nowhere")
    parts = urlsplit(public_url)
    if parts.hostname in LOOPBACK:
        return Finding(None, "public URL", f"{public_url} is this machine only; the provider cannot reach it")
    if parts.scheme != "https":
        return Finding(None, "public URL", f"{public_url} is not https; put a TLS proxy in front")
    return Finding(True, "public URL", public_url)


async def of_plug_in(what: str, plug_in: object) -> Finding:
    check = getattr(plug_in, "check", None)
    if check is None:
        return Finding(True, what, "configured")
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            return Finding(True, what, await check())
    except TimeoutError:
        return Finding(False, what, f"no answer within {CHECK_SECONDS_MAX:.0f} s")
    except AuthwatchError as exc:
        return Finding(False, what, f"{exc} ({exc.code})")


async def of_provider_api(runtime: Runtime) -> Finding:
    from service.provider_apis import open_api

    what = "provider API"
    api = open_api(runtime.settings, runtime.http)
    if api is None:
        return Finding(
            None,
            what,
            "SCALEKIT_ENV_URL, SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET are not set: events of an outage longer than"
            " the provider's 22 minutes of retries stay lost, and accounts that broke before now are unknown",
        )
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            return Finding(True, what, await api.check())
    except TimeoutError:
        return Finding(False, what, f"no answer within {CHECK_SECONDS_MAX:.0f} s; is SCALEKIT_ENV_URL right?")
    except AuthwatchError as exc:
        return Finding(False, what, f"{exc} ({exc.code})")


async def of_front_door(runtime: Runtime, name: str, base: str | None) -> Finding:
    """A signed probe, followed into the log. It never alerts and never reaches a SIEM."""
    import httpx

    from service.event import new_id
    from service.signatures import sign
    from service.sources import PROBE_PREFIX
    from service.store import events
    from service.store.session import begin

    what = f"front door {name}"
    if base is None:
        return Finding(None, what, "not probed: give --url")
    source = runtime.sources[name]
    probe_id, timestamp = PROBE_PREFIX + new_id(), int(time.time())
    body = source.provider.example(
        "account.updated",
        account_id="authwatch_probe",
        connection_id="authwatch_probe",
        event_id=probe_id,
        now=datetime.now(UTC),
    )
    headers = {
        "content-type": "application/json",
        "webhook-id": probe_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(source.secrets[0], probe_id, timestamp, body),
    }
    target = f"{base.rstrip('/')}/webhooks/{name}"
    try:
        answer = await runtime.http.post(target, content=body, headers=headers, timeout=15)
    except httpx.HTTPError as exc:
        return Finding(
            False, what, f"no answer from {target} ({type(exc).__name__}); is `authwatch serve` running there?"
        )
    if answer.status_code == 401:
        return Finding(False, what, "401: the service runs with another secret, or its clock is off")
    event_id = id_of(answer)
    if answer.status_code != 202 or event_id is None:
        return Finding(
            False, what, f"{answer.status_code} from {target}, expected 202 with an id; is that address Authwatch's?"
        )
    deadline = time.monotonic() + PROBE_SEEN_SECONDS_MAX
    while time.monotonic() < deadline:
        async with begin(runtime.engine) as conn:
            event = await events.load(conn, event_id)
        if event is not None:
            if event.origin != "probe":
                return Finding(False, what, f"the probe was stored as {event.origin}")
            return Finding(True, what, f"a signed probe was kept {event.lag_seconds or 0:.2f} s after it was made")
        await asyncio.sleep(0.1)
    return Finding(
        False, what, "the probe was accepted but is not in this database; does the service use another DATABASE_URL?"
    )


def id_of(answer: httpx.Response) -> str | None:
    """The id that our own receiver answers; None when somebody else answered."""
    from uuid import UUID

    try:
        return str(UUID(answer.json()["id"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
