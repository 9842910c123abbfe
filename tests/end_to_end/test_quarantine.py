"""What was refused or put aside, through a real receiver and the real command: seen, mended, taken in once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from service.providers.scalekit import Scalekit
from service.replay import replay_quarantined
from service.settings import load_settings
from service.signatures import make_secret
from service.sources import open_sources
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import COMMAND, OURS, RULES, Running, post, until
from tests.make_requests import event_body, signed

DOOR = "/webhooks/scalekit"
NEW_SECRET = make_secret()


@pytest.fixture
def running(tmp_path: Path, database_url: str) -> Any:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "all.yml").write_text(RULES)
    made = Running(
        tmp_path,
        {
            "DATABASE_URL": database_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(tmp_path / "rules"),
        },
    )
    made.start("serve")
    yield made
    made.stop()


def command(running: Running, *words: str, **variables: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    done = subprocess.run(
        [COMMAND, *words], env=clean | running.environment | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_rotated_secret_is_diagnosed_and_what_it_cost_is_taken_back(running: Running) -> None:
    await running.ready()
    genuine = event_body(data={"id": "ca_rotated"})
    async with running.client() as client:
        for body in (genuine, event_body(data={"id": "ca_rotated_too"})):
            assert (await client.post(DOOR, content=body, headers=signed(body, NEW_SECRET))).status_code == 401
        forged = event_body(data={"id": "ca_forged"})
        assert (await client.post(DOOR, content=forged, headers=signed(forged, make_secret()))).status_code == 401

        async def kept() -> bool:
            said = (await client.get("/v1/quarantine/rejected")).json()
            return [row["count"] for row in said["summary"]] == [3]

        await until(kept, 10, running.logs)
        said = (await client.get("/v1/quarantine/rejected?reason=signature_wrong")).json()
        assert "rotated" in said["summary"][0]["diagnosis"]
        assert "ca_rotated" not in str(said)
        assert NEW_SECRET not in str(said)
        secrets = {"SCALEKIT_WEBHOOK_SECRET": f"{NEW_SECRET},{SECRET}"}
        assert "3 looked at, 2 genuine and would be taken" in command(
            running, "replay", "--rejected", "--dry-run", **secrets
        )
        told = command(running, "replay", "--rejected", **secrets)
        assert "2 genuine and taken (0 of them were here already)" in told
        assert "1 left: signature_wrong" in told
        assert "1 looked at, 0 genuine" in command(running, "replay", "--rejected", **secrets)
        events = (await client.get("/v1/events?account_id=ca_rotated")).json()["items"]
        assert [event["origin"] for event in events] == ["recovery"]
        assert (await client.get("/v1/events?account_id=ca_forged")).json()["items"] == []


async def test_who_may_not_read_it_does_not(running: Running) -> None:
    await running.ready()
    read = command(running, "tokens", "create", "--name", "reader", "--scope", "read").split()[-1]
    async with running.client() as client:
        client.headers["Authorization"] = f"Bearer {read}"
        assert (await client.get("/v1/quarantine")).status_code == 200
        assert (await client.get("/v1/quarantine/rejected")).status_code == 403


async def test_what_could_not_be_read_is_taken_once_it_can(
    running: Running, database_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mend is an adapter that reads what it could not: here one that takes a leading byte order mark away."""
    await running.ready()
    real = event_body(data={"id": "ca_bom"})
    unreadable = b"\xff\xfe" + real
    async with running.client() as client:
        answer = await client.post(DOOR, content=unreadable, headers=signed(unreadable, SECRET, message_id="msg_bom"))
        assert answer.json()["status"] == "quarantined"
        (item,) = (await client.get("/v1/quarantine")).json()["items"]
        assert (item["reason"], item["body_bytes"], item["replayed_as"]) == ("not_utf8", len(unreadable), None)
        sources = open_sources(load_settings(running.environment).sources)
        assert (await replay_quarantined(engine, sources)).left == {"not_utf8": 1}

        plain = Scalekit.normalise
        monkeypatch.setattr(
            Scalekit, "normalise", lambda self, body, id_: plain(self, body.removeprefix(b"\xff\xfe"), id_)
        )
        assert (await replay_quarantined(engine, sources)).taken == 1
        assert (await replay_quarantined(engine, sources)).looked_at == 0
        (item,) = (await client.get("/v1/quarantine")).json()["items"]
        (event,) = (await client.get("/v1/events?account_id=ca_bom")).json()["items"]
        assert item["replayed_as"] == event["id"]
        # The provider's own retry of the same event, readable by now, is a duplicate.
        assert (await post(client, real)).json() == {"status": "duplicate", "id": event["id"]}
