"""The tables of the journal. Instants are stored as whole microseconds since 1970, UTC."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Due "at once": before every real instant, so that no clock that jumps can hold a run back.
AT_ONCE = _EPOCH


class Instant(TypeDecorator[datetime]):
    """An aware datetime, stored as an integer that compares as the instant does."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Return microseconds since 1970."""
        del dialect
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """Return the instant in UTC."""
        del dialect
        return None if value is None else _EPOCH + timedelta(microseconds=value)


# SQLite numbers rows by itself only where the key is exactly INTEGER.
_Key = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

episodes = Table(
    "episodes",
    metadata,
    Column("id", _Key, primary_key=True),
    Column("source", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    Column("action", String, nullable=False),
    # NULL only inside the transaction that creates the row, where rows are locked by creating them.
    Column("starts_at", Instant),
    Column("mark_at", Instant),
    Column("seen_at", Instant),
    Column("receiver", Text, nullable=False, server_default=""),
    Column("closed_at", Instant),
    Column("ends_at", Instant),
    Column("round", Integer, nullable=False, server_default="0"),
    # The startsAt under which a peer whose clock is far ahead reports the same episode.
    Column("ahead_starts_at", Instant),
    UniqueConstraint("source", "fingerprint", "action"),
)

Index("ix_episodes_seen", episodes.c.seen_at, episodes.c.id)

runs = Table(
    "runs",
    metadata,
    Column("id", _Key, primary_key=True),
    # The identity.
    Column("source", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    Column("action", String, nullable=False),
    Column("starts_at", Instant, nullable=False),
    Column("kind", String, nullable=False),
    Column("ordinal", Integer, nullable=False),
    # The action of the episode it belongs to; another than `action` for an escalation.
    Column("episode_action", String, nullable=False),
    Column("escalated_from", _Key),
    # What it is about, as it was when the run was created.
    Column("target", String, nullable=False),
    Column("alert_name", String, nullable=False),
    Column("alert", Text, nullable=False),
    Column("receiver", Text, nullable=False),
    Column("external_url", Text, nullable=False),
    # The trace that its notification was part of, as W3C writes it.
    Column("traceparent", String),
    Column("created_at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("call", Text),
    # Where it stands: queued, awaiting_approval, running or finished; `reason` says why in words.
    Column("state", String, nullable=False),
    Column("outcome", String),
    Column("reason", Text, nullable=False),
    Column("cancelled_by", String),
    Column("due_at", Instant, nullable=False),
    # Since when guardrails have delayed it, and what the last of them was.
    Column("held_since", Instant),
    Column("held_by", String),
    # For an action that a person must approve: `required` until `expires_at`, then `approved`.
    Column("approval", String),
    Column("expires_at", Instant),
    # Of the latest attempt; and whether limits have counted a start of the run, which a person's
    # retry begins anew.
    Column("dry_run", Boolean, nullable=False, server_default=false()),
    Column("counted", Boolean, nullable=False, server_default=false()),
    Column("attempts", Integer, nullable=False, server_default="0"),
    # The attempts made before a person asked for more; `max_attempts` counts from there.
    Column("attempts_before", Integer, nullable=False, server_default="0"),
    Column("retried_at", Instant),
    # Deaths of workers during its attempts, since a person's last retry. They use up no attempt.
    Column("interruptions", Integer, nullable=False, server_default="0"),
    # JSON that an attempt saved for the next one.
    Column("saved_state", Text),
    # When `due_at` or `expires_at` was computed: a clock that was ahead is found by it.
    Column("scheduled_at", Instant),
    Column("owner", String),
    Column("cancel_requested", Text),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("result", Text),
    Column("error", Text),
    # What it did to the alert: effective, ineffective or unverified, looked at when `verify_at`.
    Column("verify_at", Instant),
    Column("effect", String),
    Column("effect_seconds", BigInteger),
    UniqueConstraint("source", "fingerprint", "action", "starts_at", "kind", "ordinal"),
    # A run's number is written into logs and tickets: never given twice, deleted or not.
    sqlite_autoincrement=True,
)


def _partial(name: str, condition: str, *columns: Column[Any]) -> Index:
    """Index only the rows that are looked for: it stays small however many have finished."""
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


_partial("ix_runs_due", "state = 'queued'", runs.c.action, runs.c.due_at, runs.c.id)
# What waits for a time, not only for its turn.
_partial("ix_runs_timed", "state = 'queued' AND due_at > 0", runs.c.due_at, runs.c.action)
_partial("ix_runs_running", "state = 'running'", runs.c.action, runs.c.target)
_partial("ix_runs_approval", "state = 'awaiting_approval'", runs.c.expires_at)
_partial("ix_runs_verify", "verify_at IS NOT NULL", runs.c.verify_at)
_partial("ix_runs_scheduled", "scheduled_at IS NOT NULL", runs.c.scheduled_at)
# For the counts of the last day, which read this index alone.
_partial("ix_runs_ended", "state = 'finished'", runs.c.action, runs.c.outcome, runs.c.finished_at)
# What people look for, the newest first: see `run_search`.
Index("ix_runs_alert", runs.c.alert_name, runs.c.id)
# The condition always holds: a query that does not state it cannot use the index. SQLite would, for
# runs of an action that are queued or running, and read all that have finished.
_partial("ix_runs_action", "id > 0", runs.c.action, runs.c.id)
Index("ix_runs_created", runs.c.created_at, runs.c.id)
_partial("ix_runs_kind", "kind <> 'fired'", runs.c.kind, runs.c.id)
_partial("ix_runs_outcome", "outcome <> 'succeeded'", runs.c.outcome, runs.c.id)

attempts = Table(
    "attempts",
    metadata,
    Column("run_id", _Key, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("action", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("target", String, nullable=False),
    Column("dry_run", Boolean, nullable=False),
    Column("owner", String, nullable=False),
    Column("started_at", Instant, nullable=False),
    # When it began, where limits count that as a start of its run: the first that was no dry run.
    Column("counted_at", Instant),
    Column("finished_at", Instant),
    Column("outcome", String),
    Column("error", Text),
)

# The breaker looks at the latest of an action.
Index("ix_attempts_finished", attempts.c.action, attempts.c.finished_at)
_partial("ix_attempts_counted", "counted_at IS NOT NULL", attempts.c.counted_at)
_partial(
    "ix_attempts_target",
    "counted_at IS NOT NULL",
    attempts.c.action,
    attempts.c.target,
    attempts.c.counted_at,
)

rejected = Table(
    "rejected",
    metadata,
    Column("id", _Key, primary_key=True),
    Column("source", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    Column("name", String, nullable=False),
    # By which rule the name was found, see receiver.routing: `path` is none of the alert's own.
    Column("rule", String, nullable=False),
    Column("starts_at", Instant, nullable=False),
    Column("alert_name", String, nullable=False),
    Column("alert", Text, nullable=False),
    Column("receiver", Text, nullable=False),
    Column("external_url", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("times", Integer, nullable=False),
    Column("first_seen_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
    Column("closed_at", Instant),
    Column("closed_by", String),
    UniqueConstraint("source", "fingerprint", "name", "starts_at"),
)
_partial("ix_rejected_open", "closed_at IS NULL", rejected.c.source, rejected.c.fingerprint)
Index("ix_rejected_seen", rejected.c.seen_at, rejected.c.id)

# The Alertmanager receivers that have ever sent a resolved: only they can tell if an action helped.
routes = Table(
    "routes",
    metadata,
    Column("source", String, primary_key=True),
    Column("receiver", String, primary_key=True),
    Column("resolved_at", Instant, nullable=False),
)
Index("ix_routes_resolved", routes.c.resolved_at)

# Every process that works on the journal; whether it lives is proven elsewhere (worker/leases), by
# `heartbeat`. `beaten_at` is for people, who see one moment only.
instances = Table(
    "instances",
    metadata,
    Column("id", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", String, nullable=False),
    Column("actions", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("heartbeat", BigInteger, nullable=False, server_default="0"),
    Column("beaten_at", Instant, nullable=False),
)

# One row, written by readiness: a journal that only looks writable is found out.
probe = Table(
    "probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("written_at", Instant, nullable=False),
)

# What holds an action (`*`: every action) back: a `pause` by a person, until a time or until a
# person resumes it. The version before also writes the kind `breaker`, which has no effect.
holds = Table(
    "holds",
    metadata,
    Column("action", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("since", Instant, nullable=False),
    Column("until", Instant),
    Column("reason", Text, nullable=False),
)


def lasts(now: datetime | BindParameter[Any]) -> ColumnElement[bool]:
    """Return the condition that a row of `holds` is a pause, and has not ended by itself."""
    return (holds.c.kind == "pause") & (holds.c.until.is_(None) | (holds.c.until > now))


# A person closed the breaker of an action: attempts that ended before do not count for it.
breaker_resets = Table(
    "breaker_resets",
    metadata,
    Column("action", String, primary_key=True),
    Column("reset_at", Instant, nullable=False),
)


def is_key(number: int) -> bool:
    """Whether a row can have this number: no database has others, nor can look for them."""
    return 0 < number < 2**63


# What people asked for: who, when, from where.
audit = Table(
    "audit",
    metadata,
    Column("id", _Key, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("who", String, nullable=False),
    Column("origin", String, nullable=False),
    Column("operation", String, nullable=False),
    Column("action", String),
    Column("run_id", _Key),
    Column("detail", Text, nullable=False),
)
Index("ix_audit_run", audit.c.run_id)
Index("ix_audit_at", audit.c.at)
