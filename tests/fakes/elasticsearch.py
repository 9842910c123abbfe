"""A strict Elasticsearch: the `_bulk` of data streams, with its outcomes per item, dynamic mapping and duplicate ids.

Written from Elastic's reference and from what OpenSearch has in common with it; no real one runs here.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.hec import Scripted
from tests.fakes.slack import BreakOff

BODY_BYTES_MAX = 100_000_000
ID_BYTES_MAX = 512
FIELDS_MAX = 1000
PARAMETERS = frozenset({"filter_path", "refresh", "timeout", "pipeline", "wait_for_active_shards"})
DATE = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?")
# What an index template should say, so that details of any shape fit one mapping.
FLATTENED = ("authwatch.details", "unmapped.details", "evidences.data", "entity.data", "updated_entity.data")


@dataclass
class FakeElasticsearch:
    """`app` is served with `serve(fake.app)`. `docs`: what the streams hold, in order, by (stream, id)."""

    authorization: str | None
    templates: tuple[str, ...] = ("logs-*-*",)  # names of these become data streams by themselves
    body_bytes_max: int = BODY_BYTES_MAX
    fields_max: int = FIELDS_MAX
    docs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    may_write: bool = True
    busy_for: list[int] = field(default_factory=list)  # of the next posts: how many items, from the last on, are a 429
    refuse_docs_with: str | None = None  # a document that holds this text does not fit the mapping
    drop_last_outcome: bool = False
    always: Scripted | None = None
    posts: list[tuple[int, int]] = field(default_factory=list)  # (items, bytes before gzip) of each bulk that was read
    gzipped: list[bool] = field(default_factory=list)
    wire: list[str] = field(default_factory=list)
    _types: dict[str, dict[str, str]] = field(default_factory=dict)
    _slow_seconds: float = 0.0
    _break_off: bool = False

    @property
    def app(self) -> Starlette:
        everything = ["GET", "POST", "PUT", "HEAD", "DELETE"]
        return Starlette(
            routes=[
                Route("/{stream}/_bulk", self._bulk, methods=["POST"]),
                Route("/{path:path}", no_handler, methods=everything),
            ]
        )

    def slow_next(self, seconds: float) -> None:
        self._slow_seconds = seconds

    def break_off_next(self) -> None:
        self._break_off = True

    async def _bulk(self, request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=400)
        if self.always is not None:
            return Response(self.always.body, status_code=self.always.status, headers=self.always.headers)
        said = self._answer(request, body)
        if self._slow_seconds:
            seconds, self._slow_seconds = self._slow_seconds, 0.0
            await asyncio.sleep(seconds)
        if self._break_off:
            self._break_off = False
            return BreakOff()
        return said

    def _answer(self, request: Request, body: bytes) -> Response:
        if self.authorization is not None and request.headers.get("authorization") != self.authorization:
            reason = "unable to authenticate with provided credentials and anonymous access is not allowed"
            return error(401, "security_exception", reason)
        unknown = request.query_params.keys() - PARAMETERS
        if unknown:
            reason = f"request [{request.url.path}] contains unrecognized parameter: [{sorted(unknown)[0]}]"
            return error(400, "illegal_argument_exception", reason)
        if request.headers.get("content-type") not in ("application/x-ndjson", "application/json"):
            return error(406, "media_type_header_exception", "Content-Type header is not supported")
        if len(body) > self.body_bytes_max:
            return Response(status_code=413)
        gzipped = request.headers.get("content-encoding") == "gzip"
        if gzipped:
            try:
                body = zlib.decompress(body, wbits=31)
            except zlib.error:
                return error(400, "illegal_argument_exception", "Not in GZIP format")
        if len(body) > self.body_bytes_max:
            return Response(status_code=413)
        if not body:
            return error(400, "parse_exception", "request body is required")
        if not body.endswith(b"\n"):
            reason = "The bulk request must be terminated by a newline [\\n]"
            return error(400, "illegal_argument_exception", reason)
        lines = body[:-1].split(b"\n")
        if len(lines) % 2:
            return error(400, "illegal_argument_exception", "Malformed action/metadata line")
        try:
            actions = [read_action(line) for line in lines[::2]]
        except ValueError as exc:
            return error(400, "illegal_argument_exception", str(exc))
        self.wire.append(body.decode("utf-8", "replace"))
        self.posts.append((len(actions), len(body)))
        self.gzipped.append(gzipped)
        full = self._take(request.path_params["stream"], actions, lines[1::2])
        paths = request.query_params.get("filter_path")
        return JSONResponse(filtered(full, [path.split(".") for path in paths.split(",")]) if paths else full)

    def _take(self, stream: str, actions: list[tuple[str, dict[str, Any]]], lines: list[bytes]) -> dict[str, Any]:
        busy = self.busy_for.pop(0) if self.busy_for else 0
        items = []
        for number, ((name, about), line) in enumerate(zip(actions, lines, strict=True)):
            if number >= len(actions) - busy:
                status, kind, reason = (
                    429,
                    "es_rejected_execution_exception",
                    "rejected execution of coordinating operation",
                )
            else:
                status, kind, reason = self._create(stream, name, about, line)
            said: dict[str, Any] = {"_index": f".ds-{stream}-000001", "_id": about.get("_id"), "status": status}
            if kind:
                said["error"] = {"type": kind, "reason": reason, "index": stream, "shard": "0"}
            items.append({name: said})
        if self.drop_last_outcome:
            items.pop()
        errors = any("error" in said for item in items for said in item.values())
        return {"took": 3, "errors": errors, "items": items}

    def _create(self, stream: str, name: str, about: Mapping[str, Any], line: bytes) -> tuple[int, str, str]:
        if not self.may_write:
            return 403, "security_exception", "action [indices:data/write/bulk[s]] is unauthorized for API key id [x]"
        if not any(fnmatchcase(stream, template) for template in self.templates):
            return 404, "index_not_found_exception", f"no such index [{stream}] and it is no data stream"
        if name != "create":
            reason = "only write ops with an op_type of create are allowed in data streams"
            return 400, "illegal_argument_exception", reason
        id_ = about.get("_id")
        if not isinstance(id_, str) or not id_ or len(id_.encode()) > ID_BYTES_MAX:
            return 400, "illegal_argument_exception", "id is missing here, or is too long"
        try:
            doc = json.loads(line, parse_constant=no_such_number)
        except ValueError:
            return 400, "document_parsing_exception", "failed to parse"
        if not isinstance(doc, dict) or not isinstance(doc.get("@timestamp"), str):
            return 400, "document_parsing_exception", "data stream timestamp field [@timestamp] is missing"
        if not DATE.fullmatch(doc["@timestamp"]):
            return 400, "document_parsing_exception", "failed to parse field [@timestamp] of type [date]"
        if self.refuse_docs_with is not None and self.refuse_docs_with in line.decode():
            return 400, "document_parsing_exception", f"failed to parse field [user.name] near {self.refuse_docs_with}"
        types = self._types.setdefault(stream, {})
        found = dict(mapped("", doc))
        for path, kind in found.items():
            if not fits(kind, types.get(path, kind)):
                return 400, "document_parsing_exception", f"failed to parse field [{path}] of type [{types[path]}]"
        if len(types.keys() | found.keys()) > self.fields_max:
            reason = f"Limit of total fields [{self.fields_max}] has been exceeded while adding new fields"
            return 400, "illegal_argument_exception", reason
        if (stream, id_) in self.docs:
            reason = f"[{id_}]: version conflict, document already exists (current version [1])"
            return 409, "version_conflict_engine_exception", reason
        for path, kind in found.items():
            types.setdefault(path, kind)
        self.docs[stream, id_] = doc
        return 201, "", ""


async def no_handler(request: Request) -> Response:
    said = f"no handler found for uri [{request.url.path}] and method [{request.method}]"
    return JSONResponse({"error": said, "status": 400}, status_code=400)


def no_such_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def read_action(line: bytes) -> tuple[str, dict[str, Any]]:
    said = json.loads(line)
    if not isinstance(said, dict) or len(said) != 1:
        raise ValueError("Malformed action/metadata line, expected one action")
    ((name, about),) = said.items()
    if name not in ("create", "index", "update", "delete") or not isinstance(about, dict):
        raise ValueError(f"Malformed action/metadata line, found [{name}]")
    if about.keys() - {"_id", "_index", "require_alias", "dynamic_templates", "pipeline", "routing"}:
        raise ValueError("Action/metadata line contains an unknown parameter")
    return name, about


def mapped(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """(path, type) of every field that dynamic mapping would make of it."""
    if path in FLATTENED:
        yield path, "flattened" if isinstance(value, dict) else "scalar in flattened"
    elif isinstance(value, dict):
        if path:
            yield path, "object"
        for name, inner in value.items():
            yield from mapped(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from mapped(path, inner)
    elif isinstance(value, bool):
        yield path, "boolean"
    elif isinstance(value, int | float):
        yield path, "long" if isinstance(value, int) else "float"
    elif isinstance(value, str):
        yield path, "date" if DATE.fullmatch(value) else "text"


def fits(kind: str, wanted: str) -> bool:
    if kind == wanted:
        return True
    concrete = "object" not in (kind, wanted) and "flattened" not in (kind, wanted)
    numbers = {kind, wanted} <= {"long", "float"}
    return concrete and (wanted == "text" or numbers)


def filtered(value: Any, paths: list[list[str]]) -> Any:
    """`filter_path`: only these, `*` for any one name; a list is looked through."""
    if isinstance(value, list):
        return [filtered(inner, paths) for inner in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, inner in value.items():
        deeper = [path[1:] for path in paths if path and path[0] in (name, "*")]
        if any(not path for path in deeper):
            kept[name] = inner
        elif deeper and isinstance(inner, dict | list):
            kept[name] = filtered(inner, deeper)
    return kept


def error(status: int, kind: str, reason: str) -> Response:
    cause = {"type": kind, "reason": reason}
    return JSONResponse({"error": {"root_cause": [cause], **cause}, "status": status}, status_code=status)
