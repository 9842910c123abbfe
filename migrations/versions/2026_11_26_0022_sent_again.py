"""Of each sink how much of the batch under way is sent again in doubt, so that each try is counted.

Old code beside us neither sets nor reads it: its tries are counted as it counts them."""

from alembic import op

revision = "0022_sent_again"
down_revision = "0021_siem"


def upgrade() -> None:
    op.execute("ALTER TABLE readers ADD COLUMN again_under_way INTEGER DEFAULT 0 NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE readers DROP COLUMN again_under_way")
