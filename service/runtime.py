"""Everything built once, in order, and closed in reverse: what a receiver or a worker process holds."""

from __future__ import annotations

import asyncio
import mmap
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from service import notify, observe, orchestrators, outbound, queue, sinks
from service.commit import Committer, Waiting
from service.errors import ConfigError
from service.exposition import Seen
from service.gate_tokens import VerifiedTokens
from service.notify.base import Notifier
from service.observe import log
from service.orchestrators.base import Orchestrator
from service.queue import Nudger
from service.refusing import Refusing
from service.rejections import Rejections
from service.report import TokenRefresh, ToolCall
from service.reporting import Reporting, keep_token_refreshes, keep_tool_calls
from service.rule_sets import RuleSets
from service.rules import RuleBook
from service.settings import Settings, explain
from service.sinks.base import Closing, Sink, wants_of
from service.sinks.matching import Wants
from service.sources import Sources, open_sources
from service.store import log as log_store
from service.store.pipeline import open_pipeline
from service.store.secrets import SecretUses
from service.store.session import begin, open_engine

RECEIVER_CONNECTIONS_MAX = 12
WORKER_CONNECTIONS_MAX = 10
LAST_WORDS_SECONDS = 2.0


PACE_EVENTS = 500


@dataclass(slots=True)
class Pace:
    """How many events this process evaluates at once: as many as it gets done in the time it may take, and fewer after a
    batch that failed, so that one that is too much for the database comes again smaller and not for ever."""

    events: int = PACE_EVENTS
    # A byte in memory that a fork shares: who judges says it, who acts minds it, and they are processes apart.
    _many: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1))

    @property
    def many(self) -> bool:
        """The last page was no trickle: pauses first, messages a few at a time meanwhile."""
        return self._many[0] != 0

    @many.setter
    def many(self, many: bool) -> None:
        self._many[0] = int(many)

    @contextmanager
    def kept(self, seconds_max: float, least: int, most: int) -> Iterator[None]:
        began, done = time.monotonic(), False
        try:
            yield
            done = True
        finally:
            took = time.monotonic() - began
            if not done or took > seconds_max:
                self.events = max(least, self.events // 2)
            elif took < seconds_max / 4:
                self.events = min(most, self.events * 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    settings: Settings
    engine: AsyncEngine
    committer: Committer
    tool_calls: Reporting[ToolCall]
    token_refreshes: Reporting[TokenRefresh]
    nudger: Nudger
    rules: RuleBook  # the folder's own, as the commands read it; `rule_sets.in_force` is what is judged by
    rule_sets: RuleSets
    sources: Sources
    uses: SecretUses
    rejections: Rejections
    notifiers: dict[str, Notifier]
    sinks: dict[str, Sink]
    wants: dict[str, Wants]  # of the log, by sink
    orchestrators: dict[str, Orchestrator]
    http: httpx.AsyncClient
    pace: Pace = field(default_factory=Pace)
    seen: Seen = field(default_factory=Seen)
    verified: VerifiedTokens = field(default_factory=VerifiedTokens)
    refusing: Refusing = field(default_factory=Refusing)
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)  # with what stood before this config file

    @property
    def public_url(self) -> str:
        return self.settings.public_url or ""


@asynccontextmanager
async def open_runtime(
    settings: Settings, *, connections_max: int, pace: Pace | None = None, receives: bool = True
) -> AsyncIterator[Runtime]:
    """Raises ConfigError before anything is opened for good. The database need not be there yet. `pace`: one that other
    processes have too; `receives`: a connection that takes receipts is held open."""
    async with AsyncExitStack() as stack:
        engine = open_engine(settings.database_url.get_secret_value(), connections_max=connections_max)
        stack.push_async_callback(engine.dispose)
        http = await stack.enter_async_context(outbound.open_client())
        nudger = Nudger(settings.redis_url.get_secret_value() if settings.redis_url else None)
        committer = Committer(
            connect=partial(open_pipeline, settings.database_url.get_secret_value()),
            make_partitions=partial(make_partitions, engine),
            on_commit=partial(committed, nudger),
        )
        beside: dict[str, Any] = {
            "make_partitions": partial(make_partitions, engine),
            "nudge": partial(nudger.nudge, queue.EVALUATE),
        }
        rules = RuleBook(settings.rules_folder)
        mistakes = rules.reload()
        for mistake in mistakes if receives else ():  # those of a worker's folder are said by its sweep, once
            log.error("rules.mistake", problem=str(mistake))
        runtime = Runtime(
            settings=settings,
            engine=engine,
            committer=committer,
            tool_calls=Reporting(engine, keep_tool_calls, **beside),
            token_refreshes=Reporting(engine, keep_token_refreshes, **beside),
            nudger=nudger,
            rules=rules,
            rule_sets=RuleSets(settings.rules_folder),
            sources=Sources(open_sources(settings.sources)),
            uses=SecretUses(),
            rejections=Rejections(),
            notifiers={
                name: open_plug_in("notifiers", notify.NOTIFIERS, name, section, http)
                for name, section in settings.notifiers.items()
            },
            sinks={
                name: open_plug_in("sinks", sinks.SINKS, name, section, http)
                for name, section in settings.sinks.items()
            },
            wants={name: wants_of(section) for name, section in settings.sinks.items()},
            orchestrators={
                name: open_plug_in("orchestrators", orchestrators.ORCHESTRATORS, name, section, http)
                for name, section in settings.orchestrators.items()
            },
            http=http,
            pace=pace or Pace(),
        )
        for sink in runtime.sinks.values():
            if isinstance(sink, Closing):
                stack.push_async_callback(sink.aclose)
        if receives:
            stack.push_async_callback(stop, asyncio.create_task(committer.run(), name="committer"))
        stack.push_async_callback(stop, asyncio.create_task(nudger.run(), name="nudger"))
        yield runtime


def open_plug_in(
    where: str, registry: Mapping[str, Any], name: str, section: Mapping[str, Any], http: httpx.AsyncClient
) -> Any:
    """A config section becomes what its `kind` says; the plug-in's own Config validates it, and no value is echoed."""
    kind = registry.get(str(section.get("kind")))
    if kind is None:
        raise ConfigError(f"{where}.{name}.kind is missing or unknown; known: {', '.join(registry)}")
    try:
        config = kind.Config.model_validate({**section, "name": name})
    except ValidationError as exc:
        raise ConfigError(f"{where}.{name}: {explain(exc, kind.Config)}") from None
    return kind.open(config, http)


def committed(nudger: Nudger, batch: Sequence[Waiting]) -> None:
    """After each commit: the workers are told, and what came in is counted."""
    nudger.nudge(queue.EVALUATE)
    now, done_at = datetime.now(UTC), time.monotonic()
    seconds: dict[int, list[float]] = {}
    lags: dict[tuple[str, str], list[float]] = {}
    accepted: Counter[tuple[str, str]] = Counter()
    for one in batch:
        receipt, kept = one.receipt, one.kept
        seconds.setdefault(202 if kept.accepted else 200, []).append(done_at - one.since)
        if not kept.accepted:
            observe.duplicates_total.labels(receipt.source, str(kept.same_body).lower()).inc()
            continue
        event = receipt.event
        what = receipt.source, event.kind
        accepted[what] += 1
        if event.occurred_at is not None and receipt.origin == "webhook":
            lags.setdefault(what, []).append(max(0.0, (now - event.occurred_at).total_seconds()))
    for status, of_status in seconds.items():
        observe.answered(status).observe_all(of_status)
    for (_, kind), of_kind in lags.items():
        observe.lag(kind).observe_all(of_kind)
    for (source, kind), count in accepted.items():
        observe.accepted(source, kind).inc(count)


async def make_partitions(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        await log_store.ensure_partitions(conn)


async def last_words(writing: Awaitable[None]) -> None:
    """What would be good to have written before the end. It is advice and counts, and a database that is out of reach
    must not hold up the stop: whoever asked for it ends us by force soon."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            await writing


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
