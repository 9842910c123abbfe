"""Pauses on a real Temporal server: the work stops and starts again, and what people did there stays as they did it.

Straight from the plug-in: what Authwatch makes of its answers is proven in tests/workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import DeliveryFailed
from service.orchestrators.base import Answer
from service.orchestrators.temporal import NOTE_BYTES_MAX, TemporalOrchestrator
from service.orchestrators.temporal_client import TemporalConfig
from tests.orchestrators.real import say
from tests.orchestrators.temporal import NAMESPACE, PERIOD_SECONDS, Temporal, no_go

pytestmark = pytest.mark.skipif(no_go() is not None, reason=no_go() or "")

ASK: dict[str, Any] = {"workflow_id": "w1", "reason": "account ca_1 is DISCONNECTED"}
NOTE = "every second"
QUIET_SECONDS = 4 * PERIOD_SECONDS
STARTS_SECONDS_MAX = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Temporal]:
    server = Temporal(tmp_path_factory.mktemp("temporal"))
    say(f"temporal: starting {server.versions}")
    server.start()
    try:
        asyncio.run(server.ready())
        server._admin = None
        yield server
    finally:
        server.stop()


@pytest.fixture
def target(server: Temporal) -> TemporalOrchestrator:
    return opened(server, server.token(f"{NAMESPACE}:write"))


def opened(server: Temporal, key: str | Path, namespace: str = NAMESPACE) -> TemporalOrchestrator:
    where = {"api_key_file": str(key)} if isinstance(key, Path) else {"api_key": key}
    section = {"name": "ops", "address": server.address, "namespace": namespace, "tls": False, **where}
    return TemporalOrchestrator(TemporalConfig.model_validate(section))


async def paused(target: TemporalOrchestrator, ref: str, key: str = "") -> Answer:
    found = (await target.state(ref=ref)).as_found
    return await target.pause(ref=ref, **ASK, idempotency_key=key or f"pause-{ref}", found=found)


async def resumed(target: TemporalOrchestrator, ref: str, before: Answer) -> Answer:
    return await target.resume(ref=ref, **ASK, idempotency_key=f"resume-{ref}", prior_state=before.prior_state)


async def starts(server: Temporal, ref: str) -> None:
    """Until it has started another one."""
    await counts(server, ref, await server.works(ref) + 1)


async def counts(server: Temporal, ref: str, least: int) -> None:
    async with asyncio.timeout(STARTS_SECONDS_MAX):
        while True:
            if await server.works(ref) >= least:
                return
            await asyncio.sleep(0.2)


async def stands_still(server: Temporal, ref: str) -> None:
    await asyncio.sleep(PERIOD_SECONDS / 2)  # one that had begun before the pause is counted a moment later
    before = await server.works(ref)
    await asyncio.sleep(QUIET_SECONDS)
    assert await server.works(ref) == before


async def test_the_work_stops_and_starts_again_and_everything_is_as_it_was(
    server: Temporal, target: TemporalOrchestrator
) -> None:
    ref = await server.create("nightly", notes=NOTE)
    before = await server.looks(ref)
    await starts(server, ref)
    found = await paused(target, ref)
    assert (found.was_paused, (await target.state(ref=ref)).paused) == (False, True)
    await stands_still(server, ref)
    running = len((await server.info(ref)).running_workflows)
    assert running > 0  # what runs goes on

    count = await server.works(ref)
    await server.trigger(ref)  # and can be started by hand
    await counts(server, ref, count + 1)

    assert (await resumed(target, ref, found)).status == "resumed"
    assert await server.looks(ref) == before
    assert await server.works(ref) <= count + 3  # what fell due meanwhile is not made up for
    await starts(server, ref)


async def test_paused_by_a_person_first_it_stays_paused(server: Temporal, target: TemporalOrchestrator) -> None:
    ref = await server.create("theirs")
    await server.by_hand(ref, pause="maintenance")
    found = await paused(target, ref)
    assert found.was_paused is True
    assert (await resumed(target, ref, found)).status == "left"
    state = (await server.looks(ref)).state
    assert (state.paused, state.notes) == (True, "maintenance")


async def test_started_by_a_person_in_our_hold_it_is_left(server: Temporal, target: TemporalOrchestrator) -> None:
    ref = await server.create("impatient")
    found = await paused(target, ref)
    await server.by_hand(ref, unpause="we need it now")
    assert (await resumed(target, ref, found)).status == "left"
    state = (await server.looks(ref)).state
    assert (state.paused, state.notes) == (False, "we need it now")
    await starts(server, ref)


async def test_paused_again_by_a_person_in_our_hold_it_is_theirs(
    server: Temporal, target: TemporalOrchestrator
) -> None:
    ref = await server.create("keep-off")
    found = await paused(target, ref)
    await server.by_hand(ref, pause="not tonight")
    assert (await resumed(target, ref, found)).status == "left"
    state = (await server.looks(ref)).state
    assert (state.paused, state.notes) == (True, "not tonight")


async def test_where_there_was_no_note_the_resume_leaves_one(server: Temporal, target: TemporalOrchestrator) -> None:
    ref = await server.create("unnoted")
    assert (await resumed(target, ref, await paused(target, ref))).status == "resumed"
    state = (await server.looks(ref)).state
    assert (state.paused, state.notes) == (False, f"Resumed by Authwatch: {ASK['reason']}")


async def test_the_longest_note_is_taken(server: Temporal, target: TemporalOrchestrator) -> None:
    ref = await server.create("wordy")
    await target.pause(ref=ref, workflow_id="ü" * 2_000, reason="\U0001f534" * 2_000, idempotency_key="wordy")
    assert NOTE_BYTES_MAX - 4 < len((await server.looks(ref)).state.notes.encode()) <= NOTE_BYTES_MAX


async def test_deleted_in_our_hold_or_never_there_it_is_gone(server: Temporal, target: TemporalOrchestrator) -> None:
    ref = await server.create("short-lived")
    found = await paused(target, ref)
    await server.delete(ref)
    for call in (resumed(target, ref, found), target.state(ref=ref), paused(target, "never-there")):
        with pytest.raises(DeliveryFailed, match="no schedule") as caught:
            await call
        assert (caught.value.code, caught.value.permanent) == ("workflow_gone", True)


async def test_killed_between_the_call_and_its_record_it_is_asked_again_with_one_effect(
    server: Temporal, target: TemporalOrchestrator
) -> None:
    ref = await server.create("repeated", notes=NOTE)
    found = (await target.state(ref=ref)).as_found
    first = await target.pause(ref=ref, **ASK, idempotency_key="once", found=found)
    again = opened(server, server.token(f"{NAMESPACE}:write"))  # the worker that comes after
    assert await again.pause(ref=ref, **ASK, idempotency_key="once", found=found) == first
    assert (await resumed(again, ref, first)).status == "resumed"
    assert (await resumed(again, ref, first)).status == "resumed"
    assert (await server.looks(ref)).state.notes == NOTE


async def test_a_late_repeat_under_the_same_key_pauses_nothing_anew(
    server: Temporal, target: TemporalOrchestrator
) -> None:
    ref = await server.create("late")
    found = await paused(target, ref, "late-key")
    await server.by_hand(ref, unpause="we need it now")
    await target.pause(ref=ref, **ASK, idempotency_key="late-key", found=found.prior_state)
    assert (await server.looks(ref)).state.paused is False


async def test_a_key_that_expires_in_our_hold_is_told_and_its_successor_resumes(
    server: Temporal, tmp_path: Path
) -> None:
    ref, file = await server.create("expiring", notes=NOTE), tmp_path / "key"
    file.write_text(server.token(f"{NAMESPACE}:write"))
    target = opened(server, file)
    found = await paused(target, ref)
    file.write_text(server.token(f"{NAMESPACE}:write", seconds=-60))
    target._client._service = None  # the old one is still good for an hour
    with pytest.raises(DeliveryFailed) as caught:
        await resumed(target, ref, found)
    assert (caught.value.code, caught.value.permanent) == ("http_403", True)
    file.write_text(server.token(f"{NAMESPACE}:write"))
    assert (await resumed(target, ref, found)).status == "resumed"
    assert (await server.looks(ref)).state.notes == NOTE


async def test_the_check_proves_the_key_and_a_pause_needs_one_that_writes(server: Temporal) -> None:
    ref = await server.create("guarded")
    assert NAMESPACE in await opened(server, server.token(f"{NAMESPACE}:read")).check()
    with pytest.raises(DeliveryFailed) as caught:
        await paused(opened(server, server.token(f"{NAMESPACE}:read")), ref)
    assert caught.value.code == "http_403"
    with pytest.raises(DeliveryFailed) as caught:
        await opened(server, server.token("other:write")).check()
    assert caught.value.code == "http_403"
    with pytest.raises(DeliveryFailed) as caught:
        await opened(server, server.token("temporal-system:write"), "elsewhere").check()
    assert caught.value.code == "namespace_unknown"


async def test_two_hundred_at_once_are_paused_listed_and_resumed(
    server: Temporal, target: TemporalOrchestrator
) -> None:
    refs = [f"bulk-{number}" for number in range(200)]
    at_once = asyncio.Semaphore(16)

    async def one(ref: str) -> Answer:
        async with at_once:
            await server.create(ref, notes=NOTE)
            return await paused(target, ref)

    found = await asyncio.gather(*map(one, refs))
    assert {answer.was_paused for answer in found} == {False}
    async with asyncio.timeout(STARTS_SECONDS_MAX):  # the list comes from an index that is behind
        while True:
            listed = {one.ref: one for one in await target.list_workflows(limit=1_000)}
            if all(ref in listed and listed[ref].paused for ref in refs):
                break
            await asyncio.sleep(0.5)
    assert listed["bulk-7"].tags == ("Import", "owner=billing")
    assert len(await target.list_workflows(limit=150)) == 150

    async def back(ref: str, before: Answer) -> str:
        async with at_once:
            return (await resumed(target, ref, before)).status

    assert set(await asyncio.gather(*map(back, refs, found))) == {"resumed"}
    for ref in refs[::50]:
        state = (await server.looks(ref)).state
        assert (state.paused, state.notes) == (False, NOTE)
    for ref in refs:
        await server.delete(ref)


async def test_a_server_that_is_down_for_a_while_is_paused_and_resumed_after_it(
    server: Temporal, target: TemporalOrchestrator
) -> None:
    ref = await server.create("outage", notes=NOTE)
    found = (await target.state(ref=ref)).as_found
    server.stop()
    for _ in range(2):
        with pytest.raises(DeliveryFailed) as caught:
            await target.pause(ref=ref, **ASK, idempotency_key="outage", found=found)
        assert (caught.value.permanent, caught.value.ambiguous) == (False, False)
    server.start()
    await server.ready()
    answer = await target.pause(ref=ref, **ASK, idempotency_key="outage", found=found)
    assert (await server.looks(ref)).state.paused is True
    assert (await resumed(target, ref, answer)).status == "resumed"
    assert (await server.looks(ref)).state.notes == NOTE
