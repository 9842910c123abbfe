"""Gap recovery and a source's habit."""

from alembic import op

revision = "0005_recovery"
down_revision = "0004_retention"

SCHEMA = """
CREATE TABLE intake (
    source TEXT NOT NULL,
    able_until TIMESTAMP WITH TIME ZONE NOT NULL,
    down_from TIMESTAMP WITH TIME ZONE,
    up_since TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_intake PRIMARY KEY (source)
);

CREATE TABLE recoveries (
    id UUID NOT NULL,
    source TEXT NOT NULL,
    reason TEXT NOT NULL,
    environment_id TEXT,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    state TEXT NOT NULL,
    done_until TIMESTAMP WITH TIME ZONE,
    page_token TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    claimed_by UUID,
    attempts INTEGER DEFAULT 0 NOT NULL,
    last_code TEXT,
    last_error TEXT,
    found BIGINT DEFAULT 0 NOT NULL,
    added BIGINT DEFAULT 0 NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_recoveries PRIMARY KEY (id)
);

CREATE INDEX ix_recoveries_waiting ON recoveries (created_at) WHERE state = 'waiting';

CREATE UNIQUE INDEX uq_recoveries_listing ON recoveries (source, environment_id) WHERE reason = 'listing';

CREATE TABLE habits (
    source TEXT NOT NULL,
    first_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_at TIMESTAMP WITH TIME ZONE NOT NULL,
    events BIGINT NOT NULL,
    gaps JSONB DEFAULT '{}' NOT NULL,
    late_at TIMESTAMP WITH TIME ZONE,
    late_seconds FLOAT,
    late_break_at TIMESTAMP WITH TIME ZONE,
    late_break_seconds FLOAT,
    CONSTRAINT pk_habits PRIMARY KEY (source)
);
"""


def upgrade() -> None:
    for statement in SCHEMA.split(";\n"):
        if statement.strip():
            op.execute(statement)
    # Who learns the sources' habits reads the log from its beginning: what is there is what there is to learn from.
    op.execute("INSERT INTO readers (name, position, moved_at) VALUES ('habits', 0, now())")


def downgrade() -> None:
    op.execute("DELETE FROM readers WHERE name = 'habits'")
    for table in ("habits", "recoveries", "intake"):
        op.execute(f"DROP TABLE {table}")
