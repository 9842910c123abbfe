"""API tokens: only their hashes are stored, a token is shown once."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import new_id
from service.store.tables import tokens

SCOPES = ("read", "write", "siem", "telemetry", "admin")
TOKEN_PREFIX = "aw_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    id: str
    name: str
    scopes: frozenset[str]
    created_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


def make() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> bytes:
    """Tokens are 256 random bits: a plain hash cannot be searched, and a slow one would cost every request."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


async def create(conn: AsyncConnection, name: str, scopes: frozenset[str]) -> tuple[Token, str]:
    """The token's row, and the token itself for the one time it is shown."""
    text = make()
    row = Token(id="tok_" + new_id()[-12:], name=name, scopes=scopes)
    await conn.execute(
        insert(tokens).values(
            id=row.id, name=name, token_sha256=digest(text), scopes=sorted(scopes), created_at=func.now()
        )
    )
    return row, text


async def find(conn: AsyncConnection, token_sha256: bytes) -> Token | None:
    """The live one of that `digest`."""
    row = (
        await conn.execute(select(tokens).where(tokens.c.token_sha256 == token_sha256, tokens.c.revoked_at.is_(None)))
    ).first()
    return Token(id=row.id, name=row.name, scopes=frozenset(row.scopes)) if row else None


async def everyone(conn: AsyncConnection) -> list[Token]:
    return [
        Token(
            id=row.id,
            name=row.name,
            scopes=frozenset(row.scopes),
            created_at=row.created_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
        )
        for row in await conn.execute(select(tokens).order_by(tokens.c.created_at))
    ]


async def revoke(conn: AsyncConnection, token_id: str) -> bool:
    changed = await conn.execute(
        update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    return changed.rowcount == 1


async def used(conn: AsyncConnection, token_id: str) -> None:
    """At most one write a minute for each token."""
    await conn.execute(
        update(tokens)
        .where(
            tokens.c.id == token_id,
            func.coalesce(tokens.c.last_used_at, func.to_timestamp(0))
            < func.now() - func.make_interval(0, 0, 0, 0, 0, 1),
        )
        .values(last_used_at=func.now())
    )
