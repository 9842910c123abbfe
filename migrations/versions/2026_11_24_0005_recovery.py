"""Gap recovery and a source's habit."""

revision = "0005_recovery"
down_revision = "0004_retention"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
