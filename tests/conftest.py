"""Real servers for every test: Postgres and Redis named by DATABASE_URL and REDIS_URL, else in containers with
AUTHWATCH_TEST_SERVERS=containers, else embedded. Each test that asks has a database of its own, copied from one that
the migrations made.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import structlog
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncEngine

from service import migrate
from service.store.session import open_engine

SECRET = "whsec_" + "QXV0aHdhdGNoIHRlc3Qgc2VjcmV0IDAwMDAwMDAwMDE="
ADMIN_TOKEN = "admin-token-of-the-tests"
DROPS_MAX = 25
DROP_WAIT_MS = 3000
SYNC_LOOKS_MAX = 200
MEMORY, MEMORY_BYTES_MIN = Path("/dev/shm"), 2 * 1024**3
WAL_SIZE_MAX = "128MB"
# Quicker than through the log, and elsewhere slower: it waits until the disk has all of both.
OF_ITS_FILES = " STRATEGY FILE_COPY"
# About what the longest files take, for their order alone; the others by the number of their tests.
LONG_FILES_SECONDS = {
    "up/test_supervised_parts.py": 60,
    "crash/test_crash.py": 60,
    "workers/test_measured_faults.py": 50,
    "end_to_end/test_weather.py": 45,
    "end_to_end/test_dashboard.py": 40,
    "end_to_end/test_recover.py": 40,
    "end_to_end/test_secret_change.py": 35,
    "end_to_end/test_overload.py": 35,
    "end_to_end/test_quarantine.py": 30,
    "properties/test_real.py": 30,
    "up/test_embedded_servers.py": 25,
    "up/test_real_parts.py": 25,
    "fuzz/test_openapi.py": 25,
    "fuzz/test_front_door.py": 25,
    "end_to_end/test_connections.py": 20,
    "end_to_end/test_front_door.py": 20,
    "end_to_end/test_opening_story.py": 20,
    "end_to_end/test_main_job.py": 15,
    "end_to_end/test_readme.py": 15,
    "end_to_end/test_secret_doors.py": 15,
    "end_to_end/test_docs_metrics.py": 15,
    "properties/test_pure.py": 15,
    "unit/test_playbook_hostile.py": 10,
    "unit/test_rules_hostile.py": 10,
}
TEST_SECONDS = {"unit": 0.03, "plug_ins": 0.1}
TEST_WITH_A_DATABASE_SECONDS = 0.5
numbers = itertools.count(1)


@dataclass(frozen=True)
class Servers:
    """`sync`: whether Postgres waits for its disk, `on` or `off`; None where that is not ours to say."""

    database_url: str
    redis_url: str
    sync: Callable[[str], None] | None = None


def pytest_configure() -> None:
    # slack-sdk obeys these even for loopback addresses, and a test must not depend on the machine's proxy.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        os.environ.pop(name, None)
    # Where `rich` is installed structlog draws each traceback in colour, with its variables: seconds for every one.
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where files run side by side the longest come first: one that is begun last runs alone for all its time."""
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)

    def seconds(path: Path) -> float:
        folder, name = path.parts[-2:]
        each = TEST_SECONDS.get(folder, TEST_WITH_A_DATABASE_SECONDS)
        return LONG_FILES_SECONDS.get(f"{folder}/{name}", tests[path] * each)

    items.sort(key=lambda item: -seconds(item.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a failed test left open is collected at once, so that its warnings do not fall on an innocent one.

    The traceback's frames hold the test's variables until the next test; a debugger is the one who still needs them.
    """
    report = yield
    if call.when == "call" and call.excinfo is not None and not item.config.getoption("usepdb"):
        exc: BaseException | None = call.excinfo.value
        while exc is not None:
            for frame, _line in traceback.walk_tb(exc.__traceback__):
                with suppress(RuntimeError):  # it still runs
                    frame.clear()
                _ = frame.f_locals  # up to Python 3.12 a copy, which only a look brings up to date
            exc = exc.__cause__ or exc.__context__
        gc.collect()
    return report


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
        # testcontainers would pull an image of its own (Ryuk) to clean up after us. We stop what we start, and
        # a machine that has the two images below needs no registry.
        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
        from testcontainers.community.postgres import PostgresContainer
        from testcontainers.community.redis import RedisContainer

        with ExitStack() as stack:
            # As in docker-compose.yml: UTF-8 whatever the image's own locale.
            postgres = stack.enter_context(
                PostgresContainer("postgres:17-alpine", driver=None).with_env("LANG", "C.UTF-8")
            )
            redis = stack.enter_context(RedisContainer("redis:7-alpine"))
            host, port = redis.get_container_host_ip(), redis.get_exposed_port(6379)
            servers = Servers(postgres.get_connection_url(), f"redis://{host}:{port}/0")
            self._stack = stack.pop_all()
        return servers

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()


class embedded:
    def __enter__(self) -> Servers:
        from service.embedded import start_postgres, start_redis

        self._folder = folder_of_servers()
        self._postgres = start_postgres(self._folder, settings={"max_wal_size": WAL_SIZE_MAX})
        self._redis = start_redis(self._folder)
        # No test pulls the plug of this machine, and a database for each test is mostly waiting for its disk.
        self._sync("off")
        return Servers(self._postgres.url, self._redis.url, self._sync)

    def _sync(self, value: str) -> None:
        """Nobody can log in as the superuser: by the file that Postgres reads last, and a hangup."""
        cluster = self._postgres.cluster
        with (cluster / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"fsync = {value}\n")
        os.kill(int((cluster / "postmaster.pid").read_text().split()[0]), signal.SIGHUP)
        with psycopg.connect(self._postgres.url, autocommit=True) as conn:
            for _ in range(SYNC_LOOKS_MAX):
                if conn.execute("SHOW fsync").fetchone() == (value,):
                    return
                time.sleep(0.05)
        raise AssertionError(f"Postgres did not take fsync = {value}")

    def __exit__(self, *_exc: object) -> None:
        self._redis.remove()
        self._postgres.remove()
        shutil.rmtree(self._folder, ignore_errors=True)


def folder_of_servers() -> Path:
    """In memory, where there is room: a database for each test is a thousand small files, made and deleted."""
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN
    folder = Path(tempfile.mkdtemp(prefix="authwatch-tests-", dir=MEMORY if roomy else None))
    folder.chmod(0o711)  # root hands the servers to another user, who must get in
    return folder


def with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="module")
def waits_for_the_disk(servers: Servers) -> Iterator[None]:
    """For tests of what is said of a Postgres that does not."""
    if servers.sync is not None:
        servers.sync("on")
    yield
    if servers.sync is not None:
        servers.sync("off")


@pytest.fixture(scope="session")
def template(servers: Servers) -> Iterator[str]:
    name = f"authwatch_template_{os.getpid()}"
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        migrate.upgrade(with_database(servers.database_url, name))
        yield name
        drop_database(conn, name)


def drop_database(conn: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    """Autovacuum may be in it, which only a superuser may end: it leaves by itself.

    A connection whose opening was cancelled lives until it is collected, and while it has not said who it is, which may
    be a minute, the server's drop waits for it.
    """
    conn.execute(f"SET statement_timeout = {DROP_WAIT_MS}".encode())
    for attempt in range(DROPS_MAX):
        try:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            return
        except (
            psycopg.errors.InsufficientPrivilege,
            psycopg.errors.ObjectInUse,
            psycopg.errors.QueryCanceled,
        ):
            if attempt + 1 == DROPS_MAX:
                raise
            gc.collect()
            time.sleep(0.2)


@contextmanager
def databases(servers: Servers, template: str) -> Iterator[Callable[[], str]]:
    """Makes a database at each call; all of them go at the end."""
    made: list[str] = []

    def make() -> str:
        name = f"authwatch_test_{os.getpid()}_{next(numbers)}"
        with psycopg.connect(servers.database_url, autocommit=True) as conn:
            words = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            conn.execute(words + sql.SQL(OF_ITS_FILES) if servers.sync is not None else words)
        made.append(name)
        return with_database(servers.database_url, name)

    yield make
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        for name in made:
            drop_database(conn, name)


@pytest.fixture
def make_database(servers: Servers, template: str) -> Iterator[Callable[[], str]]:
    with databases(servers, template) as make:
        yield make


@pytest.fixture
def database_url(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture(scope="module")
def database_of_the_file(servers: Servers, template: str) -> Iterator[str]:
    """One for all tests of a file, whose parts run through all of them."""
    with databases(servers, template) as make:
        yield make()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    opened = open_engine(database_url, connections_max=5)
    yield opened
    await opened.dispose()
