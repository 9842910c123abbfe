"""`/v1/silences` as its callers see it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from service.routing.matchers import read_matchers
from service.store.session import begin
from tests.end_to_end.test_api import NOWHERE, Api, opened, problem


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with opened(database_url) as made:
        yield made


BODY: dict[str, Any] = {"matchers": ["connection_id=conn_1", "severity=~P3|P4"], "for": "2h", "comment": "known"}


async def made(api: Api, **changes: Any) -> dict[str, Any]:
    answer = await api.client.post("/v1/silences", json=BODY | changes)
    assert answer.status_code == 201, answer.text
    silence: dict[str, Any] = answer.json()
    return silence


async def states(api: Api, query: str = "") -> dict[str, str]:
    return {one["comment"]: one["state"] for one in await api.items(f"/v1/silences{query}")}


async def test_a_silence_has_matchers_start_end_author_and_comment(api: Api) -> None:
    silence = await made(api)
    assert silence["matchers"] == ['connection_id="conn_1"', 'severity=~"P3|P4"']
    start, end = (datetime.fromisoformat(silence[name]) for name in ("start", "end"))
    assert end - start == timedelta(hours=2)
    assert (silence["author"], silence["comment"], silence["state"]) == ("admin", "known", "active")
    assert silence["mutes_pauses"] is False
    assert await api.get(f"/v1/silences/{silence['id']}") == silence
    assert await api.items("/v1/silences") == [silence]


async def test_alertmanagers_own_matchers_are_taken(api: Api) -> None:
    matcher = {"name": "team", "value": "a|b", "isRegex": True, "isEqual": False}
    silence = await made(api, matchers=[matcher, "severity=P1"], author="ops@example.com")
    assert silence["matchers"] == ['team!~"a|b"', 'severity="P1"']
    assert silence["author"] == "ops@example.com"


async def test_the_listing_tells_pending_active_and_expired(api: Api) -> None:
    now = datetime.now(UTC)
    await made(api, comment="now")
    await made(api, comment="soon", start=(now + timedelta(hours=1)).isoformat())
    over = await made(api, comment="over")
    ended = await api.client.delete(f"/v1/silences/{over['id']}")
    assert (ended.status_code, ended.json()["state"]) == (200, "expired")
    assert await states(api) == {"now": "active", "soon": "pending", "over": "expired"}
    assert await states(api, "?state=pending") == {"soon": "pending"}
    again = await api.client.delete(f"/v1/silences/{over['id']}")
    assert again.status_code == 200, "ending it twice changes nothing"


async def test_who_makes_and_ends_a_silence_is_in_the_log(api: Api) -> None:
    headers = await api.token("read", "write")
    answer = await api.client.post("/v1/silences", json=BODY, headers=headers)
    silence = answer.json()
    assert (answer.status_code, silence["author"]) == (201, "test")
    await api.client.delete(f"/v1/silences/{silence['id']}", headers=headers)
    await api.client.delete(f"/v1/silences/{silence['id']}", headers=headers)
    async with begin(api.runtime.engine) as conn:
        rows = await conn.execute(text("SELECT details FROM events WHERE kind = 'audit' ORDER BY position"))
        said = [row.details for row in rows]
    assert [(one["actor"], one["action"], one["reason"]) for one in said] == [
        ("test", "silence.create", "known"),
        ("test", "silence.end", "known"),
    ]
    assert {one["subject"] for one in said} == {silence["id"]}


async def test_reading_needs_read_and_the_rest_write(api: Api) -> None:
    silence = await made(api)
    reader, writer = await api.token("read"), await api.token("write")
    assert (await api.client.get("/v1/silences", headers=reader)).status_code == 200
    problem(await api.client.get("/v1/silences", headers=writer), 403, "scope_missing")
    problem(await api.client.post("/v1/silences", json=BODY, headers=reader), 403, "scope_missing")
    problem(await api.client.delete(f"/v1/silences/{silence['id']}", headers=reader), 403, "scope_missing")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"matchers": []}, "invalid_body"),
        ({"matchers": ["team=~.*"]}, "invalid_body"),
        ({"matchers": ["team"]}, "invalid_body"),
        ({"matchers": ["team=~(a"]}, "invalid_body"),
        ({"matchers": [{"name": "team"}]}, "invalid_body"),
        ({"matchers": [{"name": "team", "value": "a\x00b"}]}, "invalid_body"),
        ({"matchers": [{"name": "team", "value": "\ud800"}]}, "invalid_body"),
        ({"matchers": [{"name": "team", "value": '"' * 1500}]}, "invalid_body"),
        ({"matchers": ["team=" + "\\x" * 950]}, "invalid_body"),
        ({"for": None}, "invalid_body"),
        ({"for": "0s"}, "invalid_body"),
        ({"for": "999999999d"}, "invalid_body"),
        ({"for": "400d"}, "invalid_body"),
        ({"for": None, "end": "2020-01-01T00:00:00Z"}, "invalid_body"),
        ({"end": "2100-01-01T00:00:00Z"}, "invalid_body"),
        ({"comment": ""}, "invalid_body"),
        ({"time_intervals": ["nights"]}, "unknown_time_interval"),
        ({"unknown": 1}, "invalid_body"),
    ],
)
async def test_a_silence_that_cannot_be_is_refused_with_its_reason(
    api: Api, changes: dict[str, Any], code: str
) -> None:
    body = json.dumps({name: value for name, value in (BODY | changes).items() if value is not None})
    assert problem(await api.client.post("/v1/silences", content=body), 400, code)["detail"]
    assert await api.items("/v1/silences") == []


async def test_whatever_is_taken_can_be_read_again(api: Api) -> None:
    """Everybody who decides what is told reads all of them: one that cannot be read would stop every message."""
    value = '\\x"\n{},=~' * 100
    silence = await made(api, matchers=[{"name": "team", "value": value}])
    far = await made(api, start="9999-06-01T00:00:00Z", end="9999-07-01T00:00:00Z", **{"for": None})
    assert [one["id"] for one in await api.items("/v1/silences")] == [far["id"], silence["id"]]
    assert far["state"] == "pending"
    assert read_matchers(silence["matchers"])[0].value == value


async def test_one_that_is_not_there_is_404(api: Api) -> None:
    for silence_id in (NOWHERE, "not-a-uuid"):
        problem(await api.client.get(f"/v1/silences/{silence_id}"), 404, "unknown_silence")
        problem(await api.client.delete(f"/v1/silences/{silence_id}"), 404, "unknown_silence")
