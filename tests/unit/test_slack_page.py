"""docs/slack.md is what the code would send, and Slack would take it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from slack_sdk.models.blocks import Block

from service.notify.slack_blocks import BLOCKS_CHARS_MAX, fallback, reply_blocks
from service.notify.wording import word
from service.slack_page import Situation, page, situations
from tests.fakes.slack import check_content, units

PAGE = Path(__file__).resolve().parents[2] / "docs" / "slack.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m service.slack_page > docs/slack.md"


def test_the_command_prints_it() -> None:
    words = [sys.executable, "-m", "service.slack_page"]
    assert subprocess.run(words, capture_output=True, text=True, check=True, cwd=PAGE.parents[1]).stdout == page()


@pytest.mark.parametrize("situation", situations(), ids=lambda one: one.title)
def test_its_blocks_are_block_kit(situation: Situation) -> None:
    laid_out = situation.blocks()
    check_content({"text": fallback(word(situation.view(), situation.at)), "blocks": laid_out})
    assert units(json.dumps(laid_out, ensure_ascii=False)) <= BLOCKS_CHARS_MAX
    replies = reply_blocks(situation.replies())
    check_content({"text": "", "blocks": replies})
    for block in (*laid_out, *replies):
        parsed = Block.parse(block)
        assert parsed is not None
        parsed.validate_json()


def test_it_shows_the_five_situations() -> None:
    text = page()
    revoked, connector, recovered, manual, storm = text.split("\n## ")[2:]
    assert "Next step\nRe-authorize." in revoked.replace("*", "")
    assert "[Re-authorize] [Acknowledge] [Snooze] [Resume workflows] [Resolve] [Open]" in revoked
    assert "dana asked for a link to authorize it again" in revoked
    assert "not stopped there" in revoked
    assert "Fix the connector's credentials" in connector
    assert "Acknowledged by dana" in connector
    assert "Re-authorize" not in connector
    assert "3 failed token refreshes between 12:01 and 12:09 UTC from scalekit; one succeeded at 12:14 UTC" in recovered
    assert "[Open]" in recovered
    assert "[Resume workflows]" not in recovered
    assert "is well again; Payouts (wf_payouts) stays paused until somebody resumes it" in manual
    assert "[Resume workflows] [Open]" in manual
    assert "40 accounts of conn_google_ads" in storm
    assert "and 31 more" in storm
