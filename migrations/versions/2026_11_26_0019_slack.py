"""When each message was last written, so that a burst of changes is one edit, and what its thread was told. Rows from
before have neither: they are edited at once, and their threads begin with what came after them.

A person's acts are found by what they were about."""

from alembic import op

revision = "0019_slack"
down_revision = "0018_audit"


def upgrade() -> None:
    op.execute("ALTER TABLE messages ADD COLUMN edited_at TIMESTAMP WITH TIME ZONE, ADD COLUMN told TEXT[]")
    # Of the parent alone, as in 0007: the days to come are made with it.
    op.execute("CREATE INDEX ix_events_audit ON ONLY events (event_id) WHERE kind = 'audit'")


def downgrade() -> None:
    op.execute("DROP INDEX ix_events_audit")
    op.execute("ALTER TABLE messages DROP COLUMN told, DROP COLUMN edited_at")
