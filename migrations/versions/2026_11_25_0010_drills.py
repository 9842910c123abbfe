"""Alerts that are fired for practice, and when each ends by itself."""

from alembic import op

revision = "0010_drills"
down_revision = "0009_open_holds"


def upgrade() -> None:
    op.execute("ALTER TABLE alerts ADD COLUMN drill BOOLEAN NOT NULL DEFAULT false")
    op.execute("ALTER TABLE alerts ADD COLUMN drill_until TIMESTAMP WITH TIME ZONE")
    op.execute("CREATE INDEX ix_alerts_drill ON alerts (drill_until) WHERE drill")


def downgrade() -> None:
    op.execute("DROP INDEX ix_alerts_drill")
    op.execute("ALTER TABLE alerts DROP COLUMN drill_until")
    op.execute("ALTER TABLE alerts DROP COLUMN drill")
