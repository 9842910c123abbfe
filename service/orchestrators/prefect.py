"""Prefect 3, a server of one's own or Prefect Cloud, by its REST API. A workflow there is a deployment.

`pause_deployment` takes its switch off: nothing is scheduled any more, and the runs that its schedules had booked are deleted.
Its schedules' own `active` stays as it is, so the switch is all that a resume has to put back. Seen on 3.8.8, and read in
prefect/server/api/deployments.py: a run made by hand or by API is accepted while it is paused, and running ones go on, unless
`stop_running` has them suspended (prefect_runs.py).

Prefect knows no idempotency keys, so the deployment is asked first; both calls are idempotent by what they ask for.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, urlsplit
from uuid import UUID

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators import prefect_runs
from service.orchestrators.base import Answer, Listed, State, Stops

TIMEOUT_SECONDS = 8.0  # of each call; a resume makes two
# Two hundred pauses at once were seen to lock its SQLite: all timed out, and the server went on working at each of them. So
# this many calls are under way there, and no more pauses and resumes than that are begun.
AT_ONCE = 4
BUSY_SECONDS = 2.0  # until one that did not answer in time is asked again, and then one thing at a time
URL_CHARS_MAX = 2_000
NAME_CHARS_MAX = 200  # of a name of theirs, as it is recorded and shown
DEPLOYMENT_BYTES_MAX = 1024 * 1024  # one holds the JSON schema of its parameters
PAGE = 50  # deployments in one answer; the server takes 200
PAGE_BYTES_MAX = 8 * 1024 * 1024
PAGES_MAX = 400
GONE = 404
PAUSED = "nothing is scheduled there any more, and its scheduled runs that had not begun are deleted"


class PrefectConfig(BaseModel):
    """`url` is what PREFECT_API_URL is, `auth_string` PREFECT_API_AUTH_STRING, `api_key` PREFECT_API_KEY (Cloud)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    kind: Literal["prefect"] = "prefect"
    name: str = Field(default="prefect", min_length=1, max_length=80)
    url: str = Field(max_length=URL_CHARS_MAX)
    auth_string: SecretStr | None = None
    api_key: SecretStr | None = None
    stop_running: bool = False

    @field_validator("url")
    @classmethod
    def url_can_be_right(cls, url: str) -> str:
        outbound.check_url(url)
        if urlsplit(url).query or not urlsplit(url).path.strip("/"):
            raise ValueError("not what PREFECT_API_URL is: https://host/api, or Cloud's with its account and workspace")
        return url.rstrip("/")

    @field_validator("auth_string")
    @classmethod
    def auth_string_can_be_right(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not all(secret.get_secret_value().partition(":")):
            raise ValueError("not user:password, as PREFECT_SERVER_API_AUTH_STRING is")
        return secret

    @field_validator("api_key")
    @classmethod
    def api_key_can_be_right(cls, secret: SecretStr | None) -> SecretStr | None:
        key = secret.get_secret_value() if secret is not None else "-"
        if not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("not an API key of Prefect Cloud (pnu_... or pnb_...)")
        return secret

    @model_validator(mode="after")
    def one_of_two(self) -> PrefectConfig:
        if self.auth_string is not None and self.api_key is not None:
            raise ValueError("auth_string is for a server of one's own, api_key for Prefect Cloud: give one of them")
        return self


@dataclass(frozen=True, slots=True)
class Deployment:
    """What we need of one. `schedules`: how many it has, and how many of them are active."""

    id: str
    name: str
    paused: bool
    schedules: tuple[int, int] = (0, 0)


class PrefectOrchestrator:
    kind = "prefect"
    asks_first = True
    at_once = AT_ONCE

    def __init__(
        self, config: PrefectConfig, http: httpx.AsyncClient, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.name = config.name
        self._url = config.url
        self._http = http
        self._timeout_seconds = timeout_seconds
        self._room = asyncio.Semaphore(AT_ONCE)
        self._stop_running = config.stop_running
        self.stops = Stops(scheduled_starts=True, manual_starts=False, running_work=config.stop_running)
        self._headers, self._confided = credentials(config)

    async def state(self, *, ref: str) -> State:
        found = await self._look(ref)
        has, active = found.schedules
        as_found: dict[str, Any] = {"deployment_id": found.id, "deployment": found.name, "paused": found.paused}
        if self._stop_running:
            as_found["running"] = await prefect_runs.under_way(self._ask, found.id)
        stands = "paused" if found.paused else "not paused"
        return State(
            paused=found.paused,
            as_found=as_found,
            detail=f"deployment {found.name} is {stands}; {active} of its {has} schedules are active",
            adds_up={"running": prefect_runs.RUNS_MAX},
        )

    async def pause(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        found: Mapping[str, Any] | None = None,
    ) -> Answer:
        id_ = known_id(ref, found) or (await self._look(ref)).id
        await self._call("POST", f"/deployments/{id_}/pause_deployment", ref=ref)
        detail, stops = PAUSED, None
        if self._stop_running:
            running = prefect_runs.known_ids(found.get("running") if found is not None else None)
            going_on = await prefect_runs.suspend(self._ask, id_, running, reason)
            detail = f"{PAUSED}; what ran is suspended" + (f", but {going_on} began meanwhile" if going_on else "")
            stops = replace(self.stops, running_work=not going_on)
        return Answer(
            status="paused",
            detail=detail,
            prior_state=found,
            was_paused=found.get("paused") if found is not None else None,
            stops=stops,
        )

    async def resume(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        prior_state: Mapping[str, Any] | None = None,
    ) -> Answer:
        """By the id that was found: the name may be another deployment's by now."""
        if prior_state is not None and prior_state.get("paused") is True:
            return Answer(status="left", detail="left as a person had it: it was paused before us")
        now = await self._look(known_id(ref, prior_state) or ref, named=ref)
        before = {"deployment_id": now.id, "deployment": now.name, "paused": now.paused}
        if now.paused:
            # First, so that a run that cannot go on keeps nothing else from running.
            await self._call("POST", f"/deployments/{now.id}/resume_deployment", ref=ref)
        # Also where it is switched on by now, or `stop_running` is off: nobody else starts again what we suspended.
        running = prefect_runs.known_ids(prior_state.get("running") if prior_state is not None else None)
        began = await prefect_runs.resume(self._ask, running) if running else 0
        of_runs = f"; {began} of its runs that we suspended go on" if began else ""
        if not now.paused:
            return Answer(
                status="left", detail=f"left as it is: it had been resumed there{of_runs}", prior_state=before
            )
        return Answer(status="resumed", detail=f"it schedules again, from now on{of_runs}", prior_state=before)

    async def list_workflows(self, *, limit: int) -> Sequence[Listed]:
        """Newest first, so that one made meanwhile hides none on the next page."""
        found: dict[str, tuple[str, str, tuple[str, ...], bool]] = {}
        for page in range(PAGES_MAX):
            asked = {"sort": "CREATED_DESC", "limit": PAGE, "offset": page * PAGE}
            rows = await self._rows("/deployments/filter", asked)
            for row in rows:
                one = read_deployment(row)
                flow_id, tags = row.get("flow_id"), row.get("tags")
                said = tuple(shown(tag) for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()
                found.setdefault(one.id, (str(flow_id), one.name, said, one.paused))
            if len(rows) < PAGE or len(found) >= limit:
                break
        kept = list(found.items())[:limit]
        flows = await self._flow_names(list(dict.fromkeys(flow_id for _id, (flow_id, *_) in kept)))
        listed = []
        for id_, (flow_id, name, tags, paused) in kept:
            whole = f"{flows[flow_id]}/{name}" if flow_id in flows else name
            other_refs = (whole,) if flow_id in flows else ()
            listed.append(Listed(ref=id_, name=whole, tags=tags, paused=paused, other_refs=other_refs))
        return listed

    async def check(self) -> str:
        """A count of deployments: `/health` and `/ready` are answered to anybody."""
        answer = await self._call("POST", "/deployments/count", body={})
        count = parse(answer)
        if not isinstance(count, int) or isinstance(count, bool):
            raise self._not_prefect(answer)
        host, sees = urlsplit(self._url).hostname, f"{count} deployment{'' if count == 1 else 's'}"
        if not self._confided:
            return f"{self.name}: Prefect at {host} answers without credentials and shows {sees}."
        return f"{self.name}: Prefect at {host} takes the credentials and shows {sees}; nothing was changed."

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        return parse(await self._call(method, path, body=body, bytes_max=PAGE_BYTES_MAX))

    async def _look(self, ref: str, *, named: str = "") -> Deployment:
        path = path_of(ref)
        if path is None:
            raise gone(named or ref, why="a ref is a deployment's id or flow/deployment")
        answer = await self._call("GET", path, ref=named or ref, bytes_max=DEPLOYMENT_BYTES_MAX)
        return read_deployment(parse(answer))

    async def _flow_names(self, ids: Sequence[str]) -> dict[str, str]:
        names: dict[str, str] = {}
        for start in range(0, len(ids), PAGE):
            asked = {"flows": {"id": {"any_": ids[start : start + PAGE]}}, "limit": PAGE}
            for row in await self._rows("/flows/filter", asked):
                if isinstance(row.get("name"), str):
                    names[str(row.get("id"))] = shown(row["name"])
        return names

    async def _rows(self, path: str, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        answer = await self._call("POST", path, body=asked, bytes_max=PAGE_BYTES_MAX)
        rows = parse(answer)
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise self._not_prefect(answer)
        return rows

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        ref: str | None = None,
        bytes_max: int = outbound.RESPONSE_BYTES_MAX,
    ) -> outbound.Response:
        """2xx. `ref`: what a 404 of Prefect's own would be about."""
        try:
            async with self._room:
                answer = await outbound.call(
                    self._http,
                    method,
                    self._url + path,
                    headers=self._headers,
                    content=json.dumps(body).encode() if body is not None else None,
                    timeout_seconds=self._timeout_seconds,
                    response_bytes_max=bytes_max,
                )
        except DeliveryFailed as exc:
            if exc.code == "timeout":
                exc.retry_after_seconds = BUSY_SECONDS
            raise
        if answer.status == GONE and ref is not None and says_gone(answer):
            raise gone(ref)
        outbound.raise_for_status(self._showable(answer), hint=self._mend(answer))
        return answer

    def _mend(self, answer: outbound.Response) -> str:
        what = "auth_string" if "auth_string" in self._confided else "api_key"
        match answer.status:
            case 401 if not self._confided:
                return "it wants credentials: set auth_string, or api_key for Prefect Cloud"
            case 401:
                return f"it does not take the {what}; set it anew"
            case 403 if b"csrf" in answer.body.lower():
                return "its CSRF protection is on (PREFECT_SERVER_CSRF_PROTECTION_ENABLED), which is for browsers: switch it off"
            case 403:
                return f"the owner of the {what} may not do this; give them a role that may edit deployments"
            case 404 | 405:
                return "is url what PREFECT_API_URL is, with /api and, for Cloud, the account and workspace?"
        return ""

    def _showable(self, answer: outbound.Response) -> outbound.Response:
        """One that says a secret of ours back is not shown at all: it is cut somewhere, perhaps within the secret."""
        said = answer.body.decode("utf-8", "replace")
        if any(secret in said for secret in self._confided.values()):
            return outbound.Response(answer.status, answer.host, answer.headers, b"")
        return answer

    def _not_prefect(self, answer: outbound.Response) -> DeliveryFailed:
        return DeliveryFailed(
            f"{answer.host} did not answer as Prefect does; is url what PREFECT_API_URL is, with /api?",
            code="not_prefect",
            permanent=True,
            status=answer.status,
        )


def open_prefect(config: PrefectConfig, http: httpx.AsyncClient) -> PrefectOrchestrator:
    return PrefectOrchestrator(config, http)


def credentials(config: PrefectConfig) -> tuple[dict[str, str], dict[str, str]]:
    """(the headers of every call, what must never be shown by the name of its setting)."""
    headers = {"content-type": "application/json", "accept": "application/json"}
    if config.auth_string is not None:
        given = config.auth_string.get_secret_value()
        basic = base64.b64encode(given.encode()).decode()
        confided = {"auth_string": given, "password": given.partition(":")[2], "basic": basic}
        return {**headers, "authorization": f"Basic {basic}"}, confided
    if config.api_key is not None:
        key = config.api_key.get_secret_value()
        return {**headers, "authorization": f"Bearer {key}"}, {"api_key": key}
    return headers, {}


def path_of(ref: str) -> str | None:
    """Where a deployment of this ref is asked for; None where it can be none. Prefect allows no slash in either name."""
    if (id_ := as_id(ref)) is not None:
        return f"/deployments/{id_}"
    flow, slash, name = ref.partition("/")
    if not (flow and slash and name) or "/" in name or {flow, name} & {".", ".."}:
        return None
    return f"/deployments/name/{quote(flow, safe='')}/{quote(name, safe='')}"


def known_id(ref: str, found: Mapping[str, Any] | None) -> str | None:
    """The deployment meant: the ref where it is an id, else the one that its name led to before our pause."""
    for said in (ref, found.get("deployment_id") if found is not None else None):
        if isinstance(said, str) and (id_ := as_id(said)) is not None:
            return id_
    return None


def as_id(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None


def read_deployment(said: Any) -> Deployment:
    if isinstance(said, Mapping):
        schedules = said.get("schedules")
        rows = [row for row in schedules if isinstance(row, Mapping)] if isinstance(schedules, list) else []
        id_, name, paused = said.get("id"), said.get("name"), said.get("paused")
        known = as_id(id_) if isinstance(id_, str) else None
        if known is not None and isinstance(name, str) and isinstance(paused, bool):
            return Deployment(known, shown(name), paused, (len(rows), sum(row.get("active") is True for row in rows)))
    raise DeliveryFailed(
        "the answer was no deployment of Prefect 3; is url what PREFECT_API_URL is, and the server's version 3?",
        code="not_prefect",
        permanent=True,
    )


def parse(answer: outbound.Response) -> Any:
    """None where it is no JSON, or was cut."""
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def says_gone(answer: outbound.Response) -> bool:
    """Prefect names what it does not find. A proxy's 404, or one for an address that Prefect does not have, is another."""
    said = parse(answer)
    words = (said.get("detail"), said.get("exception_message")) if isinstance(said, Mapping) else ()
    return any(isinstance(word, str) and "deployment" in word.lower() for word in words)


def gone(ref: str, *, why: str = "it was deleted, or deployed anew under another name") -> DeliveryFailed:
    return DeliveryFailed(
        f"Prefect has no deployment {shown(ref)} ({why}); give the right one in orchestrator.ref with PUT /v1/workflows",
        code="workflow_gone",
        permanent=True,
    )


def shown(name: str) -> str:
    """A name of theirs, as it may be recorded and shown."""
    return "".join(c for c in name[:NAME_CHARS_MAX] if c.isprintable())
