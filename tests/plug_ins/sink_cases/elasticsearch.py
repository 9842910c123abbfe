"""Elasticsearch's and OpenSearch's `_bulk`, against a strict fake; its own traps are in tests/plug_ins/test_elasticsearch.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.sinks.elasticsearch import BATCH_ITEMS_MAX, BODY_BYTES_MAX
from tests.fakes.elasticsearch import FakeElasticsearch
from tests.fakes.hec import Scripted
from tests.plug_ins.sink_cases.base import Cases, Trouble

API_KEY = "VGhlLUtleS1JZDpUaGUtS2V5LVNlY3JldA=="


def section(url: str) -> dict[str, Any]:
    return {"kind": "elasticsearch", "url": url, "api_key": API_KEY, "format": "ocsf", "timeout_seconds": 5.0}


def answers(fake: FakeElasticsearch, status: int | None, headers: Mapping[str, str], body: str) -> None:
    fake.always = None if status is None else Scripted(status, body.encode(), dict(headers))


def says(body: bytes) -> Any:
    def begin(fake: FakeElasticsearch) -> None:
        fake.always = Scripted(200, body)

    return begin


def full(fake: FakeElasticsearch) -> None:
    fake.busy_for = [1000] * 10


def not_allowed(fake: FakeElasticsearch) -> None:
    fake.may_write = False


def no_template(fake: FakeElasticsearch) -> None:
    fake.templates = ()


def one_short(fake: FakeElasticsearch) -> None:
    fake.drop_last_outcome = True


def refuse(fake: FakeElasticsearch, word: str) -> None:
    fake.refuse_docs_with = word


def too_many_fields(fake: FakeElasticsearch) -> None:
    fake.fields_max = 3


CASES = Cases(
    section=section,
    secrets=(API_KEY,),
    fake=lambda: FakeElasticsearch(f"ApiKey {API_KEY}"),
    taken=lambda fake: [id_ for _, id_ in fake.docs],
    said=lambda fake: "".join(fake.wire),
    requests=lambda fake: fake.posts,
    answers=answers,
    statuses={
        **dict.fromkeys((301, 302, 303, 307, 308), "refused"),
        **dict.fromkeys((400, 401, 402, 403, 404, 405, 406, 409, 410, 415, 422), "refused"),
        413: "aside",
        **dict.fromkeys((408, 425, 429, 500, 502, 503, 504), "retry"),
    },
    troubles={
        "a login page": Trouble(begin=says(b"<html>Please log in</html>"), verdict="retry", code="answer_unexpected"),
        "an empty yes": Trouble(begin=says(b""), verdict="retry", code="answer_unexpected"),
        "a deep answer": Trouble(begin=says(b"[" * 50_000), verdict="retry", code="answer_unexpected"),
        "an answer of no bulk": Trouble(
            begin=says(b'{"acknowledged":true}'), verdict="retry", code="answer_unexpected"
        ),
        "an item without a status": Trouble(
            begin=says(b'{"errors":false,"items":[{"create":{}},{"create":{"status":201}}]}'),
            verdict="retry",
            code="answer_unexpected",
        ),
        "an outcome too few": Trouble(begin=one_short, verdict="retry", code="answer_unexpected"),
        "a full queue": Trouble(begin=full, verdict="retry", code="items_not_now", says="no room"),
        "a key that may not write": Trouble(
            begin=not_allowed, verdict="refused", code="item_403", says="allow it create_doc"
        ),
        "no such stream": Trouble(begin=no_template, verdict="refused", code="item_404", says="index template"),
        "a mapping that is full": Trouble(begin=too_many_fields, verdict="aside"),
    },
    refuse=refuse,
    slow=lambda fake, seconds: fake.slow_next(seconds),
    break_off=lambda fake: fake.break_off_next(),
    drops_repeats=True,
    request_bytes_max=BODY_BYTES_MAX,
    request_items_max=BATCH_ITEMS_MAX,
    timeout_seconds=1.5,
    wrong=(
        {"api_key": f"ApiKey {API_KEY}"},
        {"api_key": "abc"},
        {"url": "siem.example"},
        {"url": "https://user:pw@siem.example"},
        {"url": "https://siem.example/?api_key=x"},
        {"stream": "Logs-Authwatch"},
        {"stream": "logs/authwatch"},
        {"stream": "-logs"},
    ),
    misconfigured=(
        ({"api_key": "another-key-1234"}, "is not known there"),
        ({"url": "{}/wrong"}, "is this the address"),
    ),
)
