"""The accept path takes one composite value per receipt, and keeps what came again with another body.

`accept_rows` stands beside `accept_receipts`, which the version still deployed calls; a later migration drops that.
"""

from alembic import op

revision = "0002_accept"
down_revision = "0001_first"

CONFLICTS = """
CREATE TABLE conflicts (
    event_row_id UUID NOT NULL,
    body_sha256 BYTEA NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    source TEXT NOT NULL,
    headers JSONB NOT NULL,
    body BYTEA NOT NULL,
    secret_name TEXT,
    attempted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_conflicts PRIMARY KEY (event_row_id, body_sha256)
)
"""

# A receipt on its way in. One array of these is unnested once for each table, where an array for each column would be
# unnested column by column.
ROW = """
CREATE TYPE receipt_row AS (
    id uuid, source text, origin text, event_id text, type text, kind text, account_id text, connection_id text,
    provider text, identifier text, organization_id text, environment_id text, status text, old_status text,
    account_status text, occurred_at timestamptz, attempted_at timestamptz, clock_suspect boolean, details jsonb,
    headers jsonb, body bytea, body_sha256 bytea, secret_name text
)
"""

# Lock, then insert, as statements of their own: the insert's snapshot must see what the lock waited for (design.md,
# rule 4). The common batch has no duplicate, so what is fresh is only searched for when the count says that some is not.
# Answers a row for each receipt that added nothing; its event_row_id is the receipt's own id when the same call was
# made before and only its answer was lost.
ACCEPT = """
CREATE FUNCTION accept_rows(batch receipt_row[])
RETURNS TABLE (number integer, event_row_id uuid, same_body boolean)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    at timestamptz;
    fresh receipt_row[] := batch;
    added integer;
BEGIN
    PERFORM pg_advisory_xact_lock(7305201002);
    at := clock_timestamp();
    INSERT INTO dedup (source, environment_id, event_id, type, event_row_id, body_sha256, received_at)
    SELECT n.source, coalesce(n.environment_id, ''), n.event_id, n.type, n.id, n.body_sha256, at FROM unnest(batch) AS n
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS added = ROW_COUNT;
    IF added < cardinality(batch) THEN
        fresh := ARRAY(
            SELECT (n.id, n.source, n.origin, n.event_id, n.type, n.kind, n.account_id, n.connection_id, n.provider,
                n.identifier, n.organization_id, n.environment_id, n.status, n.old_status, n.account_status,
                n.occurred_at, n.attempted_at, n.clock_suspect, n.details, n.headers, n.body, n.body_sha256,
                n.secret_name)::receipt_row
            FROM unnest(batch) WITH ORDINALITY AS n
            JOIN dedup d ON d.source = n.source AND d.environment_id = coalesce(n.environment_id, '')
                AND d.event_id = n.event_id AND d.type = n.type AND d.event_row_id = n.id AND d.received_at = at
            ORDER BY n.ordinality);
    END IF;

    INSERT INTO events (
        id, source, origin, event_id, type, kind, account_id, connection_id, provider, identifier, organization_id,
        environment_id, status, old_status, account_status, occurred_at, received_at, attempted_at, lag_seconds,
        provider_lag_seconds, network_lag_seconds, clock_suspect, details)
    SELECT n.id, n.source, n.origin, n.event_id, n.type, n.kind, n.account_id, n.connection_id, n.provider,
        n.identifier, n.organization_id, n.environment_id, n.status, n.old_status, n.account_status,
        coalesce(n.occurred_at, at), at, n.attempted_at,
        CASE WHEN NOT n.clock_suspect THEN extract(epoch FROM at - n.occurred_at) END,
        CASE WHEN NOT n.clock_suspect THEN extract(epoch FROM n.attempted_at - n.occurred_at) END,
        extract(epoch FROM at - n.attempted_at), n.clock_suspect, n.details
    FROM unnest(fresh) AS n;

    INSERT INTO receipts (event_row_id, received_at, source, headers, body, body_sha256, secret_name, attempted_at)
    SELECT n.id, at, n.source, n.headers, n.body, n.body_sha256, n.secret_name, n.attempted_at FROM unnest(fresh) AS n;

    IF added < cardinality(batch) THEN
        INSERT INTO conflicts (
            event_row_id, body_sha256, received_at, source, headers, body, secret_name, attempted_at)
        SELECT d.event_row_id, n.body_sha256, at, n.source, n.headers, n.body, n.secret_name, n.attempted_at
        FROM unnest(batch) AS n
        JOIN dedup d ON d.source = n.source AND d.environment_id = coalesce(n.environment_id, '')
            AND d.event_id = n.event_id AND d.type = n.type AND d.body_sha256 <> n.body_sha256
        ON CONFLICT DO NOTHING;
        RETURN QUERY
        SELECT n.ordinality::integer, d.event_row_id, d.body_sha256 = n.body_sha256
        FROM unnest(batch) WITH ORDINALITY AS n
        JOIN dedup d ON d.source = n.source AND d.environment_id = coalesce(n.environment_id, '')
            AND d.event_id = n.event_id AND d.type = n.type AND (d.event_row_id <> n.id OR d.received_at <> at);
    END IF;
END
$$
"""


def upgrade() -> None:
    op.execute(CONFLICTS)
    op.execute(ROW)
    op.execute(ACCEPT)


def downgrade() -> None:
    op.execute("DROP FUNCTION accept_rows(receipt_row[])")
    op.execute("DROP TYPE receipt_row")
    op.execute("DROP TABLE conflicts")
