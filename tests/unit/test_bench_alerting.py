"""What the alerting figures stand on: genuine events, a stand-in that knows whose message an edit is, rules that match."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.alerting import RULE
from bench.backlog import KINDS, RULES, Way, figures, thousand_rules
from bench.bare import message
from bench.slack import Heard
from bench.told import body_of, signed
from service.receive import open_receipt
from service.rules import RuleBook, load_text
from service.rules.story import Step
from service.settings import SecretSettings, SourceSettings
from service.signatures import make_secret, parse_secret
from service.sources import open_sources
from tests.unit.told import make_events


@pytest.mark.parametrize(
    ("status", "what", "kind"),
    [
        ("DISCONNECTED", "status_updated", "account.disconnected"),
        ("ACTIVE", "status_updated", "account.authorized"),
        ("ACTIVE", "updated", "account.updated"),
    ],
)
def test_what_is_told_is_genuine(status: str, what: str, kind: str) -> None:
    secret = make_secret()
    source = open_sources({"scalekit": SourceSettings(secrets=(SecretSettings.model_validate({"value": secret}),))})
    raw = signed(parse_secret(secret, name="bench"), body_of("ca_1", status, time.time(), what))
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    headers = [(name, value) for name, _, value in lines]
    event = open_receipt(source["scalekit"], headers, body, datetime.now(UTC)).event
    assert (event.kind, event.account_id, event.connection_id) == (kind, "ca_1", "conn_ca_1")


async def test_an_edit_is_known_by_the_message_it_edits() -> None:
    heard = Heard()
    first = heard.take("chat.postMessage", message("alert-1:slack"), 1.0)
    heard.take("chat.postMessage", message("alert-2:slack"), 2.0)
    heard.take("chat.update", {"ts": first["ts"], "text": "Resolved: it works"}, 3.0)
    assert await heard.after(1) == [
        (2.0, "chat.postMessage", "alert-2:slack", "alert-2:slack"),
        (3.0, "chat.update", "alert-1:slack", "Resolved: it works"),
    ]


def test_the_rule_with_a_deadline_can_be_read() -> None:
    loaded = load_text(RULE.encode(), "bench.yml")
    assert (loaded.problems, [rule.told for rule in loaded.rules]) == ((), [True])


def test_of_the_thousand_rules_each_event_meets_ten(tmp_path: Path) -> None:
    book = RuleBook(thousand_rules(tmp_path / "rules"))
    assert book.reload() == ()
    busy = [rule for rule in book.rules if "-busy-" in rule.id]
    assert len(busy) == RULES
    event = make_events([("fail", 0.0)])[0]
    for kind in KINDS:
        step = Step(replace(event, kind=kind, provider="PROVIDER_42"), None, None)
        assert len([rule for rule in busy if rule.samples(step)]) == 10


def test_a_backlog_that_was_not_read_to_its_end_is_not_met() -> None:
    ways = [Way(name, 1, Path(), read=9, per_second=[6000.0], cpu_us=[100.0], backends_us=[10.0]) for name in "abcd"]
    assert [figure.met for figure in figures(*ways, wanted=9)] == [True, True, True]
    late = figures(*ways, wanted=10)[0]
    assert not late.met
    assert any("only 9 of them" in note for note in late.notes)
