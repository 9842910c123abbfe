"""`authwatch up` as users start it, with our own receiver and worker."""

from __future__ import annotations

import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

Start = Callable[..., Any]  # the fixture: starts an `up`, see conftest.py
SECOND_START_SECONDS = (
    30.0  # 5 on a machine of its own; the tests share theirs, and a lock left behind would last longer
)


@pytest.fixture
def program() -> tuple[str, ...]:
    return (sys.executable, "-m", "service.cli")


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except OSError:
        return 0


def test_two_receiver_processes_survive_each_others_end_and_none_survives_up(start: Start) -> None:
    first = start("--workers", "2").wait_ready()
    assert status(f"{first.url}/readyz") == 200
    os.kill(first.running("receiver"), signal.SIGKILL)
    first.wait(lambda: any(line.startswith("receiver ended (SIGKILL)") for line in first.err))
    first.wait(lambda: status(f"{first.url}/readyz") == 200, 60)
    first.end(signal.SIGKILL)

    began = time.monotonic()
    second = start("--workers", "2").wait_ready()
    assert time.monotonic() - began < SECOND_START_SECONDS
    assert status(f"{second.url}/readyz") == 200
    assert second.end() == 0


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_secret_too_short_to_be_one_stops_the_start_with_one_sentence(start: Start, processes: str) -> None:
    up = start("--parts", "postgres,receiver", "--workers", processes, SCALEKIT_WEBHOOK_SECRET="whsec_eA==")
    assert up.process.wait(60) == 2
    assert up.end() == 2
    assert up.out == []
    assert "SCALEKIT_WEBHOOK_SECRET" in up.err[-1] or "scalekit" in up.err[-1]
    assert "eA==" not in "".join(up.err)
