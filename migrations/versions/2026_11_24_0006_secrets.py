"""When each secret was last used; conflicts found by their time, which the sweep asks for every second."""

from alembic import op

revision = "0006_secrets"
down_revision = "0005_recovery"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE secret_uses (
            source TEXT NOT NULL,
            secret_name TEXT NOT NULL,
            first_used_at TIMESTAMP WITH TIME ZONE NOT NULL,
            last_used_at TIMESTAMP WITH TIME ZONE NOT NULL,
            uses BIGINT NOT NULL,
            CONSTRAINT pk_secret_uses PRIMARY KEY (source, secret_name)
        )
    """)
    op.execute("CREATE INDEX ix_conflicts_received_at ON conflicts (received_at)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_conflicts_received_at")
    op.execute("DROP TABLE secret_uses")
