"""Who asks for the copy and when last, and of each sink what it refused in a row and what it was sent twice.

Old code beside us writes none of the new columns; their defaults say that nothing is known."""

from alembic import op

revision = "0021_siem"
down_revision = "0020_pager"

SCHEMA = """
CREATE TABLE siem_pollers (
    token_id TEXT NOT NULL,
    first_asked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    asked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    asks BIGINT DEFAULT 1 NOT NULL,
    gap_seconds DOUBLE PRECISION DEFAULT 0 NOT NULL,
    CONSTRAINT pk_siem_pollers PRIMARY KEY (token_id)
);

ALTER TABLE readers
    ADD COLUMN refused_in_a_row INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN in_doubt INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN sent_again BIGINT DEFAULT 0 NOT NULL;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("ALTER TABLE readers DROP COLUMN refused_in_a_row, DROP COLUMN in_doubt, DROP COLUMN sent_again")
    op.execute("DROP TABLE siem_pollers")
