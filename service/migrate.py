"""Brings the database's schema up to this code: `authwatch migrate`."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import create_engine, pool

from service.errors import ConfigError
from service.store.session import sqlalchemy_url

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def config(database_url: str) -> Config:
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["database_url"] = database_url
    return made


def upgrade(database_url: str, revision: str = "head") -> None:
    command.upgrade(config(database_url), revision)


def downgrade(database_url: str, revision: str) -> None:
    command.downgrade(config(database_url), revision)


def pending(database_url: str) -> list[str]:
    """Revisions this code knows and the database has not; empty when they agree. ConfigError when it is ahead of us."""
    scripts = ScriptDirectory.from_config(config(database_url))
    engine = create_engine(sqlalchemy_url(database_url), poolclass=pool.NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_heads()
    try:
        return [
            str(script.revision) for script in scripts.iterate_revisions("heads", current or "base", implicit_base=True)
        ]
    except RevisionError:
        raise ConfigError(
            "the database is at a revision that this version does not know; run the version that migrated it"
        ) from None
