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

from service.store import log, tokens
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
