"""Receipts as Postgres reads them in binary: one `receipt_row` each, and an array of them for `accept_rows`.

Sources: PostgreSQL's array_recv and record_recv (element count and type, then for each field its type and length).
Written by hand because building twenty-three driver parameters for a receipt costs more than all of its verification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from struct import Struct
from typing import Any
from uuid import UUID

import orjson

from service.event import TEXT_BYTES_MAX
from service.store.log import Receipt

# Type oids that never change (pg_type.dat).
UUID_OID, TEXT, TIMESTAMPTZ, BOOL, JSONB, BYTEA = (number.to_bytes(4) for number in (2950, 25, 1184, 16, 3802, 17))
NULL = b"\xff\xff\xff\xff"
FIELDS = (23).to_bytes(4)
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
ARRAY_HEADER = Struct(">iiIii")
WORDS_MAX = 4096
LENGTHS = tuple(number.to_bytes(4) for number in range(TEXT_BYTES_MAX + 1))

UUID_FIELD = UUID_OID + LENGTHS[16]
TIME_FIELD = TIMESTAMPTZ + LENGTHS[8]
TIME_NULL = TIMESTAMPTZ + NULL
TEXT_NULL = TEXT + NULL
JSON_NULL = JSONB + NULL
BOOLS = (BOOL + LENGTHS[1] + b"\x00", BOOL + LENGTHS[1] + b"\x01")
SHA256_FIELD = BYTEA + LENGTHS[32]


def encode_row(receipt: Receipt) -> bytes:
    """One element of the array, its length before it."""
    event = receipt.event
    row = b"".join(
        (
            FIELDS,
            UUID_FIELD + bytes.fromhex(receipt.id.replace("-", "")),
            word(receipt.source),
            word(receipt.origin),
            text(event.event_id),
            word(event.type),
            word(event.kind),
            text(event.account_id),
            word(event.connection_id),
            word(event.provider),
            text(event.identifier),
            word(event.organization_id),
            word(event.environment_id),
            word(event.status),
            word(event.old_status),
            word(event.account_status),
            instant(event.occurred_at),
            instant(receipt.attempted_at),
            BOOLS[receipt.clock_suspect],
            jsonb(event.details) if event.details else JSON_NULL,
            jsonb(receipt.headers),
            BYTEA + len(receipt.body).to_bytes(4) + receipt.body,
            SHA256_FIELD + receipt.body_sha256,
            word(receipt.secret_name),
        )
    )
    return len(row).to_bytes(4) + row


def text(value: str | None) -> bytes:
    if value is None:
        return TEXT_NULL
    raw = value.encode()
    return TEXT + LENGTHS[len(raw)] + raw  # an adapter quarantines what is longer than TEXT_BYTES_MAX


@lru_cache(maxsize=WORDS_MAX)
def word(value: str | None) -> bytes:
    """`text` for what repeats from receipt to receipt."""
    return text(value)


def jsonb(value: Mapping[str, Any]) -> bytes:
    raw = orjson.dumps(value)
    if b"\\u0000" in raw:  # jsonb cannot hold it, and no provider or proxy sends it
        raw = orjson.dumps(
            {name: item.replace("\x00", "") if type(item) is str else item for name, item in value.items()}
        )
    return JSONB + (len(raw) + 1).to_bytes(4) + b"\x01" + raw


def instant(at: datetime | None) -> bytes:
    if at is None:
        return TIME_NULL
    since = at - EPOCH
    return TIME_FIELD + ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds).to_bytes(
        8, signed=True
    )


def encode_array(oid: int, rows: Sequence[bytes]) -> bytes:
    return b"".join((ARRAY_HEADER.pack(1, 0, oid, len(rows), 1), *rows))


def read_uuid(raw: bytes) -> str:
    return str(UUID(bytes=raw))
