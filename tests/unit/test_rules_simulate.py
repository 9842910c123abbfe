"""What the simulation promises by itself: flat memory, and the same episodes whatever the batches and order of arrival."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from service.event import Event
from service.rules.fired import Fired
from service.rules.inline_tests import BEGAN
from service.rules.simulate import Simulation
from tests.unit.test_rules_semantics import ABSENCE, BROKEN, COUNT, PROMISE, RATIO, SUCCESS, Clock, rule


def busy(clock: Clock, hours: int) -> Sequence[Event]:
    events = []
    for number in range(hours * 60):
        account_id = f"ca_{number % 7}"
        kind = "token.refresh_failed" if number % 5 == 0 else "token.refresh_succeeded"
        events.append(clock.event(kind, number * 60, account_id=account_id, provider="GMAIL", event_id=f"e{number}"))
    return events


def test_memory_stays_flat_and_what_was_taken_is_all_there_was() -> None:
    rules = [
        rule(COUNT.replace("60s", "30m"), resolve=f"{{event: {SUCCESS}}}"),
        rule(RATIO.replace("60s", "10m"), group_by="[provider]").model_copy(update={"id": "g"}),
        rule(ABSENCE).model_copy(update={"id": "a"}),
    ]
    events = busy(Clock(rules[0]), 48)
    whole, taking = Simulation(rules, began=BEGAN), Simulation(rules, began=BEGAN)
    taken: list[Fired] = []
    most = 0
    for event in events:
        whole.feed([event], event.received_at)
        taking.feed([event], event.received_at)
        taken += taking.take()
        held = taking._accounts.values()
        most = max(most, sum(len(account.events) for account in held) + len(taking._seen) // 2)
    taken += taking.episodes()

    def key(one: Fired) -> tuple[Any, ...]:
        return (one.fired_at, one.rule_id, str(one.group), one.episode.ended_at)

    assert len(taken) > 10
    assert sorted(map(key, taken)) == sorted(map(key, whole.episodes()))
    assert most < 500, "an hour and a half of lookback and lateness, not two days"


def test_batches_of_any_size_give_the_same_episodes() -> None:
    one = rule(COUNT.replace("60s", "30m"), resolve=f"{{event: {SUCCESS}}}")
    events = busy(Clock(one), 12)
    found = []
    for size in (1, 7, 100):
        simulation = Simulation([one], began=BEGAN)
        for start in range(0, len(events), size):
            batch = events[start : start + size]
            simulation.feed(batch, batch[-1].received_at)
        found.append(sorted((str(a.group), a.episode.opened_at, a.episode.ended_at) for a in simulation.episodes()))
    assert found[0] == found[1] == found[2]


DISTINCT = COUNT.replace("gte: 3", "gte: 2, distinct: account_id")
ORDERED = {
    "count": rule(COUNT, keep_firing_for="20s"),
    "count, for": rule(COUNT, for_="15s", keep_firing_for="20s"),
    "count, resolve.event": rule(COUNT, resolve=f"{{event: {SUCCESS}}}"),
    "count, resolve.after": rule(COUNT, resolve="{after: 90s}"),
    "count, distinct": rule(DISTINCT, group_by="[connection_id]"),
    "count, distinct, resolve.event": rule(DISTINCT, group_by="[connection_id]", resolve=f"{{event: {SUCCESS}}}"),
    "absence": rule(ABSENCE),
    "absence, for": rule(ABSENCE, for_="15s", keep_firing_for="30s"),
    "absence, deadline": rule(PROMISE),
    "state": rule(BROKEN, for_="20s"),
    "ratio": rule(RATIO, group_by="[connection_id]", for_="20s", keep_firing_for="30s"),
}
KINDS = (
    *("token.refresh_failed",) * 4,
    *("token.refresh_succeeded",) * 2,
    *("account.authorized", "account.disconnected", "account.reauth_required", "account.deleted"),
)


@pytest.mark.parametrize("name", sorted(ORDERED))
def test_any_order_of_arrival_gives_the_same_episodes(name: str) -> None:
    found = 0
    for seed in range(25):
        rng = random.Random(seed)
        story: list[tuple[int, int, str, dict[str, Any]]] = []
        for second in rng.sample(range(250), rng.randrange(4, 20)):
            kind, promised = rng.choice(KINDS), second + rng.randrange(20, 120)
            said: dict[str, Any] = {"account_id": rng.choice(["ca_1", "ca_1", "ca_2"]), "event_id": f"e{second}"}
            if kind in ("token.refresh_succeeded", "account.authorized") and rng.random() < 0.6:
                said["details"] = {"token_expires_at": f"{promised}s"}
            story.append((second, second + rng.choice([0, 0, rng.randrange(900)]), kind, said))
        spans = []
        for late in (False, True):
            clock = Clock(ORDERED[name])
            for second, arrives, kind, said in sorted(story, key=lambda one: one[1] if late else one[0]):
                clock.arrive(kind, second, now=arrives if late else second, **said)
            clock.advance(5000)
            spans.append(sorted(clock.spans(), key=str))
        assert spans[0] == spans[1], seed
        found += len(spans[0])
    assert found >= 3, "the stories are of a kind that fires"
