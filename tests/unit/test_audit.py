"""The audit chain as values: the form that is hashed, and every way in which a chain can be wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from service.audit import ADOPT, CHAIN, CUT, START, Broken, Head, Link, Walk, canonical, digest, plain, seal, words_of
from service.event import Event
from service.sinks.formats import FORMATS, FormatName

AT = datetime(2026, 11, 26, 7, 0, 0, 120, tzinfo=UTC)


def entry(position: int, **details: Any) -> Event:
    return Event(
        id=f"00000000-0000-7000-8000-{position:012d}",
        position=position,
        source="authwatch",
        origin="authwatch",
        event_id="w1",
        type="audit",
        kind="audit",
        account_id=None,
        connection_id=None,
        provider=None,
        identifier=None,
        organization_id=None,
        environment_id=None,
        status=None,
        old_status=None,
        occurred_at=AT,
        received_at=AT + timedelta(seconds=position),
        lag_seconds=None,
        clock_suspect=False,
        details={"actor": "mia", "action": "workflow.pause", "subject": "w1", "reason": None, **details},
    )


def sealed(event: Event, last: Link) -> Event:
    return replace(event, details={**(event.details or {}), CHAIN: seal(event, last).to_details()})


def link_of(event: Event) -> Link:
    assert event.details is not None
    return Link(event.details[CHAIN]["number"], event.details[CHAIN]["hash"])


def chain(size: int, *, begins: Link = Link(), gap: int = 3) -> list[Event]:
    """Positions have gaps, since the log holds other rows too."""
    found, last = list[Event](), begins
    for n in range(1, size + 1):
        found.append(sealed(entry((begins.number + n) * gap), last))
        last = link_of(found[-1])
    return found


def head_of(entries: list[Event], **more: Any) -> Head:
    return Head(newest=link_of(entries[-1]), newest_position=entries[-1].position, **more)


def walk(entries: list[Event], head: Head, **more: Any) -> tuple[Walk, Broken | None]:
    gone = Walk(last=head.anchor, cut_position=head.cut_position, **more)
    for event in entries:
        if (found := gone.step(event)) is not None:
            return gone, found
    return gone, gone.finish(head)


def test_the_form_is_what_the_documentation_says() -> None:
    event = entry(7, tries=2.0, share=0.25)
    assert json.loads(canonical(event, 1, START)) == {
        "account_id": None,
        "account_status": None,
        "attempted_at": None,
        "clock_suspect": False,
        "connection_id": None,
        "details": {
            "action": "workflow.pause",
            "actor": "mia",
            "reason": None,
            "share": 0.25,
            "subject": "w1",
            "tries": 2,
        },
        "environment_id": None,
        "event_id": "w1",
        "id": "00000000-0000-7000-8000-000000000007",
        "identifier": None,
        "kind": "audit",
        "lag_seconds": None,
        "number": 1,
        "occurred_at": "2026-11-26T07:00:00.000120Z",
        "old_status": None,
        "organization_id": None,
        "origin": "authwatch",
        "position": 7,
        "previous": START,
        "provider": None,
        "received_at": "2026-11-26T07:00:07.000120Z",
        "source": "authwatch",
        "status": None,
        "type": "audit",
        "v": 1,
    }
    assert b'"tries":2}' in canonical(event, 1, START)
    assert b'"\xc3\xbc"' in canonical(entry(1, reason="ü"), 1, START)
    # Pinned: another form under the same version would break every chain there is.
    assert digest(event, 1, START) == hashlib.sha256(canonical(event, 1, START)).hexdigest()
    assert digest(event, 1, START) == PINNED


PINNED = "80e2280194267ec354b28d70abf467637697a7ef457b6ce1d4ddbca275f088be"


def test_the_same_instant_in_another_offset_and_what_is_said_of_the_chain_change_nothing() -> None:
    event = entry(1)
    elsewhere = replace(event, occurred_at=AT.astimezone(timezone(timedelta(hours=2))))
    assert canonical(elsewhere, 1, START) == canonical(event, 1, START)
    assert canonical(sealed(event, Link()), 1, START) == canonical(event, 1, START)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (2.0, 2),
        (1e22, 1e22),
        (1.5e19, 15 * 10**18),
        (-1e18, -(10**18)),
        (0.1, 0.1),
        (-0.0, 0),
        (True, True),
        ([1.0, {"a": 3.0}], [1, {"a": 3}]),
    ],
)
def test_numbers_are_as_they_read_back(given: object, read: object) -> None:
    assert repr(plain(given)) == repr(read)


def test_a_sound_chain_and_what_came_before_it() -> None:
    entries = [entry(1), *chain(5)]
    gone, found = walk(entries, head_of(entries))
    assert found is None
    assert (gone.count, gone.unchained, gone.first, gone.newest) == (5, 1, entries[1], entries[-1])


def changed(entries: list[Event]) -> list[Event]:
    entries[2] = replace(entries[2], details={**(entries[2].details or {}), "actor": "eve"})
    return entries


def another_column(entries: list[Event]) -> list[Event]:
    entries[2] = replace(entries[2], occurred_at=AT - timedelta(days=1))
    return entries


def removed(entries: list[Event]) -> list[Event]:
    del entries[2]
    return entries


def first_removed(entries: list[Event]) -> list[Event]:
    return entries[1:]


def swapped(entries: list[Event]) -> list[Event]:
    one, two = entries[1], entries[2]
    entries[1], entries[2] = replace(two, position=one.position), replace(one, position=two.position)
    return entries


def contents_swapped(entries: list[Event]) -> list[Event]:
    """All but the seals."""
    one, two = entries[1], entries[2]
    entries[1] = replace(one, event_id="w9", details={**(two.details or {}), CHAIN: (one.details or {})[CHAIN]})
    return entries


def tail_cut(entries: list[Event]) -> list[Event]:
    return entries[:-2]


def hash_edited(entries: list[Event]) -> list[Event]:
    details = dict(entries[2].details or {})
    entries[2] = replace(entries[2], details={**details, CHAIN: {**details[CHAIN], "hash": "f" * 64}})
    return entries


def resealed(entries: list[Event]) -> list[Event]:
    """Changed by who knows how seals are made, one entry only."""
    entries[2] = sealed(replace(entries[2], source="elsewhere"), link_of(entries[1]))
    return entries


def put_in(entries: list[Event]) -> list[Event]:
    return [*entries[:2], sealed(entry(entries[1].position + 1), link_of(entries[1])), *entries[2:]]


def put_in_without_a_seal(entries: list[Event]) -> list[Event]:
    return [*entries[:2], entry(entries[1].position + 1), *entries[2:]]


def seal_taken_off(entries: list[Event]) -> list[Event]:
    details = {name: value for name, value in (entries[2].details or {}).items() if name != CHAIN}
    entries[2] = replace(entries[2], details=details)
    return entries


def put_at_the_end(entries: list[Event]) -> list[Event]:
    return [*entries, sealed(entry(entries[-1].position + 1), link_of(entries[-1]))]


def all_gone(_entries: list[Event]) -> list[Event]:
    return []


@pytest.mark.parametrize(
    ("tamper", "check", "index"),
    [
        (changed, "changed", 2),
        (another_column, "changed", 2),
        (removed, "missing", 2),
        (first_removed, "missing", 0),
        (swapped, "missing", 1),
        (contents_swapped, "changed", 1),
        (tail_cut, "end_missing", None),
        (all_gone, "end_missing", None),
        (hash_edited, "changed", 2),
        (resealed, "unlinked", 3),
        (put_in, "out_of_order", 3),
        (put_in_without_a_seal, "unsealed", 2),
        (seal_taken_off, "missing", 3),
        (put_at_the_end, "end_differs", 5),
    ],
)
def test_what_was_done_to_a_chain_is_found(
    tamper: Callable[[list[Event]], list[Event]], check: str, index: int | None
) -> None:
    entries = chain(5)
    head = head_of(entries)
    entries = tamper(entries)
    _, found = walk(entries, head)
    assert found is not None
    assert found.check == check
    if index is not None:
        assert (found.position, found.at) == (entries[index].position, entries[index].received_at)


def test_a_chain_whose_beginning_went_in_its_time_says_where_it_was_cut() -> None:
    whole = chain(6)
    anchor = link_of(whole[2])
    cut = sealed(entry(40, action=CUT, number=anchor.number, hash=anchor.hash), link_of(whole[-1]))
    left = [*whole[3:], cut]
    head = head_of(left, anchor=anchor, anchor_position=whole[2].position, cut_position=whole[2].position)
    gone, found = walk(left, head)
    assert (found, gone.count) == (None, 4)
    _, found = walk(whole[3:], replace(head_of(whole), anchor=anchor))
    assert found is not None
    assert found.check == "beginning_differs"
    later = replace(head, anchor=link_of(whole[3]))
    _, found = walk(left[1:], later)
    assert found is not None, "who cuts more and writes down where is found by the entry of the true cut"
    assert found.check == "beginning_differs"


def test_entries_of_older_processes_are_vouched_for_once_and_then_hold() -> None:
    entries = chain(3)
    beside = entry(entries[-1].position + 1, actor="an older worker")
    word = {"position": beside.position, "sha256": digest(beside, 0, "")}
    adopt = sealed(entry(beside.position + 1, action=ADOPT, adopted=[word]), link_of(entries[-1]))
    head = head_of([adopt])
    gone, found = walk([*entries, beside, adopt], head)
    assert (found, gone.adopted) == (None, 1)
    _, found = walk([*entries, replace(beside, event_id="w2"), adopt], head)
    assert found is not None
    assert (found.check, found.position) == ("changed", beside.position)
    _, found = walk([*entries, adopt], head)
    assert found is not None
    assert (found.check, found.position) == ("missing", adopt.position)
    _, found = walk([*entries, adopt], replace(head, cut_position=beside.position))
    assert found is None, "it went in its time"


def test_a_hash_noted_before_must_still_be_there() -> None:
    entries = chain(4)
    head = head_of(entries)
    assert walk(entries, head, expect=link_of(entries[1]).hash)[1] is None
    rewritten = chain(4, gap=5)
    _, found = walk(rewritten, head_of(rewritten), expect=link_of(entries[1]).hash)
    assert found is not None
    assert found.check == "expected_missing"


def test_a_seal_that_cannot_be_one_is_none() -> None:
    entries = chain(3)
    for seal_ in ("x", {}, {"v": 1, "number": True, "previous": START, "hash": START}, {"v": 2, "number": 2}):
        spoilt = replace(entries[1], details={**(entries[1].details or {}), CHAIN: seal_})
        _, found = walk([entries[0], spoilt, entries[2]], head_of(entries))
        assert found is not None
        assert (found.check, found.position) == ("missing", entries[2].position)


def test_an_entry_is_a_line_of_who_what_and_why() -> None:
    assert words_of(entry(1)) == ("mia", "workflow.pause", "w1", "-")
    held = replace(
        entry(1), kind="workflow.paused", details={"rule_ids": ["refresh"], "reason": "it broke", "alert_ids": ["a"]}
    )
    assert words_of(held) == ("rule:refresh", "workflow.paused", "w1", "it broke")


@pytest.mark.parametrize(("format_", "where"), [("ocsf", "unmapped"), ("ecs", "authwatch")])
def test_the_copies_for_a_siem_carry_the_seal(format_: FormatName, where: str) -> None:
    event = chain(1)[0]
    said = FORMATS[format_](event)[where]["details"][CHAIN]
    assert said == (event.details or {})[CHAIN]
