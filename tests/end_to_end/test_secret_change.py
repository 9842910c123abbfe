"""A signing secret is changed while receivers run: taken within seconds, refused whole when it cannot be right."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from service.signatures import make_secret
from tests.conftest import ADMIN_TOKEN
from tests.end_to_end.running import COMMAND, NO_TLS, OURS, RULES, Running, until
from tests.make_requests import event_body, signed
from tests.unit.test_secrets import forms

ROOT = Path(__file__).resolve().parents[2]
DOOR = "/webhooks/scalekit"
TAKEN_SECONDS_MAX = 20  # a second or two on a machine of one's own


def write(path: Path, text: str) -> None:
    """As a careful person does it: never half a file."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "all.yml").write_text(RULES)
    running = Running(
        tmp_path,
        {
            "DATABASE_URL": database_url,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(tmp_path / "rules"),
        },
    )
    yield running
    running.stop()


async def answer_of(place: Running, secret: str) -> int:
    body = event_body()
    async with httpx.AsyncClient(base_url=place.url, trust_env=False, verify=NO_TLS) as client:
        return (await client.post(DOOR, content=body, headers=signed(body, secret))).status_code


def answered(place: Running, secret: str, status: int, times: int = 1) -> Callable[[], Any]:
    """Each request has a connection of its own, so that several receivers take turns."""

    async def asked() -> bool:
        return all([await answer_of(place, secret) == status for _ in range(times)])

    return asked


def listed(place: Running) -> dict[str, dict[str, Any]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    done = subprocess.run(
        [COMMAND, "secrets", "list", "--json"],
        cwd=place.folder,
        env={**clean, **place.environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return {item["name"]: item for item in json.loads(done.stdout)["items"]}


def alerts_of(place: Running) -> list[tuple[str, str]]:
    with psycopg.connect(place.environment["DATABASE_URL"]) as conn:
        return conn.execute("SELECT state, summary FROM alerts WHERE rule_id = 'sources-not-taken'").fetchall()


async def test_a_secret_is_rotated_in_the_config_file_while_it_runs(place: Running) -> None:
    old, new = make_secret(), make_secret()
    config = place.folder / "config.yml"
    write(config, f'sources: {{scalekit: {{secrets: [{{name: "2026-08", value: "{old}"}}]}}}}')
    place.environment["AUTHWATCH_CONFIG"] = str(config)
    place.start("serve")
    await place.ready()
    assert [await answer_of(place, old), await answer_of(place, new)] == [202, 401]

    both = f'{{name: "2026-11", file: {place.folder}/new}}, {{name: "2026-08", value: "{old}"}}'
    (place.folder / "new").write_text(new)
    write(config, f"sources: {{scalekit: {{secrets: [{both}]}}}}")
    await until(answered(place, new, 202), TAKEN_SECONDS_MAX, place.logs)
    assert await answer_of(place, old) == 202

    # What cannot be right changes nothing, is an alert while it lasts, and never shows what it holds.
    write(config, f"sources: {{scalekit: {{secrets: [{both}, {{name: x, value: {old[:20]}}}]}}}}")

    async def said() -> bool:
        return [state for state, _ in alerts_of(place)] == ["firing"]

    await until(said, TAKEN_SECONDS_MAX, place.logs)
    assert "the webhook secret x " in alerts_of(place)[0][1]
    assert [await answer_of(place, old), await answer_of(place, new)] == [202, 202]

    write(config, f'sources: {{scalekit: {{secrets: [{{name: "2026-11", file: {place.folder}/new}}]}}}}')
    await until(answered(place, old, 401), TAKEN_SECONDS_MAX, place.logs)

    async def unsaid() -> bool:
        return {state for state, _ in alerts_of(place)} == {"resolved"}

    await until(unsaid, TAKEN_SECONDS_MAX, place.logs)
    good = config.read_text()
    write(config, f"sources:\n  scalekit:\n    secrets:\n    - {old}:\n")  # a colon too many makes it a key
    await until(lambda: told_of(place, 'unknown key "sources.scalekit.secrets.0.***"'), TAKEN_SECONDS_MAX, place.logs)
    write(config, good)
    await until(unsaid, TAKEN_SECONDS_MAX, place.logs)

    async def written() -> bool:
        return {name: item["uses"] > 0 for name, item in listed(place).items()} == {
            "2026-11": True,
            "2026-08": True,
        }

    await until(written, TAKEN_SECONDS_MAX, place.logs)
    found = listed(place)
    assert found["2026-11"]["advice"].startswith("in use, last used")
    assert found["2026-08"] | {"advice": ""} == found["2026-08"] | {"position": None, "advice": ""}
    assert found["2026-08"]["advice"].startswith("no longer configured; last used")
    shown = place.whole_logs() + json.dumps(found) + str(alerts_of(place))
    assert not any(form in shown for secret in (old, new) for form in [*forms(secret), secret[6:20]])


async def test_several_receivers_take_a_change_of_the_secrets_file_each_for_itself(place: Running) -> None:
    old, new = make_secret(), make_secret()
    file = place.folder / "secrets"
    write(file, old)
    place.environment["SCALEKIT_WEBHOOK_SECRET_FILE"] = str(file)
    place.serve_words = ("--workers", "2")
    place.start("serve")
    await place.ready()
    assert await answer_of(place, old) == 202
    write(file, f"{new},{old}")
    await until(answered(place, new, 202, times=12), TAKEN_SECONDS_MAX, place.logs)
    write(file, new)
    await until(answered(place, old, 401, times=12), TAKEN_SECONDS_MAX, place.logs)
    # Asked by SIGHUP to take what cannot be right, none of them ends.
    before = receivers(place)
    write(file, new[:20])
    place.kill("serve", signal.SIGHUP)

    async def each_has_said_it() -> bool:
        return place.whole_logs().count("sources.not_taken") >= 2

    async def only_they_are_there() -> bool:  # uvicorn tries others first, which refuse to start
        return receivers(place) == before

    await until(each_has_said_it, TAKEN_SECONDS_MAX, place.logs)
    await until(only_they_are_there, TAKEN_SECONDS_MAX, place.logs)
    assert all([await answer_of(place, new) == 202 for _ in range(12)])
    assert len(before) == 2


def receivers(place: Running) -> set[int]:
    """uvicorn's processes; the tracker of Python's multiprocessing is none of them, nor is one that has just ended."""
    found: set[int] = set()
    for child in psutil.Process(place.processes["serve"].pid).children():
        with suppress(psutil.NoSuchProcess):  # psutil.ZombieProcess is one
            if "spawn_main" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


async def told_of(place: Running, words: str) -> bool:
    return any(words in summary for _, summary in alerts_of(place))


async def said_in(place: Running, word: str) -> bool:
    return word in (place.folder / "serve.log").read_text()


async def test_a_hangup_means_look_now_and_the_uses_are_written_at_the_end(place: Running) -> None:
    secret = make_secret()
    write(place.folder / "secrets", secret)
    place.environment["SCALEKIT_WEBHOOK_SECRET_FILE"] = str(place.folder / "secrets")
    place.start("serve")
    await place.ready()
    place.kill("serve", signal.SIGHUP)
    await until(lambda: said_in(place, "sources.asked_to_look"), TAKEN_SECONDS_MAX, place.logs)
    assert await answer_of(place, secret) == 202
    place.kill("serve", signal.SIGTERM)
    [item] = listed(place).values()
    assert (item["uses"], item["position"]) == (1, 1)


async def test_the_worker_knows_the_sources_there_are_and_outlives_a_hangup(place: Running) -> None:
    config = place.folder / "config.yml"
    secret, other = make_secret(), make_secret()
    write(config, f"sources: {{scalekit: {{secrets: [{secret}]}}}}")
    place.environment["AUTHWATCH_CONFIG"] = str(config)
    place.start("worker")
    worker = place.processes["worker"]

    def has_said(*words: str) -> Callable[[], Any]:
        async def said() -> bool:
            assert worker.poll() is None, place.logs()
            lines = (place.folder / "worker.log").read_text().splitlines()
            return any(all(word in line for word in words) for line in lines)

        return said

    await until(handles_hangups(worker.pid), TAKEN_SECONDS_MAX, place.logs)
    place.kill("worker", signal.SIGHUP)
    await until(has_said("worker.started"), TAKEN_SECONDS_MAX, place.logs)
    write(config, f"sources: {{scalekit: {{secrets: [{secret}]}}, other: {{secrets: [{other}]}}}}")
    await until(has_said("sources.changed", '"scalekit"', '"other"'), TAKEN_SECONDS_MAX, place.logs)
    place.kill("worker", signal.SIGHUP)
    await until(has_said("sources.asked_to_look"), TAKEN_SECONDS_MAX, place.logs)
    place.kill("worker", signal.SIGTERM)
    assert worker.returncode == 0


def handles_hangups(pid: int) -> Callable[[], Any]:
    """Whether a SIGHUP is ignored or caught there by now: the interpreter itself takes a moment to start."""

    def handled() -> bool:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn:", "SigCgt:"))]
        return any(mask & 1 << (signal.SIGHUP - 1) for mask in masks)

    async def asked() -> bool:
        return await asyncio.to_thread(handled)

    return asked


def blocks_of_readme() -> list[str]:
    section = (ROOT / "README.md").read_text().split("## Change the signing secret")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def run(place: Running, lines: str, **variables: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    done = subprocess.run(
        ["/bin/sh", "-ec", lines.replace(".venv/bin/authwatch", COMMAND)],
        cwd=place.folder,
        env={**clean, **place.environment, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_the_readmes_way_of_changing_it(place: Running) -> None:
    old, new = make_secret(), make_secret()
    file = place.folder / "webhook-secrets"
    write(file, f"{old}\n")
    place.environment["SCALEKIT_WEBHOOK_SECRET_FILE"] = "webhook-secrets"
    place.start("serve")
    await place.ready()
    assert await answer_of(place, old) == 202
    add, remove = blocks_of_readme()
    shown = run(place, add, NEW_SECRET=new)
    assert "never used" in shown
    assert file.stat().st_mode & 0o777 == 0o600
    await until(answered(place, new, 202), TAKEN_SECONDS_MAX, place.logs)
    assert await answer_of(place, old) == 202
    run(place, remove)
    await until(answered(place, old, 401), TAKEN_SECONDS_MAX, place.logs)
    assert await answer_of(place, new) == 202
