"""Rejected requests of known sources, bounded, and quarantine."""

revision = "0003_rejected"
down_revision = "0002_accept"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
