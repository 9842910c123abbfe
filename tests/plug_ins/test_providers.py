"""Every registered provider against its recorded events: genuine ones are read, anything else is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.errors import BadRequest, PayloadUnreadable, SignatureInvalid
from service.event import TEXT_BYTES_MAX
from service.providers import PROVIDERS
from service.providers.scalekit import EXAMPLES, meaning
from service.signatures import make_secret
from tests.make_requests import event_body, raw_headers, signed

RECORDED = Path(__file__).resolve().parents[1] / "recorded"
CASES = [(name, path) for name in PROVIDERS for path in sorted((RECORDED / name).glob("*.json"))]
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
AT = int(NOW.timestamp())


def test_every_provider_has_recorded_cases() -> None:
    assert {name for name, _ in CASES} == set(PROVIDERS)
    assert len([name for name, _ in CASES if name == "scalekit"]) == 9


def test_recorded_events_have_ids_of_their_own() -> None:
    ids = [json.loads(path.read_text())["body"]["id"] for _, path in CASES]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("name", "path"), CASES, ids=lambda value: getattr(value, "stem", value))
class TestRecorded:
    def body(self, path: Path) -> bytes:
        return json.dumps(json.loads(path.read_text())["body"], indent=1).encode()

    def test_reads_what_it_says(self, name: str, path: Path) -> None:
        expected = json.loads(path.read_text())["expected"]
        event = PROVIDERS[name].normalise(self.body(path), "msg_1")
        found = {key: getattr(event, key) for key in expected}
        assert found | {"occurred_at": found["occurred_at"].isoformat()} == expected

    def test_a_genuine_request_is_verified(self, name: str, path: Path) -> None:
        provider, text, body = PROVIDERS[name], make_secret(), self.body(path)
        secret = provider.parse_secret(text, name="newest")
        verified = provider.verify(raw_headers(signed(body, text, at=AT, message_id="msg_1")), body, [secret], NOW)
        assert (verified.secret_name, verified.message_id, verified.attempted_at) == ("newest", "msg_1", NOW)

    @pytest.mark.parametrize("what", ["tampered", "stale", "future", "wrong_secret", "no_headers"])
    def test_anything_else_is_refused(self, name: str, path: Path, what: str) -> None:
        provider, text, body = PROVIDERS[name], make_secret(), self.body(path)
        shift = {"stale": -301, "future": 301}.get(what, 0)
        headers = raw_headers(signed(body, text, at=AT + shift)) if what != "no_headers" else []
        secret = provider.parse_secret(make_secret() if what == "wrong_secret" else text, name="one")
        with pytest.raises(SignatureInvalid):
            provider.verify(headers, body + b" " if what == "tampered" else body, [secret], NOW)

    def test_unknown_fields_and_absent_optional_ones_are_normal(self, name: str, path: Path) -> None:
        body = json.loads(self.body(path))
        body |= {"brand_new": {"nested": [1, 2]}, "organization_id": "org_1"}
        body.pop("display_name", None)
        event = PROVIDERS[name].normalise(json.dumps(body).encode(), "msg_1")
        assert event.organization_id == "org_1"


@pytest.mark.parametrize(
    ("type_", "data", "kind", "account_status"),
    [
        ("connected_account.status_updated", {"status": "ACTIVE"}, "account.authorized", "ACTIVE"),
        ("connected_account.status_updated", {"status": "EXPIRED"}, "account.reauth_required", "EXPIRED"),
        ("connected_account.status_updated", {"status": "PENDING_AUTH"}, "account.reauth_started", "PENDING_AUTH"),
        (
            "connected_account.status_updated",
            {"status": "PENDING_VERIFICATION"},
            "account.reauth_started",
            "PENDING_VERIFICATION",
        ),
        ("connected_account.status_updated", {"status": "DISCONNECTED"}, "account.disconnected", "DISCONNECTED"),
        ("connected_account.status_updated", {"status": "SLEEPING"}, "account.updated", "SLEEPING"),
        ("connected_account.deleted", {"status": "ACTIVE"}, "account.deleted", "DELETED"),
        ("connected_account.token_refresh_failed", {"status": "ACTIVE"}, "token.refresh_failed", None),
        ("connected_account.magic_link_generated", {"status": "ACTIVE"}, "account.reauth_started", None),
        ("connected_account.disconnected", {"status": "ACTIVE"}, "account.disconnected", "DISCONNECTED"),
        ("connected_account_disconnected", {"status": None}, "account.disconnected", "DISCONNECTED"),
        ("connected_account.reauth_required", {"status": None}, "account.reauth_required", "EXPIRED"),
        ("connected_account_reauth_required", {"status": "EXPIRED"}, "account.reauth_required", "EXPIRED"),
        ("connected_account.authorization_failed", {}, "auth.failed", "ACTIVE"),
        ("connected_account_scope_changed", {}, "auth.scope_changed", "ACTIVE"),
        ("directory.user_created", {}, "other", "ACTIVE"),
        ("connected_account.", {}, "other", "ACTIVE"),
    ],
)
def test_scalekit_kinds_and_account_status(
    type_: str, data: dict[str, Any], kind: str, account_status: str | None
) -> None:
    event = PROVIDERS["scalekit"].normalise(event_body(type_, data=data), "msg_1")
    assert (event.kind, event.account_status, event.type) == (kind, account_status, type_)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2025-12-01T10:23:52.702980847Z", datetime(2025, 12, 1, 10, 23, 52, 702980, UTC)),
        ("2025-12-01T12:23:52+02:00", datetime(2025, 12, 1, 10, 23, 52, tzinfo=UTC)),
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("2025-12-01T10:23:52", None),
        ("yesterday", None),
        (1764584632, None),
        ("9999-12-31T23:59:59-23:00", None),
        (None, None),
    ],
)
def test_times(written: object, expected: datetime | None) -> None:
    assert PROVIDERS["scalekit"].normalise(event_body(occurred_at=written), "m").occurred_at == expected


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xff\xfe", "not_utf8"),
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"type":"x","n":' + b"9" * 5000 + b"}", "not_json"),
        (b"[" * 10_000 + b"]" * 10_000, "too_deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too_deep"),
        (b"[]", "not_an_object"),
        (b"null", "not_an_object"),
        (b"{}", "type_missing"),
        (b'{"type": 5}', "type_not_text"),
        (b'{"type": ""}', "type_not_text"),
        (b'{"type": "\\ud800"}', "text_unstorable"),
        (b'{"type": "a\\u0000b"}', "text_unstorable"),
        (b'{"type": "' + b"x" * 600 + b'"}', "text_too_long"),
        ('{"type": "' + "\u00fc" * 257 + '"}', "text_too_long"),
        ('{"type": "x", "id": "' + "\U0001f511" * 129 + '"}', "text_too_long"),
    ],
)
def test_what_cannot_be_read_says_why(body: bytes | str, code: str) -> None:
    with pytest.raises(PayloadUnreadable) as caught:
        PROVIDERS["scalekit"].normalise(body.encode() if isinstance(body, str) else body, "msg_1")
    assert caught.value.code == code


@pytest.mark.parametrize("name", PROVIDERS)
def test_no_field_of_an_event_is_longer_than_the_log_takes(name: str) -> None:
    """512 bytes of UTF-8, whatever they say: the adapter quarantines what is longer, and keeps the rest whole."""
    for text in ("x" * TEXT_BYTES_MAX, "\u00fc" * (TEXT_BYTES_MAX // 2), "\U0001f511" * (TEXT_BYTES_MAX // 4)):
        long = {"id": text, "environment_id": text, "organization_id": text}
        data = dict.fromkeys(("id", "connection_id", "identifier", "provider", "status"), text)
        event = PROVIDERS[name].normalise(event_body(text, data=data, **long), "msg_1")
        assert {event.event_id, event.type, event.environment_id, event.account_id, event.status} == {text}
        for field in long:
            with pytest.raises(PayloadUnreadable):
                PROVIDERS[name].normalise(event_body(**(long | {field: text + "x"})), "msg_1")


def test_a_type_of_a_mebibyte_is_no_key_of_a_cache() -> None:
    before = meaning.cache_info().currsize
    with pytest.raises(PayloadUnreadable):
        PROVIDERS["scalekit"].normalise(event_body("connected_account." + "x" * 1_000_000), "msg_1")
    assert meaning.cache_info().currsize == before


def test_an_event_without_an_id_goes_by_its_message_id() -> None:
    assert PROVIDERS["scalekit"].normalise(event_body(id=None), "msg_7").event_id == "msg_7"


def test_where_only_one_of_the_two_ids_is_given_both_columns_hold_it() -> None:
    event = PROVIDERS["scalekit"].normalise(event_body(data={"connection_id": None}), "m")
    assert (event.account_id, event.connection_id) == ("ca_1", "ca_1")
    event = PROVIDERS["scalekit"].normalise(event_body(data={"id": None}), "m")
    assert (event.account_id, event.connection_id) == ("conn_1", "conn_1")


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_example_is_read_back_as_its_own_kind(kind: str) -> None:
    now = NOW + timedelta(microseconds=5)
    body = PROVIDERS["scalekit"].example(kind, account_id="ca_9", connection_id=None, event_id="evt_1", now=now)
    event = PROVIDERS["scalekit"].normalise(body, "m")
    assert (event.kind, event.account_id, event.event_id, event.occurred_at) == (kind, "ca_9", "evt_1", now)


def test_an_unknown_example_says_what_there_is() -> None:
    with pytest.raises(BadRequest, match=r"known: account\.created"):
        PROVIDERS["scalekit"].example("nonsense", account_id=None, connection_id=None, event_id="e", now=NOW)
