"""Uses of secrets by their keys."""

from alembic import op

revision = "0008_evidence"
down_revision = "0006_secrets"


def upgrade() -> None:
    # Old code beside us goes on writing its rows by name. It gives a fingerprint to a secret without a name, and so
    # its history goes on as it is; what it counted for a named one cannot be told from an earlier key's and is let be.
    op.execute("ALTER TABLE secret_uses ADD COLUMN shown_name TEXT")


def downgrade() -> None:
    op.execute("ALTER TABLE secret_uses DROP COLUMN shown_name")
