"""Whether an account holds any workflow is asked for every batch of events."""

from alembic import op

revision = "0009_open_holds"
down_revision = "0008_evidence"


def upgrade() -> None:
    op.execute("CREATE INDEX ix_holds_open_account ON holds (account_id) WHERE released_at IS NULL")


def downgrade() -> None:
    op.execute("DROP INDEX ix_holds_open_account")
