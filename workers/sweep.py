"""The sweeping story, every second or so: what must be ahead of us is made, what we must notice is noticed, and we say
that we are alive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import httpx

from service import health, own_alerts, rule_sets
from service.grouped import TOO_MANY
from service.observe import log as logger
from service.runtime import Runtime
from service.store import alerts, groups, log, readers, rejected
from service.store.session import begin
from workers.conflicts import Looked, tell_conflicts
from workers.credentials import Looked as LookedAtCredentials
from workers.credentials import keep_credentials
from workers.drills import end_drills
from workers.every import Every
from workers.expire import let_go_expired
from workers.gauges import look_at_gauges
from workers.refusals import keep_refusals
from workers.rules import keep_rules
from workers.watch import Watch, watch

PARTITIONS_EVERY_SECONDS = 600.0
PRUNE_EVERY_SECONDS = 10.0
HEARTBEAT_EVERY_SECONDS = 60.0
HEARTBEAT_SECONDS_MAX = 10
GROUPS_SLACK = timedelta(hours=1)


@dataclass(slots=True)
class Sweep:
    """What the last sweep left behind in this process; nothing here is truth."""

    partitions: Every = field(default_factory=lambda: Every(PARTITIONS_EVERY_SECONDS))
    heartbeat: Every = field(default_factory=lambda: Every(HEARTBEAT_EVERY_SECONDS))
    prune: Every = field(default_factory=lambda: Every(PRUNE_EVERY_SECONDS))
    rule_problems: tuple[str, ...] = field(default_factory=tuple)
    conflicts: Looked = field(default_factory=Looked)
    credentials: LookedAtCredentials = field(default_factory=LookedAtCredentials)
    watch: Watch = field(default_factory=Watch)


async def sweep(runtime: Runtime, last: Sweep) -> None:
    reload_rules(runtime, last)
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        await readers.beat(conn, "worker", now)
        await readers.beat(conn, "sweep", now)
    await let_go_expired(runtime)
    await keep_rules(runtime)
    await end_drills(runtime)
    await tell_conflicts(runtime, last.conflicts)
    if last.partitions.due:
        async with begin(runtime.engine) as conn:
            made = await log.ensure_partitions(conn)
            await log.mark(conn)
        last.partitions.done()
        if made:
            logger.info("partitions.made", count=made)
    if last.prune.due:
        last.prune.done()
        async with begin(runtime.engine) as conn:
            await rejected.prune(conn, now)
        await prune_groups(runtime)
    await watch(runtime, last.watch)
    await look_at_gauges(runtime)
    await keep_refusals(runtime)
    await keep_credentials(runtime, last.credentials)
    if runtime.settings.heartbeat_url is not None and last.heartbeat.due:
        last.heartbeat.done()
        await outside_heartbeat(runtime, runtime.settings.heartbeat_url.get_secret_value())


async def prune_groups(runtime: Runtime) -> None:
    """Samples and groups that no verdict can depend on any more. A transaction for each rule: none waits for another."""
    async with begin(runtime.engine) as conn:
        if await health.evaluation_lag_seconds(conn) > GROUPS_SLACK.total_seconds() / 2:
            return  # what is still to be judged may need what has grown old meanwhile
        ruleset = await rule_sets.in_force(conn, runtime)
        gone = await groups.rules_gone(conn, [rule.id for rule in ruleset.grouped])
    for rule in ruleset.grouped:
        async with begin(runtime.engine) as conn:
            await groups.prune(conn, rule.id, rule.lookback + rule.allowed_lateness + GROUPS_SLACK)
    for rule_id in gone:
        async with begin(runtime.engine) as conn:
            await groups.prune(conn, rule_id, GROUPS_SLACK)
    async with begin(runtime.engine) as conn:
        full = {alert.group_key for alert in await alerts.open_of_rule(conn, TOO_MANY)}
        if not full:
            return
        await own_alerts.lock(conn)
        counts = await groups.counts(conn, full)
        keep = {rule_id for rule_id in full if counts.get(rule_id, 0) >= groups.GROUP_MAX}
        now = await readers.clock(conn)
        out = await own_alerts.close_own(conn, TOO_MANY, keep=keep, now=now, notifiers=list(runtime.notifiers))
        await log.append(conn, out.decisions)


def reload_rules(runtime: Runtime, last: Sweep) -> None:
    """A mistake leaves the last good rules of its file in force, and is said once."""
    problems = tuple(str(problem) for problem in runtime.rules.reload())
    if problems != last.rule_problems:
        for problem in problems:
            logger.error("rules.mistake", problem=problem)
        if not problems:
            logger.info("rules.good", rules=len(runtime.rules.rules), version=runtime.rules.version)
        last.rule_problems = problems


async def outside_heartbeat(runtime: Runtime, url: str) -> None:
    """Called only while evaluator, actions and sweep are current, so that a watchdog outside notices our own death."""
    async with begin(runtime.engine) as conn:
        report = await health.report(conn, list(runtime.sinks), list(runtime.notifiers))
    if not report["current"]:
        logger.warning("heartbeat.withheld", behind=report["behind"])
        return
    try:
        answer = await runtime.http.get(url, timeout=HEARTBEAT_SECONDS_MAX)
        if answer.status_code >= 400:
            logger.warning("heartbeat.refused", status=answer.status_code)
    except httpx.HTTPError as exc:
        logger.warning("heartbeat.failed", error=type(exc).__name__)
