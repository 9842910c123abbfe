"""Every provider API adapter against a strict fake of that API: pages, weather, tokens, and no secret in any error."""

from __future__ import annotations

import json
import traceback
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from pydantic import SecretStr
from starlette.responses import JSONResponse

from service import outbound
from service.errors import DeliveryFailed
from service.provider_apis import PROVIDER_APIS
from service.provider_apis.scalekit import ATTEMPTS_MAX, ScalekitApi
from service.providers import PROVIDERS
from service.settings import ProviderApi as Credentials
from tests.fakes import serve
from tests.fakes.scalekit_api import CLIENT_ID, CLIENT_SECRET, FakeScalekit

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Asked:
    """One adapter in front of one fake; what it waited is noted, not waited."""

    def __init__(self, fake: FakeScalekit, url: str, http: httpx.AsyncClient, secret: str = CLIENT_SECRET) -> None:
        self.fake, self.url, self.http = fake, url, http
        self.waited: list[float] = []
        self.api = ScalekitApi(
            Credentials(env_url=url + "/", client_id=CLIENT_ID, client_secret=SecretStr(secret)), http, self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.waited.append(seconds)


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    fake = FakeScalekit()
    async with serve(fake.app) as url, outbound.open_client() as http:
        yield Asked(fake, url, http)


def event(number: int, at: datetime) -> dict[str, object]:
    return {
        "spec_version": "1",
        "id": f"evt_{number}",
        "type": "connected_account.updated",
        "occurred_at": at.isoformat().replace("+00:00", "Z"),
        "environment_id": "env_1",
        "object": "ConnectedAccount",
        "data": {"id": "ca_1", "connection_id": "conn_1", "status": "ACTIVE", "provider": "GMAIL", "identifier": "j"},
    }


def test_every_api_is_of_a_provider_we_know() -> None:
    assert set(PROVIDER_APIS) <= set(PROVIDERS)
    assert all(open_.__self__.provider == name for name, open_ in PROVIDER_APIS.items())  # type: ignore[attr-defined]


async def test_events_come_page_after_page_and_read_like_webhooks(asked: Asked) -> None:
    for number in range(250):
        asked.fake.say(event(number, NOW + timedelta(seconds=number)))
    token, sizes, ids = None, [], []
    while True:
        page = await asked.api.events_page(NOW, NOW + timedelta(hours=1), token)
        sizes.append(len(page.bodies))
        ids += [PROVIDERS["scalekit"].normalise(body, "none").event_id for body in page.bodies]
        if (token := page.next_page_token) is None:
            break
    assert sizes == [100, 100, 50]
    assert ids == [f"evt_{number}" for number in reversed(range(250))]
    assert asked.fake.calls["token"] == 1


async def test_camel_case_of_the_gateway_is_read_too(asked: Asked) -> None:
    given = event(1, NOW)
    given["occurredAt"], given["environmentId"] = given.pop("occurred_at"), given.pop("environment_id")
    asked.fake.weather = [
        JSONResponse({"access_token": "t" * 20, "expires_in": 100}),
        JSONResponse({"events": [given], "nextPageToken": "n"}),
    ]
    page = await asked.api.events_page(NOW, NOW, None)
    read = PROVIDERS["scalekit"].normalise(page.bodies[0], "none")
    assert (read.environment_id, read.occurred_at, page.next_page_token) == ("env_1", NOW, "n")


async def test_an_account_is_read_leniently_and_without_its_tokens(asked: Asked) -> None:
    asked.fake.set_account("ca_1", "EXPIRED", updated_at=NOW, connection_id=None)
    asked.fake.accounts["ca_1"]["authorization_details"] = {"oauth_token": {"access_token": "ya29.secret"}}
    asked.fake.set_account("ca_2", "ACTIVE")
    first, second = (await asked.api.accounts_page(None)).accounts
    assert (first.status, first.kind, first.provider) == ("EXPIRED", "account.reauth_required", "GMAIL")
    assert (first.updated_at, first.connection_id) == (NOW, None)
    assert second.updated_at is None  # 1970 without an offset is "unset"
    assert b"ya29" not in first.body
    assert json.loads(first.body)["id"] == "ca_1"
    assert await asked.api.account("ca_1") == first
    assert await asked.api.account("ca_gone") is None


async def test_the_environment_is_the_one_that_events_name(asked: Asked) -> None:
    assert await asked.api.environment_id() is None
    asked.fake.say(event(1, NOW))
    assert await asked.api.environment_id() == "env_1"


async def test_a_token_that_ended_is_renewed_once(asked: Asked) -> None:
    await asked.api.check()
    asked.fake.expire_tokens()
    await asked.api.check()
    assert (asked.fake.calls["token"], asked.waited) == (2, [])


async def test_a_token_is_renewed_before_it_ends(asked: Asked) -> None:
    asked.fake.expires_in = 1
    await asked.api.check()
    asked.api._token_until -= 1
    await asked.api.check()
    assert asked.fake.calls["token"] == 2


async def test_a_client_without_the_right_is_told_so_after_one_renewal(asked: Asked) -> None:
    await asked.api.check()
    asked.fake.weather = [
        JSONResponse({}, 401),
        JSONResponse({"access_token": "t" * 20, "expires_in": 100}),
        JSONResponse({}, 401),
    ]
    with pytest.raises(DeliveryFailed) as caught:
        await asked.api.check()
    assert (caught.value.code, caught.value.permanent) == ("token_refused", True)


async def test_rate_limits_failures_and_dropped_connections_are_waited_out(asked: Asked) -> None:
    await asked.api.check()
    asked.fake.weather = [JSONResponse({}, 429, {"retry-after": "7"}), JSONResponse({}, 503), None]
    assert "knows 0" in await asked.api.check()
    assert asked.waited[0] == 7
    assert len(asked.waited) == 3
    assert all(0 < seconds <= 30 for seconds in asked.waited)


async def test_tries_are_bounded(asked: Asked) -> None:
    await asked.api.check()
    asked.fake.weather = [JSONResponse({}, 500) for _ in range(50)]
    with pytest.raises(DeliveryFailed, match="answered 500"):
        await asked.api.check()
    assert asked.fake.calls["accounts"] == 1 + ATTEMPTS_MAX


async def test_a_long_retry_after_is_left_to_the_caller(asked: Asked) -> None:
    await asked.api.check()
    asked.fake.weather = [JSONResponse({}, 429, {"retry-after": "1800"})]
    with pytest.raises(DeliveryFailed) as caught:
        await asked.api.check()
    assert (caught.value.retry_after_seconds, asked.waited) == (1800, [])


async def test_a_refusal_is_not_repeated(asked: Asked) -> None:
    asked.fake.set_account("ca_1", "ACTIVE")
    with pytest.raises(DeliveryFailed) as caught:
        await asked.api.accounts_page("never-given")
    assert (caught.value.status, caught.value.permanent, asked.fake.calls["accounts"]) == (400, True, 1)


async def test_no_secret_is_in_any_error(asked: Asked) -> None:
    wrong = Asked(asked.fake, asked.url, asked.http, secret="wrong-secret-0123456789")
    with pytest.raises(DeliveryFailed) as caught:
        await wrong.api.check()
    said = "".join(traceback.format_exception(caught.value))
    assert caught.value.code == "credentials_refused"
    assert "wrong-secret-0123456789" not in said
    assert "SCALEKIT_CLIENT_SECRET" in str(caught.value)
    await asked.api.check()
    (token,) = asked.fake.tokens
    asked.fake.weather = [JSONResponse({"echo": token}, 400)]
    with pytest.raises(DeliveryFailed) as caught:
        await asked.api.check()
    assert token not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"connected_accounts": 1}', b"\xff"])
async def test_an_answer_that_cannot_be_read_is_an_error_of_its_own(asked: Asked, answer: bytes) -> None:
    await asked.api.check()
    asked.fake.weather = [JSONResponse({})]
    asked.fake.weather[0].body = answer  # type: ignore[union-attr]
    asked.fake.weather[0].init_headers({})  # type: ignore[union-attr]
    with pytest.raises(DeliveryFailed) as caught:
        await asked.api.accounts_page(None)
    assert caught.value.code == "answer_unreadable"


async def test_a_link_is_fresh_each_time_and_shows_itself_nowhere(asked: Asked) -> None:
    asked.fake.set_account("ca_1", "EXPIRED")
    first, second = [await asked.api.reauthorization_link("ca_1") for _ in range(2)]
    assert [first.url, second.url] == asked.fake.links
    assert first.url != second.url
    assert first.expires_at == datetime(2026, 12, 1, 10, tzinfo=UTC)
    assert first.url not in repr(first)
    with pytest.raises(DeliveryFailed) as caught:
        await asked.api.reauthorization_link("ca_2")
    assert (caught.value.status, caught.value.permanent) == (404, True)


async def test_a_link_is_asked_for_once_and_with_a_new_token_where_the_old_one_ended(asked: Asked) -> None:
    asked.fake.set_account("ca_1", "EXPIRED")
    await asked.api.check()
    asked.fake.expire_tokens()
    await asked.api.reauthorization_link("ca_1")
    asked.fake.weather = [JSONResponse({"echo": asked.fake.links[-1]}, 503)]
    before = asked.fake.calls["magic_link"]
    with pytest.raises(DeliveryFailed) as caught:
        await asked.api.reauthorization_link("ca_1")
    assert (asked.fake.calls["magic_link"], asked.waited) == (before + 1, [])
    assert asked.fake.links[-1] not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "link",
    [
        *(
            None,
            5,
            "",
            "x",
            "javascript:alert(1)",
            "https:///x",
            "https://[::1",
            "https://a/ b",
            "https://a/<b>",
            "ftp://a/b",
        ),
        *('https://a/"b', "https://a\\b", "https://a/\u202e", "https://a/" + "b" * 3_000),
    ],
)
async def test_what_is_no_link_is_given_to_nobody(asked: Asked, link: object) -> None:
    await asked.api.check()
    asked.fake.weather = [JSONResponse({"link": link, "expiry": None})]
    with pytest.raises(DeliveryFailed) as caught:
        await asked.api.reauthorization_link("ca_1")
    assert caught.value.code == "answer_unreadable"


async def test_a_link_without_an_expiry_is_a_link(asked: Asked) -> None:
    await asked.api.check()
    asked.fake.weather = [JSONResponse({"link": "https://acme.scalekit.dev/magicLink/1"})]
    assert (await asked.api.reauthorization_link("ca_1")).expires_at is None
