"""The engine, and one transaction at a time: `async with begin(engine) as conn`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import orjson
from psycopg.types.string import TextLoader
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.errors import ConfigError, Unavailable

CONNECT_TIMEOUT_SECONDS = 3
POOL_WAIT_SECONDS = 3
STATEMENT_TIMEOUT_MS = 20_000
# The server's own bounds do not help where it, or a proxy before it, has hung and its kernel still answers for it.
TRANSACTION_SECONDS_MAX = 40
RETRY_AFTER_SECONDS = 2
# A process that froze or vanished in the middle of a transaction may hold the log's lock, which every receiver needs:
# the server lets go of it before those who wait are refused (service/commit.py, COMMIT_WAIT_SECONDS).
IDLE_IN_TRANSACTION_MS = 5000


def sqlalchemy_url(database_url: str) -> str:
    """`postgresql://...` with the psycopg driver named, as SQLAlchemy and Alembic want it."""
    scheme, separator, rest = database_url.partition("://")
    if (
        not separator
        or scheme not in ("postgresql", "postgres", "postgresql+psycopg")
        or not urlsplit(database_url).path.strip("/")
    ):
        raise ConfigError("DATABASE_URL must look like postgresql://user:password@host:5432/database")
    return f"postgresql+psycopg://{rest}"


def open_engine(database_url: str, *, connections_max: int) -> AsyncEngine:
    """An engine whose every wait is bounded, so that a database that went away is an answer and not a hang."""
    engine = create_async_engine(
        sqlalchemy_url(database_url),
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        pool_recycle=1800,
        json_deserializer=orjson.loads,  # several times as fast as the standard library's
        hide_parameters=True,  # an error text never carries a payload or a token
        connect_args=connection_arguments(statement_timeout_ms=STATEMENT_TIMEOUT_MS),
    )
    event.listen(engine.sync_engine, "connect", ids_as_text)
    return engine


def ids_as_text(connection: Any, _record: Any) -> None:
    """Ids are text everywhere in this program: the driver need not build a UUID of each first."""
    connection.driver_connection.adapters.register_loader("uuid", TextLoader)


def connection_arguments(*, statement_timeout_ms: int) -> dict[str, Any]:
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "application_name": "authwatch",
        # A host that vanished without a word is noticed within seconds.
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 8000,
        "options": f"-c timezone=UTC -c statement_timeout={statement_timeout_ms}"
        f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}",
    }


@asynccontextmanager
async def begin(engine: AsyncEngine, *, seconds_max: float | None = None) -> AsyncIterator[AsyncConnection]:
    """One transaction, committed at the end of the block; a database that is away raises `Unavailable`.

    `seconds_max` is for work that nobody waits for: it bounds each of its statements as well.
    """
    try:
        async with asyncio.timeout(seconds_max or TRANSACTION_SECONDS_MAX) as bound, engine.begin() as conn:
            if seconds_max is not None:
                await conn.execute(text(f"SET LOCAL statement_timeout = {int(seconds_max * 1000)}"))
            yield conn
    except TimeoutError as exc:
        if not bound.expired():
            raise
        # The other connections of its time are no better: nobody else shall find that out one by one.
        await engine.dispose()
        raise unavailable(exc) from exc
    except (OperationalError, InterfaceError, PoolTimeout, ConnectionError) as exc:
        raise unavailable(exc) from exc
    except DBAPIError as exc:
        if exc.connection_invalidated:
            raise unavailable(exc) from exc
        raise


def unavailable(exc: BaseException) -> Unavailable:
    """The driver's message may hold the URL's host but never its password; it stays in the cause, not in the answer."""
    return Unavailable(
        "the database cannot take this now; send it again",
        code="database_unavailable",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


async def ping(engine: AsyncEngine, *, timeout_seconds: float = 2.0) -> None:
    """Raises `Unavailable` unless this process can commit right now."""
    try:
        async with asyncio.timeout(timeout_seconds):
            async with begin(engine) as conn:
                if (await conn.execute(text("SELECT pg_is_in_recovery()"))).scalar_one():
                    raise Unavailable("the database is read-only", code="database_read_only")
    except TimeoutError as exc:
        raise unavailable(exc) from exc
