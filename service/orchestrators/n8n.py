"""n8n by its public REST API: a pause unpublishes the workflow, a resume publishes the very version that was published.

Never another one: the newest version of a workflow may be somebody's unfinished draft. n8n knows no idempotency key, so it is
asked first. Source: n8n's OpenAPI document and its code, 2.8.4 and the 2.x of November 2026. Until about 2.20 the words were
`activate` and `deactivate`; a 1.x has no versions at all.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Listed, State, Stops

TIMEOUT_SECONDS = 10.0  # of one call: an attempt is two as a rule, and has 25 s (workers/attempt.py)
CALLS_AT_ONCE = 8  # n8n answers from one thread: with more of them each only takes longer, and is given up in the end
API = "/api/v1"
KEY = re.compile(r"[!-~]{16,4096}")
REF = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a workflow's id; it stands in a path, so nothing else may
URL_CHARS_MAX = 2_000
WORKFLOW_BYTES_MAX = (
    16 * 1024 * 1024
)  # n8n gives the whole workflow, twice where it is published; it takes 16 MB itself
PAGE_BYTES_MAX = 32 * 1024 * 1024
PAGE_WORKFLOWS = 50
PAGES_MAX = 200
TAGS_MAX = 50
NAME_CHARS_MAX = 300
# Newest word first. n8n answers 404 or 405 to one it does not have.
PAUSE_WORDS = ("unpublish", "deactivate")
RESUME_WORDS = ("publish", "activate")
NO_SUCH_WORD = (404, 405)
NOBODYS_ID = "authwatch-doctor"  # of no workflow: n8n gives ids of letters and digits
SCOPES = "workflow:read, workflow:list, workflow:activate and workflow:deactivate"
NOT_STOPPED = "runs that are under way go on, and its editor can still execute it by hand"


class N8nConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    kind: Literal["n8n"] = "n8n"
    name: str = Field(default="n8n", min_length=1, max_length=80)
    url: str = Field(max_length=URL_CHARS_MAX)
    api_key: SecretStr

    @field_validator("url")
    @classmethod
    def url_can_be_right(cls, url: str) -> str:
        """n8n's own address, or that of its API: both are kept as the API's."""
        outbound.check_url(url)
        parts = urlsplit(url)
        if parts.query:
            raise ValueError("not a URL of the form https://n8n.example.com")
        path = parts.path.rstrip("/").removesuffix(API) + API
        return urlunsplit(parts._replace(path=path))

    @field_validator("api_key")
    @classmethod
    def api_key_can_be_right(cls, key: SecretStr) -> SecretStr:
        if KEY.fullmatch(key.get_secret_value()) is None:
            raise ValueError("not an API key of n8n (Settings > n8n API): 16 characters or more, without spaces")
        return key


class N8nOrchestrator:
    kind = "n8n"
    asks_first = True
    at_once = CALLS_AT_ONCE
    # Its production webhooks are off as well, but an editor can still start it, so a start by hand is not stopped.
    stops = Stops(scheduled_starts=True, manual_starts=False, running_work=False)

    def __init__(self, config: N8nConfig, http: httpx.AsyncClient, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.name = config.name
        self._url = config.url
        self._api_key = config.api_key.get_secret_value()
        self._http = http
        self._timeout_seconds = timeout_seconds
        self._room = asyncio.Semaphore(CALLS_AT_ONCE)
        self._says: dict[tuple[str, ...], tuple[str, ...]] = {
            words: words for words in (PAUSE_WORDS, RESUME_WORDS)
        }  # the one it knew last first

    async def state(self, *, ref: str) -> State:
        workflow = await self._workflow(ref)
        as_found: dict[str, Any] = {"active": is_active(workflow)}
        if (version := active_version(workflow)) is not None:
            as_found["active_version_id"] = version
        return State(paused=not is_active(workflow), as_found=as_found, detail=describe(workflow))

    async def pause(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        found: Mapping[str, Any] | None = None,
    ) -> Answer:
        before = found if found is not None else (await self.state(ref=ref)).as_found
        workflow = await self._say(ref, PAUSE_WORDS)
        if is_active(workflow):
            raise DeliveryFailed(f"{self.name} took the pause, and its answer says that {ref} is still published")
        return Answer(
            status="paused",
            detail=f"unpublished: its triggers and webhooks start nothing; {NOT_STOPPED}",
            prior_state=dict(before),
            was_paused=before.get("active") is False,
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
        workflow = await self._workflow(ref)
        before = prior_state or {}
        if why := left(workflow, before):
            return Answer(status="left", detail=why)
        version = before.get("active_version_id")
        if before.get("active") is not True or (not isinstance(version, str) and knows_versions(workflow)):
            raise DeliveryFailed(
                f"it is not known which version of {ref} was published before the pause, and another may be a draft;"
                " publish the right one by hand in n8n",
                code="version_unknown",
                permanent=True,
            )
        workflow = await self._say(ref, RESUME_WORDS, {"versionId": version} if isinstance(version, str) else None)
        if not is_active(workflow) or active_version(workflow) != version:
            raise DeliveryFailed(
                f"{self.name} took the resume, and its answer does not say that {ref} is published again"
            )
        return Answer(status="resumed", detail=f"published again: {version or 'it has no versions there'}")

    async def list_workflows(self, *, limit: int) -> Sequence[Listed]:
        listed: dict[str, Listed] = {}  # pages are counted from the start, so one may come twice
        cursor = ""
        for _ in range(PAGES_MAX):
            page = await self._page(min(PAGE_WORKFLOWS, limit), cursor)
            for workflow in page["data"]:
                if (one := as_listed(workflow)) is not None:
                    listed.setdefault(one.ref, one)
            cursor = page.get("nextCursor") or ""
            if len(listed) >= limit or not isinstance(cursor, str) or not cursor:
                break
        return list(listed.values())[:limit]

    async def check(self) -> str:
        """Lists one workflow, and asks for what we need to be allowed of a workflow that is not there: n8n judges the key's
        scopes first, and answers 404 where they are enough."""
        await self._page(1, "")
        for word in ("", *PAUSE_WORDS, *RESUME_WORDS):
            path = f"/workflows/{NOBODYS_ID}"
            response = await (self._call("POST", f"{path}/{word}", {}) if word else self._call("GET", path))
            if response.status not in NO_SUCH_WORD:
                self._raise(response)
        host = urlsplit(self._url).hostname
        return f"{self.name}: {host} takes this API key, which may read, list, publish and unpublish workflows."

    async def _workflow(self, ref: str) -> Mapping[str, Any]:
        path = f"/workflows/{self._checked(ref)}?excludePinnedData=true"
        response = await self._call("GET", path, response_bytes_max=WORKFLOW_BYTES_MAX)
        self._raise(response, ref)
        return self._read_workflow(response, ref)

    async def _say(self, ref: str, words: tuple[str, ...], body: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        """The workflow as it is after it. A 404 may be a word that this n8n does not know, a workflow that is not there or a
        version that is not there: told apart by asking."""
        last, missing = None, False
        for word in self._says[words]:
            last = await self._call(
                "POST", f"/workflows/{self._checked(ref)}/{word}", body, response_bytes_max=WORKFLOW_BYTES_MAX
            )
            if last.status not in NO_SUCH_WORD:
                self._raise(last, ref)
                self._says[words] = (word, *(other for other in words if other != word))
                return self._read_workflow(last, ref)
            missing = missing or (last.status == 404 and is_of_the_api(last))
        assert last is not None, "there is a word for each"
        await self._workflow(ref)
        if body is not None and missing:
            raise DeliveryFailed(
                f"the version of {ref} that was published before the pause ({body['versionId']}) is no longer in n8n's"
                " history, so nothing was published; open the workflow in n8n and publish the version you want",
                code="version_gone",
                permanent=True,
                status=404,
            )
        raise DeliveryFailed(
            f"{self.name} has the workflow, and takes neither {' nor '.join(words)} of it; does something in front of it let"
            " through GET alone, or is this n8n newer than this Authwatch?",
            code=f"http_{last.status}",
            permanent=True,
            status=last.status,
        )

    async def _page(self, limit: int, cursor: str) -> Mapping[str, Any]:
        after = {"cursor": cursor} if cursor else {}
        query = httpx.QueryParams({"limit": limit, "excludePinnedData": "true", **after})
        response = await self._call("GET", f"/workflows?{query}", response_bytes_max=PAGE_BYTES_MAX)
        self._raise(response)
        page = self._read(response, PAGE_BYTES_MAX)
        if not isinstance(page.get("data"), list):
            raise self._not_the_api(response)
        return page

    async def _call(
        self, method: str, path: str, body: Mapping[str, str] | None = None, *, response_bytes_max: int = 64 * 1024
    ) -> outbound.Response:
        headers = {"x-n8n-api-key": self._api_key, "accept": "application/json"}
        async with self._room:
            return await outbound.call(
                self._http,
                method,
                self._url + path,
                headers=headers if body is None else {**headers, "content-type": "application/json"},
                content=None if body is None else orjson.dumps(dict(body)),
                timeout_seconds=self._timeout_seconds,
                response_bytes_max=response_bytes_max,
            )

    def _checked(self, ref: str) -> str:
        if REF.fullmatch(ref) is None:
            raise DeliveryFailed(
                "the ref is no id of an n8n workflow; it is the last part of the workflow's address in the editor:"
                " PUT /v1/workflows with that one",
                code="workflow_gone",
                permanent=True,
            )
        return ref

    def _raise(self, response: outbound.Response, ref: str | None = None) -> None:
        """2xx passes."""
        status, said = response.status, f": {response.excerpt}" if response.excerpt else ""
        if status == 401:
            raise self._refused(
                response, "does not take the API key; it was revoked or has expired: make one (Settings > n8n API)"
            )
        if status == 403:
            raise self._refused(
                response, f"does not let the API key do this; it needs {SCOPES}, and its user the project"
            )
        if status == 404 and not is_of_the_api(response):
            raise self._not_the_api(response)
        if status == 404 and ref is not None:
            raise DeliveryFailed(
                f"{self.name} has no workflow {ref}, or this API key's user may not see it; mend its ref with PUT"
                " /v1/workflows, or share it with that user",
                code="workflow_gone",
                permanent=True,
                status=404,
            )
        if status == 409 or (status == 400 and is_for_a_person(response)):
            raise DeliveryFailed(
                f"{response.host} does not publish it{said}; settle that in n8n, and publish by hand the version that ran",
                code="publish_refused",
                permanent=True,
                status=status,
            )
        if status == 400:
            # n8n says 400 for whatever goes wrong inside, a trigger that its provider does not answer for included, and may
            # have done half of it: so not `http_400`, which is a refusal of the whole (service/store/asks.py).
            raise DeliveryFailed(f"{response.host} answered 400{said}", code="failed_inside", status=400)
        outbound.raise_for_status(response)

    def _refused(self, response: outbound.Response, why: str) -> DeliveryFailed:
        return DeliveryFailed(
            f"{response.host} answered {response.status}: it {why}, and give it in `orchestrators` > {self.name} > api_key",
            code=f"http_{response.status}",
            permanent=True,
            status=response.status,
        )

    def _not_the_api(self, response: outbound.Response) -> DeliveryFailed:
        """Perhaps by now only: n8n says `starting up` with a 200, and knows no path yet for some seconds after that."""
        return DeliveryFailed(
            f"{response.host} answered {response.status}, and not as n8n's API does; it may be starting; else see that `url`"
            " is n8n's own address, that its public API is on, and that no login page stands before it",
            code="not_the_api",
            status=response.status,
        )

    def _read_workflow(self, response: outbound.Response, ref: str) -> Mapping[str, Any]:
        workflow = self._read(response, WORKFLOW_BYTES_MAX)
        if workflow.get("id") != ref or not isinstance(workflow.get("active"), bool):
            raise self._not_the_api(response)
        return workflow

    def _read(self, response: outbound.Response, bytes_max: int) -> Mapping[str, Any]:
        if len(response.body) >= bytes_max:
            raise DeliveryFailed(
                f"{response.host} answered more than {bytes_max // (1024 * 1024)} MiB, which is not read",
                code="answer_too_large",
                permanent=True,
            )
        said = json_object(response.body)
        if said is None:
            raise self._not_the_api(response)
        return said


def open_n8n(config: N8nConfig, http: httpx.AsyncClient) -> N8nOrchestrator:
    return N8nOrchestrator(config, http)


def is_active(workflow: Mapping[str, Any]) -> bool:
    return workflow.get("active") is True or active_version(workflow) is not None


def active_version(workflow: Mapping[str, Any]) -> str | None:
    """None where nothing is published, and in n8n 1.x."""
    version = workflow.get("activeVersionId")
    return version if isinstance(version, str) and version else None


def knows_versions(workflow: Mapping[str, Any]) -> bool:
    return "activeVersionId" in workflow


def left(workflow: Mapping[str, Any], before: Mapping[str, Any]) -> str | None:
    """Why it is a person's now. A resume of ours whose answer was lost looks the same, and there is as little to do."""
    if before.get("active") is False:
        return "left as a person had it: it was unpublished before the pause"
    if workflow.get("isArchived") is True:
        return "left as a person had it: it was archived meanwhile"
    if not is_active(workflow):
        return None
    if active_version(workflow) == before.get("active_version_id"):
        return "nothing to do: the same version was published again already"
    return "left as a person had it: another version was published meanwhile"


def describe(workflow: Mapping[str, Any]) -> str:
    if workflow.get("isArchived") is True:
        return "archived"
    if not is_active(workflow):
        return "not published"
    version = active_version(workflow)
    return f"published, version {version[:NAME_CHARS_MAX]}" if version else "active"


def as_listed(workflow: Any) -> Listed | None:
    """None for an archived one, which n8n never starts."""
    match workflow:
        case {"isArchived": True}:
            return None
        case {"id": str() as ref, "name": str() as name} if REF.fullmatch(ref):
            tags = workflow.get("tags") or []
            names = [tag["name"] for tag in tags if isinstance(tag, dict) and isinstance(tag.get("name"), str)]
            return Listed(
                ref=ref,
                name=name[:NAME_CHARS_MAX],
                tags=tuple(name[:NAME_CHARS_MAX] for name in names[:TAGS_MAX]),
                paused=not is_active(workflow),
            )
    return None


def json_object(body: bytes) -> dict[str, Any] | None:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return said if isinstance(said, dict) else None


def is_of_the_api(response: outbound.Response) -> bool:
    """n8n's API says what is wrong as {"message": ...}; the web server in front of it, or n8n while it starts, does not."""
    return isinstance((json_object(response.body) or {}).get("message"), str)


def is_for_a_person(response: outbound.Response) -> bool:
    """What no later try can mend, by n8n's own words for it; the newest say 409."""
    words = str((json_object(response.body) or {}).get("message", "")).lower()
    return "archived workflow" in words or "conflict with one of the webhooks" in words
