"""Whatever a provider sends, the playbook answers, quickly, with nothing of it in the answer."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.playbook import ERROR_CLASSES, classify, what_to_do, with_playbook
from service.playbook.said import BODY_BYTES_MAX
from service.playbook.table import KNOWN_CODES, ROWS

SECRET = "xoxp-9Zq3-verySecret"
FIELDS = (
    *(
        "error",
        "error_description",
        "code",
        "errorCode",
        "status",
        "reason",
        "message",
        "errors",
        "details",
        "type",
        "ok",
    ),
    *(
        "success",
        "retry_after",
        "compositeResponse",
        "responses",
        "body",
        "error_codes",
        "httpStatusCode",
        "statusCode",
    ),
)
names = st.sampled_from(FIELDS) | st.text(max_size=8)
leaves: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=20)
    | st.sampled_from(sorted(KNOWN_CODES))
    | st.just(SECRET)
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.integers(), inner, max_size=5),
    max_leaves=20,
)
bodies: st.SearchStrategy[Any] = (
    values
    | st.binary(max_size=200)
    | st.text(max_size=200)
    | values.map(lambda value: json.dumps(value, default=str).encode())
    | st.dictionaries(names, st.text(max_size=20), max_size=4).map(urlencode)
    | st.builds(lambda text: f"<html><body>{text}</body></html>", st.text(max_size=50))
    | st.binary(max_size=50).map(lambda raw: memoryview(raw))
)
header_names = st.sampled_from(
    ["Retry-After", "RETRY-AFTER-MS", "WWW-Authenticate", "Date", "x-ratelimit-reset", "X-RateLimit-Remaining"]
)
headers = (
    st.dictionaries(header_names | st.text(max_size=10), st.text(max_size=60) | st.integers() | values, max_size=5)
    | st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=30)), max_size=3)
    | values
)
providers = st.sampled_from(
    ["GOOGLE", "gmail", "Salesforce", "slack", "github", "box", "jira", "auth0", "azure", "stripe"]
)
statuses = st.none() | st.integers(-5, 700) | st.sampled_from(["401", "", "x"]) | st.floats()
# What an answer may hold: words of ours, and codes in the table's spelling.
OURS = {row.id for row in ROWS} | {code for row in ROWS for code in row.codes}


@settings(max_examples=600, deadline=None)
@given(
    provider=providers | values,
    status=statuses,
    sent=headers,
    body=bodies,
    operation=st.sampled_from(["read", "write", "GET", "Delete", None]) | values,
    attempt=st.integers() | values,
    verification=st.sampled_from(["verified", "pending", "missing", "mismatch", "none", None]) | values,
    key=st.booleans() | st.none() | st.just(SECRET) | values,
)
def test_it_never_raises_and_gives_nothing_back(
    provider: Any, status: Any, sent: Any, body: Any, operation: Any, attempt: Any, verification: Any, key: Any
) -> None:
    answer = classify(
        provider,
        status,
        sent,
        body,
        operation=operation,
        attempt=attempt,
        verification=verification,
        idempotency_key=key,
    )
    written = json.dumps(answer.to_json(), allow_nan=False)
    assert SECRET not in written
    assert answer.error_class in ERROR_CLASSES
    assert answer.row in OURS
    assert answer.code is None or answer.code in OURS
    if answer.error_class in ("refresh_failed", "insufficient_scope", "malformed_params"):
        assert (answer.retry.allowed, answer.retry.retries_max) == (False, 0)
    if operation in ("write", "Delete", None):
        assert answer.operation == "write"
    if answer.operation == "write" and answer.retry.allowed:
        assert verification == "missing", "a write is repeated only after a look at the state"
        assert key, "and only behind the provider's own mechanism"
        assert answer.safe_write is not None
        assert answer.safe_write.mechanism != "none"
    if answer.retry.circuit_open:
        assert not answer.retry.allowed


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["token.refresh_failed", "tool_call.completed", "auth.failed", "other"])
    | st.text(max_size=10),
    details=st.none() | st.dictionaries(names, values, max_size=5),
    provider=st.none() | providers,
)
def test_an_alerts_words_give_nothing_back_either(
    kind: str, details: dict[str, Any] | None, provider: str | None
) -> None:
    for said in (what_to_do(kind, details, provider), with_playbook("Look.", kind, details, provider)):
        assert said is None or SECRET not in said


def answer_of(body: Any, status: int = 400) -> str:
    return classify("any", status, {}, body).row


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": "invalid_grant"}',
        '\ufeff {"error": "invalid_grant"}',
        bytearray(b'{"error": "invalid_grant"}'),
        memoryview(b'{"error": "invalid_grant"}'),
        {"error": "invalid_grant"},
        {"ERROR": "INVALID_GRANT"},
        [{"error": "invalid_grant"}],
        {"errors": [{"code": "invalid_grant"}]},
        {"error": {"code": "invalid_grant"}},
        "error=invalid_grant&error_description=no",
        b'{"error": "invalid_grant", "padding": "' + b"x" * BODY_BYTES_MAX + b'"}',
        b'{"error": "invalid_grant", "broken": ',
        "invalid_grant",
        "invalid_grant: Bad Request",
    ],
)
def test_a_code_is_found_in_every_shape_of_body(body: Any) -> None:
    assert answer_of(body) == "invalid-grant"


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"\xff\xfe\x00",
        b"<html>error=invalid_grant</html>",
        "an invalid_grant",
        b'{"message": "the word invalid_grant stands here"}',
        {"data": {"error": "invalid_grant"}},
        {"error": ["invalid", "grant"]},
        {"error": "invalid_grant" * 10},
        b"[" * 100_000,
        b'{"error": ' * 20_000,
        b'"' + b"\\" * 70_000,
        b"1" * 5_000,
        7,
        object(),
    ],
)
def test_what_is_no_code_is_none(body: Any) -> None:
    assert answer_of(body) == "status-400"


def test_a_body_that_holds_itself() -> None:
    body: dict[str, Any] = {"error": {}}
    body["error"]["error"] = body
    assert answer_of(body) == "status-400"


def test_header_names_in_any_case_and_as_bytes() -> None:
    for headers in (
        {"www-authenticate": 'Bearer error="invalid_token"'},
        {"WWW-AUTHENTICATE": "Bearer error=invalid_token"},
        [(b"WWW-Authenticate", b'Bearer realm="x", error="invalid_token"')],
        {"Www-Authenticate": ['Bearer error="invalid_token"']},
    ):
        assert classify("any", 401, headers, b"").row == "invalid-token"


def test_a_huge_body_is_read_up_to_a_bound() -> None:
    zeros = json.dumps({"a": [0] * 3_000_000})
    huge: list[Any] = [
        {"errors": [{"reason": "nobody knows"} for _ in range(300_000)], "error": "invalid_grant"},
        {str(number): number for number in range(1_000_000)},
        zeros,
        zeros.encode(),
        "&".join(f"a{number}=b" for number in range(200_000)),
        "x=" + "<" * 5_000_000,
        '"error":"' * 500_000,
    ]
    began = time.process_time()
    found = [answer_of(body) for body in huge]
    assert time.process_time() - began < 1, "about 0.05 s where each is read up to its bound"
    assert found == ["invalid-grant"] + ["status-400"] * 6


@pytest.mark.parametrize("status", [None, 0, 99, 600, -401, True, "abc", 4.5, "4０1"])
def test_what_is_no_status_is_no_answer(status: Any) -> None:
    answer = classify("any", status)
    assert (answer.row, answer.error_class, answer.state) == ("no-answer", "other", "unknown")


@pytest.mark.parametrize("status", [*range(200, 600)])
def test_every_status_has_its_row(status: int) -> None:
    assert classify("any", status).row != "no-answer"
