"""What is sent: the events of many accounts, with the duplicates, shuffles, conflicts and forgeries among them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.make_requests import event_body

TYPES = {
    "failed": "connected_account.token_refresh_failed",
    "succeeded": "connected_account.token_refresh_succeeded",
    "magic_link": "connected_account.magic_link_generated",
    "deleted": "connected_account.deleted",
}
STATUSES = ("ACTIVE", "EXPIRED", "DISCONNECTED", "PENDING_AUTH")
WORDS = {"failed": 56, "succeeded": 5, "ACTIVE": 8, "EXPIRED": 6, "DISCONNECTED": 3, "PENDING_AUTH": 3}
WORDS |= {"magic_link": 2, "deleted": 1}
CONNECTION_OF_MANY = "conn_many"
UNREADABLE, ACCOUNTLESS = 0.01, 0.02  # of all events: no JSON at all; about no account
SPREAD_SECONDS = 0.2  # between an event and its delivery, when it is neither late nor of a clump
LATE, LATE_SECONDS_MAX = 0.12, 8.0  # of all deliveries, those that overtake nobody and are overtaken by many
AGAIN, AGAIN_SECONDS_MAX = 0.08, 15.0  # sent once more, although it was taken
TOGETHER, TOGETHER_MAX = 0.06, 4  # sent several times in the same instant
CONFLICTING = 0.03  # the same event with other bytes
CLUMPED, CLUMP = 0.6, (50, 200)  # of all events, those that arrive many in one instant; how many
FORGED = 0.04  # one more request, which is not signed as it must be
FORGERIES = ("unsigned", "wrong_secret", "changed_body", "too_old")
ACCOUNTS_MIN, EVENTS_PER_ACCOUNT = 24, 15  # few, so that most accounts do not flap however long a run takes


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request of the provider, made again until it is taken. `forged`: how it is not signed, "" when it is."""

    at_seconds: float
    message_id: str
    body: bytes
    forged: str = ""


@dataclass(slots=True)
class Sent:
    """One event: `what` of WORDS, or "unreadable" or "accountless". `bodies`: more than one when they conflict."""

    message_id: str
    account_id: str | None
    what: str
    occurred_at: datetime
    bodies: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class History:
    accounts: list[str]
    sent: dict[str, Sent]
    deliveries: list[Delivery]  # in the order of their time


def own_workflow(number: int) -> bool:
    return number % 2 == 0


def through_connection(number: int) -> bool:
    """Whether that account's connection is the one of many that a workflow depends on."""
    return number % 4 == 1


def make_history(seed: int, events: int, seconds: float, start: datetime) -> History:
    """Events spread over so many seconds from `start` on, none sent before it happened."""
    dice = random.Random(f"load {seed}")
    accounts = [f"ca_{seed}_{n}" for n in range(max(ACCOUNTS_MIN, events // EVENTS_PER_ACCOUNT))]
    history = History(accounts, {}, [])
    ends = clump_ends(dice, events)
    for n in range(events):
        sent = make_event(dice, f"evt_{seed}_{n}", accounts, start + timedelta(seconds=seconds * n / events))
        history.sent[sent.message_id] = sent
        clumped = ends[n] > n or (n > 0 and ends[n - 1] == n)
        history.deliveries += deliveries_of(dice, sent, seconds * ends[n] / events, 0.0 if clumped else SPREAD_SECONDS)
    history.deliveries.sort(key=lambda delivery: delivery.at_seconds)
    return history


def clump_ends(dice: random.Random, events: int) -> list[int]:
    """For each event the one with which it is sent: the last of its clump, or itself. A commit has many then."""
    ends: list[int] = []
    largest = max(2, min(CLUMP[1], events // 4))
    smallest = min(CLUMP[0], largest)
    alone = round((smallest + largest) / 2 * (1 - CLUMPED) / CLUMPED)  # between two clumps, on average
    while len(ends) < events:
        ends += range(len(ends), min(events, len(ends) + dice.randint(0, 2 * alone)))
        last = min(events, len(ends) + dice.randint(smallest, largest))
        ends += [last - 1] * (last - len(ends))
    return ends


def make_event(dice: random.Random, message_id: str, accounts: list[str], occurred_at: datetime) -> Sent:
    chance = dice.random()
    if chance < UNREADABLE:
        body = b"no JSON \xff\xfe " + dice.randbytes(30)
        return Sent(message_id, None, "unreadable", occurred_at, [body])
    stamp = occurred_at.isoformat()
    if chance < UNREADABLE + ACCOUNTLESS:
        nobody = dict.fromkeys(("id", "connection_id", "identifier", "provider", "status"))
        body = event_body("organization.updated", id=message_id, occurred_at=stamp, data=nobody)
        return Sent(message_id, None, "accountless", occurred_at, [body])
    number = dice.randrange(len(accounts))
    what = dice.choices(list(WORDS), list(WORDS.values()))[0]
    data: dict[str, Any] = {"id": accounts[number]}
    data["connection_id"] = CONNECTION_OF_MANY if through_connection(number) else f"conn_{accounts[number]}"
    if what in STATUSES:
        data["status"] = what
    type_ = TYPES.get(what, "connected_account.status_updated")
    sent = Sent(message_id, accounts[number], what, occurred_at)
    sent.bodies.append(event_body(type_, id=message_id, occurred_at=stamp, data=data))
    if dice.random() < CONFLICTING:
        # Other bytes that say the same, so that whichever comes first the story is one story.
        sent.bodies.append(event_body(type_, id=message_id, occurred_at=stamp, data=data, note="other bytes"))
    return sent


def deliveries_of(dice: random.Random, sent: Sent, at: float, spread: float) -> list[Delivery]:
    first = at + (dice.uniform(0, LATE_SECONDS_MAX) if dice.random() < LATE else dice.uniform(0, spread))
    made = [Delivery(first, sent.message_id, sent.bodies[0])]
    if dice.random() < TOGETHER:
        made += [made[0]] * dice.randrange(1, TOGETHER_MAX)
    if dice.random() < AGAIN:
        made.append(Delivery(first + dice.uniform(0.05, AGAIN_SECONDS_MAX), sent.message_id, sent.bodies[0]))
    for other in sent.bodies[1:]:
        made.append(Delivery(first + dice.choice((0.0, 0.0, dice.uniform(0, 3))), sent.message_id, other))
    if dice.random() < FORGED:
        made.append(forgery(dice, sent, first))
    return made


def forgery(dice: random.Random, sent: Sent, at: float) -> Delivery:
    """Under a name of its own, so that whatever is kept of it is found out."""
    name = f"forged_{sent.message_id}"
    body = json.dumps({"id": name, "type": "connected_account.deleted", "data": {"id": sent.account_id}}).encode()
    return Delivery(at + dice.uniform(-0.01, 2), name, body, dice.choice(FORGERIES))
