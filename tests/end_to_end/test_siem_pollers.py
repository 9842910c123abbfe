"""The pollers that docs/siem.md shows and that run here, against a real receiver: curl, and the script for Splunk."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from service.api.http import write_cursor
from service.store import log, readers, tokens
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import Running
from tests.make import make_receipt
from tests.unit.test_docs_siem import TEXT, blocks


async def test_curl_and_the_splunk_script_as_they_are_shown(
    database_url: str, engine: AsyncEngine, tmp_path: Path
) -> None:
    receipts = [make_receipt() for _ in range(1200)]
    ids = [one.id for one in receipts]
    async with begin(engine) as conn:
        _, token = await tokens.create(conn, "my-siem", frozenset({"siem"}))
        await log.accept(conn, receipts)
    running = Running(
        tmp_path,
        {"DATABASE_URL": database_url, "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN, "SCALEKIT_WEBHOOK_SECRET": SECRET},
    )
    environment = {"PATH": os.environ["PATH"], "AUTHWATCH": running.url, "TOKEN": token, "no_proxy": "*"}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def script_alone() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "authwatch_pull.py"]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    try:
        running.start("serve")
        await running.ready()
        first, lines = re.findall(r"^curl .*/v1/siem/events.*$", TEXT, re.MULTILINE)
        page = json.loads(run("sh", "-c", first))
        assert (len(page["items"]), page["has_more"]) == (1000, True)
        run("sh", "-c", lines)
        appended = (tmp_path / "events.ndjson").read_text().splitlines()
        assert [json.loads(line)["id"] for line in appended] == ids[:100]
        assert "authwatch-next-cursor: " in (tmp_path / "headers.txt").read_text().lower()

        environment["AUTHWATCH_FOLDER"] = str(tmp_path)
        (tmp_path / "authwatch.token").write_text(token + "\n")
        [script] = blocks("python", "Splunk: scripted input")
        (tmp_path / "authwatch_pull.py").write_text(script)
        pulled = run(sys.executable, "authwatch_pull.py").splitlines()
        assert [json.loads(line)["id"] for line in pulled] == ids
        assert run(sys.executable, "authwatch_pull.py") == ""
        later = make_receipt()
        async with begin(engine) as conn:
            await log.accept(conn, [later])
        assert [json.loads(line)["id"] for line in run(sys.executable, "authwatch_pull.py").splitlines()] == [later.id]

        # What retention took is missing and said so, what is left comes.
        lost, left = make_receipt(), make_receipt()
        async with begin(engine) as conn:
            await log.accept(conn, [lost, left])
            await readers.move(conn, readers.RETENTION, (await log.head(conn))[0] - 1)
        done = script_alone()
        assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [left.id]
        assert (done.returncode, "cursor_expired" in done.stderr) == (0, True)
        # After a restore a person says from when on.
        ahead = write_cursor("siem", 10**9)
        (tmp_path / "authwatch.cursor").write_text(ahead)
        done = script_alone()
        assert (done.returncode, done.stdout, "cursor_ahead" in done.stderr) == (1, "", True)
        assert (tmp_path / "authwatch.cursor").read_text() == ahead
        (tmp_path / "authwatch.since").write_text("2026-11-24T02:00:00Z\n")
        (tmp_path / "authwatch.cursor").unlink()
        assert [json.loads(line)["id"] for line in run(sys.executable, "authwatch_pull.py").splitlines()] == [left.id]
        assert run(sys.executable, "authwatch_pull.py") == "", "a cursor comes before since"

        cursor = (tmp_path / "authwatch.cursor").read_text()
        async with running.client() as client:
            asking = asyncio.create_task(client.get("/v1/siem/events", params={"cursor": cursor, "wait": "60s"}))
            await asyncio.sleep(0.5)  # whether it waits already or not, it is answered
            assert not asking.done()
            running.processes["serve"].send_signal(signal.SIGTERM)
            stopped = await asking
        assert (stopped.status_code, stopped.json()["next_cursor"]) == (200, cursor)
    finally:
        running.stop()
