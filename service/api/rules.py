"""`/v1/rules`: the rules in force and where each stands, and what each one was: who changed it, when, and how."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.http import (
    Call,
    Strict,
    Text,
    cursor_position,
    path_text,
    read_cursor,
    read_query,
    runtime_of,
    write_cursor,
)
from service.errors import NotFound
from service.event import rfc3339
from service.rule_sets import Placed
from service.store import rule_sets as store
from service.store.rule_sets import RuleFile, RuleVersion
from service.store.session import begin


class RulesQuery(Strict):
    pass


class VersionsQuery(Strict):
    limit: int = Field(100, ge=1, le=1000)
    cursor: Text | None = None


async def list_rules(request: Request) -> Response:
    """`set_version` and `digest` are what every process judges by; `files` names those that cannot be used as saved."""
    read_query(request, RulesQuery)
    runtime = runtime_of(request)
    async with begin(runtime.engine) as conn:
        known = await runtime.rule_sets.current(conn)
        state = await store.state(conn)
        bad = await store.problems(conn)
    return JSONResponse(
        {
            "set_version": known.version,
            "digest": known.ruleset.version,
            "published_at": rfc3339(state.at) if state is not None else None,
            "items": [rule_json(one, bad) for _, one in sorted(known.placed.items())],
            "files": [file_json(file) for file in bad.values()],
        }
    )


def rule_json(placed: Placed, bad: dict[str, RuleFile]) -> dict[str, Any]:
    rule, file = placed.rule, bad.get(placed.file)
    return {
        "id": rule.id,
        "severity": rule.severity,
        "enabled": rule.enabled,
        "condition": rule.kind,
        "version": rule.version,
        "condition_version": rule.condition_version,
        "file": placed.file,
        "problems": problems_of(file) if file is not None else [],
    }


def file_json(file: RuleFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "problems": problems_of(file),
        "changed_at": rfc3339(file.changed_at),
        "changed_by": file.changed_by,
        "has_good_version": file.text is not None,
    }


def problems_of(file: RuleFile) -> list[str]:
    return (file.problem or "").splitlines()


async def list_versions(request: Request) -> Response:
    """Of a rule that is gone too."""
    query = read_query(request, VersionsQuery)
    rule_id = path_text(request, "rule_id")
    before = read_cursor("rule-versions", query.cursor, cursor_position)[0] if query.cursor else None
    async with begin(runtime_of(request).engine) as conn:
        found = await store.versions_of(conn, rule_id, before, query.limit + 1)
    if not found and before is None:
        raise NotFound("no rule of that id was ever in force; see GET /v1/rules", code="unknown_rule")
    items = found[: query.limit]
    more = len(found) > query.limit
    return JSONResponse(
        {
            "items": [version_json(version) for version in items],
            "next_cursor": write_cursor("rule-versions", items[-1].set_version) if more else None,
        }
    )


def version_json(version: RuleVersion) -> dict[str, Any]:
    return {
        "rule_id": version.rule_id,
        "set_version": version.set_version,
        "version": version.version,
        "condition_version": version.condition_version,
        "change": version.change,
        "at": rfc3339(version.at),
        "by": version.by,
        "file": version.file,
        "text": version.text,
        "diff": version.diff,
    }


CALLS = (
    Call("GET", "/v1/rules", list_rules, "read", "The rules in force", query=RulesQuery),
    Call(
        "GET",
        "/v1/rules/{rule_id}/versions",
        list_versions,
        "read",
        "What a rule was: who changed it, when and how",
        query=VersionsQuery,
    ),
)
