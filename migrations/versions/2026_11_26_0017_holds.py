"""Who placed a hold and until when, who let go of it and why in their words; and the earlier times of a hold that came back."""

from alembic import op

revision = "0017_holds"
down_revision = "0016_heard"

PAST_HOLDS = """
CREATE TABLE past_holds (
    id UUID NOT NULL,
    workflow_id TEXT NOT NULL,
    alert_id UUID,
    scope TEXT NOT NULL,
    source TEXT,
    environment_id TEXT,
    account_id TEXT,
    connection_id TEXT,
    reason TEXT NOT NULL,
    placed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    released_at TIMESTAMP WITH TIME ZONE NOT NULL,
    release_reason TEXT,
    placed_by TEXT,
    expires_at TIMESTAMP WITH TIME ZONE,
    released_by TEXT,
    release_note TEXT,
    CONSTRAINT pk_past_holds PRIMARY KEY (id, placed_at)
)
"""


def upgrade() -> None:
    op.execute(PAST_HOLDS)
    op.execute("CREATE INDEX ix_past_holds_workflow_id_placed_at_id ON past_holds (workflow_id, placed_at, id)")
    op.execute("CREATE INDEX ix_past_holds_alert_id ON past_holds (alert_id)")
    # Old code beside us writes its rows by name, without these: it knows no names of persons and no expiry.
    op.execute(
        "ALTER TABLE holds ADD COLUMN placed_by TEXT, ADD COLUMN expires_at TIMESTAMP WITH TIME ZONE,"
        " ADD COLUMN released_by TEXT, ADD COLUMN release_note TEXT"
    )
    op.execute("CREATE INDEX ix_holds_workflow_id_placed_at_id ON holds (workflow_id, placed_at, id)")
    op.execute(
        "CREATE INDEX ix_holds_expires ON holds (expires_at) WHERE released_at IS NULL AND expires_at IS NOT NULL"
    )


def downgrade() -> None:
    op.execute("DROP INDEX ix_holds_expires")
    op.execute("DROP INDEX ix_holds_workflow_id_placed_at_id")
    op.execute(
        "ALTER TABLE holds DROP COLUMN placed_by, DROP COLUMN expires_at, DROP COLUMN released_by,"
        " DROP COLUMN release_note"
    )
    op.execute("DROP TABLE past_holds")
