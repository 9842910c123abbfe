"""The rule set in force, as Postgres has it: the files' last good texts, every version of every rule, what fails.

`rule_set` is one row and its version the one thing that every judging transaction reads. The number comes from a sequence,
so that a publication that was rolled back never shares its number with another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Integer,
    PrimaryKeyConstraint,
    Row,
    Table,
    Text,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy import Sequence as NumberSequence
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.keys import any_of
from service.store.tables import Instant, metadata

LOCK = 7_305_201_012  # the same number as in hold_rule_set
REMOVED_KEPT = timedelta(
    days=90
)  # how long a file that is gone is remembered, so that an old copy does not bring it back
VERSIONS_KEPT = 1000  # of one rule

rule_set_version = NumberSequence("rule_set_version", metadata=metadata)
rule_set = Table(
    "rule_set",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1
    Column("version", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),  # Ruleset.version
    Column("at", Instant, nullable=False),
    Column("settled", Boolean, nullable=False, server_default=text("false")),  # what it ended is closed
    Column("rejudge_since", Instant),  # accounts heard of since then are to be judged again; null when they all are
    Column("rejudged_to", ARRAY(Text)),  # the key of the last account that was
    CheckConstraint("id = 1", name="ck_rule_set_one"),
)
rule_files = Table(
    "rule_files",
    metadata,
    Column("name", Text, primary_key=True),
    Column("text", Text),  # as it was when it was good last; null when it never was, or is gone
    Column("sha256", Text),  # of what was saved last, good or not; null when it is gone
    Column("modified_at", Instant, nullable=False),  # by the clock of the host that has the file
    Column("changed_at", Instant, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("good", Boolean, nullable=False),  # whether what was saved last can be read
    Column("problem", Text),  # one mistake a line
)
rule_versions = Table(
    "rule_versions",
    metadata,
    Column("rule_id", Text, nullable=False),
    Column("set_version", BigInteger, nullable=False),
    Column("version", Text),  # Rule.version, as `alerts.rule_version` has it; null when the rule is gone
    Column("condition_version", Text),
    Column("file", Text, nullable=False),
    Column("text", Text),
    Column("change", Text, nullable=False),  # added | changed | removed
    Column("at", Instant, nullable=False),
    Column("by", Text, nullable=False),
    Column("diff", Text, nullable=False),
    PrimaryKeyConstraint("rule_id", "set_version"),
)
rule_failures = Table(
    "rule_failures",
    metadata,
    Column("rule_id", Text, primary_key=True),
    Column("rule_version", Text, nullable=False),
    Column("error", Text, nullable=False),  # the type of it, never its text
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFile:
    """One file as it was last published."""

    name: str
    text: str | None
    sha256: str | None
    modified_at: datetime
    changed_at: datetime
    changed_by: str
    good: bool
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleVersion:
    """What a rule became with one publication; `version` and `text` are None where it was removed."""

    rule_id: str
    set_version: int
    version: str | None
    condition_version: str | None
    file: str
    text: str | None
    change: str
    at: datetime
    by: str
    diff: str


HOLD = text("SELECT hold_rule_set()")


async def hold(conn: AsyncConnection) -> int:
    """The version in force, which stays so until this transaction ends; 0 when nothing was ever published.

    Before the accounts' locks: who publishes takes those while it keeps everybody waiting here.
    """
    version: int = (await conn.execute(HOLD)).scalar_one()
    return version


async def lock(conn: AsyncConnection) -> None:
    """Of who publishes: nobody judges until this transaction ends."""
    await conn.execute(select(func.pg_advisory_xact_lock(LOCK)))


async def state(conn: AsyncConnection) -> Row[Any] | None:
    return (await conn.execute(select(rule_set))).first()


async def state_to_change(conn: AsyncConnection) -> Row[Any] | None:
    """None also while another process settles the set."""
    return (await conn.execute(select(rule_set).with_for_update(skip_locked=True))).first()


async def put_state(conn: AsyncConnection, digest: str, at: datetime, rejudge_since: datetime | None) -> int:
    """A new version is in force; its number. What an earlier one left to be judged again still is."""
    version: int = (await conn.execute(select(rule_set_version.next_value()))).scalar_one()
    statement = insert(rule_set).values(
        id=1, version=version, digest=digest, at=at, settled=False, rejudge_since=rejudge_since
    )
    new = statement.excluded
    await conn.execute(
        statement.on_conflict_do_update(
            index_elements=("id",),
            set_={
                "version": new.version,
                "digest": new.digest,
                "at": new.at,
                "settled": new.settled,
                "rejudge_since": func.least(rule_set.c.rejudge_since, new.rejudge_since),
                "rejudged_to": None,
            },
        )
    )
    return version


async def change_state(conn: AsyncConnection, **values: Any) -> None:
    await conn.execute(update(rule_set).values(**values))


async def files(conn: AsyncConnection) -> dict[str, RuleFile]:
    """By name, in order of it: the first file to use a rule id keeps it."""
    rows = await conn.execute(select(rule_files))
    found = {row.name: RuleFile(**row._mapping) for row in rows}
    return dict(sorted(found.items()))  # by code point, whatever the database's collation


async def problems(conn: AsyncConnection) -> dict[str, RuleFile]:
    """The files that something is wrong with."""
    rows = await conn.execute(select(rule_files).where(rule_files.c.problem.is_not(None)).order_by(rule_files.c.name))
    return {row.name: RuleFile(**row._mapping) for row in rows}


async def save_files(conn: AsyncConnection, changed: Collection[RuleFile], now: datetime) -> None:
    if changed:
        statement = insert(rule_files)
        columns = {column.name: statement.excluded[column.name] for column in rule_files.columns}
        await conn.execute(
            statement.on_conflict_do_update(index_elements=("name",), set_=columns), [asdict(file) for file in changed]
        )
    await conn.execute(
        delete(rule_files).where(rule_files.c.sha256.is_(None), rule_files.c.changed_at < now - REMOVED_KEPT)
    )


async def add_versions(conn: AsyncConnection, versions: Sequence[RuleVersion]) -> None:
    if not versions:
        return
    await conn.execute(insert(rule_versions), [asdict(version) for version in versions])
    number = func.row_number().over(partition_by=rule_versions.c.rule_id, order_by=rule_versions.c.set_version.desc())
    ranked = (
        select(rule_versions.c.rule_id, rule_versions.c.set_version, number.label("number"))
        .where(rule_versions.c.rule_id == any_of(version.rule_id for version in versions))
        .subquery()
    )
    await conn.execute(
        delete(rule_versions).where(
            rule_versions.c.rule_id == ranked.c.rule_id,
            rule_versions.c.set_version == ranked.c.set_version,
            ranked.c.number > VERSIONS_KEPT,
        )
    )


async def versions_of(conn: AsyncConnection, rule_id: str, before: int | None, limit: int) -> list[RuleVersion]:
    """Newest first."""
    query = select(rule_versions).where(rule_versions.c.rule_id == rule_id)
    if before is not None:
        query = query.where(rule_versions.c.set_version < before)
    rows = await conn.execute(query.order_by(rule_versions.c.set_version.desc()).limit(limit))
    return [RuleVersion(**row._mapping) for row in rows]


async def versions_in(conn: AsyncConnection, set_version: int) -> list[RuleVersion]:
    """What one publication changed."""
    rows = await conn.execute(
        select(rule_versions).where(rule_versions.c.set_version == set_version).order_by(rule_versions.c.rule_id)
    )
    return [RuleVersion(**row._mapping) for row in rows]


async def record_failures(conn: AsyncConnection, failed: Mapping[str, tuple[str, str]], now: datetime) -> None:
    """By rule id its version and the type of the error; in order, since several transactions may say so at once."""
    if not failed:
        return
    statement = insert(rule_failures)
    new = statement.excluded
    await conn.execute(
        statement.on_conflict_do_update(
            index_elements=("rule_id",),
            set_={"rule_version": new.rule_version, "error": new.error, "last_at": new.last_at},
        ),
        [
            {"rule_id": rule_id, "rule_version": version, "error": error, "first_at": now, "last_at": now}
            for rule_id, (version, error) in sorted(failed.items())
        ],
    )


async def failures(conn: AsyncConnection) -> list[Row[Any]]:
    return list(await conn.execute(select(rule_failures).order_by(rule_failures.c.rule_id)))


async def forget_failures(conn: AsyncConnection, rule_ids: Collection[str], before: datetime) -> None:
    """Of these rules, unless they failed since."""
    await conn.execute(
        delete(rule_failures).where(
            rule_failures.c.rule_id == any_of(sorted(rule_ids)), rule_failures.c.last_at <= before
        )
    )
