"""What the worker's processes share, and what the first one tells the others, without any of them being started."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import service.runtime
from service.runtime import Pace, Runtime
from service.settings import load_settings
from workers import main, processes
from workers.processes import ACT, JUDGE, Other

SECONDS_MAX = 10


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """As they were: an event loop's end leaves them to the system."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_that_much_comes_in_is_known_to_who_acts() -> None:
    """Who judges says it and who acts minds it, and they are two processes of one."""
    pace = Pace()
    pid = os.fork()
    if pid == 0:
        pace.many = True
        os._exit(0)
    os.waitpid(pid, 0)
    assert pace.many
    pace.many = False
    assert not pace.many
    assert not Pace().many, "each worker has its own"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` with settings, and with no other process."""
    monkeypatch.setattr(main, "configure_logging", lambda: None)
    monkeypatch.setattr(main, "load_settings", lambda _variables: SimpleNamespace())
    monkeypatch.setattr(processes, "fork", lambda _run: [])


@pytest.mark.usefixtures("alone")
def test_all_processes_have_one_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    paces: list[Pace] = []

    async def work(_mine: str, _settings: Any, _line_to: Any, pace: Pace) -> None:
        paces.append(pace)

    def fork(run: Callable[[str, Mapping[str, socket.socket]], object]) -> list[Other]:
        run(ACT, {})
        return []

    monkeypatch.setattr(main, "work", work)
    monkeypatch.setattr(processes, "fork", fork)
    main.main()
    of_act, of_judge = paces
    assert of_act is of_judge


@pytest.mark.usefixtures("alone")
def test_asked_again_while_the_others_end_it_goes_on_waiting_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C under `authwatch up` is both: an interrupt of the terminal's, and then SIGTERM from `up`."""
    handlers: list[Any] = []

    async def work(*_words: Any) -> None:
        pass

    def stop(_others: Any) -> dict[str, int]:
        handlers.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        return {}

    monkeypatch.setattr(main, "work", work)
    monkeypatch.setattr(processes, "stop", stop)
    main.main()
    assert handlers == [signal.SIG_IGN] * 3


@pytest.mark.usefixtures("alone")
def test_a_crash_of_the_first_one_is_logged_as_those_of_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(*_words: Any) -> None:
        raise RuntimeError("a mistake of ours")

    said: list[tuple[str, str, str]] = []

    def error(event: str, *, process: str, error: str, exc_info: Exception) -> None:
        assert str(exc_info) == "a mistake of ours"
        said.append((event, process, error))

    monkeypatch.setattr(main, "work", work)
    monkeypatch.setattr(main, "log", SimpleNamespace(error=error))
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert said == [("worker.process_crashed", JUDGE, "RuntimeError")]


def test_the_others_are_told_before_the_first_one_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the whole has ended in the time of the longest, and not of all of them one after another."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    pace = Pace()

    @asynccontextmanager
    async def open_runtime(_settings: Any, **options: Any) -> AsyncIterator[Any]:
        assert options["pace"] is pace
        os.kill(os.getpid(), signal.SIGTERM)
        yield SimpleNamespace()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SECONDS_MAX):
            while await loop.sock_recv(theirs, 100):
                pass

    monkeypatch.setattr(main, "open_runtime", open_runtime)
    monkeypatch.setattr(main, "stories_of", lambda *_words: {})
    with ours, theirs:
        settings: Any = SimpleNamespace(redis_url=None)
        assert asyncio.run(main.work(JUDGE, settings, {ACT: ours}, pace)) is None


async def test_no_process_of_it_holds_a_connection_that_takes_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sends it any, and there are three of them at a database that has a hundred connections for all."""
    tasks: list[str] = []

    def stories_of(*_words: Any) -> dict[str, Any]:
        tasks.extend(task.get_name() for task in asyncio.all_tasks())
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setattr(main, "stories_of", stories_of)
    settings = load_settings({"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"})
    assert await main.work(JUDGE, settings, {}, Pace()) is None
    assert "nudger" in tasks
    assert "committer" not in tasks


async def test_a_mistake_in_a_rule_is_left_to_the_sweep_to_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which says it once, in one of them; each of three would say it when it starts."""
    (tmp_path / "mine.yml").write_text("- id: [")
    said: list[str] = []
    monkeypatch.setattr(service.runtime, "log", SimpleNamespace(error=lambda event, **_words: said.append(event)))

    def stories_of(runtime: Runtime, *_words: Any) -> dict[str, Any]:
        assert runtime.rules.problems
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setattr(main, "stories_of", stories_of)
    variables = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "AUTHWATCH_RULES": str(tmp_path)}
    await main.work(JUDGE, load_settings(variables), {}, Pace())
    assert said == []
