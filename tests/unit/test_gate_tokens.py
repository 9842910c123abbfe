"""Verified tokens: known for a minute, forgotten when revoked, and never the token itself."""

from __future__ import annotations

from service import gate_tokens
from service.gate_tokens import KEPT_SECONDS, VerifiedTokens
from service.store.tokens import Token, digest

TOKEN = Token(id="tok_1", name="agent", scopes=frozenset({"read"}))


def test_a_token_is_known_for_a_minute_after_the_database_last_vouched_for_it() -> None:
    verified = VerifiedTokens()
    verified.told(digest("aw_secret"), TOKEN, now=100.0)
    assert verified.recall(digest("aw_secret"), now=100.0 + KEPT_SECONDS) == TOKEN
    assert verified.recall(digest("aw_secret"), now=100.1 + KEPT_SECONDS) is None
    assert verified.recall(digest("aw_secret"), now=100.0) is None, "forgotten for good"
    assert verified.recall(digest("aw_other"), now=100.0) is None
    assert "aw_secret" not in repr(vars(verified))


def test_one_that_the_database_no_longer_knows_is_forgotten_at_once() -> None:
    verified = VerifiedTokens()
    verified.told(digest("aw_secret"), TOKEN, now=100.0)
    verified.told(digest("aw_secret"), None, now=101.0)
    assert verified.recall(digest("aw_secret"), now=101.0) is None


def test_no_more_than_a_bound_are_kept_and_the_oldest_goes_first() -> None:
    verified = VerifiedTokens()
    for number in range(gate_tokens.TOKENS_MAX + 1):
        verified.told(digest(str(number)), TOKEN, now=100.0)
    assert verified.recall(digest("0"), now=100.0) is None
    assert verified.recall(digest("1"), now=100.0) == TOKEN
