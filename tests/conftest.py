"""Real servers for every test: Postgres and Redis named by DATABASE_URL and REDIS_URL, else in containers with
AUTHWATCH_TEST_SERVERS=containers, else embedded. Each test that asks has a database of its own, copied from one that
the migrations made.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncEngine

from service import migrate
from service.store.session import open_engine

SECRET = "whsec_" + "QXV0aHdhdGNoIHRlc3Qgc2VjcmV0IDAwMDAwMDAwMDE="
ADMIN_TOKEN = "admin-token-of-the-tests"
numbers = itertools.count(1)


@dataclass(frozen=True)
class Servers:
    database_url: str
    redis_url: str


def pytest_configure() -> None:
    # slack-sdk obeys these even for loopback addresses, and a test must not depend on the machine's proxy.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        database_url, redis_url = os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL")
        if database_url and redis_url:
            yield Servers(database_url, redis_url)
        elif os.environ.get("AUTHWATCH_TEST_SERVERS") == "containers":
            yield stack.enter_context(containers())
        else:
            yield stack.enter_context(embedded())


class containers:
    def __enter__(self) -> Servers:
        from testcontainers.postgres import PostgresContainer
        from testcontainers.redis import RedisContainer

        self._postgres = PostgresContainer("postgres:17-alpine", driver=None)
        self._redis = RedisContainer("redis:7-alpine")
        self._postgres.start()
        self._redis.start()
        host, port = self._redis.get_container_host_ip(), self._redis.get_exposed_port(6379)
        return Servers(self._postgres.get_connection_url(), f"redis://{host}:{port}/0")

    def __exit__(self, *_exc: object) -> None:
        self._redis.stop()
        self._postgres.stop()


class embedded:
    def __enter__(self) -> Servers:
        from service.embedded import start_postgres, start_redis

        self._folder = Path(tempfile.mkdtemp(prefix="authwatch-tests-"))
        self._postgres = start_postgres(self._folder)
        self._redis = start_redis(self._folder)
        return Servers(self._postgres.url, self._redis.url)

    def __exit__(self, *_exc: object) -> None:
        self._redis.stop()
        self._postgres.stop()
        home = self._folder / "home"
        if home.exists():
            shutil.rmtree(Path(home.read_text().strip()), ignore_errors=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def template(servers: Servers) -> Iterator[str]:
    name = f"authwatch_template_{os.getpid()}"
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        migrate.upgrade(with_database(servers.database_url, name))
        yield name
        conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def make_database(servers: Servers, template: str) -> Iterator[Callable[[], str]]:
    made: list[str] = []

    def make() -> str:
        name = f"authwatch_test_{os.getpid()}_{next(numbers)}"
        with psycopg.connect(servers.database_url, autocommit=True) as conn:
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
        made.append(name)
        return with_database(servers.database_url, name)

    yield make
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        for name in made:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database_url(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    opened = open_engine(database_url, connections_max=5)
    yield opened
    await opened.dispose()
