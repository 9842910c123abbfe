"""Notifiers that take nothing until somebody mends them, and what state each message last told."""

from alembic import op

revision = "0020_pager"
down_revision = "0019_slack"

SCHEMA = """
CREATE TABLE notifier_refusals (
    destination TEXT NOT NULL,
    refused_at TIMESTAMP WITH TIME ZONE NOT NULL,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    probe_at TIMESTAMP WITH TIME ZONE NOT NULL,
    taken_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_notifier_refusals PRIMARY KEY (destination)
);

ALTER TABLE messages ADD COLUMN said TEXT;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("ALTER TABLE messages DROP COLUMN said")
    op.execute("DROP TABLE notifier_refusals")
