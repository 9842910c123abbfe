"""Nothing that authorizes survives redaction, and what people need to understand a failure does."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.redact import (
    DEPTH_MAX,
    ITEMS_MAX,
    MASK,
    TEXT_CHARS_MAX,
    TOTAL_CHARS_MAX,
    is_secret_name,
    redact,
    redact_text,
)

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl-_"


@pytest.mark.parametrize(
    "name",
    [
        "access_token",
        "accessToken",
        "ACCESS-TOKEN",
        "refresh_token",
        "id_token",
        "token",
        "secret",
        "client_secret",
        "clientSecret",
        "password",
        "api_key",
        "apiKey",
        "X-Api-Key",
        "authorization",
        "Proxy-Authorization",
        "cookie",
        "Set-Cookie",
        "code",
        "code_verifier",
        "codeVerifier",
        "assertion",
        "client_assertion",
        "private_key",
        "privateKey",
        "link",
        "magic_link",
        "magicLink",
        "MagicLink",
        "auth_link",
        "credentials",
        "credential",
        "new_refresh_token",
        "webhook_secret",
        "secret_access_key",
        "authorization_url",
        "session_token",
        "tokens",
        "otp",
        "pw",
        "db_pw",
        "userPwd",
        "pass",
        "passcode",
    ],
)
def test_a_field_that_can_authorize_is_masked_in_every_spelling(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: "s3cr3t-value", "other": [{name: {"deep": "s3cr3t-value"}}]}) == {
        name: MASK,
        "other": [{name: MASK}],
    }


@pytest.mark.parametrize(
    "name",
    [
        "token_expires_at",
        "token_type",
        "error_code",
        "status_code",
        "country_code",
        "expires_in",
        "state",
        "connection_id",
        "codec",
        "linked",
        "blink",
        "authorization_type",
        "secretary",
        "passwordless_enabled",
        "event_code",
    ],
)
def test_a_field_that_only_describes_is_kept(name: str) -> None:
    assert redact({name: "plain words"}) == {name: "plain words"}


@pytest.mark.parametrize(
    "secret",
    [
        JWT,
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "xoxb-123-456-abcDEF",
        "xoxp-1-2",
        "xoxa-2-abc",
        "xapp-1-A1-abc",
        "ya29.a0AfH6SMBx-yz",
        "gho_16C7e42F292c6912E7710c838347Ae178B4a",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11ABCDEFG0abc",
        "sk_live_51H8abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA and the rest was cut off",
    ],
)
def test_a_token_is_masked_wherever_it_stands(secret: str) -> None:
    for text in (secret, f"the provider said {secret}", f"({secret})", f'{{"why": "{secret}"}}', f"x={secret}&y=1"):
        assert secret not in redact_text(text)
        assert secret[-12:] not in redact_text(text)
    masked = redact({"note": f"saw {secret} here", secret[:200]: [secret]})
    assert secret[-12:] not in json.dumps(masked)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("authorization: splunk 12345678-abcd-ef", "authorization: splunk ***"),
        ("Basic dXNlcjpwYXNz was refused", "Basic *** was refused"),
        ("https://user:p4ss@host/path", "https://***@host/path"),
        ("postgresql://app:hunter2@db:5432/x", "postgresql://***@db:5432/x"),
        ("https://h/cb?code=4%2F0Ab&state=zz&page=2", "https://h/cb?code=***&state=***&page=2"),
        ("https://h/x?sig=abc&api-version=1#access_token=q", "https://h/x?sig=***&api-version=1#access_token=***"),
        ("https://h/?next=https%3A%2F%2Fi%2F%3Ftoken%3Dabc", "https://h/?next=***"),
        ('got {"access_token": "a b", "scope": "x"}', 'got {"access_token": "***", "scope": "x"}'),
        ('body {\\"refresh_token\\":\\"abc\\"}', 'body {\\"refresh_token\\":\\"***\\"}'),
        ("grant_type=refresh_token&refresh_token=abc", "grant_type=refresh_token&refresh_token=***"),
        ("password: hunter2", "password: ***"),
        ("client_secret: abcd", "client_secret: ***"),
        ("password: abcd", "password: ***"),
        ("apiKey: abcd, region: eu", "apiKey: ***, region: eu"),
        ("run --token abcd --verbose", "run --token *** --verbose"),
        ("run --client-secret=abcd x", "run --client-secret=*** x"),
        ("java -Dpassword=abcd -jar x", "java -Dpassword=*** -jar x"),
        ("run --token --password abcd", "run --token --password ***"),
        ("run --api-key 'ab cd' x", "run --api-key *** x"),
    ],
)
def test_text_loses_its_credentials_and_keeps_its_sense(text: str, expected: str) -> None:
    assert redact_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "invalid token: expired",
        "Bearer token missing",
        "Basic authentication failed",
        "error_code=invalid_grant token_type=bearer",
        "code: invalid_grant",
        "client_secret: missing",
        "access_token: is not set",
        "--token is missing",
        "--config rules.yml --verbose",
        "https://h/path?page=2&limit=50%25",
        "john@acmecorp.com",
        "connected_account.token_refresh_failed",
        "AADSTS70011: The provided value for 'scope' isn't valid",
    ],
)
def test_a_sentence_about_tokens_is_not_a_token(text: str) -> None:
    assert redact_text(text) == text


def test_an_error_keeps_its_code_and_an_oauth_code_does_not() -> None:
    assert redact({"error": {"code": "invalid_grant"}, "code": "4/0AbX"}) == {
        "error": {"code": "invalid_grant"},
        "code": MASK,
    }


def test_a_secret_named_by_its_neighbour_is_masked() -> None:
    headers = [{"name": "X-Api-Key", "value": "plain"}, {"name": "Accept", "value": "json"}]
    assert redact(headers) == [{"name": "X-Api-Key", "value": MASK}, {"name": "Accept", "value": "json"}]


@pytest.mark.parametrize("flag", ["--token", "--client-secret", "-password", "--api_key"])
def test_what_follows_a_flag_in_a_commands_words_is_masked(flag: str) -> None:
    for secret in ("x", "-x", "a b", 7):
        assert redact(["run", flag, secret, "on", "--verbose", "yes"]) == ["run", flag, MASK, "on", "--verbose", "yes"]
    assert redact([f"{flag}=x"]) == [f"{flag}={MASK}"]
    assert redact([flag, "--name", "x", flag]) == [flag, "--name", "x", flag]
    assert redact(redact([flag, "x"])) == [flag, MASK]


def test_state_val_of_a_connected_account_is_masked_and_a_state_word_is_kept() -> None:
    assert redact({"state": {"val": {"anything": "x"}}, "alert": {"state": "firing"}}) == {
        "state": {"val": MASK},
        "alert": {"state": "firing"},
    }


def test_absence_and_counts_stay_visible() -> None:
    given = {"token": None, "secret": "", "has_password": True, "total_tokens": 1200, "pin": 1234}
    assert redact(given) == {**given, "pin": MASK}


def test_the_original_is_left_alone() -> None:
    given = {"a": [{"token": "x"}], "t": ("y", {"b": 1})}
    before = json.dumps(given)
    copy = redact(given)
    copy["a"][0]["token"] = "changed"
    copy["t"].append(1)
    assert json.dumps(given) == before


def test_what_is_no_json_is_masked_because_its_text_could_be_anything() -> None:
    assert redact({"raw": b"token", "what": object()}) == {"raw": MASK, "what": MASK}


def test_depth_is_bounded() -> None:
    value: Any = "bottom"
    for _ in range(10_000):
        value = {"a": value}
    copied, depth = redact(value), 0
    while isinstance(copied, dict):
        copied, depth = copied["a"], depth + 1
    assert copied == MASK
    assert depth == DEPTH_MAX + 1


def test_size_is_bounded() -> None:
    assert len(redact(list(range(ITEMS_MAX * 3)))) <= ITEMS_MAX + 1
    assert len(redact_text("a " * TEXT_CHARS_MAX)) < TEXT_CHARS_MAX + 100
    total = sum(len(text) for text in redact(["x" * 60_000] * 200))
    assert total <= TOTAL_CHARS_MAX


@pytest.mark.parametrize(
    "evil",
    [
        "a=",
        "a:'",
        '"',
        "://",
        "eyJa.",
        "?a=%3F",
        "Bearer ",
        "-----BEGIN PRIVATE KEY-----",
        "\\",
        '"a":"',
        "a%",
        "--a ",
        '--a "',
        "-a=",
        "--token '",
    ],
)
def test_no_text_makes_it_slow(evil: str) -> None:
    start = time.perf_counter()
    redact_text(evil * (TEXT_CHARS_MAX // len(evil)))
    assert time.perf_counter() - start < 1.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.sampled_from(["access_token", "clientSecret", "password", "X-Api-Key"]))
def test_whatever_surrounds_it_a_secret_field_never_survives(around: Any, name: str) -> None:
    masked = redact({"around": around, "list": [around, {name: "THE-SECRET-7"}], name: ["THE-SECRET-7"]})
    assert "THE-SECRET-7" not in json.dumps(masked)
    assert redact(masked) == masked
