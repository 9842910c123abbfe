"""In which type and encoding the asker wants the answer: RFC 9110, sections 12.4.2 (weights), 12.5.1 and 12.5.3."""

from __future__ import annotations

import asyncio
import gzip

NDJSON = "application/x-ndjson"
NDJSON_NAMES = (NDJSON, "application/ndjson")
ITEMS_MAX = 50  # of one header; what comes after them says nothing
GZIP_BYTES_MIN = 1024  # below it the answer fits into one packet either way
GZIP_LEVEL = 1  # the higher ones take several times as long for little less


def weights(header: str) -> dict[str, float]:
    """What is named, in lower case, with its weight; the first one counts where something is named twice."""
    found: dict[str, float] = {}
    for part in header.split(",")[:ITEMS_MAX]:
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name:
            found.setdefault(name, weight(parameters))
    return found


def weight(parameters: list[str]) -> float:
    """1 without a weight; 0 for one that is none, which asks for nothing that we would have to guess."""
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                value = float(parameter[2:])
            except ValueError:
                return 0.0
            return value if 0 <= value <= 1 else 0.0
    return 1.0


def wants_ndjson(accept: str) -> bool:
    """Only where it is named, and no less than JSON is: what a client sends of itself, such as `*/*`, gets JSON."""
    given = weights(accept)
    lines = max((given.get(name, 0.0) for name in NDJSON_NAMES), default=0.0)
    named_json = given.get("application/json", 0.0)
    return lines > 0 and lines >= named_json


def takes_gzip(accept_encoding: str) -> bool:
    given = weights(accept_encoding)
    return given.get("gzip", given.get("x-gzip", given.get("*", 0.0))) > 0


async def compressed(body: bytes) -> tuple[bytes, dict[str, str]]:
    """The body and its headers; a short one stays as it is. In a thread: zlib lets go of the interpreter meanwhile."""
    if len(body) < GZIP_BYTES_MIN:
        return body, {}
    return await asyncio.to_thread(gzip.compress, body, GZIP_LEVEL, mtime=0), {"Content-Encoding": "gzip"}
