"""Every table, as SQLAlchemy Core sees it; `migrations/` makes them and a test holds the two together.

Two tables are partitioned by `received_at`, the database's clock, a day each and without a default partition
(a default would forbid detaching concurrently): `events`, the log, and `receipts`, the raw bytes.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)
Instant = DateTime(timezone=True)
log_position = Sequence("log_position", metadata=metadata)

# The one log (design.md, rule 4). Rows are only ever appended, under the log's advisory lock, so that the order of
# `position` is the order of commits.
events = Table(
    "events",
    metadata,
    Column("position", BigInteger, server_default=log_position.next_value(), nullable=False),
    Column("id", Uuid(as_uuid=False), nullable=False),
    Column("source", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("event_id", Text),
    Column("type", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("account_id", Text),
    Column("connection_id", Text),
    Column("provider", Text),
    Column("identifier", Text),
    Column("organization_id", Text),
    Column("environment_id", Text),
    Column("status", Text),
    Column("old_status", Text),
    Column("account_status", Text),  # the status this event gives the account; null when it says nothing about it
    Column("occurred_at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("attempted_at", Instant),  # when the sender signed this attempt
    Column("lag_seconds", Float),  # received_at - occurred_at
    Column("provider_lag_seconds", Float),  # attempted_at - occurred_at: the provider's share, its retries included
    Column("network_lag_seconds", Float),  # received_at - attempted_at: the rest
    Column("clock_suspect", Boolean, nullable=False, server_default=text("false")),
    Column("details", JSONB),
    PrimaryKeyConstraint("position", "received_at"),
    Index(None, "id"),
    Index(None, "account_id", "occurred_at"),
    Index(None, "connection_id", "occurred_at"),
    Index(None, "type", "occurred_at"),
    Index(None, "occurred_at"),
    Index("ix_events_kind_quarantine", "received_at", postgresql_where=text("kind = 'quarantine'")),
    # What is carried over when a day goes (service/store/retention.py). Days made before it came do not have it.
    Index("ix_events_own", "received_at", postgresql_where=text("origin = 'authwatch'")),
    Index("ix_events_audit", "event_id", postgresql_where=text("kind = 'audit'")),  # likewise
    postgresql_partition_by="RANGE (received_at)",
)

# One verified request as it arrived; `event_row_id` is `events.id`.
receipts = Table(
    "receipts",
    metadata,
    Column("event_row_id", Uuid(as_uuid=False), nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("source", Text, nullable=False),
    Column("headers", JSONB, nullable=False),  # without credentials
    Column("body", LargeBinary, nullable=False),
    Column("body_sha256", LargeBinary, nullable=False),
    Column("secret_name", Text),  # which secret verified it; never the secret
    Column("attempted_at", Instant),
    Column("first_received_at", Instant),  # of what was replayed: when it came; `received_at` is when it was taken
    PrimaryKeyConstraint("event_row_id", "received_at"),
    postgresql_partition_by="RANGE (received_at)",
)

# A unique key cannot span time partitions, and must outlive the events: a table of its own, same transaction.
dedup = Table(
    "dedup",
    metadata,
    Column("source", Text, nullable=False),
    Column("environment_id", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("event_row_id", Uuid(as_uuid=False), nullable=False),
    Column("body_sha256", LargeBinary, nullable=False),
    Column("received_at", Instant, nullable=False),
    PrimaryKeyConstraint("source", "environment_id", "event_id", "type"),
    Index(None, "received_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
)

# The same key again, with another body: whoever holds the secret signs two stories under one id. Kept once for a body.
conflicts = Table(
    "conflicts",
    metadata,
    Column("event_row_id", Uuid(as_uuid=False), nullable=False),
    Column("body_sha256", LargeBinary, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("source", Text, nullable=False),
    Column("headers", JSONB, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("secret_name", Text),
    Column("attempted_at", Instant),
    Column("first_received_at", Instant),
    PrimaryKeyConstraint("event_row_id", "body_sha256"),
    Index(None, "received_at"),
    Index("ix_conflicts_source_received_at", "source", "received_at"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("source", Text, nullable=False),
    Column("environment_id", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("connection_id", Text),
    Column("provider", Text),
    Column("identifier", Text),
    Column("organization_id", Text),
    Column("status", Text),
    Column("status_since", Instant),  # occurred_at of the event that changed it
    Column("not_well", JSONB, nullable=False, server_default=text("'{}'")),  # status -> first seen, since last ACTIVE
    Column("last_status_at", Instant),  # occurred_at of the newest event that said a status
    Column("last_event_at", Instant),
    Column("last_refresh_at", Instant),
    Column("last_refresh_outcome", Text),
    Column("failures_in_a_row", Integer, nullable=False, server_default=text("0")),
    Column("token_expires_at", Text),
    Column("first_seen_at", Instant, nullable=False),
    # service/heard.py: events of the newest hour (since 1970) and of the one before
    Column("heard_hour", Integer),
    Column("heard_in_hour", Integer, nullable=False, server_default=text("0")),
    Column("heard_before", Integer, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("source", "environment_id", "account_id"),
    Index(None, "account_id"),
    Index(None, "connection_id"),
    Index(None, "status"),
)

workflows = Table(
    "workflows",
    metadata,
    Column("workflow_id", Text, primary_key=True),
    Column("name", Text),
    Column("account_ids", ARRAY(Text), nullable=False),  # as written by the caller
    Column("connection_ids", ARRAY(Text), nullable=False),
    Column("active", Boolean, nullable=False),
    Column("pause", Text, nullable=False),
    Column("resume", Text, nullable=False),
    Column("orchestrator_name", Text),
    Column("orchestrator_ref", Text),
    Column("orchestrator_held", Boolean, nullable=False, server_default=text("false")),  # we asked it to pause
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

# What a workflow depends on. A short id not seen yet is unbound (`source` null) until the account appears.
dependencies = Table(
    "dependencies",
    metadata,
    Column("workflow_id", Text, nullable=False),
    Column("kind", Text, nullable=False),  # account | connection
    Column("written", Text, nullable=False),  # as the caller wrote it
    Column("source", Text),
    Column("environment_id", Text),
    Column("target_id", Text, nullable=False),  # account_id or connection_id
    PrimaryKeyConstraint("workflow_id", "kind", "written"),
    Index(None, "kind", "target_id"),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("rule_id", Text, nullable=False),
    Column("rule_version", Text),
    Column("severity", Text, nullable=False),
    Column("source", Text),
    Column("environment_id", Text),
    Column("account_id", Text),
    Column("connection_id", Text),
    Column("group", JSONB, nullable=False),
    Column("group_key", Text, nullable=False),
    Column("episode", Integer, nullable=False),
    Column("dedup_key", Text, nullable=False),
    Column("state", Text, nullable=False),  # firing | acknowledged | resolved
    Column("summary", Text, nullable=False),
    Column("what_to_do", Text),
    Column("opened_at", Instant, nullable=False),  # when the trouble began, by occurred_at
    Column("fired_at", Instant, nullable=False),  # when we judged it
    Column("condition_ended_at", Instant),  # when the trouble itself was over, by occurred_at
    Column("acknowledged_at", Instant),
    Column("acknowledged_by", Text),
    Column("snoozed_until", Instant),
    Column("resolved_at", Instant),
    Column("resolved_reason", Text),
    Column("discovered_late", Boolean, nullable=False, server_default=text("false")),
    Column("late_seconds", Float),
    Column("value", Float),
    Column("evidence", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("stable_for_seconds", Float, nullable=False, server_default=text("30")),
    Column("pauses", Boolean, nullable=False, server_default=text("true")),
    Column("condition_version", Text),  # under which condition it was opened; null for alerts of our own
    Column("labels", JSONB, nullable=False, server_default=text("'{}'")),
    Column("shadow", Boolean, nullable=False, server_default=text("false")),  # recorded, and told to nobody
    Column("drill", Boolean, nullable=False, server_default=text("false")),  # fired for practice
    Column("drill_until", Instant),  # when a drill ends by itself, whatever became of who began it
    Column("late_detection", Boolean, nullable=False, server_default=text("false")),  # found long after its deadline
    Column("flapping", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("rule_id", "group_key", "episode"),
    Index(None, "account_id", "fired_at"),
    Index(None, "fired_at"),
    Index("ix_alerts_open", "rule_id", "group_key", postgresql_where=text("condition_ended_at IS NULL")),
    Index("ix_alerts_drill", "drill_until", postgresql_where=text("drill")),
    Index("ix_alerts_unresolved", "state", postgresql_where=text("state <> 'resolved'")),
)

# A workflow is paused while any hold of scope `workflow` on it is not released.
holds = Table(
    "holds",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("workflow_id", Text, nullable=False),
    Column("alert_id", Uuid(as_uuid=False)),  # null: a person's hold
    Column("scope", Text, nullable=False),  # workflow | account
    Column("source", Text),
    Column("environment_id", Text),
    Column("account_id", Text),
    Column("connection_id", Text),  # of a hold because a whole connection fails; its account is null then
    Column("reason", Text, nullable=False),
    Column("placed_at", Instant, nullable=False),
    Column("released_at", Instant),
    Column("release_reason", Text),
    Column("placed_by", Text),  # the person of a person's hold
    Column("expires_at", Instant),  # it goes by itself then
    Column("released_by", Text),  # the person by whose word it went
    Column("release_note", Text),  # what they said to it
    Index("uq_holds_episode", "workflow_id", "alert_id", unique=True, postgresql_where=text("alert_id IS NOT NULL")),
    Index(
        "uq_holds_manual", "workflow_id", unique=True, postgresql_where=text("alert_id IS NULL AND released_at IS NULL")
    ),
    Index("ix_holds_open_account", "account_id", postgresql_where=text("released_at IS NULL")),
    Index("ix_holds_open_connection", "connection_id", postgresql_where=text("released_at IS NULL")),
    Index("ix_holds_open", "workflow_id", postgresql_where=text("released_at IS NULL")),
    Index("ix_holds_open_alert", "alert_id", postgresql_where=text("released_at IS NULL")),
    Index(None, "alert_id"),
)

ACTION_IS_OPEN = text("state IN ('pending', 'running')")
# One thing to do at one destination because of an alert. Retry times live here, never in arq.
actions = Table(
    "actions",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("kind", Text, nullable=False),  # orchestrator.pause | orchestrator.resume | notify | thread
    Column("destination", Text, nullable=False),
    Column("lane", Text, nullable=False),  # actions of one lane run one after another, in order of `created_at, id`
    Column("alert_id", Uuid(as_uuid=False)),
    Column("workflow_id", Text),
    Column("payload", JSONB, nullable=False, server_default=text("'{}'")),
    Column("state", Text, nullable=False),  # pending | running | done | failed | superseded
    Column("created_at", Instant, nullable=False),
    Column("next_attempt_at", Instant, nullable=False),
    Column("lease_until", Instant),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_code", Text),
    Column("last_error", Text),
    Column("finished_at", Instant),
    Column("result", JSONB),
    Index("ix_actions_open", "next_attempt_at", postgresql_where=ACTION_IS_OPEN),
    Index("ix_actions_due", "destination", "kind", "next_attempt_at", "id", postgresql_where=ACTION_IS_OPEN),
    Index("ix_actions_lane_open", "lane", "created_at", "id", postgresql_where=ACTION_IS_OPEN),
    Index("ix_actions_destination_open", "destination", "kind", "created_at", postgresql_where=ACTION_IS_OPEN),
    Index(None, "alert_id"),
    Index(None, "workflow_id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("action_id", Uuid(as_uuid=False), nullable=False),
    Column("number", Integer, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("outcome", Text),  # done | retry | refused | failed | ambiguous; null while under way, or when we died in it
    Column("code", Text),
    Column("detail", Text),
    PrimaryKeyConstraint("action_id", "number"),
)

# When an account's verdict may change although no event comes: judged again once due.
deadlines = Table(
    "deadlines",
    metadata,
    Column("source", Text, nullable=False),
    Column("environment_id", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("due_at", Instant, nullable=False),
    PrimaryKeyConstraint("source", "environment_id", "account_id"),
    Index(None, "due_at"),
)

# Where each reader of the log stands: the evaluator, every sink, and `retention`: up to there rows may be gone.
readers = Table(
    "readers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("moved_at", Instant, nullable=False),
    Column("lease_until", Instant),
    Column("next_attempt_at", Instant),
    Column("failures_in_a_row", Integer, nullable=False, server_default=text("0")),
    Column("last_code", Text),
    Column("last_error", Text),
    Column("last_ok_at", Instant),
    Column("refused_in_a_row", Integer, nullable=False, server_default=text("0")),  # items, with none taken since
    # Items that may have arrived and are sent again, and how many of them in the try under way, not in sent_again yet.
    Column("in_doubt", Integer, nullable=False, server_default=text("0")),
    Column("again_under_way", Integer, nullable=False, server_default=text("0")),
    Column("sent_again", BigInteger, nullable=False, server_default=text("0")),
)

# Which position was reached at what time, every few minutes: the time before which a reader need not look.
log_marks = Table(
    "log_marks",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("received_at", Instant, nullable=False),
)

# Items a sink refused for good, put aside so that their neighbours go through.
poison = Table(
    "poison",
    metadata,
    Column("reader", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("event_row_id", Uuid(as_uuid=False), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Instant, nullable=False),
    PrimaryKeyConstraint("reader", "position"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("token_sha256", LargeBinary, nullable=False, unique=True),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant),
    Column("last_used_at", Instant),
)

# When a signing secret was used, so that `authwatch secrets list` can say which is safe to remove. Never a key: its
# fingerprint, because a name may stand for another key tomorrow, and the name it last had.
secret_uses = Table(
    "secret_uses",
    metadata,
    Column("source", Text, nullable=False),
    Column("secret_name", Text, key="fingerprint", nullable=False),  # by name until 0008, and by old code beside us
    Column("shown_name", Text),
    Column("first_used_at", Instant, nullable=False),
    Column("last_used_at", Instant, nullable=False),
    Column("uses", BigInteger, nullable=False),
    PrimaryKeyConstraint("source", "fingerprint"),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    Column("part", Text, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("details", JSONB),
)

# What is remembered of a gauge's group from one reading to the next. A rule that is no longer in force has none.
gauge_states = Table(
    "gauge_states",
    metadata,
    Column("rule_id", Text, nullable=False),
    Column("group_key", Text, nullable=False),
    Column("condition_version", Text, nullable=False),
    Column("group", JSONB, nullable=False),
    Column("alert_id", Uuid(as_uuid=False)),  # of the episode that lasts, whatever a person made of the alert
    Column("pending_since", Instant),
    Column("false_since", Instant),
    Column("flapping", Boolean, nullable=False, server_default=text("false")),
    Column("value", Float, nullable=False),
    Column("read_at", Instant, nullable=False),
    PrimaryKeyConstraint("rule_id", "group_key"),
)
