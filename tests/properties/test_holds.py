"""The state machine of holds on a real Postgres, against a reference that is read at once: whatever people, providers and
orchestrators do, in any order."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from service.store import actions, workflows
from service.store.actions import PAUSE
from service.store.session import begin
from tests.properties.holds_reference import ACCOUNTS, RULES, Reference
from tests.properties.running import EXAMPLES, LONG, Progress, profile
from tests.workers.house import House, open_house
from workers.act import LEASE, Acting
from workers.evaluate import evaluate
from workers.expire import let_go_expired

SHARE, STORIES_MIN = 20, 10  # one example here for so many of those that need no database, and never fewer
STEPS_MAX = 14
ROUNDS_MAX = 4  # of a pause, a resume and what was lost of them
REFERENCE_LINES_MAX = 100
RULE = """\
- id: {id}
  severity: P2
  state:
    of: account
    match: {{status: DISCONNECTED, active_workflows: {{gte: 1}}}}
  actions: [{{pause_workflows: {{stable_for: {stable_for}}}}}]
  annotations: {{summary: "It is gone ({id})"}}
"""
RULES_TEXT = "version: 1\nrules:\n" + "".join(
    RULE.format(id=rule, stable_for=stable_for) for rule, stable_for in zip(RULES, ("0s", "1h"), strict=True)
)
# What the orchestrator does from then on: all is well; refuses before it has done anything; does it, and its answer is lost;
# refuses for good.
WEATHER: dict[str, tuple[int, bool] | None] = {
    "fair": None,
    "busy": (503, False),
    "lost": (500, True),
    "never": (403, False),
}

some = st.sets(st.sampled_from(ACCOUNTS)).map(frozenset)
account = st.sampled_from(ACCOUNTS)
flag = st.booleans()
mostly = st.sampled_from((True, True, True, False))
PUTS = st.tuples(st.just("put"), some, mostly, mostly, mostly)
ONE_STEP = st.one_of(
    st.tuples(st.just("break"), account),
    st.tuples(st.just("break"), account),
    st.tuples(st.just("recover"), account),
    st.tuples(st.just("recover"), account),
    PUTS,
    PUTS,
    st.tuples(st.just("delete")),
    st.tuples(st.just("pause"), flag),
    st.tuples(st.just("resume")),
    st.tuples(st.just("expire")),
    st.tuples(st.just("wait")),
    st.tuples(st.just("resolve")),
    st.tuples(st.just("weather"), st.sampled_from(("fair", *WEATHER))),
    st.tuples(st.just("human"), flag),
)
STORIES = st.lists(ONE_STEP, min_size=6, max_size=STEPS_MAX)
numbers = itertools.count(1)


class Run:
    """One story: what happens, in the house and in the reference, and what must be so after each step."""

    def __init__(self, house: House, *, others: bool, says_was_paused: bool) -> None:
        number = next(numbers)
        self.house, self.reference = house, Reference(others)
        self.workflow_id, self.ref = f"w{number}", f"f{number}"
        self.accounts = {name: f"ca_{name}_{number}" for name in ACCOUNTS}
        self.of_workflow = f"workflow_id = '{self.workflow_id}'"
        self.ours = tuple(self.accounts.values())  # as SQL has it too
        self.fair, self.human = True, False
        self.fake = house.orchestrator
        self.fake.says_was_paused, self.fake.always = says_was_paused, None
        self.seen = len(self.fake.resumes)

    async def begin(self) -> None:
        for name in self.accounts.values():
            await self.house.tell("ACTIVE", account=name, connection=f"conn_{name}")
        if self.reference.others:
            await self.house.put(f"others_{self.workflow_id}", account_ids=list(self.accounts.values()))
        await evaluate(self.house.runtime)

    async def step(self, what: str, *said: Any) -> None:
        await getattr(self, f"do_{what}")(*said)
        self.reference.settle()
        await evaluate(self.house.runtime)
        await self.drain()
        await self.check()

    async def do_break(self, name: str) -> None:
        self.reference.broken.add(name)
        await self.tell("DISCONNECTED", name)

    async def do_recover(self, name: str) -> None:
        self.reference.broken.discard(name)
        await self.tell("ACTIVE", name)

    async def tell(self, status: str, name: str) -> None:
        await self.house.tell(status, account=self.accounts[name], connection=f"conn_{self.accounts[name]}")

    async def do_put(self, depends: frozenset[str], active: bool, auto: bool, whole: bool) -> None:
        self.reference.put(depends, active=active, auto=auto, whole=whole)
        await self.house.put(
            self.workflow_id,
            account_ids=[self.accounts[name] for name in sorted(depends)],
            active=active,
            resume="auto" if auto else "manual",
            pause="workflow" if whole else "account",
            ref=self.ref,
        )

    async def do_delete(self) -> None:
        if self.reference.exists:
            self.reference.delete()
            await self.house.delete(self.workflow_id)

    async def do_pause(self, expires: bool) -> None:
        if self.reference.exists:
            self.reference.pause(expires=expires)
            await self.house.pause(self.workflow_id, lasts=timedelta(hours=2) if expires else None)

    async def do_resume(self) -> None:
        if self.reference.exists:
            self.reference.resume()
            await self.house.resume(self.workflow_id)

    async def do_expire(self) -> None:
        self.reference.expire()
        await self.house.run(
            "UPDATE holds SET expires_at = now() - interval '1 second'"
            f" WHERE {self.of_workflow} AND expires_at IS NOT NULL AND released_at IS NULL"
        )
        await let_go_expired(self.house.runtime)

    async def do_wait(self) -> None:
        """An hour goes by for what is over."""
        self.reference.wait()
        await self.house.run(
            f"UPDATE alerts SET stable_for_seconds = 0 WHERE account_id IN {self.ours} AND condition_ended_at IS NOT NULL"
        )
        await self.house.run(f"UPDATE deadlines SET due_at = now() WHERE account_id IN {self.ours}")

    async def do_resolve(self) -> None:
        """A person resolves by hand whatever fires: it lets go of nothing."""
        for alert in await self.rows(f"alerts WHERE account_id IN {self.ours} AND state <> 'resolved'"):
            await self.house.resolve(str(alert["id"]))

    async def do_weather(self, weather: str) -> None:
        trouble = WEATHER[weather]
        self.fake.always = None if trouble is None else (JSONResponse({}, trouble[0]), trouble[1])
        self.fair = trouble is None

    async def do_human(self, paused: bool) -> None:
        """Somebody disables or enables it at the orchestrator, while nothing of ours stands or waits there."""
        if self.reference.asked or (self.ref in self.fake.paused) != self.human or await self.waiting():
            return
        self.human = paused
        self.fake.by_hand(self.ref, paused=paused)

    async def rows(self, which: str) -> list[Any]:
        return list(await self.house.rows(f"SELECT * FROM {which}"))

    async def waiting(self) -> list[Any]:
        return await self.rows(f"actions WHERE {self.of_workflow} AND state IN ('pending', 'running')")

    async def drain(self) -> None:
        """What waits for its next try is tried; in fair weather to the end of it."""
        for _ in range(ROUNDS_MAX):
            await self.house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
            await ask_once(self.house)
            if not self.fair or not await self.waiting():
                break

    async def check(self) -> None:
        await self.check_holds()
        await self.check_history()
        await self.check_orchestrator()

    async def check_holds(self) -> None:
        house, reference = self.house, self.reference
        async with begin(house.runtime.engine) as conn:
            there = await workflows.load(conn, self.workflow_id) is not None
        said = await house.workflow(self.workflow_id) if there else None
        assert (said["state"] if said else "gone") == reference.state
        held = Counter((span.key[0], self.accounts[span.key[1]]) if span.key else None for span in reference.held)
        found = said["holds"] if said else []
        assert Counter((one["rule"], one["account_id"]) if one["alert_id"] else None for one in found) == held
        assert [one["expires_at"] is not None for one in found if one["person"]] == [
            span.expires for span in reference.held if span.key is None
        ]
        if said:
            assert bool(said["paused_by"]) == reference.paused
        answer = await house.gate(workflow_id=self.workflow_id)
        reason = {"gone": "unknown_workflow", "inactive": "workflow_inactive", "paused": "workflow_paused"}
        assert answer.reason == reason.get(reference.state)

    async def check_history(self) -> None:
        items = await self.house.history(self.workflow_id)
        assert items == sorted(items, key=lambda item: item["placed_at"], reverse=True)
        found = Counter((item["rule"], item["account_id"], item["release_reason"]) for item in items)
        assert found == Counter(
            (*((span.key[0], self.accounts[span.key[1]]) if span.key else (None, None)), span.release)
            for span in self.reference.spans
        )

    async def check_orchestrator(self) -> None:
        reference, fake = self.reference, self.fake
        if self.human:
            assert self.ref in fake.paused, "enabled, though a person had disabled it"
        resumed = [one for one in fake.resumes[self.seen :] if one["ref"] == self.ref]
        self.seen = len(fake.resumes)
        if resumed:
            assert not reference.asked, "resumed while something held it"
        asked = await self.rows(f"actions WHERE {self.of_workflow} AND state <> 'superseded' ORDER BY created_at, id")
        assert (bool(asked) and asked[-1]["kind"] == PAUSE) == reference.asked
        pauses = sum(one["ref"] == self.ref for one in fake.pauses)
        resumes = sum(one["ref"] == self.ref for one in fake.resumes)
        assert resumes <= pauses
        if self.fair and not (asked and asked[-1]["state"] == "failed"):
            assert not await self.waiting()
            assert (self.ref in fake.paused) == (reference.asked or self.human)


async def ask_once(house: House) -> None:
    """One attempt at what is due, as the worker makes it, without deciding whom to tell: that is proved elsewhere."""
    async with begin(house.runtime.engine) as conn:
        claimed = await actions.claim(conn, None, lease=LEASE, limit=10)
    if claimed:
        ended = asyncio.Event()
        acting = Acting(house.runtime, ended.set)
        acting.start([action for action, _ in claimed], asyncio.get_running_loop().time())
        while acting.busy:
            await ended.wait()
            ended.clear()
        await acting.close()


async def tell_story(house: House, story: list[Any], *, others: bool, says_was_paused: bool) -> None:
    run = Run(house, others=others, says_was_paused=says_was_paused)
    await run.begin()
    # It begins with something to hold, and ends with an orchestrator that answers.
    for step in [("put", frozenset(ACCOUNTS), True, True, True), *story, ("weather", "fair"), ("wait",)]:
        await run.step(*step)
    for table in ("deadlines", "alert_news"):  # nobody waits for this story any more
        await house.run(f"DELETE FROM {table}")


@pytest.mark.timeout(3600 if LONG else 240)
def test_holds_are_what_the_reference_says(database_url: str, tmp_path: Path) -> None:
    progress = Progress("holds", every=20)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        house = runner.run(stack.enter_async_context(open_house(database_url, tmp_path / "house", rules=RULES_TEXT)))

        @profile(max(EXAMPLES // SHARE, STORIES_MIN))
        @given(STORIES, st.booleans(), st.booleans(), st.booleans())
        def prove(story: list[Any], others: bool, says_was_paused: bool, disabled: bool) -> None:
            progress.one_more()
            begins = ("human", disabled)
            runner.run(tell_story(house, [begins, *story], others=others, says_was_paused=says_was_paused))

        try:
            prove()
        finally:
            runner.run(stack.aclose())


def test_the_reference_is_read_at_once() -> None:
    text = (Path(__file__).parent / "holds_reference.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= REFERENCE_LINES_MAX
