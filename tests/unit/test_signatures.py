"""Our verifier against genuine signatures of others, and against whatever else may come."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as StandardWebhook
from svix.webhooks import Webhook as SvixWebhook

from service.errors import ConfigError, SignatureInvalid
from service.providers.scalekit_sdk import sdk_verifier
from service.signatures import Secret, make_secret, parse_secret, sign, verify
from tests.make_requests import raw_headers, signed

BODIES = [
    b"{}",
    b'{"type":"connected_account.updated","n":1}',
    '{"name":"Zoë — 名"}'.encode(),
    b'{"a": "' + b"x" * 200_000 + b'"}',
]
NOW = datetime(2026, 11, 23, 12, 0, 0, 900_000, tzinfo=UTC)
AT = int(NOW.timestamp())
TEXT = make_secret()
SECRET = parse_secret(TEXT, name="one")
BODY = b'{"type":"x"}'


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("maker", [StandardWebhook, SvixWebhook])
@pytest.mark.parametrize("prefix", ["webhook", "svix"])
def test_genuine_signatures_of_other_libraries_are_ours_too(maker: type, body: bytes, prefix: str) -> None:
    now = datetime.now(UTC)
    signature = maker(TEXT).sign("msg_1", now, body.decode())
    headers = {
        f"{prefix}-id": "msg_1",
        f"{prefix}-timestamp": str(int(now.timestamp())),
        f"{prefix}-signature": signature,
    }
    assert verify(raw_headers(headers), body, [SECRET], now).message_id == "msg_1"


@pytest.mark.parametrize("body", BODIES)
def test_ours_are_genuine_to_other_libraries_and_to_the_providers_sdk(body: bytes) -> None:
    headers = signed(body, TEXT)
    StandardWebhook(TEXT).verify(body, headers)
    SvixWebhook(TEXT).verify(body, headers)
    sdk_verifier()(headers, body, [TEXT])
    sdk_verifier()(signed(body, TEXT, prefix="svix"), body, [make_secret(), TEXT])


@pytest.mark.parametrize("change", ["body", "id", "timestamp", "secret"])
def test_what_the_sdk_refuses_we_refuse(change: str) -> None:
    headers, body, secret = signed(BODY, TEXT), BODY, TEXT
    if change == "body":
        body = BODY + b" "
    elif change == "id":
        headers["webhook-id"] = "msg_other"
    elif change == "timestamp":
        headers["webhook-timestamp"] = str(int(time.time()) + 1)
    else:
        secret = make_secret()
    with pytest.raises(SignatureInvalid):
        verify(raw_headers(headers), body, [parse_secret(secret, name="one")], datetime.now(UTC))
    with pytest.raises(SignatureInvalid, match="SDK refuses"):
        sdk_verifier()(headers, body, [secret])


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!!!", "_", ""])
def test_secrets_that_let_anyone_forge_through_the_sdk_stop_the_start_here(secret: str) -> None:
    with pytest.raises(ConfigError):
        parse_secret(secret, name="one")


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 23, b"x" * 65])
def test_a_short_or_overlong_key_is_refused_and_not_shown(key: bytes) -> None:
    text = "whsec_" + base64.b64encode(key).decode()
    with pytest.raises(ConfigError) as caught:
        parse_secret(text, name="one")
    assert text not in str(caught.value)
    assert base64.b64encode(key).decode() not in str(caught.value) or not key


def test_a_secret_never_prints() -> None:
    assert "key" not in repr(SECRET)
    assert TEXT.removeprefix("whsec_") not in repr(SECRET)


def test_any_of_several_secrets_and_signatures_will_do_and_the_match_is_named() -> None:
    old, new = parse_secret(make_secret(), name="old"), parse_secret(make_secret(), name="new")
    both = f"{sign(SECRET, 'm', AT, BODY)} v1a,AAAA {sign(old, 'm', AT, BODY)}"
    headers = raw_headers({"webhook-id": "m", "webhook-timestamp": str(AT), "webhook-signature": both})
    assert verify(headers, BODY, [new, old], NOW).secret_name == "old"


@pytest.mark.parametrize("shift", [-300, 0, 300])
def test_the_window_is_300_seconds_either_way(shift: int) -> None:
    assert verify(raw_headers(signed(BODY, TEXT, at=AT + shift)), BODY, [SECRET], NOW).secret_name == "one"


GOOD = sign(SECRET, "m", AT, BODY)
BAD = {
    "stale": ({"webhook-timestamp": str(AT - 301)}, "timestamp_too_old"),
    "future": ({"webhook-timestamp": str(AT + 301)}, "timestamp_in_future"),
    "float timestamp": ({"webhook-timestamp": f"{AT}.9"}, "timestamp_malformed"),
    "underscored timestamp": ({"webhook-timestamp": f"{str(AT)[:1]}_{str(AT)[1:]}"}, "timestamp_malformed"),
    "blank timestamp": ({"webhook-timestamp": f" {AT} "}, "timestamp_malformed"),
    "nan": ({"webhook-timestamp": "nan"}, "timestamp_malformed"),
    "huge timestamp": ({"webhook-timestamp": "9" * 400}, "timestamp_malformed"),
    "other digits": ({"webhook-timestamp": "\u00b2" * 10}, "timestamp_malformed"),
    "empty": ({"webhook-signature": ""}, "signature_missing"),
    "no version": ({"webhook-signature": GOOD.split(",")[1]}, "signature_malformed"),
    "only v1a": ({"webhook-signature": "v1a," + GOOD.split(",")[1]}, "signature_malformed"),
    "not base64": ({"webhook-signature": "v1,!!!!"}, "signature_malformed"),
    "non-ASCII": ({"webhook-signature": "v1,\u00e9\u00e9\u00e9\u00e9"}, "signature_malformed"),
    "two commas": ({"webhook-signature": GOOD + ",x"}, "signature_malformed"),
    "too many": ({"webhook-signature": " ".join([GOOD] * 17)}, "signature_malformed"),
    "too long": ({"webhook-signature": "v1," + "A" * 5000}, "signature_malformed"),
    "wrong": ({"webhook-signature": "v1," + base64.b64encode(b"0" * 32).decode()}, "signature_wrong"),
    "id with a blank": ({"webhook-id": "a b"}, "id_malformed"),
    "non-ASCII id": ({"webhook-id": "\u00e9"}, "id_malformed"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_have_their_reason(name: str) -> None:
    changes, code = BAD[name]
    headers = {"webhook-id": "m", "webhook-timestamp": str(AT), "webhook-signature": GOOD} | changes
    with pytest.raises(SignatureInvalid) as caught:
        verify(raw_headers(headers), BODY, [SECRET], NOW)
    assert caught.value.code == code


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_said(missing: str) -> None:
    headers = {"webhook-id": "m", "webhook-timestamp": str(AT), "webhook-signature": GOOD}
    del headers[missing]
    with pytest.raises(SignatureInvalid) as caught:
        verify(raw_headers(headers), BODY, [SECRET], NOW)
    assert caught.value.code == "signature_missing"


def test_doubled_headers_are_refused() -> None:
    headers = raw_headers({"webhook-id": "m", "webhook-timestamp": str(AT), "webhook-signature": GOOD})
    with pytest.raises(SignatureInvalid) as caught:
        verify([*headers, (b"Webhook-Signature", GOOD.encode())], BODY, [SECRET], NOW)
    assert caught.value.code == "signature_malformed"


def test_without_a_secret_nothing_is_genuine() -> None:
    with pytest.raises(SignatureInvalid):
        verify(raw_headers(signed(BODY, TEXT, at=AT)), BODY, [], NOW)


NAMES = st.sampled_from(
    [b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"svix-id", b"svix-signature", b"SVIX-TIMESTAMP"]
)
VALUES = st.one_of(st.binary(max_size=200), st.sampled_from([GOOD.encode(), str(AT).encode(), b"m", b"v1,"]))


@given(headers=st.lists(st.tuples(NAMES, VALUES), max_size=8), body=st.binary(max_size=50))
def test_whatever_the_bytes_only_a_refusal_comes(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        verify(headers, body, [SECRET, Secret("two", b"k" * 32)], NOW)
