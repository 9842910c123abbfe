"""What agents report of tool calls and token refreshes, what becomes of it by the minute and the hour, and the malformed
calls that wait for a review.

Raw reports and minutes go by whole days: `ensure_partitions` makes theirs with the log's.
"""

from alembic import op

revision = "0014_reports"
down_revision = "0013_due_actions"

# `day` is the day of receipt in UTC: a unique key must hold what it is partitioned by, and a time would make none.
RAW = (
    "CREATE SEQUENCE report_position",
    """
    CREATE TABLE tool_calls (
        day DATE NOT NULL,
        id TEXT COLLATE "C" NOT NULL,
        position BIGINT DEFAULT nextval('report_position') NOT NULL,
        received_at TIMESTAMP WITH TIME ZONE NOT NULL,
        occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
        clock_suspect BOOLEAN NOT NULL,
        account_id TEXT NOT NULL,
        connection_id TEXT,
        workflow_id TEXT,
        tool TEXT NOT NULL,
        provider TEXT,
        operation TEXT NOT NULL,
        outcome TEXT NOT NULL,
        http_status INTEGER,
        error_class TEXT,
        error TEXT,
        retries INTEGER NOT NULL,
        latency_ms FLOAT,
        verification TEXT NOT NULL,
        idempotency_key TEXT,
        CONSTRAINT pk_tool_calls PRIMARY KEY (id, day)
    ) PARTITION BY RANGE (day)
    """,
    "CREATE INDEX ix_tool_calls_position ON tool_calls (position)",
    """
    CREATE TABLE token_refreshes (
        day DATE NOT NULL,
        id TEXT COLLATE "C" NOT NULL,
        position BIGINT DEFAULT nextval('report_position') NOT NULL,
        received_at TIMESTAMP WITH TIME ZONE NOT NULL,
        occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
        clock_suspect BOOLEAN NOT NULL,
        account_id TEXT NOT NULL,
        provider TEXT,
        outcome TEXT NOT NULL,
        duration_ms FLOAT,
        http_status INTEGER,
        error TEXT,
        outweighed BOOLEAN NOT NULL,
        CONSTRAINT pk_token_refreshes PRIMARY KEY (id, day)
    ) PARTITION BY RANGE (day)
    """,
    "CREATE INDEX ix_token_refreshes_position ON token_refreshes (position)",
    """
    CREATE TABLE malformed_calls (
        received_at TIMESTAMP WITH TIME ZONE NOT NULL,
        id TEXT NOT NULL,
        occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
        account_id TEXT NOT NULL,
        connection_id TEXT,
        workflow_id TEXT,
        tool TEXT NOT NULL,
        provider TEXT,
        http_status INTEGER,
        error TEXT,
        params JSONB,
        schema JSONB,
        CONSTRAINT pk_malformed_calls PRIMARY KEY (received_at, id)
    )
    """,
    "CREATE INDEX ix_malformed_calls_account_id_received_at ON malformed_calls (account_id, received_at)",
)

# What is counted apart. `written` and `said_provider` are what reports say; the rest is what it was found to mean. A
# series without an account is the sum of a provider's.
SERIES = (
    """
    CREATE TABLE metric_series (
        id SERIAL NOT NULL,
        written TEXT NOT NULL,
        said_provider TEXT NOT NULL,
        provider TEXT NOT NULL,
        source TEXT,
        environment_id TEXT,
        account_id TEXT,
        provider_series_id INTEGER,
        bound BOOLEAN DEFAULT false NOT NULL,
        CONSTRAINT pk_metric_series PRIMARY KEY (id),
        CONSTRAINT uq_metric_series_written_said_provider UNIQUE (written, said_provider)
    )
    """,
    "CREATE INDEX ix_metric_series_account_id ON metric_series (account_id)",
    "CREATE TABLE rollup_marks (name TEXT NOT NULL, position BIGINT NOT NULL,"
    " CONSTRAINT pk_rollup_marks PRIMARY KEY (name))",
)
# Absent is null, which costs nothing: a row holds what was reported of its time.
COLUMNS = """
    series_id INTEGER NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    calls INTEGER,
    calls_succeeded INTEGER,
    writes INTEGER,
    partials INTEGER,
    retries_token_expired INTEGER,
    retries_refresh_failed INTEGER,
    retries_insufficient_scope INTEGER,
    retries_rate_limited INTEGER,
    retries_upstream_5xx INTEGER,
    retries_malformed_params INTEGER,
    retries_partial_execution INTEGER,
    retries_other INTEGER,
    refreshes INTEGER,
    refreshes_succeeded INTEGER,
    refresh_sizes INTEGER[],
    deliveries INTEGER,
    lag_seconds_max FLOAT,
    lag_sizes INTEGER[]
"""
ROLLUPS = (
    f"CREATE TABLE rollup_minutes ({COLUMNS}, CONSTRAINT pk_rollup_minutes PRIMARY KEY (series_id, at))"
    " PARTITION BY RANGE (at)",
    # Who fails just now, among very many who do not.
    "CREATE INDEX ix_rollup_minutes_failing ON rollup_minutes (at) WHERE calls_succeeded < calls",
    f"CREATE TABLE rollup_hours ({COLUMNS}, CONSTRAINT pk_rollup_hours PRIMARY KEY (series_id, at))"
    " WITH (fillfactor = 85)",
    "CREATE INDEX ix_rollup_hours_at ON rollup_hours USING brin (at) WITH (autosummarize = on)",
    # A sketch is its buckets in their order, then how many are in each; sketches add up bucket by bucket.
    """
    CREATE FUNCTION add_sizes(one integer[], other integer[]) RETURNS integer[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
        SELECT CASE WHEN one IS NULL THEN other WHEN other IS NULL THEN one ELSE (
            SELECT array_agg(size ORDER BY size) || array_agg(total ORDER BY size) FROM (
                SELECT size, sum(count)::integer AS total FROM (
                    SELECT unnest(one[1 : cardinality(one) / 2]) AS size, unnest(one[cardinality(one) / 2 + 1 : cardinality(one)]) AS count
                    UNION ALL
                    SELECT unnest(other[1 : cardinality(other) / 2]), unnest(other[cardinality(other) / 2 + 1 : cardinality(other)])) AS of_both
                GROUP BY size) AS summed) END
    $$
    """,
)

ENSURE_PARTITIONS = """
CREATE OR REPLACE FUNCTION ensure_partitions(first date, days integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    day date;
    parent text;
    child text;
    midnight text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(7305201003);
    FOR day IN SELECT first + n FROM generate_series(0, days - 1) AS n LOOP
        FOREACH parent IN ARRAY ARRAY[{parents}] LOOP
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            midnight := CASE WHEN parent IN ('tool_calls', 'token_refreshes') THEN '' ELSE ' 00:00:00+00' END;
            IF to_regclass(child) IS NULL THEN
                BEGIN
                    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING INDEXES)', child, parent);
                    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                        day::text || midnight, (day + 1)::text || midnight);
                    made := made + 1;
                EXCEPTION WHEN invalid_object_definition THEN
                    NULL;  -- a clock that stands back: events_kept takes the rows of that day
                END;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$
"""
PARENTS = "'events', 'receipts', 'tool_calls', 'token_refreshes', 'rollup_minutes'"
PARENTS_BEFORE = "'events', 'receipts'"


def upgrade() -> None:
    for statement in (*RAW, *SERIES, *ROLLUPS):
        op.execute(statement)
    op.execute(ENSURE_PARTITIONS.format(parents=PARENTS))


def downgrade() -> None:
    op.execute(ENSURE_PARTITIONS.format(parents=PARENTS_BEFORE))
    op.execute("DROP FUNCTION add_sizes(integer[], integer[])")
    for table in (
        "rollup_hours",
        "rollup_minutes",
        "rollup_marks",
        "metric_series",
        "malformed_calls",
        "token_refreshes",
        "tool_calls",
    ):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP SEQUENCE report_position")
