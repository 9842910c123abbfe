"""The evidence of an event: what was received, byte for byte, and whether it still proves itself."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from service.event import new_id
from service.evidence import Evidence, shown_body, verify_again
from service.providers.scalekit import Scalekit
from service.replay import replay_quarantined, replay_rejected
from service.settings import SecretSettings, SourceSettings
from service.signatures import make_secret, parse_secret
from service.sources import PROBE_PREFIX, fingerprint, open_source
from service.store import log, rejected
from service.store.rejected import Rejected
from service.store.session import begin
from tests.conftest import SECRET
from tests.end_to_end.test_api import Api, opened, problem
from tests.make import make_receipt
from tests.make_requests import event_body, signed

TOKEN = "ya29.of-somebody-0123456789"
NAME = fingerprint(parse_secret(SECRET, name="").key)


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with opened(database_url) as made:
        yield made


async def send(api: Api, body: bytes, headers: dict[str, str] | None = None, **how: Any) -> httpx.Response:
    return await api.client.post(
        "/webhooks/scalekit", content=body, headers=signed(body, SECRET, **how) | (headers or {})
    )


async def kept(api: Api, body: bytes, headers: dict[str, str] | None = None, **how: Any) -> str:
    answer = await send(api, body, headers, **how)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def receipt(api: Api, event_id: str, *scopes: str) -> dict[str, Any]:
    answer = await api.client.get(f"/v1/events/{event_id}/receipt", headers=await api.token(*(scopes or ("read",))))
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


async def result(api: Api, event_id: str) -> str:
    return str((await receipt(api, event_id))["verification"]["result"])


async def change(api: Api, event_id: str, what: str, **values: Any) -> None:
    async with begin(api.runtime.engine) as conn:
        done = await conn.execute(
            text(f"UPDATE receipts SET {what} WHERE event_row_id = :id"), {"id": event_id} | values
        )
        assert done.rowcount == 1


async def test_a_receipt_shows_the_very_bytes_and_verifies_them_again(api: Api) -> None:
    body = event_body()
    event_id = await kept(api, body, message_id="msg_1")
    said = await receipt(api, event_id)
    assert base64.b64decode(said["body_base64"]) == body
    assert (said["id"], said["source"], said["origin"], said["body_masked"]) == (event_id, "scalekit", "webhook", False)
    assert (said["body_bytes"], said["body_sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert said["secret_name"] == NAME
    assert said["verification"]["result"] == "verified"
    assert said["headers"]["webhook-id"] == "msg_1"
    assert said["headers"]["webhook-signature"].startswith("v1,")
    received, attempted = (datetime.fromisoformat(said[name]) for name in ("received_at", "attempted_at"))
    assert said["clock_skew_seconds"] == (received - attempted).total_seconds()
    assert 0 <= said["clock_skew_seconds"] < 60


async def test_a_body_with_tokens_is_whole_for_the_admin_alone_and_its_hash_true_for_all(api: Api) -> None:
    body = event_body(data={"id": "ca_1", "access_token": TOKEN, "note": f"Bearer {TOKEN}"})
    event_id = await kept(api, body)
    for scopes in (("read",), ("read", "write", "siem", "telemetry")):
        said = await receipt(api, event_id, *scopes)
        shown = base64.b64decode(said["body_base64"])
        assert TOKEN not in json.dumps(said) + shown.decode()
        assert json.loads(shown)["data"]["access_token"] == "***"
        assert said["body_masked"] is True
        assert (said["body_sha256"], said["body_bytes"]) == (hashlib.sha256(body).hexdigest(), len(body))
        assert said["verification"]["result"] == "verified"
    said = await receipt(api, event_id, "read", "admin")
    assert (base64.b64decode(said["body_base64"]), said["body_masked"]) == (body, False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":{"access_token":"secret-0123456789"},"data":{}}',
        b'{"data": {"access_\\u0074oken": "secret-0123456789"}}',
        b'{"data": {"access_token": "secret-0123456789',
        b"\xff access_token=secret-0123456789",
        b'{"a":{},"a":{}' + b"[" * 100_000,
        b"[" * 100_000,
        b'{"access_token": 1, "n": ' + b"9" * 5_000 + b"}",
        '{"access_token": "secret-0123456789"}'.encode("utf-16"),
    ],
)
def test_no_way_of_writing_a_body_shows_its_token(body: bytes) -> None:
    shown, masked = shown_body(body)
    assert masked
    assert b"secret-0123456789" not in (shown or b"")


def test_a_body_without_a_token_is_shown_as_it_came() -> None:
    for body in (event_body(), b'{"a": 1e999, "b": NaN, "c": [1.0, true, null, "\\ud800"]}', b"[]"):
        assert shown_body(body) == (body, False)


async def test_what_was_changed_since_is_said(api: Api) -> None:
    body, other = event_body(), event_body(data={"id": "ca_2"})
    event_id = await kept(api, body, message_id="msg_1")
    await change(api, event_id, "body = :body", body=other)
    assert await result(api, event_id) == "hash_mismatch"
    await change(api, event_id, "body = :body, body_sha256 = :sha", body=other, sha=hashlib.sha256(other).digest())
    assert await result(api, event_id) == "signature_wrong"
    await change(api, event_id, "body = :body, body_sha256 = :sha", body=body, sha=hashlib.sha256(body).digest())
    assert await result(api, event_id) == "verified"
    await change(api, event_id, "headers = headers || jsonb_build_object('webhook-id', 'msg_other')")
    assert await result(api, event_id) == "signature_wrong"
    await change(api, event_id, "headers = headers || jsonb_build_object('webhook-id', 'msg_1')")
    assert await result(api, event_id) == "verified"
    for seconds in (60, 3600):
        await change(api, event_id, "attempted_at = attempted_at + :late", late=timedelta(seconds=seconds))
        assert await result(api, event_id) == "attempt_differs"
        await change(api, event_id, "attempted_at = attempted_at - :late", late=timedelta(seconds=seconds))
    await change(api, event_id, "headers = headers - 'webhook-signature'")
    assert await result(api, event_id) == "signature_missing"


async def test_a_secret_that_is_gone_or_renamed_is_said(api: Api) -> None:
    event_id, sources = await kept(api, event_body()), api.runtime.sources

    def live(*secrets: SecretSettings) -> None:
        sources.swap({"scalekit": open_source("scalekit", SourceSettings(secrets=secrets))})

    other = SecretSettings.model_validate(make_secret())
    live(other)
    assert await result(api, event_id) == "secret_gone"
    live(other, SecretSettings.model_validate({"name": "2026-08", "value": SECRET}))
    said = (await receipt(api, event_id))["verification"]
    assert said == {"result": "verified", "detail": f"by the secret now named 2026-08; it was {NAME} then"}
    live(SecretSettings.model_validate({"name": NAME, "value": make_secret()}))
    assert await result(api, event_id) == "signature_wrong"
    # The name stands for another key by now, and the key has moved on to the next slot.
    live(
        SecretSettings.model_validate({"name": NAME, "value": make_secret()}),
        SecretSettings.model_validate({"name": "previous", "value": SECRET}),
    )
    said = (await receipt(api, event_id))["verification"]
    assert said == {"result": "verified", "detail": f"by the secret now named previous; it was {NAME} then"}
    sources.swap({})
    assert await result(api, event_id) == "source_gone"


async def test_quarantined_events_and_probes_have_receipts(api: Api) -> None:
    answer = await send(api, b"\xff not JSON")
    assert answer.json()["status"] == "quarantined"
    said = await receipt(api, answer.json()["id"])
    assert (said["verification"]["result"], said["body_base64"], said["body_masked"]) == ("verified", None, True)
    said = await receipt(api, answer.json()["id"], "read", "admin")
    assert base64.b64decode(said["body_base64"]) == b"\xff not JSON"
    probe = await kept(api, event_body(), message_id=f"{PROBE_PREFIX}1")
    said = await receipt(api, probe)
    assert (said["origin"], said["verification"]["result"]) == ("probe", "verified")


async def test_what_nobody_signed_has_none(api: Api) -> None:
    async with begin(api.runtime.engine) as conn:
        [recovered] = await log.accept(conn, [replace(make_receipt(origin="recovery"), secret_name=None)])
        decision = log.Decision(kind="audit", subject_id=None, occurred_at=datetime.now(UTC))
        await log.append(conn, [decision])
        ours = (await conn.execute(text("SELECT id FROM events WHERE kind = 'audit'"))).scalar_one()
    event_id = await kept(api, event_body())
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("DELETE FROM receipts WHERE event_row_id = :id"), {"id": event_id})
    expected = {
        recovered.id: "no_receipt",
        str(ours): "no_receipt",
        event_id: "receipt_dropped",
        new_id(): "unknown_event",
        "x": "unknown_event",
    }
    for asked, code in expected.items():
        problem(await api.client.get(f"/v1/events/{asked}/receipt"), 404, code)


async def test_credentials_in_headers_are_not_kept_and_the_signature_is_kept_whole(api: Api) -> None:
    body = event_body()
    headers = signed(body, SECRET)
    padding = " ".join("v1," + base64.b64encode(bytes([n]) * 32).decode() for n in range(15))
    many = {f"x-n-{n}": "fine" for n in range(70)}
    credentials = {
        "Authorization": f"Bearer {TOKEN}",
        "X-Forwarded-Access-Token": TOKEN,
        "X-Odd": f"Bearer {TOKEN}",
        "X-Acme-Token": "shh-0123456789",
        "X-Referer": f"https://x.example/?access_token={TOKEN}",
        "X-Fine": "fine",
        "X-Acme-Key": "shh-0123456789",
        "X-Forwarded-Uri": f"/hook?a=1&access_token={TOKEN}&b=2",
        "X-" + "n" * 500: "long",
    }
    order = credentials | many | headers | {"webhook-signature": f"{padding} {headers['webhook-signature']}"}
    answer = await api.client.post("/webhooks/scalekit", content=body, headers=order)
    assert answer.status_code == 202
    said = await receipt(api, answer.json()["id"], "read", "admin")
    assert TOKEN not in json.dumps(said)
    assert "shh-0123456789" not in json.dumps(said)
    assert (said["headers"]["x-odd"], said["headers"]["x-acme-token"], said["headers"]["x-fine"]) == (
        "***",
        "***",
        "fine",
    )
    assert said["verification"]["result"] == "verified"
    async with begin(api.runtime.engine) as conn:
        stored = (await conn.execute(text("SELECT headers FROM receipts"))).scalar_one()
    written = json.dumps(stored)
    assert TOKEN not in written
    assert "shh-0123456789" not in written
    assert {"authorization", "x-forwarded-access-token"} & set(stored) == set()
    assert stored["x-acme-token"] == stored["x-acme-key"] == "***"
    assert stored["x-referer"] == "https://x.example/?access_token=***"
    assert stored["x-forwarded-uri"] == "/hook?a=1&access_token=***&b=2"
    assert stored["x-" + "n" * 126] == "long"
    assert stored["webhook-signature"] == order["webhook-signature"]


async def test_a_header_that_came_twice_is_kept_whole(api: Api) -> None:
    body = event_body()
    twice = [("x-forwarded-for", "10.0.0.1"), ("X-Forwarded-For", "10.0.0.2"), ("user-agent", "a"), ("user-agent", "b")]
    many = [("x-many", "m" * 3000), ("x-many", "m" * 3000), ("x-acme-token", "one"), ("x-acme-token", "two")]
    answer = await api.client.post(
        "/webhooks/scalekit", content=body, headers=[*signed(body, SECRET).items(), *twice, *many, ("cookie", "x")]
    )
    headers = (await receipt(api, answer.json()["id"]))["headers"]
    assert headers["x-forwarded-for"] == "10.0.0.1, 10.0.0.2"
    assert headers["user-agent"].endswith("a, b")
    assert len(headers["x-many"]) == 4096
    assert set(headers["x-acme-token"]) == {"*"}
    assert "cookie" not in headers


@pytest.mark.parametrize(("late", "expected"), [(0, "verified"), (320, "verified"), (3600, "outside_window")])
def test_the_window_is_held_to_the_time_of_receipt(late: int, expected: str) -> None:
    body, attempted = event_body(), datetime(2025, 1, 1, tzinfo=UTC)
    source = open_source("scalekit", SourceSettings(secrets=(SecretSettings.model_validate(SECRET),)))
    evidence = Evidence(
        source="scalekit",
        received_at=attempted + timedelta(seconds=late),
        attempted_at=attempted,
        headers=signed(body, SECRET, at=int(attempted.timestamp())),
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        secret_name=NAME,
    )
    assert verify_again(evidence, source).result == expected


async def age(api: Api, table: str) -> None:
    """As if everything in it had come an hour ago."""
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text(f"UPDATE {table} SET received_at = received_at - interval '1 hour'"))


async def test_what_was_refused_an_hour_ago_and_replayed_keeps_the_time_it_came(api: Api) -> None:
    now = datetime.now(UTC)
    came, secret = now - timedelta(hours=1), make_secret()
    first, other = event_body(), event_body()
    batch = []
    for body in (first, other, event_body(id=json.loads(other)["id"], data={"id": "ca_x"})):
        headers = signed(body, secret, at=int(came.timestamp()) - 2)
        batch.append(
            Rejected(
                source="scalekit",
                reason="signature_wrong",
                received_at=came,
                headers=headers,
                body=body,
                body_bytes=len(body),
            )
        )
    async with begin(api.runtime.engine) as conn:
        await rejected.keep(conn, batch)
    secrets = (SecretSettings.model_validate(secret), SecretSettings.model_validate(SECRET))
    api.runtime.sources.swap({"scalekit": open_source("scalekit", SourceSettings(secrets=secrets))})
    done = await replay_rejected(api.runtime.engine, api.runtime.sources)
    assert (done.taken, done.known) == (3, 1)
    found = [await receipt(api, event["id"]) for event in await api.items("/v1/events")]
    assert sorted(len(said["conflicts"]) for said in found) == [0, 1]
    for said in found:
        for shown in (said, *said["conflicts"]):
            assert shown["verification"]["result"] == "verified"
            assert datetime.fromisoformat(shown["first_received_at"]) == came
            assert 2 <= shown["clock_skew_seconds"] < 4
            assert datetime.fromisoformat(shown["received_at"]) >= now


async def test_what_could_not_be_read_an_hour_ago_and_is_replayed_keeps_the_time_it_came(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"\xff\xfe" + event_body(data={"id": "ca_bom"})
    hour_ago = int(datetime.now(UTC).timestamp()) - 3600
    answer = await send(api, body)
    assert answer.json()["status"] == "quarantined"
    headers = json.dumps(signed(body, SECRET, at=hour_ago))
    at = datetime.fromtimestamp(hour_ago, UTC)
    await change(api, answer.json()["id"], "headers = cast(:h as jsonb), attempted_at = :at", h=headers, at=at)
    for table in ("events", "receipts"):
        await age(api, table)
    plain = Scalekit.normalise
    monkeypatch.setattr(Scalekit, "normalise", lambda self, raw, id_: plain(self, raw.removeprefix(b"\xff\xfe"), id_))
    assert (await replay_quarantined(api.runtime.engine, api.runtime.sources)).taken == 1
    [event] = await api.items("/v1/events?account_id=ca_bom")
    said = await receipt(api, event["id"])
    assert said["verification"]["result"] == "verified"
    assert abs(datetime.fromisoformat(said["first_received_at"]).timestamp() - hour_ago) < 60
    assert abs(said["clock_skew_seconds"]) < 60


async def test_a_receipt_that_was_not_replayed_has_no_other_time(api: Api) -> None:
    event_id = await kept(api, event_body())
    assert (await receipt(api, event_id))["first_received_at"] is None
