"""The receivers' sign of life: what is a gap, what an outage, and whose clock is believed. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from service.store.recoveries import Beat, beaten

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


def test_beat_after_beat_is_no_gap() -> None:
    assert beaten(Beat(able_until=NOW), NOW + 6 * SECOND) == Beat(able_until=NOW + 6 * SECOND)


def test_a_restart_is_a_gap_and_no_outage() -> None:
    back = NOW + 40 * SECOND
    assert beaten(Beat(able_until=NOW), back) == Beat(able_until=back, gap_from=NOW, gap_until=back)


def test_an_outage_is_kept_through_later_restarts() -> None:
    back = NOW + HOUR
    out = beaten(Beat(able_until=NOW), back)
    assert (out.down_from, out.up_since) == (NOW, back)
    later = beaten(
        Beat(able_until=back + 5 * MINUTE, down_from=out.down_from, up_since=out.up_since), back + 6 * MINUTE
    )
    assert (later.down_from, later.up_since) == (NOW, back)
    assert (later.gap_from, later.gap_until) == (back + 5 * MINUTE, back + 6 * MINUTE)


def test_restarts_in_a_row_are_one_gap_but_not_for_ever() -> None:
    beat, at = Beat(able_until=NOW), NOW
    for _ in range(10):
        at += 20 * SECOND
        beat = beaten(beat, at)
        at += 5 * MINUTE - 20 * SECOND
        beat = Beat(able_until=at, gap_from=beat.gap_from, gap_until=beat.gap_until)
        assert beat.gap_from is not None
        assert at - beat.gap_from <= 27 * MINUTE
    assert beat.gap_from != NOW


def test_a_clock_that_ran_ahead_and_was_put_right_is_believed() -> None:
    ahead = beaten(Beat(able_until=NOW), NOW + 24 * HOUR)
    assert (ahead.down_from, ahead.up_since) == (NOW, NOW + 24 * HOUR)
    right = beaten(ahead, NOW + MINUTE)
    assert (right.able_until, right.down_from, right.up_since) == (NOW + MINUTE, NOW, NOW + MINUTE)
    # And the next real outage is one.
    back = beaten(right, NOW + HOUR)
    assert (back.down_from, back.up_since) == (NOW + MINUTE, NOW + HOUR)
