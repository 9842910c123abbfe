"""Runs the migrations over one synchronous connection, one migration at a time over the whole cluster of us.

Rules for whoever writes the next one: it runs beside the code still deployed, so add before you use and use before
you drop; it does one thing; it never waits long for a lock (`lock_timeout` below), because a queue behind a waiting
ALTER stops the front door.
"""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import create_engine, pool, text

from service.store import (  # noqa: F401 - they add tables
    audit_tables,
    expired,
    hold_tables,
    recovery_tables,
    refusals,
    rejected,
    report_tables,
    retention_state,
    routing_tables,
    rule_sets,
    rule_tables,
    siem_tables,
)
from service.store.session import sqlalchemy_url
from service.store.tables import metadata

MIGRATION_LOCK = 7_305_201_001  # any number that is ours alone
LOCK_TIMEOUT = "4s"


def include_name(name: str | None, type_: str, _parents: Any) -> bool:
    """Day partitions are made by `ensure_partitions`, `events_kept` by retention, not by migrations."""
    return not (type_ == "table" and name is not None and (name[-8:].isdigit() or name == "events_kept"))


def run() -> None:
    url = context.config.attributes["database_url"]
    engine = create_engine(sqlalchemy_url(url), poolclass=pool.NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        # A session lock, not a transaction one: each migration commits by itself.
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            transaction_per_migration=True,
            include_name=include_name,
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
