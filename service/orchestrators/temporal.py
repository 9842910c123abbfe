"""Temporal schedules, by the gRPC API of temporalio: a pause is `PatchSchedule`, whose note says whose pause it is.

A paused schedule starts nothing by itself. It can still be triggered by hand, its workflow can still be started by anybody,
and what runs goes on. The note is all that Temporal keeps of who paused it, so by it a resume tells our pause from a
person's. Facts: api/temporal/api/schedule/v1, and service/worker/scheduler and chasm/lib/scheduler of the server, 1.32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx

from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Listed, State, Stops
from service.orchestrators.temporal_client import CALL_SECONDS, ID_BYTES_MAX, TemporalClient, TemporalConfig
from service.redact import redact_text

if TYPE_CHECKING:
    from temporalio.api.common.v1 import Payload
    from temporalio.api.schedule.v1 import ScheduleListEntry

NOTE_BYTES_MAX = 1_000  # ScheduleNotesSizeLimit of the server
MARKED_ID_BYTES_MAX = 400
LIST_PAGE = 100
LIST_PAGES_MAX = 100
TAGS_MAX = 20
TAG_CHARS_MAX = 120


class TemporalOrchestrator:
    kind = "temporal"
    asks_first = True
    at_once = None
    stops = Stops(scheduled_starts=True, manual_starts=False, running_work=False)

    def __init__(self, config: TemporalConfig, *, timeout_seconds: float = CALL_SECONDS) -> None:
        self.name = config.name
        self._config = config
        self._client = TemporalClient(config, timeout_seconds=timeout_seconds)

    async def state(self, *, ref: str) -> State:
        from temporalio.api.workflowservice.v1 import DescribeScheduleRequest

        check_ref(ref)
        request = DescribeScheduleRequest(namespace=self._config.namespace, schedule_id=ref)
        said = (await self._client.call("describe_schedule", request, ref=ref)).schedule.state
        notes = cut(said.notes.replace("\x00", ""), NOTE_BYTES_MAX)
        detail = f'paused there, with the note "{redact_text(notes)}"' if said.paused else "not paused there"
        return State(paused=said.paused, as_found={"paused": said.paused, "notes": notes}, detail=detail)

    async def pause(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        found: Mapping[str, Any] | None = None,
    ) -> Answer:
        now = (await self.state(ref=ref)).as_found
        if found is None:
            found = now
        if found.get("paused"):
            return Answer(
                status="paused", detail="was paused before us; left as it was", prior_state=found, was_paused=True
            )
        if now["paused"] and not is_ours(now["notes"], workflow_id):
            said = "a person has paused it since it was looked at; left as it was"
            return Answer(status="paused", detail=said, prior_state=now, was_paused=True)
        if not now["paused"]:  # else our own pause arrived, and only its answer was lost
            await self._patch(ref, idempotency_key, pause=our_note(workflow_id, reason))
        detail = f"schedule {ref} starts nothing; it can still be triggered, and what runs goes on"
        return Answer(status="paused", detail=detail, prior_state=dict(found), was_paused=False)

    async def resume(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        prior_state: Mapping[str, Any] | None = None,
    ) -> Answer:
        """A pause is ours while it bears our note: who pauses by hand leaves a note of their own, and so does Temporal when it
        pauses on a failure."""
        prior = prior_state or {}
        now = (await self.state(ref=ref)).as_found
        note = note_after(prior, reason)
        if prior.get("paused"):
            return Answer(status="left", detail="left as a person had it: it was paused before us", prior_state=now)
        if not now["paused"]:
            if now["notes"] == note:  # our own unpause arrived, and only its answer was lost
                return Answer(status="resumed", detail=f"schedule {ref} runs again", prior_state=now)
            return Answer(status="left", detail="left as it is: it was started there since", prior_state=now)
        if not is_ours(now["notes"], workflow_id):
            return Answer(
                status="left", detail="left as a person has it: paused there with another note", prior_state=now
            )
        await self._patch(ref, idempotency_key, unpause=note)
        return Answer(status="resumed", detail=f"schedule {ref} runs again", prior_state=now)

    async def list_workflows(self, *, limit: int) -> Sequence[Listed]:
        """By id, which a schedule keeps for life; tags are its workflow type, its search attributes and the texts of its memo.
        Temporal lists by an index that is seconds behind."""
        from temporalio.api.workflowservice.v1 import ListSchedulesRequest

        listed: dict[str, Listed] = {}
        token = b""
        for _ in range(LIST_PAGES_MAX):
            size = min(LIST_PAGE, limit - len(listed))
            request = ListSchedulesRequest(
                namespace=self._config.namespace, maximum_page_size=max(size, 1), next_page_token=token
            )
            page = await self._client.call("list_schedules", request)
            listed |= {entry.schedule_id: as_listed(entry) for entry in page.schedules}
            token = page.next_page_token
            if not token or len(listed) >= limit:
                break
        return list(listed.values())[:limit]

    async def check(self) -> str:
        from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest

        await self._client.call("describe_namespace", DescribeNamespaceRequest(namespace=self._config.namespace))
        return (
            f"{self.name}: namespace {self._config.namespace} can be read at {self._config.address}; that its schedules may be "
            "paused shows with the first pause."
        )

    async def _patch(self, ref: str, idempotency_key: str, *, pause: str = "", unpause: str = "") -> None:
        from temporalio.api.schedule.v1 import SchedulePatch
        from temporalio.api.workflowservice.v1 import PatchScheduleRequest

        request = PatchScheduleRequest(
            namespace=self._config.namespace,
            schedule_id=ref,
            patch=SchedulePatch(pause=pause, unpause=unpause),
            identity="authwatch",
            request_id=idempotency_key[:ID_BYTES_MAX],
        )
        await self._client.call("patch_schedule", request, ref=ref, writes=True)


def open_temporal(config: TemporalConfig, http: httpx.AsyncClient) -> TemporalOrchestrator:
    """Without `http`: Temporal speaks gRPC. The SDK is loaded here, where there is one to speak to and nobody waits."""
    import temporalio.service  # noqa: F401

    return TemporalOrchestrator(config)


def mark(workflow_id: str) -> str:
    """What a note of ours begins with. The id as a JSON string, so that no id is the beginning of another."""
    return f"Paused by Authwatch for {cut(json.dumps(workflow_id, ensure_ascii=False), MARKED_ID_BYTES_MAX)}"


def our_note(workflow_id: str, reason: str) -> str:
    return cut(f"{mark(workflow_id)}: {printable(redact_text(reason))}", NOTE_BYTES_MAX)


def is_ours(notes: str, workflow_id: str) -> bool:
    return notes.startswith(f"{mark(workflow_id)}:")


def note_after(prior: Mapping[str, Any], reason: str) -> str:
    """The note as it was. Temporal takes an empty one for no change, so where there was none it says who resumed it."""
    notes = prior.get("notes")
    if isinstance(notes, str) and notes:
        return cut(notes, NOTE_BYTES_MAX)
    return cut(f"Resumed by Authwatch: {printable(redact_text(reason))}", NOTE_BYTES_MAX)


def cut(text: str, bytes_max: int) -> str:
    return text.encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def check_ref(ref: str) -> None:
    if not ref or len(ref.encode("utf-8", "replace")) > ID_BYTES_MAX or not ref.isprintable():
        raise DeliveryFailed(
            "the ref is no schedule id; register the workflow with the id that `temporal schedule list` shows",
            code="ref_invalid",
            permanent=True,
        )


def as_listed(entry: ScheduleListEntry) -> Listed:
    tags = [entry.info.workflow_type.name] if entry.info.workflow_type.name else []
    for fields in (entry.search_attributes.indexed_fields, entry.memo.fields):
        for name in sorted(fields):
            tags += [f"{name}={value}" for value in texts_of(fields[name]) if not name.startswith("Temporal")]
    bounded = tuple(redact_text(printable(tag))[:TAG_CHARS_MAX] for tag in tags[:TAGS_MAX])
    return Listed(ref=entry.schedule_id, name=entry.schedule_id, tags=bounded, paused=entry.info.paused)


def texts_of(payload: Payload) -> list[str]:
    """What is plain JSON text or a list of such; anything else is no tag, and what is encrypted stays so."""
    if payload.metadata.get("encoding") != b"json/plain" or len(payload.data) > NOTE_BYTES_MAX:
        return []
    try:
        value = json.loads(payload.data)
    except (ValueError, RecursionError):
        return []
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
