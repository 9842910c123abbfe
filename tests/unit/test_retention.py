"""What may go: every clock and every lag, as values."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import ConfigError
from service.retention import DAYS_AT_ONCE_MAX, EVENTS, RECEIPTS, Day, Plan, plan, recover_since_min
from service.settings import RetentionSettings, load_settings

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEEP = RetentionSettings(receipts=timedelta(days=30), events=timedelta(days=90), sink_backlog_max=timedelta(days=7))
HEAD = 1_000_000


def a_day(ago: int, *, parent: str = EVENTS, first: int | None = None, rows: int = 10) -> Day:
    """The day that many days ago; its positions are those a clock that never jumped would have given."""
    day = NOW.date() - timedelta(days=ago)
    start = HEAD - ago * 100 if first is None else first
    return Day(
        parent=parent,
        name=f"{parent}_{day:%Y%m%d}",
        day=day,
        first_position=start if rows else None,
        last_position=start + rows - 1 if rows else None,
    )


def decide(
    days: list[Day],
    *,
    now: datetime = NOW,
    evaluator: int = HEAD + 1000,
    sinks: dict[str, int] | None = None,
    last_run_at: datetime | None = None,
    kept_from: date | None = None,
    jumped: timedelta | None = None,
    confirmed: bool = False,
) -> Plan:
    return plan(
        days,
        now=now,
        keep=KEEP,
        evaluator=evaluator,
        sinks=sinks or {},
        last_run_at=last_run_at or now - timedelta(hours=1),
        kept_from=kept_from,
        jumped=jumped,
        confirmed=confirmed,
    )


def dropped(decided: Plan) -> list[str]:
    return [drop.day.name for drop in decided.drops]


def test_a_day_goes_once_all_of_it_is_over() -> None:
    days = [a_day(ago) for ago in range(-7, 93)]
    # Yesterday's 90 days ago ended at midnight of 91 days ago plus one: at noon, 91 days ago is over and 90 is not.
    assert dropped(decide(days)) == [a_day(92).name, a_day(91).name]
    assert dropped(decide([a_day(31, parent=RECEIPTS), a_day(30, parent=RECEIPTS)])) == [
        a_day(31, parent=RECEIPTS).name
    ]


def test_nothing_the_evaluator_has_not_read_goes_however_old() -> None:
    old, receipts = a_day(2000), a_day(2000, parent=RECEIPTS)
    assert old.last_position is not None
    for confirmed in (False, True):
        decided = decide([old, receipts], evaluator=old.last_position - 1, confirmed=confirmed)
        assert dropped(decided) == []
        assert {held.by for held in decided.held} == {"the evaluator has not read it"}
    assert len(dropped(decide([old, receipts], evaluator=old.last_position, confirmed=True))) == 2


def test_a_sink_is_waited_for_so_long_and_no_longer() -> None:
    last = a_day(97).last_position
    assert last is not None
    waiting = decide([a_day(97)], sinks={"splunk": last - 1, "other": last})
    assert (dropped(waiting), waiting.held[0].by) == ([], "not yet shipped by splunk")
    lost = decide([a_day(98)], sinks={"splunk": 5, "other": HEAD})
    assert [(drop.day.name, drop.lost_by) for drop in lost.drops] == [(a_day(98).name, ("splunk",))]
    assert dropped(decide([a_day(91)], sinks={"splunk": HEAD})) == [a_day(91).name]


def test_a_day_without_rows_holds_nothing() -> None:
    assert dropped(decide([a_day(91, rows=0)], evaluator=0, sinks={"splunk": 0})) == [a_day(91).name]


@pytest.mark.parametrize("jump", [timedelta(days=365), timedelta(days=20)])
def test_a_clock_that_jumps_ahead_drops_nothing_by_itself(jump: timedelta) -> None:
    days = [a_day(ago) for ago in range(90)]
    ahead = decide(days, now=NOW + jump, last_run_at=NOW)
    assert ahead.refused is not None
    # Nor does a log of few days, of which few would go.
    assert decide([a_day(2)], now=NOW + timedelta(days=365), last_run_at=NOW).refused is not None
    assert decide(days, now=NOW + jump, last_run_at=NOW, confirmed=True).refused is None
    back = decide(days, last_run_at=NOW - timedelta(hours=1))
    assert (back.refused, dropped(back)) == (None, [])


def test_more_days_at_once_than_usual_are_refused() -> None:
    few = [a_day(91 + n) for n in range(DAYS_AT_ONCE_MAX)]
    assert decide(few).refused is None
    many = [*few, a_day(91 + DAYS_AT_ONCE_MAX)]
    assert decide(many).refused == f"{DAYS_AT_ONCE_MAX + 1} days would go at once, where one a day is usual"


def test_what_was_written_while_the_clock_stood_back_is_not_old() -> None:
    days = [*(a_day(ago) for ago in range(89)), a_day(365, first=HEAD + 500)]
    decided = decide(days)
    assert dropped(decided) == []
    assert "the clock stood back" in decided.held[0].by
    # A clock that once ran ahead left a day in the future, with old positions: it holds up nobody.
    assert dropped(decide([a_day(91), a_day(0), a_day(-300, first=5)])) == [a_day(91).name]


def test_receipts_written_while_the_clock_stood_back_are_not_old() -> None:
    """Their own retention decides what is young beside them: 40 days back is old for receipts, and not for events."""
    back = {parent: a_day(40, parent=parent, first=HEAD - 100) for parent in (EVENTS, RECEIPTS)}
    days = [*(a_day(ago, parent=parent) for parent in (EVENTS, RECEIPTS) for ago in range(29)), *back.values()]
    decided = decide(days)
    assert dropped(decided) == []
    assert [(held.day.name, "stood back" in held.by) for held in decided.held] == [(back[RECEIPTS].name, True)]


@pytest.mark.parametrize("days", [2, 6, -2])
def test_a_jump_of_some_days_is_not_believed_at_once(days: int) -> None:
    """Seven days at once may go; a clock that jumped so far ahead must not be what takes them."""
    log = [a_day(ago) for ago in range(90)]
    jump = timedelta(days=days)
    held = decide(log, now=NOW + jump, last_run_at=NOW, jumped=jump)
    assert held.refused is not None
    assert f"the clock moved {24 * days:+d} h beside the time that passed" in held.refused
    assert decide([], now=NOW + jump, last_run_at=NOW, jumped=jump).refused is not None
    for small in (None, timedelta(hours=23), timedelta(0)):
        assert decide(log, now=NOW + jump, last_run_at=NOW, jumped=small).refused is None
    assert decide(log, now=NOW + jump, last_run_at=NOW, jumped=jump, confirmed=True).refused is None


def test_what_is_carried_over_has_no_hole() -> None:
    hole = a_day(95, first=HEAD - 10)
    days = [a_day(ago) for ago in (96, 94, 3)] + [hole]
    decided = decide(days)
    assert dropped(decided) == [a_day(96).name]
    assert {held.day.name: held.by for held in decided.held}[a_day(94).name] == "a day before it must stay"
    # Before anything was carried over there is nothing to make a hole in.
    assert dropped(decide([a_day(94), a_day(3), hole])) == [a_day(94).name]
    assert dropped(decide([a_day(94), a_day(3), hole], kept_from=a_day(96).day)) == []


def test_dedup_outlives_the_events_that_are_there() -> None:
    three_days = timedelta(hours=72)
    assert decide([a_day(3)]).dedup_before == NOW - KEEP.events - three_days
    stuck = a_day(200)
    assert decide([stuck], evaluator=0).dedup_before == stuck.end - timedelta(days=1) - three_days


def test_recovery_stays_within_what_dedup_knows() -> None:
    since = recover_since_min(NOW, KEEP)
    assert since > decide([a_day(3)]).dedup_before
    assert since < NOW - KEEP.events


def test_recovery_stays_within_what_dedup_was_ever_cut_to() -> None:
    cut = NOW - timedelta(days=40)
    assert recover_since_min(NOW, KEEP, cut) == cut + timedelta(hours=1)
    assert recover_since_min(NOW, KEEP, NOW - timedelta(days=400)) == recover_since_min(NOW, KEEP)


def settings_of(tmp_path: Path, text: str) -> RetentionSettings:
    (tmp_path / "config.yml").write_text(text)
    return load_settings(
        {"DATABASE_URL": "postgresql://u@h/d", "AUTHWATCH_CONFIG": str(tmp_path / "config.yml")}
    ).retention


def test_retention_is_configured_strictly(tmp_path: Path) -> None:
    assert settings_of(tmp_path, "retention: {receipts: 36h, alerts: 800d}\n") == RetentionSettings(
        receipts=timedelta(hours=36), alerts=timedelta(days=800)
    )
    assert settings_of(tmp_path, "") == RetentionSettings(
        receipts=timedelta(days=30),
        events=timedelta(days=90),
        alerts=timedelta(days=400),
        audit=timedelta(days=400),
        sink_backlog_max=timedelta(days=7),
    )
    for wrong in ("events: 90", "events: 5m", "events: 0d", "events: 99999d", "events: -3d", "events: [90d]"):
        with pytest.raises(ConfigError, match=r"retention\.events: "):
            settings_of(tmp_path, f"retention: {{{wrong}}}\n")
    with pytest.raises(ConfigError, match=r'unknown key "retention\.event"; did you mean "events"'):
        settings_of(tmp_path, "retention: {event: 90d}\n")
