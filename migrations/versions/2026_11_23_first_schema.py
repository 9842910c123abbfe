"""The first schema: the log with its receipts and dedup, accounts, workflows, alerts, holds, actions, readers.

It runs beside the code still deployed: add before use, use before drop; one thing per migration.
"""

from alembic import op

revision = "0001_first"
down_revision = None

# Names of everything below, for the way back.
TABLES = (
    "accounts",
    "actions",
    "alerts",
    "attempts",
    "deadlines",
    "dedup",
    "dependencies",
    "events",
    "heartbeats",
    "holds",
    "messages",
    "poison",
    "readers",
    "receipts",
    "tokens",
    "workflows",
)

SCHEMA = """
CREATE SEQUENCE log_position;

CREATE TABLE accounts (
    source TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    connection_id TEXT,
    provider TEXT,
    identifier TEXT,
    organization_id TEXT,
    status TEXT,
    status_since TIMESTAMP WITH TIME ZONE,
    not_well JSONB DEFAULT '{}' NOT NULL,
    last_status_at TIMESTAMP WITH TIME ZONE,
    last_event_at TIMESTAMP WITH TIME ZONE,
    last_refresh_at TIMESTAMP WITH TIME ZONE,
    last_refresh_outcome TEXT,
    failures_in_a_row INTEGER DEFAULT 0 NOT NULL,
    token_expires_at TEXT,
    first_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_accounts PRIMARY KEY (source, environment_id, account_id)
);

CREATE INDEX ix_accounts_account_id ON accounts (account_id);

CREATE INDEX ix_accounts_connection_id ON accounts (connection_id);

CREATE INDEX ix_accounts_status ON accounts (status);

CREATE TABLE actions (
    id UUID NOT NULL,
    kind TEXT NOT NULL,
    destination TEXT NOT NULL,
    lane TEXT NOT NULL,
    alert_id UUID,
    workflow_id TEXT,
    payload JSONB DEFAULT '{}' NOT NULL,
    state TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    attempts INTEGER DEFAULT 0 NOT NULL,
    last_code TEXT,
    last_error TEXT,
    finished_at TIMESTAMP WITH TIME ZONE,
    result JSONB,
    CONSTRAINT pk_actions PRIMARY KEY (id)
);

CREATE INDEX ix_actions_alert_id ON actions (alert_id);

CREATE INDEX ix_actions_lane_open ON actions (lane, created_at, id) WHERE state IN ('pending', 'running');

CREATE INDEX ix_actions_open ON actions (next_attempt_at) WHERE state IN ('pending', 'running');

CREATE INDEX ix_actions_workflow_id ON actions (workflow_id);

CREATE TABLE alerts (
    id UUID NOT NULL,
    rule_id TEXT NOT NULL,
    rule_version TEXT,
    severity TEXT NOT NULL,
    source TEXT,
    environment_id TEXT,
    account_id TEXT,
    connection_id TEXT,
    "group" JSONB NOT NULL,
    group_key TEXT NOT NULL,
    episode INTEGER NOT NULL,
    dedup_key TEXT NOT NULL,
    state TEXT NOT NULL,
    summary TEXT NOT NULL,
    what_to_do TEXT,
    opened_at TIMESTAMP WITH TIME ZONE NOT NULL,
    fired_at TIMESTAMP WITH TIME ZONE NOT NULL,
    condition_ended_at TIMESTAMP WITH TIME ZONE,
    acknowledged_at TIMESTAMP WITH TIME ZONE,
    acknowledged_by TEXT,
    snoozed_until TIMESTAMP WITH TIME ZONE,
    resolved_at TIMESTAMP WITH TIME ZONE,
    resolved_reason TEXT,
    discovered_late BOOLEAN DEFAULT false NOT NULL,
    late_seconds FLOAT,
    value FLOAT,
    evidence TEXT[] DEFAULT '{}' NOT NULL,
    stable_for_seconds FLOAT DEFAULT 30 NOT NULL,
    pauses BOOLEAN DEFAULT true NOT NULL,
    CONSTRAINT pk_alerts PRIMARY KEY (id),
    CONSTRAINT uq_alerts_rule_id_group_key_episode UNIQUE (rule_id, group_key, episode)
);

CREATE INDEX ix_alerts_account_id_fired_at ON alerts (account_id, fired_at);

CREATE INDEX ix_alerts_fired_at ON alerts (fired_at);

CREATE INDEX ix_alerts_open ON alerts (rule_id, group_key) WHERE condition_ended_at IS NULL;

CREATE INDEX ix_alerts_unresolved ON alerts (state) WHERE state <> 'resolved';

CREATE TABLE attempts (
    action_id UUID NOT NULL,
    number INTEGER NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    outcome TEXT,
    code TEXT,
    detail TEXT,
    CONSTRAINT pk_attempts PRIMARY KEY (action_id, number)
);

CREATE TABLE deadlines (
    source TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_deadlines PRIMARY KEY (source, environment_id, account_id)
);

CREATE INDEX ix_deadlines_due_at ON deadlines (due_at);

CREATE TABLE dedup (
    source TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    event_row_id UUID NOT NULL,
    body_sha256 BYTEA NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_dedup PRIMARY KEY (source, environment_id, event_id, type)
);

CREATE INDEX ix_dedup_received_at ON dedup (received_at);

CREATE TABLE dependencies (
    workflow_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    written TEXT NOT NULL,
    source TEXT,
    environment_id TEXT,
    target_id TEXT NOT NULL,
    CONSTRAINT pk_dependencies PRIMARY KEY (workflow_id, kind, written)
);

CREATE INDEX ix_dependencies_kind_target_id ON dependencies (kind, target_id);

CREATE TABLE events (
    position BIGINT DEFAULT nextval('log_position') NOT NULL,
    id UUID NOT NULL,
    source TEXT NOT NULL,
    origin TEXT NOT NULL,
    event_id TEXT,
    type TEXT NOT NULL,
    kind TEXT NOT NULL,
    account_id TEXT,
    connection_id TEXT,
    provider TEXT,
    identifier TEXT,
    organization_id TEXT,
    environment_id TEXT,
    status TEXT,
    old_status TEXT,
    account_status TEXT,
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    attempted_at TIMESTAMP WITH TIME ZONE,
    lag_seconds FLOAT,
    provider_lag_seconds FLOAT,
    network_lag_seconds FLOAT,
    clock_suspect BOOLEAN DEFAULT false NOT NULL,
    details JSONB,
    CONSTRAINT pk_events PRIMARY KEY (position, received_at)
)
 PARTITION BY RANGE (received_at);

CREATE INDEX ix_events_account_id_occurred_at ON events (account_id, occurred_at);

CREATE INDEX ix_events_connection_id_occurred_at ON events (connection_id, occurred_at);

CREATE INDEX ix_events_id ON events (id);

CREATE INDEX ix_events_occurred_at ON events (occurred_at);

CREATE INDEX ix_events_type_occurred_at ON events (type, occurred_at);

CREATE TABLE heartbeats (
    part TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    details JSONB,
    CONSTRAINT pk_heartbeats PRIMARY KEY (part)
);

CREATE TABLE holds (
    id UUID NOT NULL,
    workflow_id TEXT NOT NULL,
    alert_id UUID,
    scope TEXT NOT NULL,
    source TEXT,
    environment_id TEXT,
    account_id TEXT,
    reason TEXT NOT NULL,
    placed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    released_at TIMESTAMP WITH TIME ZONE,
    release_reason TEXT,
    CONSTRAINT pk_holds PRIMARY KEY (id)
);

CREATE INDEX ix_holds_open ON holds (workflow_id) WHERE released_at IS NULL;

CREATE INDEX ix_holds_open_alert ON holds (alert_id) WHERE released_at IS NULL;

CREATE UNIQUE INDEX uq_holds_episode ON holds (workflow_id, alert_id) WHERE alert_id IS NOT NULL;

CREATE UNIQUE INDEX uq_holds_manual ON holds (workflow_id) WHERE alert_id IS NULL AND released_at IS NULL;

CREATE TABLE messages (
    alert_id UUID NOT NULL,
    destination TEXT NOT NULL,
    channel TEXT NOT NULL,
    ts TEXT NOT NULL,
    posted_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_messages PRIMARY KEY (alert_id, destination)
);

CREATE TABLE poison (
    reader TEXT NOT NULL,
    position BIGINT NOT NULL,
    event_row_id UUID NOT NULL,
    reason TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_poison PRIMARY KEY (reader, position)
);

CREATE TABLE readers (
    name TEXT NOT NULL,
    position BIGINT NOT NULL,
    moved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    next_attempt_at TIMESTAMP WITH TIME ZONE,
    failures_in_a_row INTEGER DEFAULT 0 NOT NULL,
    last_code TEXT,
    last_error TEXT,
    last_ok_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_readers PRIMARY KEY (name)
);

CREATE TABLE receipts (
    event_row_id UUID NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    source TEXT NOT NULL,
    headers JSONB NOT NULL,
    body BYTEA NOT NULL,
    body_sha256 BYTEA NOT NULL,
    secret_name TEXT,
    attempted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_receipts PRIMARY KEY (event_row_id, received_at)
)
 PARTITION BY RANGE (received_at);

CREATE TABLE tokens (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    token_sha256 BYTEA NOT NULL,
    scopes TEXT[] NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_tokens PRIMARY KEY (id),
    CONSTRAINT uq_tokens_token_sha256 UNIQUE (token_sha256)
);

CREATE TABLE workflows (
    workflow_id TEXT NOT NULL,
    name TEXT,
    account_ids TEXT[] NOT NULL,
    connection_ids TEXT[] NOT NULL,
    active BOOLEAN NOT NULL,
    pause TEXT NOT NULL,
    resume TEXT NOT NULL,
    orchestrator_name TEXT,
    orchestrator_ref TEXT,
    orchestrator_held BOOLEAN DEFAULT false NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_workflows PRIMARY KEY (workflow_id)
);
"""

# One statement for the receiver: lock, then insert. Two statements inside one volatile function, because the insert's
# snapshot must see what the lock waited for (design.md, rule 4): the same event committed a moment ago is then a
# conflict that can be read back. The lock is the last one a transaction takes.
ACCEPT = """
CREATE FUNCTION accept_receipts(
    p_id uuid[], p_source text[], p_origin text[], p_event_id text[], p_type text[], p_kind text[],
    p_account_id text[], p_connection_id text[], p_provider text[], p_identifier text[], p_organization_id text[],
    p_environment_id text[], p_status text[], p_old_status text[], p_account_status text[],
    p_occurred_at timestamptz[], p_attempted_at timestamptz[], p_clock_suspect boolean[], p_details text[],
    p_headers text[], p_body bytea[], p_body_sha256 bytea[], p_secret_name text[]
) RETURNS TABLE (row_number bigint, event_row_id uuid, accepted boolean, same_body boolean)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    at timestamptz;
    fresh uuid[];
BEGIN
    PERFORM pg_advisory_xact_lock(7305201002);
    at := clock_timestamp();
    -- Only what this call inserted is fresh: the same batch sent again after a lost answer adds nothing.
    WITH inserted AS (
        INSERT INTO dedup (source, environment_id, event_id, type, event_row_id, body_sha256, received_at)
        SELECT n.source, coalesce(n.environment_id, ''), n.event_id, n.type, n.id, n.body_sha256, at
        FROM unnest(p_source, p_environment_id, p_event_id, p_type, p_id, p_body_sha256) WITH ORDINALITY
            AS n (source, environment_id, event_id, type, id, body_sha256, o)
        ORDER BY n.o
        ON CONFLICT DO NOTHING
        RETURNING dedup.event_row_id
    )
    SELECT array_agg(inserted.event_row_id) INTO fresh FROM inserted;

    INSERT INTO events (
        id, source, origin, event_id, type, kind, account_id, connection_id, provider, identifier, organization_id,
        environment_id, status, old_status, account_status, occurred_at, received_at, attempted_at, lag_seconds,
        provider_lag_seconds, network_lag_seconds, clock_suspect, details)
    SELECT n.id, n.source, n.origin, n.event_id, n.type, n.kind, n.account_id, n.connection_id, n.provider,
        n.identifier, n.organization_id, n.environment_id, n.status, n.old_status, n.account_status,
        coalesce(n.occurred_at, at), at, n.attempted_at,
        CASE WHEN NOT n.clock_suspect THEN extract(epoch FROM at - n.occurred_at) END,
        CASE WHEN NOT n.clock_suspect THEN extract(epoch FROM n.attempted_at - n.occurred_at) END,
        extract(epoch FROM at - n.attempted_at),
        n.clock_suspect, n.details::jsonb
    FROM unnest(p_id, p_source, p_origin, p_event_id, p_type, p_kind, p_account_id, p_connection_id, p_provider,
            p_identifier, p_organization_id, p_environment_id, p_status, p_old_status, p_account_status,
            p_occurred_at, p_attempted_at, p_clock_suspect, p_details) WITH ORDINALITY
        AS n (id, source, origin, event_id, type, kind, account_id, connection_id, provider, identifier,
            organization_id, environment_id, status, old_status, account_status, occurred_at, attempted_at,
            clock_suspect, details, o)
    WHERE n.id = ANY (fresh)
    ORDER BY n.o;

    INSERT INTO receipts (event_row_id, received_at, source, headers, body, body_sha256, secret_name, attempted_at)
    SELECT n.id, at, n.source, n.headers::jsonb, n.body, n.body_sha256, n.secret_name, n.attempted_at
    FROM unnest(p_id, p_source, p_headers, p_body, p_body_sha256, p_secret_name, p_attempted_at)
        AS n (id, source, headers, body, body_sha256, secret_name, attempted_at)
    WHERE n.id = ANY (fresh);

    RETURN QUERY
    SELECT n.o, d.event_row_id, d.event_row_id = n.id, d.body_sha256 = n.body_sha256
    FROM unnest(p_source, p_environment_id, p_event_id, p_type, p_id, p_body_sha256) WITH ORDINALITY
        AS n (source, environment_id, event_id, type, id, body_sha256, o)
    JOIN dedup d ON d.source = n.source AND d.environment_id = coalesce(n.environment_id, '')
        AND d.event_id = n.event_id AND d.type = n.type
    ORDER BY n.o;
END
$$
"""

# Makes the day partitions [first, first + days) that are missing. A new table is made apart and then attached, because
# CREATE TABLE ... PARTITION OF would lock out every reader of the parent.
ENSURE_PARTITIONS = """
CREATE FUNCTION ensure_partitions(first date, days integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    day date;
    parent text;
    child text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(7305201003);
    FOR day IN SELECT first + n FROM generate_series(0, days - 1) AS n LOOP
        FOREACH parent IN ARRAY ARRAY['events', 'receipts'] LOOP
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            IF to_regclass(child) IS NULL THEN
                EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING INDEXES)', child, parent);
                EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                    day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
                made := made + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$
"""


def upgrade() -> None:
    for statement in SCHEMA.split(";\n"):
        if statement.strip():
            op.execute(statement)
    op.execute(ACCEPT)
    op.execute(ENSURE_PARTITIONS)
    op.execute("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, 9)")
    op.execute("INSERT INTO readers (name, position, moved_at) VALUES ('evaluator', 0, now())")


def downgrade() -> None:
    op.execute("DROP FUNCTION ensure_partitions(date, integer)")
    op.execute("DROP FUNCTION accept_receipts")
    for table in reversed(TABLES):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP SEQUENCE log_position")
