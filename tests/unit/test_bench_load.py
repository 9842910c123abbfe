"""The benchmark's load: what it sends is genuine, it stays on loopback, and its arithmetic holds."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

from bench.load import build, quantile
from service.providers import PROVIDERS
from service.signatures import make_secret, parse_secret, verify


def test_its_requests_are_genuine_unique_and_readable() -> None:
    secret = parse_secret(make_secret(), name="bench")
    ids = set()
    for raw in build(50, secret, "127.0.0.1:1", "/webhooks/scalekit"):
        head, body = raw.split(b"\r\n\r\n", 1)
        headers = [(line.split(b": ", 1)[0], line.split(b": ", 1)[1]) for line in head.split(b"\r\n")[1:]]
        verified = verify(headers, body, [secret], datetime.now(UTC))
        event = PROVIDERS["scalekit"].normalise(body, verified.message_id)
        assert event.kind == "token.refresh_succeeded"
        assert event.occurred_at is not None
        ids.add(event.event_id)
    assert len(ids) == 50


def test_it_speaks_to_loopback_only() -> None:
    words = ["--host", "192.0.2.1", "--port", "80", "--secret", make_secret()]
    done = subprocess.run([sys.executable, "-m", "bench.load", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice" in done.stderr


def test_quantiles() -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert quantile([7.0], 0.0) == 7.0
