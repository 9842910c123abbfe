"""The README's five-minute walk, line by line, against the real thing."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.children import choose_port
from tests.end_to_end.running import NO_TLS

ROOT = Path(__file__).resolve().parents[2]
OURS = ("DATABASE_URL", "REDIS_URL", "SCALEKIT_", "SLACK_", "SPLUNK_", "AUTHWATCH_")
READY_SECONDS = 60
COMMAND = str(Path(sys.executable).with_name("authwatch"))


@dataclass
class Running:
    folder: Path
    port: int
    environment: dict[str, str]
    stderr: Path


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Running]:
    port = choose_port("127.0.0.1")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    clean["AUTHWATCH_RULES"] = str(ROOT / "alert_rules")
    stderr = tmp_path / "up.stderr"
    with stderr.open("wb") as errors:
        process = subprocess.Popen(
            [COMMAND, "up", "--port", str(port)], cwd=tmp_path, env=clean, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            assert line == f"ready: http://127.0.0.1:{port}\n", stderr.read_text()
            yield Running(tmp_path, port, clean, stderr)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            process.stdout.close()  # type: ignore[union-attr]
            home = tmp_path / ".authwatch" / "home"
            if home.exists():
                shutil.rmtree(home.read_text().strip())  # root's cluster, where the servers' own user may go


def walk() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## From nothing to a paused workflow")[1].split("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines() if line]


def curl(line: str, port: int, token: str) -> httpx.Response:
    """The few options of curl that the README uses, so that the test needs no curl."""
    words = shlex.split(line.replace("$TOKEN", token).replace(":8080", f":{port}"))[1:]
    method, url, headers, data = "GET", "", {}, None
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            name, _, value = words.pop(0).partition(":")
            headers[name] = value.strip()
        elif word == "-d":
            data = words.pop(0)
        else:
            url = word
    return httpx.request(method, url, headers=headers, content=data, trust_env=False, verify=NO_TLS)


SHOWN = {"/v1/workflows/": '"state":"paused"', "/v1/gate": '"allow":false'}
SHOWN_SECONDS_MAX = 15  # the README says one second, which test_main_job.py holds it to


def until_it_shows(line: str, port: int, token: str) -> httpx.Response:
    """The answer, asked again as a reader would who was too quick."""
    answer, deadline = curl(line, port, token), time.monotonic() + SHOWN_SECONDS_MAX
    wanted = next((word for path, word in SHOWN.items() if path in line and "PUT" not in line), "")
    while wanted not in answer.text.replace(" ", "") and time.monotonic() < deadline:
        time.sleep(0.1)
        answer = curl(line, port, token)
    return answer


def shown_by(up: Running, text: str) -> str:
    """What `up` has printed, once that is among it."""
    deadline = time.monotonic() + SHOWN_SECONDS_MAX
    while text not in (shown := up.stderr.read_text(encoding="utf-8")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return shown


def test_the_walk_ends_in_a_paused_workflow_and_its_text(up: Running) -> None:
    lines = walk()
    export = next(line for line in lines if line.startswith("export TOKEN="))
    token = subprocess.run(
        ["/bin/sh", "-c", f'{export}; printf %s "$TOKEN"'], cwd=up.folder, capture_output=True, text=True, check=True
    ).stdout
    answers: list[httpx.Response] = []
    for line in lines[lines.index(export) + 1 : -1]:
        if line.startswith("curl "):
            answers.append(until_it_shows(line, up.port, token))
        elif "authwatch doctor" not in line:
            assert line.startswith(".venv/bin/authwatch ")
            done = subprocess.run([COMMAND, *shlex.split(line)[1:]], cwd=up.folder, env=up.environment, timeout=30)
            assert done.returncode == 0
    put, workflow, gate = answers
    assert put.json()["state"] == "active"
    assert workflow.json()["state"] == "paused"
    assert gate.json() | {"detail": ""} == {
        "allow": False,
        "reason": "workflow_paused",
        "detail": "",
        "alert_ids": workflow.json()["paused_by"],
    }
    shown = shown_by(up, "nothing else was told to stop.")
    assert shown.count("🔴 Token refresh is failing — GOOGLE_ADS account of Bruce") == 1
    assert "Route tickets (route-tickets): paused; the gate denies, nothing else was told to stop." in shown
