"""Account keys as one parameter: the statement's text stays the same however many there are, so that it is compiled,
prepared and planned once, not for every number of accounts anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ARRAY, CollectionAggregate, ColumnElement, Table, Text, Uuid, and_, any_, bindparam, cast, func

from service.event import AccountKey
from service.store.columns import literal

NAMES = ("source", "environment_id", "account_id")
KEYS_IN_TEXT = "unnest(" + ", ".join(f"CAST(:key_{name}s AS text[])" for name in NAMES) + ")"  # with `key_values`
KEYS = (
    func.unnest(*(cast(bindparam(f"key_{name}s", type_=Text()), ARRAY(Text())) for name in NAMES))
    .table_valued(*NAMES, name="keys", joins_implicitly=True)
    .render_derived()
)


def same_account(table: Table) -> ColumnElement[bool]:
    """Rows of these accounts; the statement is executed with `key_values`."""
    return and_(*(table.c[name] == KEYS.c[name] for name in NAMES))


def key_values(keys: Iterable[AccountKey]) -> dict[str, Any]:
    known = list(keys)
    return {
        "key_sources": literal([key.source for key in known]),
        "key_environment_ids": literal([key.environment_id for key in known]),
        "key_account_ids": literal([key.account_id for key in known]),
    }


def any_of(words: Iterable[str]) -> CollectionAggregate[Any]:
    """For `column == any_of(words)`: what `in_` says, in one parameter."""
    return any_(bindparam(None, list(words), type_=ARRAY(Text()), unique=True))


def any_id(ids: Iterable[str]) -> CollectionAggregate[Any]:
    """The same of a column of UUIDs."""
    return any_(bindparam(None, list(ids), type_=ARRAY(Uuid(as_uuid=False)), unique=True))
