"""The route tree, its patterns, inhibition, time intervals and silences: the deciding code alone."""

from __future__ import annotations

import contextlib
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.routing.inhibit import Inhibitor, inhibited_by
from service.routing.intervals import Clock, TimeInterval
from service.routing.matchers import parse_matcher, parse_matchers, read_matchers
from service.routing.model import DeclaredSilence, RoutingKeys
from service.routing.mute import Silence, out_of_hours, silenced_by
from service.routing.pattern import BadPattern, Pattern
from service.routing.tree import BadRouting, Node, Routing, picture, routing_in_force

NAMES = ("a", "b", "c")
WORDS = ("", "x", "y", "xy")


def routing_of(given: dict[str, Any], receivers: tuple[str, ...] = NAMES) -> Routing:
    keys = RoutingKeys.model_validate({"receivers": [{"name": name} for name in receivers], **given})
    return routing_in_force(keys, receivers)


# ---- the tree against a tiny reference


def reference(route: dict[str, Any], labels: dict[str, str], receiver: str = "") -> list[str] | None:
    """Alertmanager's rule in a few lines over the plain values. None: this route does not take it."""
    for name, op, value in route.get("asked", ()):
        has = labels.get(name, "")
        same = re.fullmatch(value, has) is not None if "~" in op else has == value
        if same == op.startswith("!"):
            return None
    receiver = route.get("receiver", receiver)
    taken: list[str] = []
    for child in route.get("routes", ()):
        of_child = reference(child, labels, receiver)
        taken += of_child or []
        if of_child is not None and not child.get("continue", False):
            return taken
    return taken or [receiver]


asked = st.lists(
    st.tuples(
        st.sampled_from(("l", "m")), st.sampled_from(("=", "!=", "=~", "!~")), st.sampled_from((*WORDS, "x|y", "x?y"))
    ),
    max_size=2,
)


def written(route: dict[str, Any]) -> dict[str, Any]:
    out = {name: value for name, value in route.items() if name not in ("asked", "routes")}
    out["matchers"] = [f'{name}{op}"{value}"' for name, op, value in route.get("asked", ())]
    return out | {"routes": [written(child) for child in route.get("routes", ())]}


children: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.fixed_dictionaries({"asked": asked}, optional={"receiver": st.sampled_from(NAMES), "continue": st.booleans()}),
    lambda below: st.fixed_dictionaries(
        {"asked": asked, "routes": st.lists(below, max_size=3)},
        optional={"receiver": st.sampled_from(NAMES), "continue": st.booleans()},
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(children, max_size=4), st.dictionaries(st.sampled_from(("l", "m")), st.sampled_from(WORDS)))
def test_any_tree_sends_as_the_reference_says(routes: list[dict[str, Any]], labels: dict[str, str]) -> None:
    tree = {"receiver": "a", "routes": routes}
    found = routing_of({"route": written(tree)}).root.match(labels)
    assert [node.receiver for node in found] == reference(tree, labels)


# ---- patterns

atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "\\d", "\\w", "1", "(?:)"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0}", "{2,}", "*?"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(patterns, st.text("ab1\n", max_size=6))
def test_a_pattern_means_what_it_means_elsewhere(pattern: str, value: str) -> None:
    assert Pattern(pattern).matches(value) == (re.fullmatch(pattern, value) is not None)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", "(a*)*b", "(.*)*x", "((a{1,9}){1,9}){1,5}b", "(a?){999}a{999}"]
)
def test_no_pattern_takes_long(pattern: str) -> None:
    began = time.monotonic()
    with contextlib.suppress(BadPattern):  # refused is quick too
        Pattern(pattern).matches("a" * 512)
    assert time.monotonic() - began < 5, "a backtracking engine would take longer than the universe has been there"


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a" * 1_001, "longer than"),
        ("(" * 60 + ")" * 60, "deeper than"),
        ("((a{1000}){1000}){1000}", "repeat less"),
        ("(?=a)", "not known here"),
        ("[[:alpha:]]", "write"),
        ("a**", "repeats what already repeats"),
    ],
)
def test_a_pattern_that_cannot_be_says_why(pattern: str, said: str) -> None:
    with pytest.raises(BadPattern, match=said):
        Pattern(pattern)


def test_a_matcher_is_written_as_it_is_read() -> None:
    for text in ('a="b"', 'a!="b c"', 'a=~"b|c"', 'a="say \\"x\\", \\\\ and \\n"'):
        assert str(parse_matcher(text)) == text
        assert parse_matchers(f"{{{text}, z!~x}}")[0].value == parse_matcher(text).value
    of_object = read_matchers([{"name": "a", "value": "b|c", "isRegex": True, "isEqual": False}])
    assert str(of_object[0]) == 'a!~"b|c"'


# ---- inheritance and what does not fit together


def test_a_route_inherits_all_but_continue_and_the_time_intervals() -> None:
    routing = routing_of(
        {
            "time_intervals": [
                {"name": "nights", "time_intervals": [{"times": [{"start_time": "00:00", "end_time": "06:00"}]}]}
            ],
            "route": {
                "receiver": "a",
                "group_by": ["team"],
                "group_wait": "5s",
                "repeat_interval": "1h30m",
                "routes": [
                    {
                        "matchers": ["l=x"],
                        "mute_time_intervals": ["nights"],
                        "escalate": {"after": "10m", "to": "b"},
                        "continue": True,
                        "routes": [{"matchers": ["m=x"], "group_by": ["..."]}],
                    }
                ],
            },
        }
    )
    child = routing.root.children[0]
    grandchild = child.children[0]
    assert (child.receiver, child.group_by, child.group_wait, child.mute) == (
        "a",
        ("team",),
        timedelta(seconds=5),
        ("nights",),
    )
    assert (grandchild.group_by, grandchild.repeat_interval) == (("...",), timedelta(hours=1, minutes=30))
    assert (grandchild.mute, grandchild.goes_on, grandchild.escalate) == ((), False, child.escalate)
    assert routing.root.group_interval == timedelta(seconds=30)
    assert 'm="x"' in picture(routing)


def test_group_wait_is_nothing_by_default() -> None:
    assert routing_of({"route": {"receiver": "a"}}).root.group_wait == timedelta(0)


def test_without_a_route_every_notifier_hears_everything_at_once() -> None:
    routing = routing_in_force(RoutingKeys(), ["slack", "console"])
    [node] = routing.root.match({"severity": "P4"})
    assert routing.notifiers_of(node.receiver) == ("slack", "console")
    assert (node.group_wait, node.repeat_interval, routing.configured) == (timedelta(0), None, False)


@pytest.mark.parametrize(
    ("given", "said", "path"),
    [
        ({"route": {}}, "needs a receiver", "route"),
        ({"route": {"receiver": "z"}}, 'no receiver named "z"; known: a, b, c', "route.receiver"),
        ({"route": {"receiver": "a", "matchers": ["l=x"]}}, "no matchers", "route.matchers"),
        ({"route": {"receiver": "a", "continue": True}}, "nothing comes after", "route.continue"),
        ({"route": {"receiver": "a", "mute_time_intervals": ["n"]}}, "never muted", "route.mute_time_intervals"),
        (
            {"route": {"receiver": "a", "routes": [{"active_time_intervals": ["n"]}]}},
            'no time interval named "n"',
            "route.routes.0.active_time_intervals.0",
        ),
        ({"route": {"receiver": "a", "escalate": [{"after": "1m", "to": "z"}]}}, '"z"', "route.escalate"),
        ({"route": {"receiver": "a"}, "receivers": [{"name": "a"}, {"name": "a"}]}, "second", "receivers.1.name"),
        ({"route": {"receiver": "a"}, "receivers": [{"name": "a", "notifiers": ["q"]}]}, "notifier", "receivers.0"),
        ({}, "receivers without a route", "receivers"),
    ],
)
def test_what_does_not_fit_together_is_said_with_its_place(given: dict[str, Any], said: str, path: str) -> None:
    with pytest.raises(BadRouting, match=re.escape(said)) as caught:
        routing_of(given)
    assert ".".join(map(str, caught.value.path)) == path


@pytest.mark.parametrize(
    "route",
    [
        {"receiver": "a", "group_interval": "0s"},
        {"receiver": "a", "repeat_interval": "0s"},
        {"receiver": "a", "group_by": ["...", "x"]},
        {"receiver": "a", "group_by": ["x", "x"]},
        {"receiver": "a", "group_wait": "soon"},
        {"receiver": "a", "routes": [{"matchers": ["severity"]}]},
    ],
)
def test_what_alertmanager_refuses_of_a_route_is_refused(route: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RoutingKeys.model_validate({"route": route})


# ---- inhibition


def inhibitor(source: str, target: str, *equal: str) -> Inhibitor:
    return Inhibitor(parse_matchers(source), parse_matchers(target), equal)


def test_an_alert_is_inhibited_only_while_its_source_stands_with_equal_labels() -> None:
    rules = (inhibitor("rule_id=down", "rule_id=~slow|late", "account_id"),)
    standing = {"1": {"rule_id": "down", "account_id": "ca_1"}}
    assert inhibited_by(rules, "2", {"rule_id": "slow", "account_id": "ca_1"}, standing) == ("1",)
    assert inhibited_by(rules, "2", {"rule_id": "slow", "account_id": "ca_2"}, standing) == ()
    assert inhibited_by(rules, "2", {"rule_id": "other", "account_id": "ca_1"}, standing) == ()
    assert inhibited_by(rules, "2", {"rule_id": "slow", "account_id": "ca_1"}, {}) == ()


def test_a_label_that_neither_has_is_equal() -> None:
    rules = (inhibitor("rule_id=down", "rule_id=slow", "team"),)
    assert inhibited_by(rules, "2", {"rule_id": "slow"}, {"1": {"rule_id": "down"}}) == ("1",)


def test_two_that_are_both_source_and_target_do_not_keep_each_other_quiet() -> None:
    rules = (inhibitor("severity=~P1|P2", "severity=~P2|P3"),)
    assert inhibited_by(rules, "2", {"severity": "P2"}, {"1": {"severity": "P2"}}) == ()
    assert inhibited_by(rules, "2", {"severity": "P2"}, {"1": {"severity": "P1"}}) == ("1",)
    assert inhibited_by(rules, "1", {"severity": "P2"}, {"1": {"severity": "P1"}}) == (), "never by itself"


# ---- time intervals and silences


def clock_of(**interval: Any) -> Clock:
    return Clock(TimeInterval.model_validate({"name": "n", "time_intervals": [interval]}).time_intervals)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ({"times": [{"start_time": "02:00", "end_time": "04:00"}]}, "2026-11-26T02:00:00Z", "2026-11-26T04:00:00Z"),
        ({"weekdays": ["monday:friday"]}, "2026-11-27T12:00:00Z", "2026-11-28T12:00:00Z"),
        ({"weekdays": ["Sunday"]}, "2026-11-29T12:00:00Z", "2026-11-30T12:00:00Z"),
        ({"days_of_month": ["-3:-1"]}, "2026-02-26T12:00:00Z", "2026-02-25T12:00:00Z"),
        ({"days_of_month": ["1:5"]}, "2026-02-05T12:00:00Z", "2026-02-06T12:00:00Z"),
        ({"days_of_month": ["31"]}, "2026-01-31T12:00:00Z", "2026-02-28T12:00:00Z"),
        ({"days_of_month": ["15:-1"]}, "2026-02-28T12:00:00Z", "2026-02-14T12:00:00Z"),
        ({"months": ["november:december"]}, "2026-11-01T00:00:00Z", "2026-10-31T23:59:59Z"),
        ({"months": [11]}, "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ({"years": ["2026:2027"]}, "2027-12-31T23:00:00Z", "2028-01-01T00:00:00Z"),
        # 02:00 to 04:00 in Kolkata is 20:30 to 22:30 UTC of the day before, which is a Saturday there as Sunday begins.
        (
            {
                "times": [{"start_time": "02:00", "end_time": "04:00"}],
                "weekdays": ["sunday"],
                "location": "Asia/Kolkata",
            },
            "2026-11-28T20:30:00Z",
            "2026-11-29T02:00:00Z",
        ),
        # The same hour of the day on both sides of the change from summer time.
        (
            {"times": [{"start_time": "09:00", "end_time": "10:00"}], "location": "Europe/Paris"},
            "2026-10-24T07:30:00Z",
            "2026-10-26T07:30:00Z",
        ),
        ({"times": [{"start_time": "23:00", "end_time": "24:00"}]}, "2026-11-26T23:59:59Z", "2026-11-27T00:00:00Z"),
    ],
)
def test_a_time_interval_runs_in_its_own_time_zone(interval: dict[str, Any], inside: str, outside: str) -> None:
    clock = clock_of(**interval)
    assert (clock.runs(datetime.fromisoformat(inside)), clock.runs(datetime.fromisoformat(outside))) == (True, False)


@pytest.mark.parametrize(
    "interval",
    [
        {"times": [{"start_time": "22:00", "end_time": "06:00"}]},
        {"times": [{"start_time": "9am", "end_time": "10:00"}]},
        {"weekdays": ["friday:monday"]},
        {"weekdays": ["1:5"]},
        {"days_of_month": ["0"]},
        {"days_of_month": ["32"]},
        {"days_of_month": ["-3:5"]},
        {"days_of_month": ["20:-20"]},
        {"days_of_month": ["5:3"]},
        {"months": ["brumaire"]},
        {"location": "Mars/Olympus"},
        {"location": "../../etc/passwd"},
    ],
)
def test_an_interval_that_cannot_be_is_refused(interval: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        clock_of(**interval)


def test_an_interval_survives_being_stored() -> None:
    given = TimeInterval.model_validate(
        {
            "name": "n",
            "time_intervals": [
                {
                    "times": [{"start_time": "02:00", "end_time": "04:00"}],
                    "weekdays": ["monday:friday", "sunday"],
                    "days_of_month": ["-3:-1"],
                    "location": "Asia/Kolkata",
                }
            ],
        }
    )
    assert TimeInterval.model_validate(given.model_dump(mode="json")) == given


NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def silence(**changes: Any) -> Silence:
    return Silence(
        **{
            "id": "s1",
            "matchers": parse_matchers("team=x"),
            "start": NOW,
            "end": NOW + timedelta(hours=1),
            "author": "ops",
            "comment": "known",
            "created_at": NOW,
            **changes,
        }
    )


def test_a_silence_mutes_what_it_matches_from_its_start_to_its_end() -> None:
    one = [silence()]
    labels = {"team": "x"}
    assert silenced_by(one, labels, NOW) == ("s1",)
    assert silenced_by(one, {"team": "y"}, NOW) == ()
    assert silenced_by(one, labels, NOW - timedelta(seconds=1)) == ()
    assert silenced_by(one, labels, NOW + timedelta(hours=1)) == ()
    at = (NOW - timedelta(seconds=1), NOW, NOW + timedelta(hours=1))
    assert [silence().state(when) for when in at] == ["pending", "active", "expired"]


def test_a_recurring_silence_mutes_only_while_its_interval_runs() -> None:
    nightly = silence(
        end=NOW + timedelta(days=30), clock=clock_of(times=[{"start_time": "02:00", "end_time": "04:00"}])
    )
    assert not nightly.mutes_at(NOW)
    assert nightly.mutes_at(NOW.replace(hour=3) + timedelta(days=1))
    assert nightly.state(NOW) == "active"


@pytest.mark.parametrize(
    "given",
    [
        {"matchers": ["team=~.*"]},
        {"matchers": ["team!=x"]},
        {"matchers": []},
        {"end": None},
    ],
)
def test_a_silence_of_everything_or_for_ever_is_refused(given: dict[str, Any]) -> None:
    whole = {"matchers": ["team=x"], "author": "ops", "comment": "c", "end": "2026-11-27T00:00:00Z"}
    DeclaredSilence.model_validate(whole)
    with pytest.raises(ValidationError):
        DeclaredSilence.model_validate(whole | given)


def test_a_route_is_quiet_in_the_intervals_that_mute_it_and_out_of_those_that_it_is_active_in() -> None:
    clocks = {
        "noon": clock_of(times=[{"start_time": "12:00", "end_time": "13:00"}]),
        "weekend": clock_of(weekdays=["saturday"]),
    }
    assert out_of_hours(Node(path="r", receiver="a", mute=("weekend", "noon")), clocks, NOW) == ("noon",)
    assert out_of_hours(Node(path="r", receiver="a", mute=("weekend",)), clocks, NOW) == ()
    assert out_of_hours(Node(path="r", receiver="a", active=("weekend",)), clocks, NOW) == ("weekend",)
    assert out_of_hours(Node(path="r", receiver="a", active=("weekend", "noon")), clocks, NOW) == ()
