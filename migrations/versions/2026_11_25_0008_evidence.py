"""Uses of secrets by their keys; when a replayed request first came; how many rejected ones were not kept;
conflicts found by source."""

from alembic import op

revision = "0008_evidence"
down_revision = "0007_retention_state"


NOT_KEPT = """
CREATE TABLE rejected_not_kept (
    source TEXT NOT NULL,
    reason TEXT NOT NULL,
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    requests BIGINT NOT NULL,
    CONSTRAINT pk_rejected_not_kept PRIMARY KEY (source, reason, hour)
)
"""


def upgrade() -> None:
    op.execute(NOT_KEPT)
    # Old code beside us goes on writing its rows by name. It gives a fingerprint to a secret without a name, and so
    # its history goes on as it is; what it counted for a named one cannot be told from an earlier key's and is let be.
    op.execute("ALTER TABLE secret_uses ADD COLUMN shown_name TEXT")
    op.execute("ALTER TABLE conflicts ADD COLUMN first_received_at TIMESTAMP WITH TIME ZONE")
    op.execute("CREATE INDEX ix_conflicts_source_received_at ON conflicts (source, received_at)")
    # Last: every receiver waits for this one, for an instant.
    op.execute("ALTER TABLE receipts ADD COLUMN first_received_at TIMESTAMP WITH TIME ZONE")


def downgrade() -> None:
    op.execute("ALTER TABLE receipts DROP COLUMN first_received_at")
    op.execute("DROP INDEX ix_conflicts_source_received_at")
    op.execute("ALTER TABLE conflicts DROP COLUMN first_received_at")
    op.execute("ALTER TABLE secret_uses DROP COLUMN shown_name")
    op.execute("DROP TABLE rejected_not_kept")
