"""How retention is getting on; short gaps of the receivers; what is carried over found by an index."""

from alembic import op

revision = "0007_retention_state"
down_revision = "0006_secrets"

STATE = """
CREATE TABLE retention_state (
    name TEXT NOT NULL,
    completed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    unfinished TEXT,
    dedup_before TIMESTAMP WITH TIME ZONE,
    configured JSONB,
    CONSTRAINT pk_retention_state PRIMARY KEY (name)
)
"""


def upgrade() -> None:
    op.execute(STATE)
    op.execute("INSERT INTO retention_state (name, completed_at) VALUES ('retention', now())")
    op.execute("ALTER TABLE intake ADD COLUMN gap_from TIMESTAMP WITH TIME ZONE")
    op.execute("ALTER TABLE intake ADD COLUMN gap_until TIMESTAMP WITH TIME ZONE")
    # Of the parent alone: the days to come are made with it (ensure_partitions), and no day that is there is read, with
    # its writers waiting, to make it.
    op.execute("CREATE INDEX ix_events_own ON ONLY events (received_at) WHERE origin = 'authwatch'")


def downgrade() -> None:
    op.execute("DROP INDEX ix_events_own")
    op.execute("ALTER TABLE intake DROP COLUMN gap_until")
    op.execute("ALTER TABLE intake DROP COLUMN gap_from")
    op.execute("DROP TABLE retention_state")
