"""`GET /v1/alerts/{id}/explain` and `POST /v1/explain`: "why did I get this" and "why did I not", one call each."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from service import explain, rule_sets
from service.api.alerts import alert_id_of
from service.api.http import Call, Instant, Strict, Text, read_json, runtime_of, safe_json
from service.errors import BadRequest
from service.event import YEAR_MIN
from service.store import readers
from service.store.session import begin

GROUP_FIELDS_MAX = 5  # as many as a rule may group by


class ExplainBody(Strict):
    rule: Annotated[Text, Field(min_length=1, max_length=80, description="its id, as alerts name it")] | None = None
    rule_id: Annotated[Text, Field(min_length=1, max_length=80, description="another name of rule")] | None = None
    account_id: Text | None = Field(None, description="short, or source:environment_id:account_id")
    group: dict[Text, Text] | None = Field(
        None, max_length=GROUP_FIELDS_MAX, description="the values of the rule's group_by, where it is not the account"
    )
    at: Instant | None = Field(None, description="the instant asked about; by default now")

    @model_validator(mode="after")
    def names_one(self) -> Self:
        if (self.rule is None) == (self.rule_id is None):
            raise ValueError("give rule, the id of a rule")
        if (self.account_id is None) == (self.group is None):
            raise ValueError("give account_id or group, one of them")
        return self

    @property
    def about(self) -> str:
        return self.rule or self.rule_id or ""


async def explain_alert(request: Request) -> Response:
    runtime = runtime_of(request)
    async with begin(runtime.engine) as conn:
        ruleset = await rule_sets.in_force(conn, runtime)
        return safe_json(await explain.explain_alert(conn, alert_id_of(request), ruleset, runtime.settings.routing))


async def explain_rule(request: Request) -> Response:
    runtime = runtime_of(request)
    body = await read_json(request, ExplainBody)
    async with begin(runtime.engine) as conn:
        ruleset = await rule_sets.in_force(conn, runtime)
        now = await readers.clock(conn)
        at = body.at or now
        if at > now or at.year < YEAR_MIN:
            raise BadRequest(f"at: between the year {YEAR_MIN} and now; what will be is not known", code="invalid_body")
        about = await explain.find(
            conn,
            ruleset,
            rule_id=body.about,
            account_id=body.account_id,
            group=body.group,
            at=at,
        )
        return safe_json(await explain.explain(conn, about, runtime.settings.routing))


CALLS = (
    Call(
        "GET",
        "/v1/alerts/{id}/explain",
        explain_alert,
        "read",
        "Why this alert: the events and the value that fired it, what it paused, its routes, what mutes it, every attempt,"
        " how long each step took",
    ),
    Call(
        "POST",
        "/v1/explain",
        explain_rule,
        "read",
        "Why a rule did or did not fire for an account or a group at a time: what there was, what was missing",
        body=ExplainBody,
    ),
)
