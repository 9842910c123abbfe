"""The API against its own document: every declared call with good and bad data, on a running receiver."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import ADMIN_TOKEN
from tests.end_to_end.running import Running

EXAMPLES = int(os.environ.get("AUTHWATCH_FUZZ_EXAMPLES", "60"))
LONG = "AUTHWATCH_FUZZ_EXAMPLES" in os.environ
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
seen: Counter[str] = Counter()
by_mode: Counter[str] = Counter()


def test_every_call_answers_as_the_document_says(door: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{door.url}/openapi.json")
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    began = time.monotonic()
    each = max(3, EXAMPLES // 12)
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) > 20

    def run(operation: Any) -> None:
        @settings(
            max_examples=each,
            deadline=None,
            derandomize=not LONG,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def call(data: Any) -> None:
            mode = data.draw(st.sampled_from(GenerationMode))
            case = data.draw(operation.as_strategy(generation_mode=mode))
            response = case.call(headers=headers, timeout=20)
            seen[str(response.status_code)] += 1
            by_mode[case.meta.generation.mode.value] += 1
            assert response.status_code != 503, "declared for a database that is away, and it is there"
            case.validate_response(response, checks=[not_a_server_error, *CHECKS])

        call()

    for operation in operations:
        if operation.path.startswith("/webhooks/") or operation.path == "/v1/gate/stream":
            continue  # test_front_door.py has the one, and the other is an answer without end
        run(operation)
    assert min(by_mode[mode.value] for mode in GenerationMode) > len(operations)
    print(
        f"\nfuzz: {sum(seen.values())} calls of {len(operations)} operations, {dict(by_mode)}, {dict(seen)}, "
        f"{time.monotonic() - began:.0f} s"
    )


def test_without_a_token_everything_under_v1_is_401(door: Running) -> None:
    document = httpx.get(f"{door.url}/openapi.json", trust_env=False).json()
    with httpx.Client(base_url=door.url, trust_env=False) as client:
        for path, methods in document["paths"].items():
            if not path.startswith("/v1/"):
                continue
            for method in methods:
                answer = client.request(method.upper(), path.replace("{", "").replace("}", ""), content=b"{}")
                assert answer.status_code == 401, (method, path)
