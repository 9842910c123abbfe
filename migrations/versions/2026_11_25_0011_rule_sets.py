"""The rule set in force: the files' last good texts, every version of every rule, and which rules fail."""

from alembic import op

revision = "0011_rule_sets"
down_revision = "0010_groups"

SCHEMA = """
CREATE SEQUENCE rule_set_version;

CREATE TABLE rule_set (
    id INTEGER NOT NULL,
    version BIGINT NOT NULL,
    digest TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    settled BOOLEAN DEFAULT false NOT NULL,
    rejudge_since TIMESTAMP WITH TIME ZONE,
    rejudged_to TEXT[],
    CONSTRAINT pk_rule_set PRIMARY KEY (id),
    CONSTRAINT ck_rule_set_one CHECK (id = 1)
);

CREATE TABLE rule_files (
    name TEXT NOT NULL,
    text TEXT,
    sha256 TEXT,
    modified_at TIMESTAMP WITH TIME ZONE NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    changed_by TEXT NOT NULL,
    good BOOLEAN NOT NULL,
    problem TEXT,
    CONSTRAINT pk_rule_files PRIMARY KEY (name)
);

CREATE TABLE rule_versions (
    rule_id TEXT NOT NULL,
    set_version BIGINT NOT NULL,
    version TEXT,
    condition_version TEXT,
    file TEXT NOT NULL,
    text TEXT,
    change TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    by TEXT NOT NULL,
    diff TEXT NOT NULL,
    CONSTRAINT pk_rule_versions PRIMARY KEY (rule_id, set_version)
);

CREATE TABLE rule_failures (
    rule_id TEXT NOT NULL,
    rule_version TEXT NOT NULL,
    error TEXT NOT NULL,
    first_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_rule_failures PRIMARY KEY (rule_id)
)
"""

# Who judges holds the lock shared until its transaction ends, who publishes holds it alone: so what is judged by an old
# set is committed before a new one is, and what an old set opened can be closed with the change itself. Lock, then
# read, as statements of their own: the version must be the one that the lock waited for. Nothing published yet: 0, and
# no lock, since the caller will publish and two that share a lock cannot both have it alone.
HOLD = """
CREATE FUNCTION hold_rule_set() RETURNS BIGINT LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    held BIGINT;
BEGIN
    IF NOT EXISTS (SELECT FROM rule_set) THEN
        RETURN 0;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(7305201012);
    SELECT version INTO held FROM rule_set;
    RETURN held;
END
$$
"""


def upgrade() -> None:
    for statement in SCHEMA.split(";\n"):
        op.execute(statement)
    op.execute(HOLD)


def downgrade() -> None:
    op.execute("DROP FUNCTION hold_rule_set()")
    for table in ("rule_failures", "rule_versions", "rule_files", "rule_set"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP SEQUENCE rule_set_version")
