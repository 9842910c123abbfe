"""One house whose worker dies at a chosen step of an effect: what was to be done, where it was struck, and what is wrong.

The effects are made by the stories in this process; they are carried out by a real worker process, which is killed with
SIGKILL while the other side, or the database, keeps it waiting at exactly that step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from service import steer
from service.store.session import begin
from tests.crash.forked import Worker
from tests.end_to_end.running import until
from tests.fakes import serve
from tests.fakes.door import Came, Door
from tests.fakes.pagerduty import ROUTING_KEY, FakePagerDuty
from tests.fakes.slack import CHANNEL, TOKEN
from tests.workers.house import House, open_house
from workers.act import act
from workers.decide import decide

CALLS = {
    "pause": "workflow.pause",
    "resume": "workflow.resume",
    "post": "chat.postMessage",
    "edit": "chat.update",
    "page": "trigger",
}
EFFECTS = tuple(CALLS)
# claimed: it is ours and asked for, and the other side has done nothing of it. sent: it is done there, and the answer has
# not come. answered: it has come, and is about to be written down. recorded: it is, and the next of its lane is not begun.
POINTS = ("claimed", "sent", "answered", "recorded")
UNSEEN = ("sent", "answered")  # done there, and we died without having written it down
REACH_SECONDS, SETTLE_SECONDS = 120.0, 120.0
HISTORY, POST = "conversations.history", CALLS["post"]
# By effect, what its workflow's orchestrator is asked in all: with what comes before the effect and after it.
ASKED = {
    "pause": ["workflow.pause", "workflow.resume"],
    "resume": ["workflow.pause", "workflow.resume", "workflow.pause"],
}
SETTLED = """
    SELECT coalesce((SELECT position FROM readers WHERE name = 'evaluator'), 0)
            = (SELECT coalesce(max(position), 0) FROM events)
        AND NOT EXISTS (SELECT FROM actions WHERE state IN ('pending', 'running'))
        AND NOT EXISTS (SELECT FROM alert_news) AND NOT EXISTS (SELECT FROM deadlines)
"""
RUNNING = "SELECT id::text FROM actions WHERE state = 'running'"
NEXT = "SELECT id::text FROM actions WHERE state = 'pending' AND lane = ANY(ARRAY(SELECT lane FROM actions WHERE state = 'running'))"
WRITING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'authwatch' AND wait_event_type = 'Lock'
"""
END_LEASES = "UPDATE actions SET lease_until = now(), next_attempt_at = now() WHERE state = 'running' RETURNING id"
OUTCOMES = """
    SELECT a.id::text, array_agg(coalesce(t.outcome, 'under way') ORDER BY t.number) FROM actions a
    JOIN attempts t ON t.action_id = a.id WHERE a.id = ANY(%s::uuid[]) GROUP BY a.id
"""
# Alerts whose first message was under way when the worker died.
STRUCK_POSTS = """
    SELECT a.alert_id::text FROM actions a WHERE a.kind = 'notify' AND a.id = ANY(%s::uuid[])
        AND NOT EXISTS (SELECT FROM actions e WHERE e.lane = a.lane AND (e.created_at, e.id) < (a.created_at, a.id))
"""


@dataclass(slots=True)
class Scene:
    house: House
    pager: FakePagerDuty
    door: Door
    worker: Worker
    url: str
    struck: list[str] = field(default_factory=list)  # ids of the actions that were under way when it died
    met: list[Came] = field(default_factory=list)  # what it had asked of the others by then
    after: int = 0  # of all that came, how much had by then

    async def connect(self, *, autocommit: bool = True) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        return await psycopg.AsyncConnection.connect(self.url, autocommit=autocommit)

    async def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        async with await self.connect() as conn:
            return await (await conn.execute(statement.encode(), values or None)).fetchall()

    async def alert_of(self, effect: str) -> str:
        [alert] = await self.house.rows(f"SELECT id FROM alerts WHERE account_id = 'ca_{effect}'")
        return str(alert["id"])

    async def told(self, what: str, effect: str) -> None:
        # A connection of its own for each: what breaks together because of one would be one message.
        await self.house.told(what, account=f"ca_{effect}", connection=f"conn_{effect}")


@asynccontextmanager
async def open_scene(database_url: str, folder: Path, *, history: bool) -> AsyncIterator[Scene]:
    """`history`: whether the bot may read the channel's. No worker yet."""
    pager, door = FakePagerDuty(), Door()
    pager.app.add_middleware(door.before)
    async with (
        serve(pager.app) as pager_url,
        open_house(database_url, folder / "house", config=paging(pager_url)) as house,
    ):
        for app in (house.slack.app, house.orchestrator.app):
            app.add_middleware(door.before)
        if not history:
            house.slack.scopes.discard("channels:history")
        worker = Worker(
            folder,
            {
                "DATABASE_URL": database_url,
                "AUTHWATCH_RULES": str(folder / "house" / "rules"),
                "AUTHWATCH_CONFIG": str(folder / "house" / "config.yaml"),
                "SLACK_BOT_TOKEN": TOKEN,
                "SLACK_CHANNEL": CHANNEL,
                "SLACK_API_URL": f"{house.slack.url}/api/",
            },
        )
        try:
            yield Scene(house, pager, door, worker, database_url)
        finally:
            door.let_go()
            worker.stop()


def paging(pager_url: str) -> dict[str, Any]:
    """One account's alerts are told to the pager alone, all others to Slack."""
    return {
        "notifiers": {
            "slack": {
                "kind": "slack",
                "token": "${SLACK_BOT_TOKEN}",
                "channel": CHANNEL,
                "api_url": "${SLACK_API_URL}",
            },
            "pager": {"kind": "pagerduty", "routing_key": ROUTING_KEY, "url": pager_url},
        },
        "receivers": [{"name": "slack"}, {"name": "pager"}],
        "route": {"receiver": "slack", "routes": [{"matchers": ["account_id=ca_page"], "receiver": "pager"}]},
    }


async def make(scene: Scene, effects: Collection[str]) -> None:
    """Each effect is the next thing to be done, about an account and a workflow of its own."""
    house = scene.house
    for effect in effects:
        await house.put(f"w_{effect}", account_ids=[f"ca_{effect}"], ref=f"flow_{effect}" if effect in ASKED else None)
        if effect in ("resume", "edit"):
            await scene.told("DISCONNECTED", effect)
    await decide(house.runtime)
    await act(house.runtime)
    for effect in effects:
        if effect == "resume":
            await house.resume("w_resume")
        elif effect == "edit":
            async with begin(house.runtime.engine) as conn:
                await steer.acknowledge_alert(conn, await scene.alert_of("edit"), house.context)
        else:
            await scene.told("DISCONNECTED", effect)


async def go_on(scene: Scene, effect: str) -> None:
    """What comes next in the same lane."""
    if effect == "pause":
        await scene.house.resume("w_pause")
    elif effect == "resume":
        await scene.house.pause("w_resume")
    else:
        await scene.told("ACTIVE", effect)


async def die(scene: Scene, effects: Collection[str], point: str) -> None:
    """A worker begins these effects and is killed at this point; nothing of it runs any more after that."""
    wanted, earlier = {CALLS[effect] for effect in effects}, len(scene.door.came)
    scene.door.hold.update(dict.fromkeys(wanted, "before" if point == "claimed" else "after"))
    scene.worker.start()

    async def all_held() -> bool:
        """And whatever else was to be done is done."""
        scene.struck = [row[0] for row in await scene.ask(RUNNING)]
        return wanted <= set(scene.door.held) and len(scene.struck) == len(scene.door.held)

    await until(all_held, REACH_SECONDS, scene.worker.logs)
    if point == "answered":
        await die_answered(scene)
    elif point == "recorded":
        await die_recorded(scene, effects)
    else:
        scene.worker.kill()
    scene.after = len(scene.door.came)
    scene.met = [one for one in scene.door.came[earlier:] if one.call in wanted]
    scene.door.let_go()
    # Its leases run for a minute, and nobody holds them: that minute is not waited for.
    await scene.ask(END_LEASES)
    await scene.ask("UPDATE readers SET lease_until = NULL RETURNING name")


async def die_answered(scene: Scene) -> None:
    """The rows it is to write are locked: it dies at the first of them, and its transaction with it."""
    async with await scene.connect(autocommit=False) as lock:
        await lock.execute(f"{RUNNING} FOR UPDATE".encode())
        scene.door.let_go()
        writing: list[tuple[Any, ...]] = []

        async def waits() -> bool:
            writing[:] = await scene.ask(WRITING)
            return bool(writing)

        await until(waits, REACH_SECONDS, scene.worker.logs)
        scene.worker.kill()
        for (pid,) in writing:  # Postgres has not heard yet that its client is gone
            await scene.ask("SELECT pg_terminate_backend(%s, 5000)", pid)


async def die_recorded(scene: Scene, effects: Collection[str]) -> None:
    """The next of each lane is locked, which a claim steps over: it dies with the first written and the next not begun."""
    for effect in effects:
        await go_on(scene, effect)

    async def all_next() -> bool:
        return len(await scene.ask(NEXT)) >= len(effects)

    await until(all_next, REACH_SECONDS, scene.worker.logs)
    async with await scene.connect(autocommit=False) as lock:
        await lock.execute(f"{NEXT} FOR UPDATE".encode())
        scene.door.let_go()

        async def recorded() -> bool:
            return not await scene.ask(RUNNING)

        await until(recorded, REACH_SECONDS, scene.worker.logs)
        scene.worker.kill()


async def recover(scene: Scene, effects: Collection[str], point: str) -> None:
    """Another worker does what is left, then what comes next, and in the end there is nothing to do."""
    scene.worker.start()
    if point != "recorded":
        await settled(scene)
        for effect in effects:
            await go_on(scene, effect)
    await settled(scene)
    scene.worker.kill()


async def settled(scene: Scene) -> None:
    async def all_done() -> bool:
        return bool((await scene.ask(SETTLED))[0][0])

    await until(all_done, SETTLE_SECONDS, scene.worker.logs)


async def problems(scene: Scene, effects: Collection[str], point: str, *, history: bool) -> list[str]:
    """What was not done exactly once; nothing, if all is well."""
    posts = {row[0] for row in await scene.ask(STRUCK_POSTS, scene.struck)}
    found = [] if point == "recorded" else missed(scene, point)
    for effect in effects:
        if effect in ASKED:
            found += asked(scene, effect)
        alert_id = await scene.alert_of(effect)
        if effect == "page":
            found += pages(scene, alert_id)
            continue
        twice = alert_id in posts and point in UNSEEN and not history
        found += messages(scene, effect, alert_id, wanted=2 if twice else 1)
    if "post" in effects:
        found += looked(scene, point, history=history)
    return found + await attempts(scene, point)


def missed(scene: Scene, point: str) -> list[str]:
    """The blow fell where it was meant to: before the other side had done it, or after."""
    done = [one.let_in for one in scene.met]
    return [] if done and set(done) == {point in UNSEEN} else [f"{point}: the other side's work was {done}"]


def asked(scene: Scene, effect: str) -> list[str]:
    """One key, one thing asked: a second key is a second pause, whatever the first one's answer was."""
    fake, kinds = scene.house.orchestrator, dict[str, str]()
    for headers, said in fake.requests:
        if said["data"]["workflow_id"] == f"w_{effect}":
            kinds.setdefault(headers["webhook-id"], said["type"])
    worked = Counter(one["idempotency_key"] for one in (*fake.pauses, *fake.resumes))
    found = [f"done twice under one key: {key}" for key, times in worked.items() if times > 1]
    if list(kinds.values()) != ASKED[effect]:
        found.append(f"{effect}: the orchestrator was asked {list(kinds.values())}, and not {ASKED[effect]}")
    return found + [f"the orchestrator refused: {why}" for why in fake.refused]


def messages(scene: Scene, effect: str, alert_id: str, *, wanted: int) -> list[str]:
    """Of the effect's alert: how many there are in the channel, and what the last of them says."""
    slack, mine = scene.house.slack, []
    for message in slack.messages:
        if message.get("metadata", {}).get("event_payload", {}).get("delivery_id") == f"{alert_id}:slack":
            mine.append(message)
    if len(mine) != wanted:
        return [f"{effect}: {len(mine)} messages about its alert, and not {wanted}"]
    said = slack.text_of(mine[-1])
    if effect not in ASKED and "resolved" not in said.lower():
        return [f"{effect}: its last message does not say that it is over: {said}"]
    return []


def pages(scene: Scene, alert_id: str) -> list[str]:
    """One incident under the alert's own key, one page, and in the end it is resolved."""
    pager = scene.pager
    found = [f"page: {len(pager.pages)} people were paged, and not one"] if len(pager.pages) != 1 else []
    if [(one.key, one.state) for one in pager.incidents] != [(f"authwatch:{alert_id}", "resolved")]:
        found.append(f"page: its incidents are {[(one.key, one.state) for one in pager.incidents]}")
    return found


def looked(scene: Scene, point: str, *, history: bool) -> list[str]:
    """After a death of which nobody knows what it left, the history is asked before anything is posted again; and where
    it cannot be read, what is posted is marked."""
    came = [
        one for one in scene.door.came[scene.after :] if one.call in (HISTORY, POST) and not one.said.get("thread_ts")
    ]
    posts = [one for one in came if one.call == POST]
    if point == "recorded":
        return [f"{len(posts)} messages posted again that were recorded"] if posts else []
    if not came or came[0].call != HISTORY:
        return ["the history was not asked first"]
    if history and point in UNSEEN:
        return [f"{len(posts)} messages posted again that the history shows"] if posts else []
    wrong = [one for one in posts if ("repeat" in str(one.said).lower()) is history]
    return [f"{len(wrong)} messages {'' if history else 'not '}marked as possible repeats"] if wrong else []


async def attempts(scene: Scene, point: str) -> list[str]:
    """The ledger says what became of each try that the death cut off."""
    wanted = ["done"] if point == "recorded" else ["ambiguous", "done"]
    rows = await scene.ask(OUTCOMES, scene.struck)
    found = [f"attempts of action {name}: {outcomes}, not {wanted}" for name, outcomes in rows if outcomes != wanted]
    return found if rows else ["nothing was under way when the worker died"]
