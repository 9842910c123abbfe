"""Airflow 3, by its public REST API (`/api/v2`): a DAG is paused by its `is_paused`, and `ref` is its `dag_id`.

Source: the API's own routes and its auth managers, as of 3.3.2 (docs/orchestrators.md says what was seen on a real server).
Its tokens are JWTs that live for a day and hold the role of their user. One that is too old is answered 401; one signed with
a key of before a restart, or whose user has had another role since, 403. So either is answered with a new token, once.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode, urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Listed, State, Stops
from service.redact import MASK, redact_text

API = "/api/v2"
TIMEOUT_SECONDS = 6.0  # of one call: with a token too old, a resume is four of them, inside what an attempt may take
PAGE = 100  # the most that a server gives unless it is told otherwise ([api] maximum_page_limit)
PAGE_BYTES_MAX = 4 * 1024 * 1024  # a DAG comes with its description, which may be long
ANSWER_BYTES_MAX = 256 * 1024
NAME_CHARS_MAX = 300
TAGS_MAX = 50
DAG_ID = re.compile(r"[\w.-]{1,250}")
ROLES = "role User or above, or `can edit` on DAGs where the FAB auth manager is used"
WHERE = "`url` must be the address of an Airflow 3, as its user interface is opened, without /api/v2"
STARTS_NOTHING = (
    "paused; what runs is not stopped, no further task starts, and runs triggered meanwhile wait in the queue"
)


class AirflowConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    kind: Literal["airflow"] = "airflow"
    name: str = Field(default="airflow", min_length=1, max_length=80)
    url: str = Field(max_length=2_000)
    username: str | None = Field(default=None, min_length=1, max_length=200)
    password: SecretStr | None = Field(default=None, min_length=1, max_length=1_000)
    token: SecretStr | None = Field(default=None, min_length=1, max_length=8_000)
    timeout_seconds: float = Field(default=TIMEOUT_SECONDS, gt=0, le=6)

    @field_validator("url")
    @classmethod
    def url_can_be_right(cls, url: str) -> str:
        outbound.check_url(url)
        if urlsplit(url).query:
            raise ValueError("not a URL of the form https://host/path")
        return url.rstrip("/").removesuffix(API).rstrip("/")

    @field_validator("token")
    @classmethod
    def token_can_be_sent(cls, token: SecretStr | None) -> SecretStr | None:
        said = token.get_secret_value() if token else "x"
        if not said.isascii() or not said.isprintable() or " " in said:
            raise ValueError("not a bearer token: it has characters that no header takes")
        return token

    @model_validator(mode="after")
    def one_way_in(self) -> Self:
        if (self.username is None) != (self.password is None) or (self.token is None) == (self.username is None):
            raise ValueError("give either `username` and `password`, or `token`")
        return self


class AirflowOrchestrator:
    """No `stop_running`: Airflow can fail or clear a running task, which loses what it did, but not interrupt and resume it."""

    kind = "airflow"
    asks_first = True
    at_once = outbound.CONNECTIONS_MAX
    # A run triggered while it is paused is taken, and starts with the resume; in the user interface "trigger" unpauses
    # it on the way. That is no refusal, so it is not called one.
    stops = Stops(scheduled_starts=True, manual_starts=False, running_work=False)

    def __init__(self, config: AirflowConfig, http: httpx.AsyncClient) -> None:
        self.name = config.name
        self._url = config.url
        self._http = http
        self._timeout_seconds = config.timeout_seconds
        self._username = config.username
        self._password = config.password
        self._fixed = config.token is not None
        self._token = config.token
        self._turn = asyncio.Lock()  # many pauses at once get one token between them,
        self._refusals = 0  # or one refusal: a wrong password tried two hundred times locks its account out
        self._refused: DeliveryFailed | None = None

    async def state(self, *, ref: str) -> State:
        dag = await self._dag(ref)
        paused = is_paused(dag)
        return State(paused=paused, as_found={"is_paused": paused}, detail="paused" if paused else "not paused")

    async def pause(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        found: Mapping[str, Any] | None = None,
    ) -> Answer:
        if (await self._set(ref, True)).get("is_stale") is True:
            # Not `workflow_gone`, which says that nothing was done: it is paused when its file comes back, until our resume.
            more = "; it is paused all the same, for when its file comes back"
            raise gone(self.name, ref, more, code="paused_without_file")
        was_paused = None if found is None else found.get("is_paused") is True
        return Answer(status="paused", detail=STARTS_NOTHING, prior_state=found, was_paused=was_paused)

    async def resume(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        prior_state: Mapping[str, Any] | None = None,
    ) -> Answer:
        if prior_state is not None and prior_state.get("is_paused") is True:
            return Answer(status="left", detail="left paused, as it was found", prior_state=prior_state)
        dag = await self._dag(ref, stale=True)
        stood = {"is_paused": is_paused(dag)}
        if not stood["is_paused"]:
            detail = "it was not paused any more, so there was nothing to put back"
            return Answer(status="left", detail=detail, prior_state=stood)
        await self._set(ref, False)
        if dag.get("is_stale") is True:
            said = gone(self.name, ref, "; it was unpaused all the same, for when its file comes back")
            return Answer(status=said.code, detail=str(said), prior_state=stood)
        detail = "unpaused; runs that were triggered meanwhile start now, and what its schedule makes up for"
        return Answer(status="resumed", detail=detail, prior_state=stood)

    async def list_workflows(self, *, limit: int) -> Sequence[Listed]:
        """By `dag_id`, without those whose file is gone. Read page by page: one that is added or removed meanwhile may be
        missing, and is never there twice."""
        found: dict[str, Listed] = {}
        offset = 0
        while len(found) < limit:
            page, total = await self._page(offset=offset, limit=min(PAGE, limit - len(found)))
            found |= {dag["dag_id"]: listed(dag) for dag in page}
            offset += len(page)
            if not page or offset >= total:
                break
        return list(found.values())[:limit]

    async def check(self) -> str:
        """Lists one DAG, and asks to change a field of it that the API never changes: who may not pause it is answered 403,
        who may 400. Nothing is changed; Airflow's audit log has an entry of it."""
        page, total = await self._page(offset=0, limit=1)
        host = urlsplit(self._url).hostname
        if not page:
            return f"{self.name}: {host} takes these credentials, but shows them no DAG, so that nothing proves they may pause one."
        dag = page[0]
        path = f"{API}/dags/{quote(dag['dag_id'], safe='')}?update_mask=nothing"
        response = await self._call("PATCH", path, {"is_paused": is_paused(dag)})
        if response.status != 400:
            self._judge(response, ref=dag["dag_id"])
        return f"{self.name}: {host} takes these credentials; of {total} DAGs they may pause {dag['dag_id']}."

    async def _dag(self, ref: str, *, stale: bool = False) -> Mapping[str, Any]:
        """`stale`: also one that no file defines any more."""
        response = await self._call("GET", path_of(ref, self.name))
        self._judge(response, ref=ref)
        dag = self._read(response, ref)
        if dag.get("is_stale") is True and not stale:
            raise gone(self.name, ref)
        return dag

    async def _set(self, ref: str, paused: bool) -> Mapping[str, Any]:
        path = f"{path_of(ref, self.name)}?update_mask=is_paused"
        response = await self._call("PATCH", path, {"is_paused": paused})
        self._judge(response, ref=ref)
        dag = self._read(response, ref)
        if is_paused(dag) is not paused:
            raise self._unreadable(response, "a DAG that does not stand as it was asked to")
        return dag

    async def _page(self, *, offset: int, limit: int) -> tuple[list[Mapping[str, Any]], int]:
        asked = {"limit": limit, "offset": offset, "order_by": "dag_id", "exclude_stale": "true"}
        response = await self._call("GET", f"{API}/dags?{urlencode(asked)}", bytes_max=PAGE_BYTES_MAX)
        self._judge(response)
        said = parsed(response.body)
        dags, total = said.get("dags"), said.get("total_entries")
        if not isinstance(dags, list) or not isinstance(total, int) or not all(is_dag(dag) for dag in dags):
            raise self._unreadable(response, "no list of DAGs")
        return dags, total

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, bytes_max: int = ANSWER_BYTES_MAX
    ) -> outbound.Response:
        """With a token; with a new one where the one at hand is refused. What of a call may have arrived is only asked of
        one that changes something."""
        token = await self._get_token(None)
        response = await self._send(method, path, body, token, bytes_max)
        if response.status in (401, 403) and not self._fixed:
            anew = await self._get_token(token)
            if anew is not token:
                response = await self._send(method, path, body, anew, bytes_max)
        return response

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, token: SecretStr, bytes_max: int
    ) -> outbound.Response:
        headers = {"authorization": f"Bearer {token.get_secret_value()}", "accept": "application/json"}
        content = None
        if body is not None:
            headers["content-type"] = "application/json"
            content = json.dumps(body).encode()
        try:
            return await outbound.call(
                self._http,
                method,
                self._url + path,
                content=content,
                headers=headers,
                timeout_seconds=self._timeout_seconds,
                response_bytes_max=bytes_max,
            )
        except DeliveryFailed as exc:
            if method == "GET":
                exc.ambiguous = False
            raise

    async def _get_token(self, refused: SecretStr | None) -> SecretStr:
        """The one at hand, unless it is the one that was `refused`."""
        seen = self._refusals
        async with self._turn:
            if self._token is not None and self._token is not refused:
                return self._token
            if self._refused is not None and self._refusals != seen:
                raise copy.copy(self._refused)
            self._token = None
            try:
                self._token = await self._login()
            except DeliveryFailed as exc:
                self._refusals += 1
                self._refused = exc
                raise
            return self._token

    async def _login(self) -> SecretStr:
        """Nothing of its answer is quoted: some servers echo what they were sent."""
        assert self._username is not None
        assert self._password is not None
        given = {"username": self._username, "password": self._password.get_secret_value()}
        try:
            response = await outbound.post(
                self._http,
                f"{self._url}/auth/token",
                content=json.dumps(given).encode(),
                headers={"content-type": "application/json", "accept": "application/json"},
                timeout_seconds=self._timeout_seconds,
            )
        except DeliveryFailed as exc:
            exc.ambiguous = False
            raise
        hint = {401: f"mend `username` and `password` of {self.name}", 404: WHERE, 405: WHERE}.get(response.status, "")
        outbound.raise_for_status(replace(response, excerpt=""), hint=f"it gave no token{'; ' if hint else ''}{hint}")
        token = parsed(response.body).get("access_token")
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise self._unreadable(response, "no token")
        return SecretStr(token)

    def _judge(self, response: outbound.Response, *, ref: str | None = None) -> None:
        """404 says two things: there is no such DAG, in words that name it, or no such API at this address."""
        if response.status == 404 and ref is not None and ref in str(parsed(response.body).get("detail")):
            raise gone(self.name, ref)
        mend = f"replace `token` of {self.name}" if self._fixed else f"mend `username` and `password` of {self.name}"
        may = f"{mend}, or allow its user" if self._fixed else "its user must be allowed"
        hint = {401: mend, 403: f"{may} to edit DAGs: {ROLES}", 404: WHERE, 405: WHERE}.get(response.status, "")
        outbound.raise_for_status(replace(response, excerpt=self._detail(response)), hint=hint)

    def _detail(self, response: outbound.Response) -> str:
        """Airflow's own words, without what only we should know; a proxy's page says nothing to anybody."""
        said = parsed(response.body).get("detail")
        if not isinstance(said, str):
            return ""
        for secret in (self._password, self._token):
            said = said.replace(secret.get_secret_value(), MASK) if secret is not None else said
        return "".join(char for char in redact_text(said) if char.isprintable())[: outbound.EXCERPT_CHARS_MAX]

    def _read(self, response: outbound.Response, ref: str) -> Mapping[str, Any]:
        dag = parsed(response.body)
        if not is_dag(dag) or dag["dag_id"] != ref:
            raise self._unreadable(response, "something other than this DAG")
        return dag

    def _unreadable(self, response: outbound.Response, what: str) -> DeliveryFailed:
        """Not for good: a page of a proxy that is being changed looks like this as well."""
        said = f"{response.host} answered {response.status} with {what}; {WHERE}"
        return DeliveryFailed(said, code="answer_unreadable", ambiguous=True, status=response.status)


def open_airflow(config: AirflowConfig, http: httpx.AsyncClient) -> AirflowOrchestrator:
    return AirflowOrchestrator(config, http)


def path_of(ref: str, name: str) -> str:
    """What cannot be a `dag_id` is not put into a path, where it could mean another: `~` is all of them."""
    if DAG_ID.fullmatch(ref) is None or not ref.strip("."):
        raise gone(name, ref)
    return f"{API}/dags/{quote(ref, safe='')}"


def gone(name: str, ref: str, more: str = "", *, code: str = "workflow_gone") -> DeliveryFailed:
    return DeliveryFailed(
        f"{name} has no DAG {ref[:NAME_CHARS_MAX]!r} (any more){more}; give the `dag_id` it has now as `orchestrator.ref` with "
        "PUT /v1/workflows/{workflow_id}, or delete the workflow",
        code=code,
        permanent=True,
    )


def parsed(body: bytes) -> Mapping[str, Any]:
    """Empty where it is no JSON object."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def is_dag(said: Any) -> bool:
    return isinstance(said, dict) and isinstance(said.get("dag_id"), str) and isinstance(said.get("is_paused"), bool)


def is_paused(dag: Mapping[str, Any]) -> bool:
    return dag["is_paused"] is True


def listed(dag: Mapping[str, Any]) -> Listed:
    name, tags = dag.get("dag_display_name"), dag.get("tags")
    given = [tag.get("name") for tag in tags if isinstance(tag, dict)] if isinstance(tags, list) else []
    return Listed(
        ref=dag["dag_id"],
        name=(name if isinstance(name, str) and name else dag["dag_id"])[:NAME_CHARS_MAX],
        tags=tuple(tag for tag in given[:TAGS_MAX] if isinstance(tag, str)),
        paused=is_paused(dag),
    )
