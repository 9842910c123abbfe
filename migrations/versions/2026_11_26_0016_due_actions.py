"""The next due action of each destination is the first of an index, however many wait there; an alert's holds are found
whether they are open or not. What the older indexes were for is dropped once no process uses them any more."""

from alembic import op

revision = "0016_due_actions"
down_revision = "0014_reports"


def upgrade() -> None:
    op.execute(
        "CREATE INDEX ix_actions_due ON actions (destination, kind, next_attempt_at, id)"
        " WHERE state IN ('pending', 'running')"
    )
    op.execute("CREATE INDEX ix_holds_alert_id ON holds (alert_id)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_holds_alert_id")
    op.execute("DROP INDEX ix_actions_due")
