"""Retention: marks of the log, how far it is gone, and a cheap index where dedup is cut."""

from alembic import op

revision = "0004_retention"
down_revision = "0003_rejected"

# Which position was reached at what time, every few minutes: a reader of the log finds in it the time before which it
# need not look, so that reading on touches a day or two of partitions and not all of them.
UP = (
    """
CREATE TABLE log_marks (
    position BIGINT NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_log_marks PRIMARY KEY (position)
)
""",
    # Its position: everything up to there may be gone. moved_at: when retention last ran.
    "INSERT INTO readers (name, position, moved_at) VALUES ('retention', 0, now())",
    # Dedup is written in the order of received_at and cut by it in long stretches: block ranges are enough to find
    # them, and an insert does not pay for one more tree.
    "DROP INDEX ix_dedup_received_at",
    "CREATE INDEX ix_dedup_received_at ON dedup USING brin (received_at) WITH (autosummarize = on)",
)

# As it was, but for a day that events_kept (service/store/retention.py) already covers.
ENSURE_PARTITIONS = """
CREATE OR REPLACE FUNCTION ensure_partitions(first date, days integer) RETURNS integer
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
                BEGIN
                    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING INDEXES)', child, parent);
                    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                        day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
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

ENSURE_PARTITIONS_BEFORE = """
CREATE OR REPLACE FUNCTION ensure_partitions(first date, days integer) RETURNS integer
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
    for statement in (*UP, ENSURE_PARTITIONS):
        op.execute(statement)


def downgrade() -> None:
    """An attached events_kept stays: its rows are part of the log, with the code before this as well."""
    op.execute(ENSURE_PARTITIONS_BEFORE)
    op.execute("DROP INDEX ix_dedup_received_at")
    op.execute("CREATE INDEX ix_dedup_received_at ON dedup (received_at)")
    op.execute("DELETE FROM readers WHERE name = 'retention'")
    op.execute("DROP TABLE log_marks")
