"""The accept path: one composite row per receipt, conflicts kept."""

revision = "0002_accept"
down_revision = "0001_first"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
