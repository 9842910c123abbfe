"""Changes of the gate's answers: the parts put together are the gate's own answer, and every flip is told once."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from service import gate_changes
from service.event import AccountKey
from service.gate import Answer, Asked, decide
from service.gate_changes import ALLOWED, Subject, Told, Touch, changes, parts_of, together
from service.store.gate import KnownAccount, KnownHold, KnownWorkflow

KEY, OTHER = AccountKey("scalekit", "env_1", "ca_1"), AccountKey("scalekit", "env_1", "ca_2")
WORKFLOW, ACCOUNT, PAIR = Subject("w1", None), Subject(None, KEY), Subject("w1", KEY)
AT = datetime(2026, 11, 26, 2, tzinfo=UTC)
PAUSED = Answer(False, "workflow_paused", "workflow w1 is paused")
EXPIRED = Answer(False, "account_expired", "account ca_1 is EXPIRED")
holds = st.lists(
    st.builds(
        KnownHold,
        st.just("w1"),
        st.sampled_from(["workflow", "account"]),
        st.sampled_from([KEY, OTHER]),
        st.sampled_from(["a1", None]),
        st.just("why"),
    ),
    max_size=3,
)
workflows = st.none() | st.builds(KnownWorkflow, st.just("w1"), st.booleans())
accounts = st.none() | st.builds(
    KnownAccount,
    st.just(KEY),
    st.sampled_from([None, "ACTIVE", "EXPIRED", "DISCONNECTED", "DELETED", "PENDING_AUTH", "SOMETHING_NEW"]),
    st.just(AT),
    st.just(("a2",)),
)


@given(workflows, accounts, holds)
def test_the_parts_together_are_the_gates_own_answer(
    workflow: KnownWorkflow | None, account: KnownAccount | None, held: list[KnownHold]
) -> None:
    known = {OTHER} if account is None else {OTHER, KEY}  # what holds has been seen
    held = [hold for hold in held if workflow is not None and hold.account in known]
    alert_ids = account.alert_ids if account is not None else ()
    mine = gate_changes.of_workflow("w1", workflow, held)
    theirs = gate_changes.of_account(KEY, account, alert_ids)
    pair = gate_changes.of_hold(KEY, held)
    whole = decide(
        Asked(
            workflow_id="w1",
            workflow=workflow,
            holds=held,
            account_id="ca_1",
            account=account,
            alert_ids=alert_ids,
            on_unknown="deny",
            evaluation_lag_seconds=0.0,
        )
    )
    said = together((mine, theirs, pair))
    assert (said.allow, said.reason, said.alert_ids) == (whole.allow, whole.reason, whole.alert_ids)


def touch(part: Subject, denial: Answer | None, position: int, *, told: bool = True) -> Touch:
    return Touch(part, denial, told, position, AT)


def flips(
    touched: list[Touch], now: dict[Subject, Answer | None], told: Told | None = None
) -> list[tuple[object, ...]]:
    subjects = {WORKFLOW: [WORKFLOW, PAIR], ACCOUNT: [ACCOUNT, PAIR], PAIR: [PAIR]}
    now = dict.fromkeys((WORKFLOW, ACCOUNT, PAIR), None) | now
    found = changes(touched, now, subjects, told if told is not None else Told())
    return [(change.subject, change.answer.reason, change.position) for change in found]


def test_what_was_missed_is_told_flip_by_flip_and_ends_with_what_is_now() -> None:
    touched = [
        touch(WORKFLOW, PAUSED, 1),
        touch(WORKFLOW, None, 2),
        touch(WORKFLOW, PAUSED, 3),
        touch(WORKFLOW, None, 4),
    ]
    assert flips(touched, {}) == [
        (subject, reason, position)
        for position, reason in ((1, "workflow_paused"), (2, None), (3, "workflow_paused"), (4, None))
        for subject in (WORKFLOW, PAIR)
    ]


def test_the_last_word_is_the_databases_whatever_the_row_says() -> None:
    inactive = Answer(False, "workflow_inactive", "workflow w1 is not active")
    assert flips([touch(WORKFLOW, None, 5)], {WORKFLOW: inactive}) == [
        (WORKFLOW, "workflow_inactive", 5),
        (PAIR, "workflow_inactive", 5),
    ]


def test_a_pair_stays_denied_while_one_of_its_parts_is() -> None:
    touched = [touch(ACCOUNT, EXPIRED, 1), touch(WORKFLOW, PAUSED, 2), touch(ACCOUNT, None, 3)]
    assert flips(touched, {WORKFLOW: PAUSED}) == [
        (ACCOUNT, "account_expired", 1),
        (PAIR, "account_expired", 1),
        (WORKFLOW, "workflow_paused", 2),
        (PAIR, "workflow_paused", 2),
        (ACCOUNT, None, 3),
    ]


def test_what_does_not_change_the_answer_is_not_told_again() -> None:
    told = Told()
    assert flips([touch(ACCOUNT, EXPIRED, 1)], {ACCOUNT: EXPIRED}, told) != []
    assert flips([touch(ACCOUNT, EXPIRED, 2)], {ACCOUNT: EXPIRED}, told) == []
    assert flips([touch(WORKFLOW, None, 3, told=False), touch(WORKFLOW, None, 4, told=False)], {}, told) == [
        (WORKFLOW, None, 4),
        (PAIR, None, 4),
    ]


def test_a_subject_of_two_ids_has_three_parts_in_the_order_of_the_gate() -> None:
    assert parts_of(PAIR) == (WORKFLOW, ACCOUNT, PAIR)
    assert parts_of(WORKFLOW) == (WORKFLOW,)
    assert together(()) == ALLOWED
