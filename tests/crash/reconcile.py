"""The ledger against what is there. Each check gives sentences, none when all is well."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from tests.crash.found import Found, Row
from tests.crash.history import History
from tests.crash.model import BROKEN, FAILING, Episode, Expected, workflow_of
from tests.crash.sender import Ledger

SHOWN_MAX = 5
RULES = (FAILING, BROKEN)
CONFLICT, CONFLICTS_TOLD_MIN = "body-conflict", 5
OWN_RULES = (
    CONFLICT,
    "delivery-lag",
    "source-silent",
    "quarantined",
    "events-may-be-lost",
)  # while nothing gets in, events come late and a source is silent; some of what is sent cannot be read
PAUSE, RESUME = "orchestrator.pause", "orchestrator.resume"
SIGNED_STATUSES = frozenset({0, 200, 202, 503})  # every answer a signed request may get; 0: none
FORGED_STATUSES = frozenset({0, 401, 503})


def reconcile(ledger: Ledger, history: History, expected: Expected, found: Found) -> list[str]:
    """Every way in which what is there is not what the sender was told, or not what must have come of it."""
    return [
        *answers_are_of_the_contract(ledger),
        *accepted_is_there_once(ledger, history, found),
        *duplicates_name_the_first(ledger, found),
        *conflicts_are_kept(ledger, found),
        *nothing_unsigned(history, found),
        *feed_is_whole(found),
        *story_is_the_same(expected, found),
        *own_alerts_have_a_reason(found),
        *one_post_for_each_alert(found),
        *effects_happened_once(found),
        *sink_has_all_in_order(found),
        *workflows_stand_right(expected, found),
    ]


def shown(what: str, wrong: Iterable[object]) -> list[str]:
    """One sentence with the first few of them; nothing of nothing."""
    items = [str(one) for one in wrong]
    return [f"{what}: {len(items)}, such as {'; '.join(items[:SHOWN_MAX])}"] if items else []


def answers_are_of_the_contract(ledger: Ledger) -> list[str]:
    odd = [
        f"{answer.status} to {answer.delivery.message_id} {answer.delivery.forged}"
        for answer in ledger.answers
        if answer.status not in (FORGED_STATUSES if answer.delivery.forged else SIGNED_STATUSES)
    ]
    given_up = [delivery.message_id for delivery in ledger.never_taken]
    return shown("answers that no contract knows", odd) + shown("never taken, however often sent", given_up)


def genuine(found: Found) -> list[Row]:
    return [row for row in found.log if row.origin == "webhook"]


def accepted_is_there_once(ledger: Ledger, history: History, found: Found) -> list[str]:
    """(1) Every event answered 2xx is there exactly once, with the bytes sent; and so is its row of each other table."""
    times = Counter(row.event_id for row in genuine(found))
    taken = {answer.delivery.message_id for answer in ledger.taken()}
    stored = {row.event_id: row for row in genuine(found)}
    bodies = {
        row.event_id: row.body
        for row in genuine(found)
        if row.event_id in history.sent and row.body not in history.sent[row.event_id].bodies
    }
    first = [answer for answer in ledger.taken() if answer.status == 202 and answer.delivery.message_id in stored]
    other = [
        answer.delivery.message_id
        for answer in first
        if stored[answer.delivery.message_id].body != answer.delivery.body
        or stored[answer.delivery.message_id].id != answer.id
    ]
    accepted = Counter(answer.delivery.message_id for answer in first)
    dedup = Counter(row.event_id for row in found.dedup)
    ids = {row.event_row_id for row in found.dedup}
    return [
        *shown("answered 2xx and not there", sorted(taken - set(times))),
        *shown("there more than once", sorted(f"{id_} {n} times" for id_, n in times.items() if n > 1)),
        *shown("there with bytes that were never sent", sorted(map(str, bodies))),
        *shown("answered 202 for other bytes or another id than are there", sorted(set(other))),
        *shown("answered 202 more than once", sorted(id_ for id_, n in accepted.items() if n > 1)),
        *shown("in the log without their dedup row, or the other way", sorted(map(str, set(times) ^ set(dedup)))),
        *shown("dedup rows of another event", sorted(ids - {row.id for row in genuine(found)})),
        *shown("in the log without their receipt", [row.event_id for row in genuine(found) if row.body is None]),
    ]


def duplicates_name_the_first(ledger: Ledger, found: Found) -> list[str]:
    """(2) 200 means that the first is there, and says which it is."""
    ids = {row.event_id: row.id for row in genuine(found)}
    wrong = [
        f"{answer.delivery.message_id} as {answer.id}"
        for answer in ledger.taken()
        if answer.status == 200 and (answer.word != "duplicate" or ids.get(answer.delivery.message_id) != answer.id)
    ]
    return shown("answered as a duplicate of what is not there", wrong)


def conflicts_are_kept(ledger: Ledger, found: Found) -> list[str]:
    """The same event with other bytes, once answered 200, is kept beside the first."""
    if found.conflicts is None:
        return []
    rows = {row.event_id: row for row in genuine(found)}
    want = {
        (rows[answer.delivery.message_id].id, digest(answer.delivery.body))
        for answer in ledger.taken()
        if answer.status == 200
        and answer.delivery.message_id in rows
        and rows[answer.delivery.message_id].body != answer.delivery.body
    }
    have = Counter((row.event_row_id, digest(row.body)) for row in found.conflicts)
    kept_bodies = {row.id: digest(row.body or b"") for row in genuine(found)}
    return [
        *shown("conflicting bytes that were answered and not kept", sorted(want - have.keys())),
        *shown("conflicts that are none", sorted(one for one in have if kept_bodies.get(one[0]) == one[1])),
    ]


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def nothing_unsigned(history: History, found: Found) -> list[str]:
    """(7) Whatever is there as a provider's was sent signed, and says by which secret it was known."""
    strangers = [row.event_id for row in genuine(found) if row.event_id not in history.sent]
    unnamed = [row.event_id for row in genuine(found) if not row.secret_name]
    return shown("there, and never sent signed", strangers) + shown("there without the secret's name", unnamed)


def feed_is_whole(found: Found) -> list[str]:
    """(3) Who pulled through all of it has every position once, in order, and none is missing."""
    given = [int(item["position"]) for item in found.feed]
    wanted = [row.position for row in found.log if row.origin != "probe"]
    ids = {row.position: row.id for row in found.log}
    return [
        *shown("positions the feed gave out of order or again", [b for a, b in pairwise(given) if b <= a]),
        *shown("positions the feed skipped", sorted(set(wanted) - set(given))),
        *shown("positions the feed made up", sorted(set(given) - set(wanted))),
        *shown(
            "positions whose row changed after it was read",
            [item["position"] for item in found.feed if ids.get(int(item["position"])) != item["id"]],
        ),
    ]


def story_is_the_same(expected: Expected, found: Found) -> list[str]:
    """(4) Accounts and episodes are those that the events tell without any weather."""
    accounts = {row.account_id: (row.status, row.failures) for row in found.accounts}
    wrong = [
        f"{id_} is {accounts.get(id_)} and not {expected.accounts.get(id_)}"
        for id_ in sorted(accounts.keys() | expected.accounts.keys())
        if accounts.get(id_) != expected.accounts.get(id_)
    ]
    # What a late event showed never to have been is kept as people were told it, and of no length.
    rows = [row for row in found.alerts if row.rule_id in RULES and row.opened_at != row.ended_at]
    told = Counter(Episode(row.rule_id, row.account_id or "", row.opened_at, row.ended_at) for row in rows)
    episodes = {one: n for one, n in told.items() if (one.rule, one.account_id) not in expected.flapping}
    wanted = {one for one in expected.episodes if (one.rule, one.account_id) not in expected.flapping}
    states = [row.id for row in rows if (row.state == "resolved") != (row.ended_at is not None)]
    return [
        *shown("accounts that are not as their events say", wrong),
        *shown("episodes without an alert", sorted(map(str, wanted - episodes.keys()))),
        *shown("alerts without an episode", sorted(map(str, episodes.keys() - wanted))),
        *shown("episodes with several alerts", [str(one) for one, n in episodes.items() if n > 1]),
        *shown("alerts in a state that is not their episode's", states),
    ]


def own_alerts_have_a_reason(found: Found) -> list[str]:
    """(4) Of conflicts some are told, each once; nothing else is said but what such weather may cause."""
    own = [row for row in found.alerts if row.rule_id not in RULES]
    conflicts = {f"scalekit:{row.event_row_id}" for row in found.conflicts or ()}
    told = Counter(row.about for row in own if row.rule_id == CONFLICT)
    few = len(told) < min(CONFLICTS_TOLD_MIN, len(conflicts))
    open_ = Counter((row.rule_id, row.about) for row in own if row.state != "resolved")
    return [
        *shown("alerts of our own without a cause", [row.rule_id for row in own if row.rule_id not in OWN_RULES]),
        *shown("conflicts told of events that have none", sorted(told.keys() - conflicts)),
        *shown("conflicts told more than once", sorted(about for about, n in told.items() if n > 1)),
        *([f"conflicts not told: {len(told)} of {len(conflicts)} are"] if few else []),
        *shown("alerts of our own open twice", sorted(map(str, (one for one, n in open_.items() if n > 1)))),
    ]


def one_post_for_each_alert(found: Found) -> list[str]:
    """(5) Each alert in one message, its own or its group's; a second only where it says that it may be one; none of what
    was over when found."""
    unmarked = Counter(delivery for delivery, marked in found.slack_posts if not marked)
    posted = Counter(delivery for delivery, _ in found.slack_posts)
    loud = {f"{found.messages.get(row.id, row.id)}:slack" for row in found.alerts if not row.discovered_late}
    more = {f"{message}:slack" for message in found.more_messages}
    return [
        *shown("alerts that were never posted", sorted((loud | more) - posted.keys())),
        *shown("posts of no alert that people should hear of", sorted(posted.keys() - loud - more)),
        *shown("alerts posted again without saying so", sorted(id_ for id_, n in unmarked.items() if n > 1)),
        *shown("alerts posted more than twice", sorted(id_ for id_, n in posted.items() if n > 2)),
    ]


def effects_happened_once(found: Found) -> list[str]:
    """(5) Every pause and resume that was decided was done, once, in order; and nothing else was."""
    decided = {row.id: row for row in found.actions if row.kind in (PAUSE, RESUME)}
    done = [key for _what, _ref, key in found.effects]
    turns: dict[str, list[str]] = defaultdict(list)
    for what, ref, _key in found.effects:
        turns[ref].append(what)
    uneven = [
        f"{ref}: {' '.join(whats)}"
        for ref, whats in turns.items()
        if any(what != ("pause", "resume")[n % 2] for n, what in enumerate(whats))
    ]
    unfinished = [f"{row.kind} {row.id} is {row.state}" for row in found.actions if row.state != "done"]
    return [
        *shown("actions that are not done", unfinished),
        *shown("pauses and resumes decided and never done", sorted(decided.keys() - set(done))),
        *shown("pauses and resumes done and never decided", sorted(set(done) - decided.keys())),
        *shown("workflows paused twice or resumed twice", uneven),
    ]


def sink_has_all_in_order(found: Found) -> list[str]:
    """(5) The sink has every row at least once; each post is in order, and none runs ahead of what was not yet sent."""
    wanted = [row.position for row in found.log if row.origin != "probe"]
    unordered = [post[0] for post in found.hec_posts if any(b <= a for a, b in pairwise(post))]
    sent: set[int] = set()
    ahead: list[int] = []
    expected = iter(wanted)
    following = next(expected, None)
    for post in found.hec_posts:
        sent.update(post)
        while following is not None and following in sent:
            following = next(expected, None)
        if post and following is not None and post[-1] > following:
            ahead.append(post[0])
    return [
        *shown("posts to the sink out of order", unordered),
        *shown("posts to the sink that ran ahead of others", ahead),
        *shown("positions the sink never got", sorted(set(wanted) - sent)),
        *shown("positions the sink got that are not in the log", sorted(sent - set(wanted))),
    ]


def workflows_stand_right(expected: Expected, found: Found) -> list[str]:
    """(6) Paused are exactly the workflows whose account is broken at the end, here and at their orchestrator."""
    held: set[str] = set()
    for what, ref, _key in found.effects:
        (held.add if what == "pause" else held.discard)(ref.removeprefix("ref_"))
    told = {row.workflow_id for row in found.actions if row.kind == PAUSE}
    may_be = {workflow_of(account_id) for account_id in expected.not_well}
    return [
        *shown("workflows paused though their account is well", sorted(found.paused - expected.paused - may_be)),
        *shown("workflows active though their account is broken", sorted(expected.paused - found.paused)),
        *shown(
            "accounts held though well, or broken though not held",
            sorted(
                (found.paused_accounts - expected.paused_accounts - expected.not_well)
                | (expected.paused_accounts - found.paused_accounts)
            ),
        ),
        *shown(
            "workflows whose orchestrator stands otherwise",
            sorted(held ^ {id_ for id_ in found.paused if id_ in told}),
        ),
    ]
