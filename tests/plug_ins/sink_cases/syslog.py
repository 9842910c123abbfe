"""Syslog over TLS, against a receiver that reads every frame and message strictly; a real rsyslog is in
tests/plug_ins/test_syslog_rsyslog.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.sinks.syslog import BATCH_ITEMS_MAX, MESSAGE_BYTES_MAX
from tests.certificates import Authority, Pair
from tests.fakes.syslog import FakeSyslog, Mood
from tests.plug_ins.sink_cases.base import Cases, Trouble

NAME = "syslog.example"


@dataclass(frozen=True)
class Papers:
    authority: Authority
    receiver: Pair
    elsewhere: Pair  # of the same authority, for another name
    stranger: Pair  # of an authority that nobody configured
    ours: Pair
    folder: tempfile.TemporaryDirectory[str]  # goes with the process


@lru_cache(maxsize=1)
def papers() -> Papers:
    folder = tempfile.TemporaryDirectory(prefix="authwatch-papers-", ignore_cleanup_errors=True)
    path = Path(folder.name)
    authority = Authority(path)
    return Papers(
        authority,
        authority.issue(NAME, "127.0.0.1"),
        authority.issue("elsewhere.example"),
        Authority(path, "strangers").issue("stranger.example", "127.0.0.1"),
        authority.issue("authwatch.example"),
        folder,
    )


def fake() -> FakeSyslog:
    return FakeSyslog(papers().authority, papers().receiver)


def section(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "kind": "syslog",
        "host": parts.hostname,
        "port": parts.port or 6514,
        "ca_file": str(papers().authority.file),
        "hostname": "authwatch-1.example",
        "timeout_seconds": 5.0,
    }


def taken(fake: FakeSyslog) -> list[str]:
    fake.settled()
    for message in fake.messages:
        assert message.data["eventId"] == message.item["metadata"]["uid"]
    return [message.data["eventId"] for message in fake.messages]


def said(fake: FakeSyslog) -> str:
    fake.settled()
    return "".join(fake.wire)


def requests(fake: FakeSyslog) -> list[tuple[int, int]]:
    """Every message is bounded by itself."""
    fake.settled()
    return [(1, message.octets) for message in fake.messages]


def turn(mood: Mood) -> Callable[[FakeSyslog], None]:
    return lambda fake: fake.turn(mood)


CASES = Cases(
    section=section,
    secrets=(),
    fake=fake,
    serve=FakeSyslog.serving,
    taken=taken,
    said=said,
    requests=requests,
    troubles={
        "a certificate for another name": Trouble(
            begin=lambda fake: fake.use(papers().elsewhere),
            verdict="refused",
            code="certificate_invalid",
            says="server_name",
        ),
        "a certificate of nobody we believe": Trouble(
            begin=lambda fake: fake.use(papers().stranger),
            verdict="refused",
            code="certificate_invalid",
            says="ca_file",
        ),
        "it wants a certificate of ours": Trouble(
            begin=lambda fake: fake.want_certificate(),
            verdict="retry",  # asyncio's server hangs up without a word of TLS; one that says why: test_syslog.py
            code="disconnected",
            says="client_certificate_file",
        ),
        "no TLS on that port": Trouble(
            begin=turn("plain"), verdict="retry", code="tls_failed", says="does it speak TLS on this port"
        ),
        "no word in the handshake": Trouble(
            begin=turn("silent"), verdict="retry", code="connect_failed", says="did not answer the TLS handshake"
        ),
        "it hangs up at once": Trouble(
            begin=turn("hangs up"), verdict="retry", code="disconnected", says="before anything was sent"
        ),
        "it talks": Trouble(begin=turn("talks"), verdict="retry", code="answer_unexpected", says="host and port"),
    },
    item_bytes_max=MESSAGE_BYTES_MAX,
    request_bytes_max=MESSAGE_BYTES_MAX,
    request_items_max=BATCH_ITEMS_MAX,
    wrong=(
        {"host": "https://siem.example"},
        {"port": 0},
        {"facility": 24},
        {"hostname": "two words"},
        {"message_bytes_max": 480},
    ),
    misconfigured=(
        ({"server_name": "elsewhere.example"}, "server_name (now elsewhere.example)"),
        ({"ca_file": "/nowhere/ca.pem"}, "ca_file cannot be used"),
        ({"client_certificate_file": "/nowhere/ours.pem"}, "client_certificate_file"),
    ),
)
