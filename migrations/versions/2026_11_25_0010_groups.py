"""What rules keep that the log alone does not tell quickly: armed deadlines, samples and buckets of groups, and what an
alert was opened under."""

from alembic import op

revision = "0010_groups"
down_revision = "0009_open_holds"

TABLES = (
    """
    CREATE TABLE armed (
        source TEXT NOT NULL,
        environment_id TEXT NOT NULL,
        account_id TEXT NOT NULL,
        rule_id TEXT NOT NULL,
        condition_version TEXT NOT NULL,
        armed_at TIMESTAMP WITH TIME ZONE NOT NULL,
        event_row_id UUID NOT NULL,
        due_at TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT pk_armed PRIMARY KEY (source, environment_id, account_id, rule_id)
    )
    """,
    "CREATE INDEX ix_armed_due_at ON armed (due_at)",
    """
    CREATE TABLE groups (
        rule_id TEXT NOT NULL,
        group_key TEXT NOT NULL,
        condition_version TEXT NOT NULL,
        "group" JSONB NOT NULL,
        source TEXT,
        environment_id TEXT,
        account_id TEXT,
        connection_id TEXT,
        first_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
        last_at TIMESTAMP WITH TIME ZONE NOT NULL,
        due_at TIMESTAMP WITH TIME ZONE,
        CONSTRAINT pk_groups PRIMARY KEY (rule_id, group_key)
    )
    """,
    "CREATE INDEX ix_groups_due_at ON groups (due_at) WHERE due_at IS NOT NULL",
    """
    CREATE TABLE samples (
        rule_id TEXT NOT NULL,
        group_key TEXT NOT NULL,
        condition_version TEXT NOT NULL,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        event_row_id UUID NOT NULL,
        role TEXT NOT NULL,
        "order" TEXT NOT NULL,
        "distinct" TEXT,
        CONSTRAINT pk_samples PRIMARY KEY (rule_id, group_key, condition_version, at, event_row_id)
    )
    """,
    "CREATE INDEX ix_samples_at ON samples (at)",
    """
    CREATE TABLE buckets (
        rule_id TEXT NOT NULL,
        group_key TEXT NOT NULL,
        condition_version TEXT NOT NULL,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        total INTEGER NOT NULL,
        good INTEGER NOT NULL,
        sizes JSONB NOT NULL,
        examples TEXT[] NOT NULL,
        CONSTRAINT pk_buckets PRIMARY KEY (rule_id, group_key, condition_version, at)
    )
    """,
    "CREATE INDEX ix_buckets_at ON buckets (at)",
)
COLUMNS = (
    ("alerts", "condition_version", "TEXT"),
    ("alerts", "labels", "JSONB NOT NULL DEFAULT '{}'"),
    ("alerts", "shadow", "BOOLEAN NOT NULL DEFAULT false"),
    ("alerts", "drill", "BOOLEAN NOT NULL DEFAULT false"),
    ("alerts", "drill_until", "TIMESTAMP WITH TIME ZONE"),
    ("alerts", "late_detection", "BOOLEAN NOT NULL DEFAULT false"),
    ("alerts", "flapping", "BOOLEAN NOT NULL DEFAULT false"),
    ("holds", "connection_id", "TEXT"),
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)
    for table, column, what in COLUMNS:
        op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {what}")
    op.execute("CREATE INDEX ix_alerts_drill ON alerts (drill_until) WHERE drill")
    op.execute("CREATE INDEX ix_holds_open_connection ON holds (connection_id) WHERE released_at IS NULL")


def downgrade() -> None:
    op.execute("DROP INDEX ix_holds_open_connection")
    op.execute("DROP INDEX ix_alerts_drill")
    for table, column, _ in reversed(COLUMNS):
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    for table in ("buckets", "samples", "groups", "armed"):
        op.execute(f"DROP TABLE {table}")
