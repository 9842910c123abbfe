"""What the figures of the copy for a SIEM stand on: the judge of what came, and a stand-in that finds each item's place."""

from __future__ import annotations

import gzip
import json

import pytest

from bench.hec import PATH, Taken, positions_of
from bench.siem_fetch import NEXT
from bench.siem_judge import Came, judged, writers_in_order
from service.sinks.formats import ENCODED, FormatName
from service.store.log import EVENT_COLUMNS
from tests.unit.told import make_events


@pytest.mark.parametrize(
    ("came", "said"),
    [
        ([1, 2, 5, 9], Came(0, 0, 0, 0)),
        ([1, 2, 1, 2, 5, 9], Came(0, 2, 0, 0)),  # a batch again
        ([1, 5, 9], Came(1, 0, 0, 0)),
        ([1, 5, 2, 9], Came(0, 0, 1, 0)),
        ([1, 2, 4, 5, 9], Came(0, 0, 0, 1)),  # 4 was rolled back
        ([], Came(4, 0, 0, 0)),
        ([9, 5, 2, 1, 1], Came(0, 1, 3, 0)),
    ],
)
def test_what_came_of_a_log_is_told_apart(came: list[int], said: Came) -> None:
    assert judged([1, 2, 5, 9], came) == said
    assert said.whole == (not (said.missing or said.disordered or said.strange))


def test_a_writer_whose_rows_are_turned_round_or_missing_is_noticed() -> None:
    assert writers_in_order([(0, 0), (1, 0), (0, 1), (1, 1)])
    assert not writers_in_order([(0, 0), (0, 2)])
    assert not writers_in_order([(0, 1), (0, 0)])


def envelope(item: bytes) -> bytes:
    return b'{"time":1700000000.000,"host":"authwatch","event":%b}' % item


@pytest.mark.parametrize("name", ["ocsf", "raw"])
def test_the_stand_in_finds_the_place_of_every_item_and_refuses_what_has_none(name: FormatName) -> None:
    events = make_events([("failed", 0.0), ("ACTIVE", 1.0), ("DISCONNECTED", 2.0)])
    body = b"".join(envelope(ENCODED[name](event)) for event in events)
    taken = Taken()
    assert taken.answer("POST", PATH, gzip.compress(body))[0] == 200
    assert list(taken.positions) == [event.position for event in events]
    assert taken.answer("POST", PATH, body + envelope(b'{"kind":"x"}'))[0] == 400
    taken.busy = True
    assert taken.answer("POST", PATH, body)[0] == 503
    assert taken.state()["items"] == len(events)


def test_the_place_of_an_item_is_found_in_json_with_blanks_too() -> None:
    item = {"id": "00000000-0000-4000-8000-000000000001", "position": 7, "details": {"position": 8}}
    assert positions_of(json.dumps({"items": [item]}).encode()) == [7]


def test_the_next_page_is_found_in_either_feeds_link() -> None:
    found = NEXT.search('</v1/siem/events?cursor=abC&limit=1000&format=ocsf>; rel="next"')
    assert found is not None
    assert found[1] == "/v1/siem/events?cursor=abC&limit=1000&format=ocsf"
    assert EVENT_COLUMNS[1] == "position", "the bare loop reads on by it"
