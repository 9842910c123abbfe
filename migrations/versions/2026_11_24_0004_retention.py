"""Retention: partitions detached and dropped."""

revision = "0004_retention"
down_revision = "0003_rejected"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
