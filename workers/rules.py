"""The rule-keeping part of the sweep: what changed in our folder is published, what a new set ended is closed to the last
episode, and a file or a rule that cannot be used is an alert.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from service import own_alerts, rule_changes, rule_sets
from service.observe import log as logger
from service.own_alerts import OwnAlert
from service.rule_failures import QUIET
from service.rules import Problem, Ruleset
from service.runtime import Runtime
from service.store import alerts as alert_store
from service.store import log, readers
from service.store import rule_sets as store
from service.store.rule_sets import RuleFile
from service.store.session import begin

ROUNDS_MAX = 50  # of one sweep; the next one goes on
SUMMARY_CHARS_MAX = 400
INVALID, FAILING = "rule-file-invalid", "rule-failing"


async def keep_rules(runtime: Runtime) -> None:
    await publish_folder(runtime)
    async with begin(runtime.engine) as conn:
        is_settled = settled(await store.state(conn))
        is_said = await are_said(conn, await wanted_now(conn, runtime))
    for _ in range(0 if is_settled else ROUNDS_MAX):
        if not await settle(runtime):
            break
    if not is_said:
        await speak(runtime)


async def publish_folder(runtime: Runtime) -> None:
    """A look that could not be committed is looked again at the next sweep."""
    sets = runtime.rule_sets
    look = sets.folder.look(datetime.now(UTC))  # the clock that files are saved by
    if look is None:
        return  # said by the book that is reloaded beside us
    if look.says_something:
        await rule_sets.warm(sets, look)
        async with begin(runtime.engine) as conn:
            made, out = await rule_sets.take_in(conn, sets, look, list(runtime.notifiers))
            await log.append(conn, out.decisions)
        if made is not None:
            logger.info("rules.published", version=made.version, rules=len(made.ruleset.rules))
    sets.folder.taken(look)


def settled(state: Row | None) -> bool:  # type: ignore[type-arg]
    return state is None or (state.settled and state.rejudge_since is None)


async def settle(runtime: Runtime) -> bool:
    """One step of what the set in force still leaves to do; False when nothing is left, or another worker is at it."""
    async with begin(runtime.engine) as conn:
        known = await runtime.rule_sets.current(conn)  # held before the row: in the order of who publishes
        state = await store.state_to_change(conn)
        if state is None:
            return False
        now = await readers.clock(conn)
        if not state.settled and not known.unread:
            out = await rule_changes.close_changed(conn, known.ruleset, now, list(runtime.notifiers))
            if await rule_changes.ended(conn, known.ruleset):
                await log.append(conn, out.decisions)
                return True
            await store.change_state(conn, settled=True)
            await log.append(conn, out.decisions)
            return state.rejudge_since is not None
        if state.rejudge_since is None:
            return False
        came_to = await rule_changes.rejudge_soon(conn, state.rejudge_since, state.rejudged_to or (), now)
        if came_to is None:
            await store.change_state(conn, rejudge_since=None, rejudged_to=None)
            return False
        await store.change_state(conn, rejudged_to=list(came_to))
        return True


async def speak(runtime: Runtime) -> None:
    """Opens and resolves our alerts about rules."""
    notifiers = list(runtime.notifiers)
    async with begin(runtime.engine) as conn:
        await runtime.rule_sets.current(conn)  # held before our own lock, as everybody takes them
        await own_alerts.lock(conn)
        wanted = await wanted_now(conn, runtime)
        now = await readers.clock(conn)
        decisions = (await own_alerts.open_own(conn, wanted, now=now, notifiers=notifiers)).decisions
        for rule_id in (INVALID, FAILING):
            keep = {own.about for own in wanted if own.rule_id == rule_id}
            closed = await own_alerts.close_own(conn, rule_id, keep=keep, now=now, notifiers=notifiers)
            decisions = [*decisions, *closed.decisions]
        await log.append(conn, decisions)


async def are_said(conn: AsyncConnection, wanted: Sequence[OwnAlert]) -> bool:
    said = {
        (rule_id, alert.group_key)
        for rule_id in (INVALID, FAILING)
        for alert in await alert_store.open_of_rule(conn, rule_id)
    }
    return said == {(own.rule_id, own.about) for own in wanted}


async def wanted_now(conn: AsyncConnection, runtime: Runtime) -> list[OwnAlert]:
    bad = await store.problems(conn)
    wanted = [invalid(file) for file in bad.values()]
    wanted += [unreadable_file(problem) for problem in runtime.rules.unreadable if problem.file not in bad]
    wanted += [unreadable(problem) for problem in runtime.rules.missing[:1]]
    failed = await store.failures(conn)
    if failed:
        now = await readers.clock(conn)
        ruleset = (await runtime.rule_sets.current(conn)).ruleset
        over = [row for row in failed if row.last_at <= now - QUIET or not is_in(ruleset, row)]
        await store.forget_failures(conn, {row.rule_id for row in over}, now)
        wanted += [failing(row) for row in failed if row not in over]
    return wanted


def is_in(ruleset: Ruleset, row: Row) -> bool:  # type: ignore[type-arg]
    """Whether what failed is still what is in force: an edit is a new beginning."""
    rule = ruleset.by_id.get(row.rule_id)
    return rule is not None and rule.version == row.rule_version


def invalid(file: RuleFile) -> OwnAlert:
    problems = (file.problem or "").splitlines()
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if file.text is None:
        left = "None of its rules is in force"
    elif file.good:
        left = "Its other rules are in force"
    else:
        left = "The rules it had before stay in force"
    return OwnAlert(
        rule_id=INVALID,
        about=file.name,
        severity="P2",
        summary=f"A rule file cannot be used as it was saved: {problems[0][:SUMMARY_CHARS_MAX]}{more}",
        what_to_do=f"Run `authwatch rules check` and save the file anew (last saved by {file.changed_by}). {left}.",
    )


def unreadable(problem: Problem) -> OwnAlert:
    return OwnAlert(
        rule_id=INVALID,
        about="the folder",
        severity="P2",
        summary=f"The rule files cannot be read: {problem.message}",
        what_to_do=f"The rules in force stay in force, and no edit is seen. {problem.mend or ''}".strip(),
    )


def unreadable_file(problem: Problem) -> OwnAlert:
    return OwnAlert(
        rule_id=INVALID,
        about=problem.file,
        severity="P2",
        summary=f"The rule file {problem.file} {problem.message}",
        what_to_do="Let the user that Authwatch runs as read it; it is tried again every second. The rules it had before"
        " stay in force meanwhile.",
    )


def failing(row: Row) -> OwnAlert:  # type: ignore[type-arg]
    return OwnAlert(
        rule_id=FAILING,
        about=row.rule_id,
        severity="P2",
        summary=f"Rule {row.rule_id} cannot be judged: {row.error}",
        what_to_do="The other rules go on. What it failed on is tried again every minute; the log says where it fails"
        " (`rule.failed`). Change the rule, or disable it until it is mended.",
    )
