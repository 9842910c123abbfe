"""When each secret was last used."""

revision = "0006_secrets"
down_revision = "0005_recovery"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
