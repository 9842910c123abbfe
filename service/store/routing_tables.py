"""Tables of routing: the rest of the schema is in `tables.py`, whose metadata these belong to."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.store.tables import Instant, metadata

# What mutes messages. An ended one stays for a while, to be listed as expired.
silences = Table(
    "silences",
    metadata,
    Column("id", Uuid(as_uuid=False), nullable=False),
    Column("matchers", ARRAY(Text), nullable=False),
    Column("start_at", Instant, nullable=False),
    Column("end_at", Instant, nullable=False),
    Column("author", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("time_intervals", JSONB),  # as they were defined when it was made: it means that for as long as it lasts
    Column("mutes_pauses", Boolean, nullable=False, server_default=text("false")),
    Column("declared", Boolean, nullable=False, server_default=text("false")),  # in the config file
    PrimaryKeyConstraint("id"),
    Index(None, "end_at"),
)

# Something about an alert changed, and people may have to hear of it: written with the change, read by who tells.
alert_news = Table(
    "alert_news",
    metadata,
    Column("id", BigInteger, Identity(), nullable=False),
    Column("alert_id", Uuid(as_uuid=False), nullable=False),
    Column("at", Instant, nullable=False),
    PrimaryKeyConstraint("id"),
)

# Alerts of one group that one notifier is told of together. `flush_at`: when the first message about it is due;
# `due_at`: the first of its deadlines.
notifications = Table(
    "notifications",
    metadata,
    Column("id", Uuid(as_uuid=False), nullable=False),
    Column("route", Text, nullable=False),
    Column("receiver", Text, nullable=False),
    Column("destination", Text, nullable=False),
    Column("group_key", Text, nullable=False),
    Column("group_labels", JSONB, nullable=False),
    Column("severity", Text, nullable=False),  # the most severe of its alerts
    Column("members", Integer, nullable=False),
    Column("told", Integer, nullable=False, server_default=text("0")),  # members as of the last message
    Column("opened_at", Instant, nullable=False),
    Column("joined_at", Instant, nullable=False),
    Column("flush_at", Instant),
    Column("first_post_at", Instant),
    Column("last_post_at", Instant),
    Column("repeat_at", Instant),
    Column("escalate_at", Instant),
    Column("escalated", Integer, nullable=False, server_default=text("0")),  # how many steps were taken
    Column("due_at", Instant),
    Column("closed_at", Instant),
    PrimaryKeyConstraint("id"),
    Index("ix_notifications_open", "destination", "group_key", postgresql_where=text("closed_at IS NULL")),
    Index("ix_notifications_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
)

# Which notifier hears of an alert by which route, in which notification; without one it is muted, and looked at again.
notification_alerts = Table(
    "notification_alerts",
    metadata,
    Column("alert_id", Uuid(as_uuid=False), nullable=False),
    Column("destination", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("receiver", Text, nullable=False),
    Column("notification_id", Uuid(as_uuid=False)),
    Column("muted", JSONB),  # {"silences": [], "inhibited_by": [], "time_intervals": []}: what kept it quiet last
    Column("at", Instant, nullable=False),
    Column("look_at", Instant),
    PrimaryKeyConstraint("alert_id", "destination"),
    Index(None, "notification_id"),
    Index("ix_notification_alerts_look", "look_at", postgresql_where=text("look_at IS NOT NULL")),
)

# The messages of a notification: the first, repeats, notices that it grew, escalations. `messages` says where each is.
notification_posts = Table(
    "notification_posts",
    metadata,
    Column(
        "id", Uuid(as_uuid=False), nullable=False
    ),  # of the first one: the alert's own id, as before there were groups
    Column("destination", Text, nullable=False),
    Column("notification_id", Uuid(as_uuid=False), nullable=False),
    Column("alert_id", Uuid(as_uuid=False), nullable=False),
    Column("kind", Text, nullable=False),  # first | repeat | growth | escalation
    Column("at", Instant, nullable=False),
    PrimaryKeyConstraint("id", "destination"),
    Index(None, "notification_id"),
)

# The message that stands for an alert at a notifier, so that later states edit it and never post again.
messages = Table(
    "messages",
    metadata,
    Column("alert_id", Uuid(as_uuid=False), nullable=False),
    Column("destination", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("ts", Text, nullable=False),
    Column("posted_at", Instant, nullable=False),
    Column("said", Text),  # which state it last told; null where that was told by a version that did not note it
    Column("edited_at", Instant),  # when it was last posted or edited
    Column("told", ARRAY(Text)),  # keys of what the message or its thread told (service/thread.py)
    PrimaryKeyConstraint("alert_id", "destination"),
)
