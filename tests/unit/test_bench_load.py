"""What the bench measures with: its requests are genuine, it stays on this machine, and its quantiles are right."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench import results
from bench.figure import Figure, quantile, ratio_of
from bench.load import PATH, build
from service.providers import PROVIDERS
from service.receive import open_receipt
from service.settings import SecretSettings, SourceSettings
from service.signatures import make_secret, parse_secret
from service.sources import open_sources

SECRET = make_secret()


def test_the_generators_requests_are_genuine_and_unique() -> None:
    source = open_sources({"scalekit": SourceSettings(secrets=(SecretSettings.model_validate({"value": SECRET}),))})
    assert "scalekit" in PROVIDERS
    seen = set()
    for raw in build(50, parse_secret(SECRET, name="bench"), "127.0.0.1:1", PATH):
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        assert first == b"POST /webhooks/scalekit HTTP/1.1"
        headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        assert dict(headers)[b"content-length"] == str(len(body)).encode()
        receipt = open_receipt(source["scalekit"], headers, body, datetime.now(UTC))
        assert (receipt.event.kind, receipt.clock_suspect) == ("token.refresh_succeeded", False)
        seen.add(receipt.event.event_id)
    assert len(seen) == 50


def test_it_refuses_any_host_but_loopback() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bench.load", "--host", "192.0.2.1", "--port", "80"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert "invalid choice" in ended.stderr


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7.0], 0.99, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 1001)], 0.99, 990.0),
        ([float(n) for n in range(1, 201)], 0.5, 100.0),
    ],
)
def test_quantiles_are_by_nearest_rank(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


def test_the_ratio_is_that_of_the_rounds() -> None:
    assert ratio_of([10.0, 1.0, 6.0], [20.0, 2.0, 10.0]) == 0.5


def test_what_is_not_met_stands_at_the_top_and_the_notes_stay() -> None:
    one = Figure(
        name="speed", unit="1/s", ours=[1.0, 2.0, 3.0], control_name="no-op", control=[9.0, 9.0, 9.0],
        ratio=0.2, reach="at least 0.6 of it", met=False,
    )  # fmt: skip
    text = results.markdown([one], [("CPU", "one")], 60, "the profile says why")
    assert text.index("Not met") < text.index("speed: 2 (1 to 3) 1/s") < text.index("| figure")
    assert results.notes_of(text) == "the profile says why"
    assert results.notes_of("no markers here") == ""


def test_the_crash_suite_writes_its_own_section_anew_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(results, "FILE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(results, "CRASH", tmp_path / "crash.md")
    results.CRASH.write_text("first run\n")
    results.put_crash()
    assert not results.FILE.exists()
    whole = results.markdown([], [("CPU", "one")], 60.0, "by hand")
    results.FILE.write_text(whole)
    assert whole.endswith("\n\n## `make crash`\n\nfirst run\n")
    results.CRASH.write_text("second run\n")
    for _ in range(2):
        results.put_crash()
        assert results.FILE.read_text() == whole.replace("first run", "second run")
    results.CRASH.unlink()
    results.put_crash()
    assert results.FILE.read_text() == whole.partition("\n\n## `make crash`")[0] + "\n"
    results.CRASH.write_text("third run\n")
    results.put_crash()
    assert results.FILE.read_text() == whole.replace("first run", "third run")
