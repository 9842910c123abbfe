"""A load of reported tool calls over loopback: a few kept-alive connections, each sending its next request of 1,000 calls on
its last answer. Everything is built before the clock starts.

Run as a process of its own; it prints one JSON line. The API token is in BENCH_SECRET.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import queue
import threading
import time
import uuid
from collections import Counter
from datetime import UTC, datetime

ITEMS = 1000
FAILED_EACH = 50  # one call in so many fails, and enters the log
ACCOUNTS = 10_000
HOST = "127.0.0.1"
SECONDS_MAX = 120


def body(number: int) -> bytes:
    now = datetime.now(UTC).isoformat()
    items = []
    for index in range(ITEMS):
        failed = index % FAILED_EACH == 0
        items.append(
            {
                "id": str(uuid.uuid4()),
                "occurred_at": now,
                "account_id": f"ca_{(number * ITEMS + index) % ACCOUNTS:016d}",
                "connection_id": "conn_58345499215204357",
                "workflow_id": "ticket-routing",
                "tool": "salesforce.query",
                "provider": "SALESFORCE",
                "operation": "write" if index % 3 == 0 else "read",
                "outcome": "error" if failed else "success",
                "http_status": 503 if failed else 200,
                "error_class": "upstream_5xx" if failed else None,
                "error": "503 Service Unavailable" if failed else None,
                "retries": 2 if failed else 0,
                "latency_ms": 182.5,
                "verification": "verified" if index % 3 == 0 else "none",
            }
        )
    return json.dumps({"items": items}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--connections", type=int, default=4)
    arguments = parser.parse_args()
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    size = 0
    for number in range(arguments.requests):
        made = body(number)
        size += len(made)
        waiting.put(made)
    headers = {"Authorization": f"Bearer {os.environ['BENCH_SECRET']}", "content-type": "application/json"}
    statuses: Counter[str] = Counter()

    def send() -> None:
        connection = http.client.HTTPConnection(HOST, arguments.port, timeout=SECONDS_MAX)
        while True:
            try:
                made = waiting.get_nowait()
            except queue.Empty:
                connection.close()
                return
            connection.request("POST", arguments.path, made, headers)
            answer = connection.getresponse()
            answer.read()
            statuses[str(answer.status)] += 1

    threads = [threading.Thread(target=send) for _ in range(arguments.connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    calls = arguments.requests * ITEMS
    print(json.dumps({"per_second": calls / seconds, "statuses": statuses, "bytes": size // arguments.requests}))


if __name__ == "__main__":
    main()
