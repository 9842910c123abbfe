"""What was refused or put aside, through a real receiver and the real command: seen, mended, taken in once."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from service.errors import SignatureInvalid
from service.event import new_id
from service.providers.scalekit import Scalekit
from service.rejections import KEPT_PER_SECOND_MAX
from service.replay import replay_quarantined, replay_rejected
from service.settings import load_settings
from service.signatures import make_secret
from service.sources import PROBE_PREFIX, open_sources
from service.store import log, rejected
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import COMMAND, OURS, RULES, Running, post, until
from tests.make import make_receipt
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


def command(running: Running, *words: str, status: int = 0, variables: Mapping[str, str] | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    done = subprocess.run(
        [COMMAND, *words],
        env={**clean, **running.environment, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
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
            running, "replay", "--rejected", "--dry-run", variables=secrets
        )
        told = command(running, "replay", "--rejected", variables=secrets)
        assert "2 genuine and taken (0 of them were here already)" in told
        assert "1 left: signature_wrong" in told
        assert "1 looked at, 0 genuine" in command(running, "replay", "--rejected", variables=secrets)
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
        assert "1 left: not_utf8" in command(running, "replay", status=1)
        assert "0 looked at" in command(running, "replay", "--id", new_id(), status=1)
        assert "0 looked at" in command(running, "replay", "--since", "2100-01-01T00:00:00Z")

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


async def test_a_refused_probe_stays_a_probe_and_a_taken_event_keeps_its_receipt(
    running: Running, database_url: str, engine: AsyncEngine
) -> None:
    await running.ready()
    body = event_body(data={"id": "ca_late"})
    probe_id = f"{PROBE_PREFIX}1"
    probe = event_body(id=probe_id, data={"id": "authwatch_probe"})
    async with running.client() as client:
        for sent, id_ in ((body, "msg_late"), (probe, probe_id)):
            answer = await client.post(DOOR, content=sent, headers=signed(sent, NEW_SECRET, message_id=id_))
            assert answer.status_code == 401
        doubled = [*signed(body, NEW_SECRET).items(), ("webhook-id", "msg_other")]
        assert (await client.post(DOOR, content=body, headers=doubled)).status_code == 401
        [item] = (await refused(running, "signature_malformed", 1))["items"]
        await refused(running, "signature_wrong", 2)
        sources = open_sources(
            load_settings(running.environment | {"SCALEKIT_WEBHOOK_SECRET": f"{NEW_SECRET},{SECRET}"}).sources
        )
        # The provider's SDK knows no time but now, so as a gate it would refuse whatever waited for long.
        gated = {name: replace(source, gate=refuse_all) for name, source in sources.items()}
        done = await replay_rejected(engine, gated)
        assert (done.taken, done.known) == (2, 0)
        assert [left["id"] for left in (await running.get("/v1/quarantine/rejected"))["items"]] == [item["id"]]
        events = {event["account_id"]: event for event in (await running.get("/v1/events"))["items"]}
        assert {name: event["origin"] for name, event in events.items()} == {
            "ca_late": "recovery",
            "authwatch_probe": "probe",
        }
        receipt = await running.get(f"/v1/events/{events['ca_late']['id']}/receipt")
        assert base64.b64decode(receipt["body_base64"]) == body
        assert receipt["secret_name"]


def refuse_all(_headers: object, _body: bytes) -> None:
    raise SignatureInvalid("too old", code="sdk_refused")


async def refused(running: Running, reason: str, count: int) -> Any:
    """The listing of that reason, once there are so many."""

    async def enough() -> bool:
        return len((await running.get(f"/v1/quarantine/rejected?reason={reason}"))["items"]) == count

    await until(enough, 10, running.logs)
    return await running.get(f"/v1/quarantine/rejected?reason={reason}")


async def test_a_list_does_not_read_the_bodies(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        await log.accept(conn, [make_receipt(kind="quarantine", type="quarantine", body=b"x" * 500, occurred_at=None)])
        [row] = await rejected.quarantined(conn, limit=10)
    assert row.body_bytes == 500
    assert not any(isinstance(value, bytes) and len(value) > 32 for value in row)


async def test_what_was_refused_just_before_a_stop_is_not_lost(running: Running) -> None:
    await running.ready()
    async with running.client() as client:
        assert (await client.post(DOOR, content=b"{}", headers=signed(b"{}", NEW_SECRET))).status_code == 401
    running.kill("serve", signal.SIGTERM)
    with psycopg.connect(running.environment["DATABASE_URL"]) as conn:
        assert conn.execute("SELECT count(*) FROM rejected").fetchone() == (1,)


async def test_a_flood_nobody_signed_keeps_its_share_and_keeps_nobody_out(running: Running) -> None:
    await running.ready()
    async with running.client() as client:
        turns = asyncio.Semaphore(20)

        async def send(body: bytes, headers: dict[str, str]) -> int:
            async with turns:
                return (await client.post(DOOR, content=body, headers=headers)).status_code

        began = time.monotonic()
        unsigned = [send(b"x" * 2000, {"content-type": "application/json"}) for _ in range(500)]
        genuine = [send(body, signed(body, SECRET)) for body in (event_body() for _ in range(20))]
        answers = await asyncio.gather(*unsigned[:250], *genuine, *unsigned[250:])
        took = time.monotonic() - began
    assert answers == [401] * 250 + [202] * 20 + [401] * 250
    async with running.client() as client:

        async def all_said() -> bool:
            [row] = (await client.get("/v1/quarantine/rejected?reason=signature_missing")).json()["summary"] or [{}]
            return bool(row) and row["count"] + row["not_kept"] == 500 and row["not_kept"] > 0

        await until(all_said, 10, running.logs)
        seen, after = [], ""
        for _ in range(500):
            page = (await client.get(f"/v1/quarantine/rejected?limit=7{after}")).json()
            seen += [item["id"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            after = f"&cursor={page['next_cursor']}"
        assert (await client.get("/v1/quarantine/rejected?cursor=x")).status_code == 400
    running.kill("serve", signal.SIGTERM)
    with psycopg.connect(running.environment["DATABASE_URL"]) as conn:
        assert sorted(seen) == [row[0] for row in conn.execute("SELECT id FROM rejected ORDER BY id")]
        [kept] = conn.execute("SELECT count(*) FROM rejected").fetchone() or (0,)
    assert 1 <= kept <= KEPT_PER_SECOND_MAX * (took + 1)
