"""Other content under a used identity: answered as a duplicate, kept, shown, and told to the on-call."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from service.event import new_id
from service.store import log
from service.store.conflicts import UNTOLD_MAX
from service.store.session import begin
from tests.conftest import SECRET
from tests.end_to_end.test_api import Api, opened
from tests.make import make_receipt
from tests.make_requests import event_body, signed
from workers.conflicts import OPEN_OF_SOURCE_MAX, RULE_ID, Looked, tell_conflicts
from workers.sweep import Sweep, sweep


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with opened(database_url) as made:
        yield made


async def send(api: Api, body: bytes) -> tuple[int, dict[str, Any]]:
    answer = await api.client.post("/webhooks/scalekit", content=body, headers=signed(body, SECRET))
    return answer.status_code, answer.json()


async def told(api: Api, state: str | None = None) -> list[dict[str, Any]]:
    return await api.items(f"/v1/alerts?rule={RULE_ID}" + (f"&state={state}" if state else ""))


async def test_the_second_body_is_a_duplicate_and_is_evidence_and_an_alert(api: Api) -> None:
    first = event_body()
    other = event_body(id=json.loads(first)["id"], data={"status": "DISCONNECTED", "access_token": "tell-nobody-123"})
    status, said = await send(api, first)
    event_id = said["id"]
    assert (status, await send(api, first)) == (202, (200, {"status": "duplicate", "id": event_id}))
    assert (await api.get(f"/v1/events/{event_id}/receipt"))["conflicts"] == []
    assert await send(api, other) == (200, {"status": "duplicate", "id": event_id})
    assert await send(api, other) == (200, {"status": "duplicate", "id": event_id})

    receipt = await api.get(f"/v1/events/{event_id}/receipt")
    assert base64.b64decode(receipt["body_base64"]) == first
    assert receipt["verification"]["result"] == "verified"
    [conflict] = receipt["conflicts"]
    assert receipt["conflicts_total"] == 1
    assert (base64.b64decode(conflict["body_base64"]), conflict["verification"]["result"]) == (other, "verified")
    assert conflict["body_sha256"] == hashlib.sha256(other).hexdigest()
    assert conflict["secret_name"] == receipt["secret_name"]
    assert conflict["headers"]["webhook-id"] != receipt["headers"]["webhook-id"]
    answer = await api.client.get(f"/v1/events/{event_id}/receipt", headers=await api.token("read"))
    assert b"tell-nobody" not in base64.b64decode(answer.json()["conflicts"][0]["body_base64"])

    last = Sweep()
    for _ in range(3):
        await sweep(api.runtime, last)
    [alert] = await told(api)
    assert (alert["severity"], alert["state"]) == ("P2", "firing")
    assert f"scalekit: other content came, signed, under the identity of event {event_id}" in alert["summary"]
    assert receipt["secret_name"] in alert["what_to_do"]
    assert "tell-nobody" not in json.dumps(alert)
    assert (
        'authwatch_events_duplicate_total{same_body="false",source="scalekit"}'
        in (await api.client.get("/metrics")).text
    )


async def test_after_a_person_resolved_it_a_further_body_is_said_anew(api: Api) -> None:
    first = event_body()
    await send(api, first)
    looked = Looked()
    for number in range(2):
        await send(api, event_body(id=json.loads(first)["id"], data={"id": f"ca_other_{number}"}))
        await tell_conflicts(api.runtime, looked)
        [alert] = await told(api, "firing")
        await api.post(f"/v1/alerts/{alert['id']}/resolve")
        await tell_conflicts(api.runtime, looked)
        await tell_conflicts(api.runtime, Looked())
        assert await told(api, "firing") == []
    assert len(await told(api)) == 2


async def test_a_clock_that_ran_ahead_and_was_put_right_hides_no_conflict(api: Api) -> None:
    looked = Looked(since={"scalekit": datetime.now(UTC) + timedelta(days=2)})
    first = event_body()
    await send(api, first)
    await send(api, event_body(id=json.loads(first)["id"], data={"id": "ca_other"}))
    await tell_conflicts(api.runtime, looked)
    assert len(await told(api, "firing")) == 1


async def test_who_holds_the_secret_cannot_flood_the_on_call(api: Api) -> None:
    looked = Looked()
    for _ in range(OPEN_OF_SOURCE_MAX + 3):
        first = event_body()
        await send(api, first)
        await send(api, event_body(id=json.loads(first)["id"], data={"id": "ca_other"}))
    for _ in range(2):
        await tell_conflicts(api.runtime, looked)
        assert len(await told(api, "firing")) == OPEN_OF_SOURCE_MAX
    # None is forgotten: each has its turn, also long after it came.
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("UPDATE conflicts SET received_at = received_at - interval '1 hour'"))
    looked.since = {source: since and since - timedelta(hours=1) for source, since in looked.since.items()}
    for number in range(1, 4):
        await tell_conflicts(api.runtime, looked)
        await api.post(f"/v1/alerts/{(await told(api, 'firing'))[0]['id']}/resolve")
        await tell_conflicts(api.runtime, looked)
        assert (len(await told(api, "firing")), len(await told(api))) == (
            OPEN_OF_SOURCE_MAX,
            OPEN_OF_SOURCE_MAX + number,
        )
    await tell_conflicts(api.runtime, looked)
    assert len(await told(api)) == OPEN_OF_SOURCE_MAX + 3
    assert looked.waiting == set()


async def test_many_of_one_source_hide_none_of_another(api: Api) -> None:
    [source] = api.runtime.sources.values()
    api.runtime.sources.swap({"scalekit": source, "other": replace(source, name="other")})
    for name, count in (("scalekit", UNTOLD_MAX + 2), ("other", 1)):
        for _ in range(count):
            event_id = f"evt_{new_id()}"
            for body in (b'{"one": 1}', b'{"other": 1}'):
                async with begin(api.runtime.engine) as conn:
                    await log.accept(conn, [make_receipt(source=name, body=body, event_id=event_id)])
    await tell_conflicts(api.runtime, Looked())
    assert "other:" in str([alert["summary"] for alert in await told(api)])
    assert len(await told(api)) == OPEN_OF_SOURCE_MAX + 1


async def test_many_bodies_of_one_event_hide_no_other_event(api: Api) -> None:
    looked = Looked()
    for event_id, count in ((f"evt_{new_id()}", UNTOLD_MAX + 2), (f"evt_{new_id()}", 2)):
        for number in range(count):
            async with begin(api.runtime.engine) as conn:
                await log.accept(conn, [make_receipt(body=b'{"n": %d}' % number, event_id=event_id)])
    for _ in range(2):
        await tell_conflicts(api.runtime, looked)
    assert len(await told(api)) == 2


async def test_a_signed_event_that_was_replayed_counts_as_signed(api: Api) -> None:
    event_id = f"evt_{new_id()}"
    for origin, body in (("recovery", b'{"one": 1}'), ("webhook", b'{"other": 1}')):
        async with begin(api.runtime.engine) as conn:
            await log.accept(conn, [make_receipt(origin=origin, body=body, event_id=event_id)])
    await tell_conflicts(api.runtime, Looked())
    assert len(await told(api, "firing")) == 1


@pytest.mark.parametrize(("first", "second"), [("webhook", "recovery"), ("recovery", "webhook")])
async def test_the_providers_api_may_write_an_event_in_other_words(api: Api, first: str, second: str) -> None:
    event_id = f"evt_{new_id()}"
    for origin, body in ((first, b'{"one": 1}'), (second, b'{"other": 1}')):
        made = make_receipt(origin=origin, body=body, event_id=event_id)
        unsigned: dict[str, Any] = (
            {} if origin == "webhook" else {"secret_name": None, "headers": {}, "attempted_at": None}
        )
        values = {name: getattr(made, name) for name in log.Receipt.__slots__} | unsigned
        async with begin(api.runtime.engine) as conn:
            await log.accept(conn, [log.Receipt(**values)])
    async with begin(api.runtime.engine) as conn:
        assert (await conn.execute(text("SELECT count(*) FROM conflicts"))).scalar_one() == 1
        kept = (await conn.execute(text("SELECT event_row_id FROM conflicts"))).scalar_one()
    await tell_conflicts(api.runtime, Looked())
    assert await told(api) == []
    if first == "webhook":
        [conflict] = (await api.get(f"/v1/events/{kept}/receipt"))["conflicts"]
        assert conflict["verification"]["result"] == "not_signed"
