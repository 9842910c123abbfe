"""How far evaluation is behind: proven by what earlier questions saw, or not at all."""

from __future__ import annotations

from service.gate_lag import PROOF_SECONDS, RECENT_MAX, RECENT_SECONDS, SAMPLES_MAX, LagProof
from service.store.gate import Progress

NOON = 1_795_694_400.0


def test_while_evaluation_is_current_an_earlier_question_is_proof_enough_for_a_second() -> None:
    proof = LagProof()
    assert proof.bound(Progress(NOON, 7, 9)) is None, "nobody knows since when two rows wait"
    assert proof.bound(Progress(NOON + 0.5, 8, 12)) is None
    assert proof.bound(Progress(NOON + 0.75, 9, 14)) == 0.75
    assert proof.bound(Progress(NOON + 0.75, 12, 14)) == 0.25
    assert proof.bound(Progress(NOON + 0.5 + RECENT_SECONDS, 13, 14)) is not None
    assert proof.bound(Progress(NOON + 60, 13, 15)) is None, "it stalled"
    assert proof.bound(Progress(NOON + 60, 15, 15)) == 0.0
    assert proof.bound(Progress(NOON - 3600, 14, 16)) is None, "the clock was put back"


def test_nothing_waits_when_every_position_given_is_evaluated() -> None:
    assert LagProof().seconds(Progress(NOON, 7, 7)) == 0.0


def test_the_row_right_behind_the_evaluated_ones_is_the_oldest_whatever_was_seen_before() -> None:
    assert LagProof().seconds(Progress(NOON, 7, 9, 8, NOON - 12)) == 12.0


def test_a_row_behind_a_gap_proves_nothing_until_an_earlier_question_saw_fewer_positions() -> None:
    proof = LagProof()
    assert proof.seconds(Progress(NOON, 7, 9, 9, NOON - 2)) is None
    seen = LagProof()
    assert seen.seconds(Progress(NOON - 60, 7, 7)) == 0.0
    assert seen.seconds(Progress(NOON, 7, 9, 9, NOON - 2)) == 2.0


def test_positions_that_no_row_came_of_are_proven_by_one_look_at_the_log() -> None:
    proof = LagProof()
    before = Progress(NOON, 7, 9)
    assert proof.seconds(before) is None
    proof.nothing_waits(before)
    assert proof.seconds(Progress(NOON + 1, 7, 9)) == 0.0
    assert proof.seconds(Progress(NOON + 1, 7, 12, 11, NOON + 1)) == 0.0
    assert proof.seconds(Progress(NOON + 1 + PROOF_SECONDS, 7, 9)) is None, "the row may be of a day not looked into"


def test_what_was_seen_before_the_clock_was_put_back_proves_nothing() -> None:
    proof = LagProof()
    assert proof.seconds(Progress(NOON, 7, 7)) == 0.0
    assert proof.seconds(Progress(NOON - 3600, 7, 9)) is None


def test_what_is_remembered_is_bounded() -> None:
    proof = LagProof()
    for number in range(2 * SAMPLES_MAX):
        proof.bound(Progress(NOON + 20 * number, number, number))
        proof.seconds(Progress(NOON + 20 * number, number, number))
    assert (len(proof._samples), len(proof._recent)) == (SAMPLES_MAX, RECENT_MAX)
