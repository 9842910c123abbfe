"""Rules and event histories by chance: times on a coarse grid, so that ties and boundaries happen all the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from random import Random
from typing import Any

from hypothesis import strategies as st
from ruamel.yaml import YAML

from service.event import Event
from service.rules import Rule
from tests.unit.told import BEGAN, make_event
from tests.unit.told import at as after

LATENESS = 600  # seconds
EVENTS_MAX = 20
GAPS = (0, 0, 0.5, 1, 1, 2, 3, 5, 10, 30, 100, 300)
DELAYS = (0, 0, 0, 1, 5, 30, 200, LATENESS)
SIGNALS = ("failed", "failed", "failed", "failed", "succeeded", "ACTIVE")
STATES = ("ACTIVE", "EXPIRED", "PENDING_AUTH", "DISCONNECTED", "DELETED", "succeeded", "failed")
PROMISES = (None, -5, 0, 5, 10, 60, 600)
SIZES = (1, 10, 100, 1000)  # far enough apart that an approximation cannot take one for another


@dataclass(frozen=True, slots=True)
class Arrival:
    """Events that become known together at an instant; some are known already."""

    at: datetime
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class History:
    arrivals: tuple[Arrival, ...]
    now: datetime

    @property
    def events(self) -> list[Event]:
        return [event for arrival in self.arrivals for event in arrival.events]


def stories(words: Sequence[str], *, promises: bool = False, tight: bool = False) -> st.SearchStrategy[list[Event]]:
    """Events in order. `promises`: they name when a token expires. `tight`: little time lies between them, mostly."""
    one = st.tuples(
        st.sampled_from(GAPS[:9] if tight else GAPS),
        st.sampled_from(words),
        st.sampled_from(("ca_1", "ca_1", "ca_1", "ca_2") if tight else ("ca_1", "ca_2", "ca_3")),
        st.sampled_from(("conn_1", "conn_1", "conn_2")),
        st.sampled_from(SIZES),
        st.sampled_from(PROMISES) if promises else st.none(),
    )
    # Left to itself, hypothesis makes short lists, in which little happens.
    few, many = (st.lists(one, min_size=least, max_size=EVENTS_MAX) for least in (1, EVENTS_MAX // 2))
    return st.one_of(few, many, many).map(tell)


def tell(story: Sequence[tuple[float, str, str, str, int, float | None]]) -> list[Event]:
    at, events = 0.0, []
    for number, (gap, word, account, connection, size, promise) in enumerate(story):
        at += gap
        details: dict[str, Any] = {"duration_ms": size, "ok": word != "called_badly"}
        if promise is not None:
            details["token_expires_at"] = after(at + promise).isoformat()
        events.append(make_event(number, word, at, account=account, connection=connection, details=details))
    return events


def arrivals(events: Sequence[Event], random: Random) -> History:
    """They arrive: late by any of DELAYS, some of them twice, in batches of any size. Now and then all in order."""
    delays = random.choice((DELAYS, DELAYS, (0,)))
    whole = random.choice((0.0, 0.5, 0.5, 0.9))  # how probably an event joins the batch before it
    again = random.choice((0.0, 0.2))
    known: list[tuple[float, float, Event]] = []
    for event in events:
        at = (event.occurred_at - BEGAN).total_seconds()
        for _ in range(1 + (random.random() < again)):
            known.append((at + random.choice(delays), random.random(), event))
    known.sort(key=lambda one: one[:2])
    batches: list[tuple[float, list[Event]]] = []
    for arrives, _, event in known:
        if batches and random.random() < whole:
            batches[-1] = (arrives, [*batches[-1][1], event])
        else:
            batches.append((arrives, [event]))
    now = batches[-1][0] + random.choice((0.15, 1.25, 10.25, 70.25, 400.25, 2000.25))
    return History(
        # A little after the grid: what is due at an instant of it has been judged by then.
        tuple(Arrival(after(arrives + 0.1), tuple(random.sample(batch, len(batch)))) for arrives, batch in batches),
        after(now),
    )


def pick(*seconds: int) -> st.SearchStrategy[str]:
    return st.sampled_from([f"{one}s" for one in seconds])


FAILED = {"kind": "token.refresh_failed"}
WELL = [{"kind": ["token.refresh_succeeded", "account.authorized"]}]
TIMERS: dict[str, Any] = {"for": pick(0, 0, 0, 0, 1, 3, 10, 60), "keep_firing_for": pick(0, 0, 1, 5, 30)}
LATE = {"allowed_lateness": st.just(f"{LATENESS}s")}
BY_CONNECTION = {"group_by": st.just(["connection_id"])}


def rule_of(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    fixed = {
        "id": st.just("by-chance"),
        "severity": st.just("P3"),
        "annotations": st.just({"summary": "By chance"}),
    }
    return st.fixed_dictionaries(fixed | LATE | fields)


def without_none(rule: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rule.items() if value is not None}


resolves = st.one_of(
    st.none(),
    st.just({"event": WELL}),
    st.just({"event": [*WELL, {"kind": "token.refresh_failed", "status": "ACTIVE"}]}),
    st.fixed_dictionaries({"after": pick(1, 5, 20, 60)}),
    st.fixed_dictionaries({"after": pick(5, 60), "event": st.just(WELL)}),
    st.just({"manual": True}),
)
windows = pick(1, 2, 5, 10, 60, 60, 700)
counts = rule_of(
    count=st.fixed_dictionaries(
        {"match": st.just(FAILED), "within": windows, "gte": st.sampled_from((1, 1, 1, 2, 2, 3, 4))}
    ),
    resolve=resolves,
    **TIMERS,
).map(without_none)
distincts = rule_of(
    count=st.fixed_dictionaries(
        {
            "match": st.just(FAILED),
            "within": windows,
            "gte": st.sampled_from((1, 1, 2, 2, 3)),
            "distinct": st.sampled_from(("account_id", "account_id", "details.duration_ms")),
        }
    ),
    resolve=resolves,
    **BY_CONNECTION,
    **TIMERS,
).map(without_none)
bounds = st.sampled_from(((0.25, 0.75), (0.5, 0.5), (0.5, 0.75), (0.75, 0.75), (0.75, 1.0), (1.0, 1.0)))
sizes = st.sampled_from(((5.0, 5.0), (50.0, 5.0), (50.0, 50.0), (500.0, 50.0), (500.0, 5.0)))


def hysteresis(condition: str, bound: str, ends: str) -> Callable[[tuple[dict[str, Any], tuple[float, float]]], Any]:
    """A rule and two bounds: it begins beyond the first, and with `resolve` it ends at the second."""

    def build(drawn: tuple[dict[str, Any], tuple[float, float]]) -> dict[str, Any]:
        rule, (begin, end) = drawn
        resolve = {ends: end} if rule.get("resolve") == "bound" else rule.get("resolve")
        return without_none(rule | {condition: rule[condition] | {bound: begin}, "resolve": resolve})

    return build


ratios = st.tuples(
    rule_of(
        ratio=st.fixed_dictionaries(
            {
                "good": st.just({"kind": "tool_call.completed", "details.ok": True}),
                "total": st.just({"kind": "tool_call.completed"}),
                "within": windows,
                "min_total": st.sampled_from((1, 1, 2, 2, 3, 4)),
            }
        ),
        resolve=st.sampled_from((None, "bound", "bound", {"manual": True})),
        **BY_CONNECTION,
        **TIMERS,
    ),
    bounds,
).map(hysteresis("ratio", "lt", "gte"))
quantiles = st.tuples(
    rule_of(
        quantile=st.fixed_dictionaries(
            {
                "match": st.just({"kind": "tool_call.completed"}),
                "field": st.just("details.duration_ms"),
                "q": st.sampled_from((0.1, 0.5, 0.5, 0.9, 0.99)),
                "within": windows,
                "min_total": st.sampled_from((1, 1, 2, 2, 3, 4)),
            }
        ),
        resolve=st.sampled_from((None, "bound", "bound", {"manual": True})),
        **BY_CONNECTION,
        **TIMERS,
    ),
    sizes,
).map(hysteresis("quantile", "gt", "lte"))
alternatives = st.fixed_dictionaries(
    {
        "status": st.lists(
            st.sampled_from(("DISCONNECTED", "EXPIRED", "DELETED", "PENDING_AUTH")), min_size=1, max_size=3, unique=True
        ),
        "for": pick(0, 1, 5, 60),
    },
    optional={"active_workflows": st.just({"gte": 1})},
)
states = rule_of(
    state=st.fixed_dictionaries({"of": st.just("account"), "match": st.lists(alternatives, min_size=1, max_size=3)}),
    **{"for": TIMERS["for"]},
)
answers = {
    "after": st.sampled_from(
        ({"kind": "token.refresh_succeeded"}, {"kind": ["token.refresh_succeeded", "account.authorized"]}, FAILED)
    ),
    "expect": st.sampled_from(
        (
            {"kind": "token.refresh_succeeded"},
            {"kind": ["token.refresh_succeeded", "token.refresh_failed"]},
            {"kind": "account.authorized"},
        )
    ),
    "grace": pick(0, 1, 5),
}
calls_off = {"unless": st.just({"kind": ["account.deleted", "account.disconnected"]})}
absences = rule_of(
    absence=st.one_of(
        st.fixed_dictionaries({**answers, "within": pick(1, 5, 60, 300)}, optional=calls_off),
        st.fixed_dictionaries({**answers, "deadline": st.just("details.token_expires_at")}, optional=calls_off),
    ),
    resolve=st.sampled_from((None, None, {"manual": True})),
    **TIMERS,
).map(without_none)


def to_yaml(rule: dict[str, Any]) -> str:
    out = StringIO()
    YAML().dump([rule], out)
    return out.getvalue()


def build(rule: dict[str, Any]) -> Rule:
    return Rule.model_validate(rule)
