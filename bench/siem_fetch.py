"""One poller of a feed: page after page by the `next` link, over one connection, as lean as a client can be."""

from __future__ import annotations

import re
from array import array
from http.client import HTTPConnection

from bench.hec import positions_of
from bench.house import HOST, BenchFailed

NEXT = re.compile(r'<([^>]+)>; *rel="?next"?')
ANSWER_SECONDS_MAX = 30
LINES, JSON = "application/x-ndjson", "application/json"


class Poller:
    """`positions`: of all that it was given, as it came. `kind`: in which form the last page came."""

    def __init__(self, port: int, token: str, path: str, accept: str = LINES) -> None:
        self._connection = HTTPConnection(HOST, port, timeout=ANSWER_SECONDS_MAX)
        self._headers = {"authorization": f"Bearer {token}", "accept": f"{accept}, {JSON}"}
        self._path = path
        self.positions = array("q")
        self.bytes = 0
        self.kind = ""

    def page(self) -> int:
        """How many items came. Raises BenchFailed unless it was answered 200 with a link to the next page."""
        self._connection.request("GET", self._path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        following = NEXT.search(answer.headers.get("link", ""))
        if answer.status != 200 or following is None:
            raise BenchFailed(f"the feed answered {answer.status} to {self._path}: {body[:200]!r}")
        self._path, self.kind = following[1], answer.headers.get_content_type()
        found = positions_of(body)
        self.positions.extend(found)
        self.bytes += len(body)
        return len(found)

    def close(self) -> None:
        self._connection.close()
