"""`match` of a sink: what of the log it is sent."""

from __future__ import annotations

from typing import Any

import pytest

from service.sinks.base import wants_of
from service.sinks.matching import MATCHES_MAX, read_match
from tests.plug_ins.sink_cases.items import an_event

ALERT = an_event(1, kind="alert.firing", origin="authwatch", details={"severity": "P2", "rule_id": "failing"})
AUDIT = an_event(2, kind="audit", origin="authwatch", details={"action": "token.create"})
REFRESH = an_event(3)


@pytest.mark.parametrize(
    ("match", "wanted"),
    [
        ({"kind": "alert.firing"}, [1]),
        ({"kind": ["alert.firing", "audit"]}, [1, 2]),
        ({"kind": {"glob": "alert.*"}, "severity": ["P1", "P2"]}, [1]),
        ({"severity": "P1"}, []),
        ({"severity": {"ne": "P1"}}, [1]),
        ({"rule_id": "failing"}, [1]),
        ([{"severity": "P2"}, {"kind": "token.refresh_failed", "provider": "GMAIL"}], [1, 3]),
        ({"account_id": "ca_3"}, [3]),
        ({"details.action": {"exists": True}}, [2]),
        ({"lag_seconds": {"gte": 0.5}}, [1, 2, 3]),
        ({"origin": "webhook"}, [3]),
        (None, [1, 2, 3]),
    ],
)
def test_fields_are_joined_by_and_and_entries_by_or(match: Any, wanted: list[int]) -> None:
    wants = wants_of({"match": match})
    assert [event.position for event in (ALERT, AUDIT, REFRESH) if wants(event)] == wanted


@pytest.mark.parametrize("match", [None, {"origin": "probe"}, {"kind": "token.refresh_failed"}])
def test_a_probe_never_reaches_a_siem(match: Any) -> None:
    assert not wants_of({"match": match})(an_event(1, origin="probe"))


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ({"knd": "audit"}, 'unknown field "knd"'),
        ({"kind": "account.disconected"}, 'did you mean "account.disconnected"'),
        ({"became": "ACTIVE"}, "known to rules alone"),
        ({"severity": []}, "at least one value"),
        ({}, "empty match"),
        ([], "a list of such mappings"),
        ("kind=audit", "a list of such mappings"),
        ([{"kind": "audit"}] * (MATCHES_MAX + 1), f"more than {MATCHES_MAX}"),
        ({1: "audit"}, "rules alone"),
        ({"kind": [["audit"]]}, "plain values"),
    ],
)
def test_a_match_that_cannot_be_right_is_said(match: Any, said: str) -> None:
    with pytest.raises(ValueError, match="^") as caught:
        read_match(match)
    assert said in str(caught.value)
