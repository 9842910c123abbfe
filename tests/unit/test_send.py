"""`authwatch send`: what it posts is genuine, and what goes wrong is said with its mend."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from service.errors import SignatureInvalid
from service.providers import PROVIDERS
from service.send import send
from service.signatures import make_secret, parse_secret

SECRET, OLDER = make_secret(), make_secret()
STOP_SECONDS_MAX = 5


class Door(HTTPServer):
    """A front door that takes what the newest secret signed, answers as the contract says, and keeps what it took."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.taken: list[bytes] = []
        self.answer: bytes | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Door

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status, said = self.judge(body)
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def judge(self, body: bytes) -> tuple[int, bytes]:
        if self.server.answer is not None:
            return 202, self.server.answer
        if self.path != "/webhooks/scalekit":
            return 404, b'{"code":"not_found"}'
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        try:
            PROVIDERS["scalekit"].verify(headers, body, [parse_secret(SECRET, name="newest")], datetime.now(UTC))
        except SignatureInvalid as exc:
            return 401, json.dumps({"code": exc.code}).encode()
        self.server.taken.append(body)
        return 202, json.dumps({"status": "accepted", "id": f"our-{len(self.server.taken)}"}).encode()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join(STOP_SECONDS_MAX)


def run(url: str, *arguments: str, secret: str = SECRET) -> tuple[int, str, str]:
    env = {"AUTHWATCH_URL": url, "SCALEKIT_WEBHOOK_SECRET": secret}
    result = CliRunner().invoke(send, arguments, env=env)
    return result.exit_code, result.stdout, result.stderr


def test_each_of_several_events_is_genuine_and_one_of_its_own(door: Door) -> None:
    code, out, _ = run(door.url, "token.refresh_failed", "--account-id", "ca_7", "--count", "3")
    assert (code, out.splitlines()) == (0, ["202 accepted our-1", "202 accepted our-2", "202 accepted our-3"])
    events = [PROVIDERS["scalekit"].normalise(body, "unused") for body in door.taken]
    assert {(event.kind, event.account_id) for event in events} == {("token.refresh_failed", "ca_7")}
    assert len({event.event_id for event in events}) == len({event.occurred_at for event in events}) == 3


def test_the_newest_of_several_secrets_signs(door: Door) -> None:
    assert run(door.url, "account.updated", secret=f"{SECRET},{OLDER}")[0] == 0
    code, out, err = run(door.url, "account.updated", secret=f"{OLDER},{SECRET}")
    assert (code, out) == (1, "401 signature_wrong\n")
    assert "SCALEKIT_WEBHOOK_SECRET" in err


def test_a_provider_type_and_a_status_can_be_named(door: Door) -> None:
    assert run(door.url, "connected_account.status_updated", "--status", "DISCONNECTED")[0] == 0
    event = PROVIDERS["scalekit"].normalise(door.taken[0], "unused")
    assert (event.kind, event.account_id) == ("account.disconnected", "ca_example")


def test_an_unknown_source_is_said_with_its_mend(door: Door) -> None:
    code, _, err = run(door.url, "account.updated", "--source", "nobody")
    assert (code, "switched off" in err) == (1, True)


def test_an_unknown_kind_lists_what_there_is() -> None:
    code, _, err = run("http://127.0.0.1:1", "nonsense")
    assert (code, "known: account.created" in err) == (2, True)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ="])
def test_a_secret_that_cannot_be_right_is_named_and_not_shown(secret: str) -> None:
    code, out, err = run("http://127.0.0.1:1", "account.updated", secret=secret)
    assert (code, out, "SCALEKIT_WEBHOOK_SECRET" in err, "c2hvcnQ" in err) == (2, "", True, False)


def test_nobody_listening_is_asked_about() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    code, _, err = run(url, "account.updated")
    assert (code, "is the service running there?" in err) == (1, True)


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]"])
def test_an_answer_that_is_not_ours_is_one_line_all_the_same(door: Door, answer: bytes) -> None:
    door.answer = answer
    assert run(door.url, "account.updated")[:2] == (0, "202\n")


def test_an_address_that_is_none_is_said() -> None:
    code, _, err = run("http://[::1", "account.updated")
    assert (code, "http://[::1" in err) == (1, True)
