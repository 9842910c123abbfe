"""How many events each account had lately, at most: rules that need more of them do not read its history. Rows from before
have none of these numbers and are read as before, until two hours are over."""

from alembic import op

revision = "0016_heard"
down_revision = "0015_routing"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE accounts ADD COLUMN heard_hour INTEGER, ADD COLUMN heard_in_hour INTEGER DEFAULT 0 NOT NULL,"
        " ADD COLUMN heard_before INTEGER DEFAULT 0 NOT NULL"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE accounts DROP COLUMN heard_hour, DROP COLUMN heard_in_hour, DROP COLUMN heard_before")
