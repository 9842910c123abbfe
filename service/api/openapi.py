"""`GET /openapi.json`, made from the same declarations as the routes.

openapi-pydantic gives the document's own types, so that what we publish is checked against the standard as it is built.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from msgspec import Struct
from openapi_pydantic import OpenAPI
from pydantic import BaseModel

from service.api.http import Call

PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
    },
}
PATH_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def document(calls: Sequence[Call], *, server: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {
        "/webhooks/{source}": {"post": front_door()},
        "/slack/interactions": {"post": clicks()},
    }
    for call in calls:
        path = PATH_PARAMETER.sub(r"{\1}", call.path)
        paths.setdefault(path, {})[call.method.lower()] = operation(call)
    made = OpenAPI.model_validate(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Authwatch",
                "version": version("authwatch"),
                "description": "Watches connected OAuth accounts.",
            },
            "servers": [{"url": server or "/"}],
            "paths": paths,
            "components": {
                "schemas": {"Problem": PROBLEM},
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }
    )
    return made.model_dump(by_alias=True, exclude_none=True, mode="json")


def operation(call: Call) -> dict[str, Any]:
    answers: dict[str, Any] = {str(call.ok): {"description": "done"}}
    expected = ["400", "404", "409", "503"] if call.scope else ["503"]
    for status in [*(["401", "403"] if call.scope else []), *expected, *map(str, call.statuses)]:
        answers[status] = problem()
    if call.ok != 204 and call.path != "/metrics":
        answers[str(call.ok)]["content"] = {
            media_type: {"schema": {"type": "object" if media_type == "application/json" else "string"}}
            for media_type in (call.media_type, *call.or_media_types)
        }
    made: dict[str, Any] = {
        "summary": call.summary,
        "operationId": f"{call.method.lower()}{re.sub(r'[^a-z0-9]+', '_', call.path.lower())}".rstrip("_"),
        "parameters": [*path_parameters(call.path), *(query_parameters(call.query) if call.query else [])],
        "responses": answers,
    }
    if call.scope is not None:
        made["security"] = [{"token": []}]
        made["description"] = f"Needs the scope `{call.scope}`."
    if call.body is not None:
        answers["413"] = problem()
        answers["408"] = problem()
        made["requestBody"] = {"content": {"application/json": {"schema": inlined(call.body)}}}
    return made


def problem() -> dict[str, Any]:
    return {
        "description": "what was wrong",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in PATH_PARAMETER.findall(path)
    ]


def query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = inlined(model)
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": value,
            "description": value.get("description", ""),
        }
        for name, value in schema["properties"].items()
    ]


def inlined(model: type[BaseModel | Struct]) -> dict[str, Any]:
    """The model's JSON Schema with its own definitions put in place; ours are never recursive."""
    schema = msgspec.json.schema(model) if issubclass(model, Struct) else model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return put(definitions[value["$ref"].rsplit("/", 1)[-1]])
            return {key: put(item) for key, item in value.items()}
        return [put(item) for item in value] if isinstance(value, list) else value

    done: dict[str, Any] = put(schema)
    return done


def front_door() -> dict[str, Any]:
    answers: dict[str, Any] = {"202": {"description": "accepted or quarantined"}, "200": {"description": "duplicate"}}
    for status in answers.values():
        status["content"] = {"application/json": {"schema": {"type": "object"}}}
    for code in ("400", "401", "404", "408", "413", "503"):
        answers[code] = problem()
    return {
        "summary": "A provider's signed event",
        "description": "Authenticated by its Standard Webhooks signature alone.",
        "operationId": "post_webhooks_source",
        "parameters": [
            {"name": "source", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
            *(
                {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
                for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
            ),
        ],
        "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": answers,
    }


def clicks() -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": "done, or under way: what came of it is told in Slack"}}
    for code in ("400", "401", "404", "408", "413", "503"):
        answers[code] = problem()
    form = {"type": "object", "required": ["payload"], "properties": {"payload": {"type": "string"}}}
    return {
        "summary": "A click on a button in Slack",
        "description": "Authenticated by Slack's signature alone.",
        "operationId": "post_slack_interactions",
        "parameters": [
            {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
            for name in ("X-Slack-Request-Timestamp", "X-Slack-Signature")
        ],
        "requestBody": {"content": {"application/x-www-form-urlencoded": {"schema": form}}},
        "responses": answers,
    }
