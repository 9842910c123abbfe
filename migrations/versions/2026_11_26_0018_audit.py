"""The audit chain: where it stands, an index that finds its entries, and the secrets a source was last seen with."""

from alembic import op

revision = "0018_audit"
down_revision = "0017_holds"

CHAIN = """
CREATE TABLE audit_chain (
    name TEXT NOT NULL,
    number BIGINT DEFAULT 0 NOT NULL,
    position BIGINT DEFAULT 0 NOT NULL,
    hash TEXT DEFAULT '0000000000000000000000000000000000000000000000000000000000000000' NOT NULL,
    at TIMESTAMP WITH TIME ZONE,
    anchor_number BIGINT DEFAULT 0 NOT NULL,
    anchor_position BIGINT DEFAULT 0 NOT NULL,
    anchor_hash TEXT DEFAULT '0000000000000000000000000000000000000000000000000000000000000000' NOT NULL,
    cut_position BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_audit_chain PRIMARY KEY (name)
)
"""
# What is in the log already is from before the chain, also where a chain was begun and its table dropped by a downgrade.
BEGIN = """
INSERT INTO audit_chain (name, anchor_position, cut_position)
SELECT 'audit', given, given FROM (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS given FROM log_position) AS log
"""
SECRETS = """
CREATE TABLE known_secrets (
    source TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    shown_name TEXT NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_known_secrets PRIMARY KEY (source, fingerprint)
)
"""
# When an EXPIRED account is asked for at its provider the next time; one that was never asked for has no row.
EXPIRED = """
CREATE TABLE expired_asks (
    source TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    asked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    next_ask_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_expired_asks PRIMARY KEY (source, environment_id, account_id)
)
"""


def upgrade() -> None:
    for statement in (CHAIN, BEGIN, SECRETS, EXPIRED):
        op.execute(statement)
    # Of the parent alone, as ix_events_own is: no day that is there is read, with its writers waiting, to make it.
    op.execute(
        "CREATE INDEX ix_events_chained ON ONLY events (position)"
        " WHERE kind IN ('audit', 'workflow.paused', 'workflow.resumed')"
    )


def downgrade() -> None:
    op.execute("DROP INDEX ix_events_chained")
    for table in ("expired_asks", "known_secrets", "audit_chain"):
        op.execute(f"DROP TABLE {table}")
