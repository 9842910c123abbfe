"""What becomes of a click on one of our buttons in Slack, top to bottom: verify, read, ask who may, do it as the API
would, answer Slack, tell the clicker.

Slack waits three seconds and shows nobody what the answer says. So the answer waits for the deed, for a while, and what
came of it goes to the clicker alone by the click's response_url. A deed is done once however often its click comes: what
an acknowledged or resolved alert, a snooze or a lifted hold already says is not said again, and a click lifts only holds
that were there when Slack signed it. The memory of it is Postgres, so any process may get the second click.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service import queue, rule_sets, steer
from service.clicks import links, reply
from service.clicks.payload import Click, read_click
from service.clicks.people import People, clickable
from service.clicks.reply import Said
from service.clicks.signature import verify
from service.errors import AuthwatchError, DeliveryFailed, NotFound, Unavailable
from service.notify.slack import SlackConfig
from service.observe import log
from service.provider_apis import open_api
from service.runtime import Runtime
from service.slack_settings import signing_secrets
from service.steer import Context
from service.store import alerts, workflows
from service.store.session import begin
from service.store.workflows import Hold

ANSWER_SECONDS_MAX = 2.0  # of Slack's three; the rest is for the way
# Of each statement: the server gives up, what was begun is rolled back, and the connection is as good as before.
STATEMENT_MS_MAX = 1500
TRANSACTION_SECONDS_MAX = 5.0  # where the server itself hangs
CLICK_SECONDS_MAX = 20.0  # of all that one click may take, after the answer too
CLICKS_MAX = 50  # on their way in one process
STOP_SECONDS_MAX = 3.0
SNOOZE = timedelta(hours=1)
SNOOZE_SAME = timedelta(minutes=1)  # a snooze that ends this near is the one that the click asks for
# Slack signs by its clock, in whole seconds, and holds are placed by the database's.
CLOCKS_APART = timedelta(seconds=10)
WORKFLOWS_NAMED_MAX = 10
SHORT = text(f"SET LOCAL statement_timeout = {STATEMENT_MS_MAX}")


@dataclass(frozen=True, slots=True)
class Doer:
    """What one kind of click needs to be done: the process, the click, and its alert's id."""

    runtime: Runtime
    click: Click
    alert_id: str

    @property
    def context(self) -> Context:
        return Context(
            actor=self.click.actor,
            notifiers=list(self.runtime.notifiers),
            orchestrators=list(self.runtime.orchestrators),
        )


@asynccontextmanager
async def bounded(runtime: Runtime) -> AsyncIterator[AsyncConnection]:
    async with begin(runtime.engine, seconds_max=TRANSACTION_SECONDS_MAX) as conn:
        await conn.execute(SHORT)
        yield conn


async def acknowledge(doer: Doer) -> Said:
    async with bounded(doer.runtime) as conn:
        alert = await steer.acknowledge_alert(conn, doer.alert_id, doer.context)
    return Said("acknowledged", f"Acknowledged by {alert.acknowledged_by}: {alert.summary}")


async def snooze(doer: Doer) -> Said:
    until = doer.click.at + SNOOZE
    async with bounded(doer.runtime) as conn:
        alert, _ = await steer.open_alert(conn, doer.alert_id)
        asleep_until = alert.snoozed_until if alert.state != "resolved" else None
        if asleep_until is None or asleep_until < until - SNOOZE_SAME:
            alert = await steer.snooze_alert(conn, doer.alert_id, until, doer.context)
    assert alert.snoozed_until is not None
    return Said("snoozed", f"Snoozed until {alert.snoozed_until:%H:%M} UTC, pauses stay: {alert.summary}")


async def resolve(doer: Doer) -> Said:
    async with bounded(doer.runtime) as conn:
        ruleset = await rule_sets.in_force(conn, doer.runtime)
        alert = await steer.resolve_alert(conn, doer.alert_id, replace(doer.context, ruleset=ruleset))
    return Said("resolved", f"Resolved. What it paused stays so until the account is well, or Resume: {alert.summary}")


async def resume(doer: Doer) -> Said:
    """One transaction for each workflow, because each has its own locks. Only this alert's holds: who reads of one trouble
    does not know of another that holds the same workflow."""
    upto = doer.click.at + CLOCKS_APART

    def meant(hold: Hold) -> bool:
        return hold.alert_id == doer.alert_id and hold.placed_at <= upto

    async with bounded(doer.runtime) as conn:
        if await alerts.load(conn, doer.alert_id) is None:
            raise NotFound("no alert of that id", code="unknown_alert")
        standing = await workflows.open_holds(conn, alert_ids=[doer.alert_id])
    reason = f"resumed from Slack, on alert {doer.alert_id}"
    for workflow_id in sorted({hold.workflow_id for hold in standing if meant(hold)}):
        async with bounded(doer.runtime) as conn:
            await steer.resume_workflow(conn, workflow_id, reason, doer.context, which=meant)
    async with bounded(doer.runtime) as conn:
        of_alert = await workflows.holds_of_alert(conn, doer.alert_id)
        lifted = {hold.workflow_id for hold in of_alert if hold.release_reason == "person"}
        still = {hold.workflow_id for hold in await workflows.open_holds(conn, workflow_ids=lifted)}
    if not lifted and standing:
        return Said("older_than_the_pause", "Paused anew since that click, so nothing was done. Click again.")
    if not lifted:
        return Said("nothing_held", "Nothing is paused because of this alert any more.")
    words = f"Resumed: {named(lifted - still)}. " if lifted - still else ""
    words += f"Still paused, by something else: {named(still)}." if still else ""
    return Said("resumed", words.strip())


async def reauthorize(doer: Doer) -> Said:
    api = open_api(doer.runtime.settings, doer.runtime.http)
    if api is None:
        return Said(
            "no_provider_api",
            "Authwatch cannot make a link: whoever runs it can set SCALEKIT_ENV_URL, SCALEKIT_CLIENT_ID and"
            " SCALEKIT_CLIENT_SECRET. Until then make it in the provider's own dashboard.",
        )
    async with bounded(doer.runtime) as conn:
        wanted = await links.ask_for(conn, doer.click, doer.alert_id, api, doer.runtime.settings)
    if wanted.asked_before:
        again = int(links.AGAIN_AFTER.total_seconds())
        return Said("asked_before", f"You asked for a link a moment ago. If none came, click again in {again} s.")
    try:
        link = await api.reauthorization_link(wanted.key.account_id)
    except DeliveryFailed as exc:
        return Said(f"link_{exc.code}", links.words_of_failure(exc, wanted))
    return Said("link", links.words(wanted, link.expires_at), link.url)


DEEDS = {
    "acknowledge": acknowledge,
    "snooze": snooze,
    "resolve": resolve,
    "resume": resume,
    "reauthorize": reauthorize,
}


class Interactions:
    """A process's clicks on their way."""

    def __init__(self, runtime: Runtime, notifiers: Sequence[SlackConfig]) -> None:
        self._runtime = runtime
        self._notifiers = {config.name: config for config in notifiers}
        self._secrets = {
            name: signing_secrets(config.signing_secret)
            for name, config in self._notifiers.items()
            if config.signing_secret is not None
        }
        self._people = People(runtime.http)
        self._running: set[asyncio.Task[None]] = set()

    @property
    def switched_on(self) -> bool:
        return bool(self._secrets)

    async def take(self, headers: Sequence[tuple[bytes, bytes]], body: bytes, now: datetime) -> None:
        """Returns once the click is done, or its time to be answered is over: it then goes on by itself. Raises
        SignatureInvalid for what is not from Slack, and Unavailable when too many are on their way."""
        verified = verify(headers, body, self._secrets, now)
        click = read_click(body, verified.at)
        if click is None:
            return
        if len(self._running) >= CLICKS_MAX:
            raise Unavailable("too many clicks are on their way; click again", code="too_many_clicks")
        done = asyncio.Event()
        task = asyncio.create_task(self._follow(click, [self._notifiers[name] for name in verified.by], done))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await done.wait()
        except TimeoutError:
            log.info("slack.click_goes_on", action=click.action)

    async def stop(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_SECONDS_MAX)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _follow(self, click: Click, notifiers: Sequence[SlackConfig], done: asyncio.Event) -> None:
        try:
            said = await self._done(click, notifiers)
        finally:
            done.set()
        log.info("slack.click", action=click.action, alert=click.alert_id, user=click.user_id, outcome=said.code)
        await reply.say(self._runtime.http, click.response_url, notifiers, said)

    async def _done(self, click: Click, notifiers: Sequence[SlackConfig]) -> Said:
        try:
            async with asyncio.timeout(CLICK_SECONDS_MAX):
                await self._people.permit(click, notifiers)
                if click.alert_id is None:
                    raise NotFound("no alert of that id", code="unknown_alert")
                said = await DEEDS[click.action](Doer(self._runtime, click, click.alert_id))
        except AuthwatchError as exc:
            return Said(exc.code, WORDS.get(exc.code, str(exc)))
        except TimeoutError:
            return Said("too_slow", "Authwatch did not get it done in time. Click again in a minute.")
        except Exception as exc:  # noqa: BLE001 - the edge: a bug of ours is an answer too
            log.error("slack.click_crashed", action=click.action, error=type(exc).__name__, exc_info=exc)
            return Said("crashed", "Something went wrong in Authwatch, and it is logged there. Click again.")
        # As the API does after its commits: actions may wait, deadlines may be new, and the log has grown.
        for job in (queue.ACT, queue.EVALUATE, queue.SHIP):
            self._runtime.nudger.nudge(job)
        return said


WORDS = {
    "unknown_alert": "Authwatch knows no such alert: it was deleted, or this message is another installation's.",
    "already_resolved": "This alert is already resolved; nothing is left to do here.",
    "unknown_workflow": "A workflow of this alert was deleted meanwhile. Click again for the others.",
    "database_unavailable": "Authwatch cannot do it now: its database does not take it. Click again in a minute.",
}


def named(workflow_ids: set[str]) -> str:
    shown = sorted(workflow_ids)[:WORKFLOWS_NAMED_MAX]
    more = len(workflow_ids) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


@asynccontextmanager
async def answered(runtime: Runtime) -> AsyncIterator[Interactions]:
    """While open, clicks are taken; at the end those on their way have a moment to get done."""
    interactions = Interactions(runtime, clickable(runtime.settings))
    try:
        yield interactions
    finally:
        await interactions.stop()
