"""What is remembered of gauges between two readings; the oldest action of each destination is asked once a second."""

from alembic import op

revision = "0012_gauge_states"
down_revision = "0011_rule_sets"


GAUGE_STATES = """
CREATE TABLE gauge_states (
    rule_id TEXT NOT NULL,
    group_key TEXT NOT NULL,
    condition_version TEXT NOT NULL,
    "group" JSONB NOT NULL,
    alert_id UUID,
    pending_since TIMESTAMP WITH TIME ZONE,
    false_since TIMESTAMP WITH TIME ZONE,
    flapping BOOLEAN DEFAULT false NOT NULL,
    value FLOAT NOT NULL,
    read_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_gauge_states PRIMARY KEY (rule_id, group_key)
)
"""


def upgrade() -> None:
    op.execute(GAUGE_STATES)
    op.execute(
        "CREATE INDEX ix_actions_destination_open ON actions (destination, kind, created_at)"
        " WHERE state IN ('pending', 'running')"
    )


def downgrade() -> None:
    op.execute("DROP INDEX ix_actions_destination_open")
    op.execute("DROP TABLE gauge_states")
