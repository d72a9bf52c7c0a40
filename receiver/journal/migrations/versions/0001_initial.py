"""The first version of the journal."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create all tables; instants are whole microseconds since 1970."""
    op.create_table(
        "attempts",
        sa.Column("run_id", _KEY, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("counted_at", sa.BigInteger(), nullable=True),
        sa.Column("timed_out_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "number", name="pk_attempts"),
    )
    op.create_index("ix_attempts_finished", "attempts", ["action", "finished_at"], unique=False)
    op.create_index(
        "ix_attempts_counted",
        "attempts",
        ["counted_at"],
        unique=False,
        sqlite_where=sa.text("counted_at IS NOT NULL"),
        postgresql_where=sa.text("counted_at IS NOT NULL"),
    )
    op.create_index(
        "ix_attempts_target",
        "attempts",
        ["action", "target", "counted_at"],
        unique=False,
        sqlite_where=sa.text("counted_at IS NOT NULL"),
        postgresql_where=sa.text("counted_at IS NOT NULL"),
    )
    op.create_table(
        "audit",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=True),
        sa.Column("run_id", _KEY, nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_run", "audit", ["run_id"], unique=False)
    op.create_table(
        "episodes",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=True),
        sa.Column("mark_at", sa.BigInteger(), nullable=True),
        sa.Column("seen_at", sa.BigInteger(), nullable=True),
        sa.Column("receiver", sa.Text(), server_default="", nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("ends_at", sa.BigInteger(), nullable=True),
        sa.Column("round", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_episodes"),
        sa.UniqueConstraint(
            "source", "fingerprint", "action", name="uq_episodes_source_fingerprint_action"
        ),
    )
    op.create_table(
        "holds",
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("action", "kind", name="pk_holds"),
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("actions", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("beaten_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_instances"),
    )
    op.create_table(
        "probe",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("written_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_probe"),
    )
    op.create_table(
        "rejected",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("alert_name", sa.String(), nullable=False),
        sa.Column("alert", sa.Text(), nullable=False),
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("external_url", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_by", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_rejected"),
        sa.UniqueConstraint(
            "source",
            "fingerprint",
            "name",
            "starts_at",
            name="uq_rejected_source_fingerprint_name_starts_at",
        ),
    )
    op.create_index(
        "ix_rejected_open",
        "rejected",
        ["source", "fingerprint"],
        unique=False,
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "routes",
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("receiver", sa.String(), nullable=False),
        sa.Column("resolved_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "receiver", name="pk_routes"),
    )
    op.create_table(
        "runs",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("episode_action", sa.String(), nullable=False),
        sa.Column("escalated_from", _KEY, nullable=True),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("alert_name", sa.String(), nullable=False),
        sa.Column("alert", sa.Text(), nullable=False),
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("external_url", sa.Text(), nullable=False),
        sa.Column("traceparent", sa.String(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("call", sa.Text(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("cancelled_by", sa.String(), nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("held_since", sa.BigInteger(), nullable=True),
        sa.Column("held_by", sa.String(), nullable=True),
        sa.Column("approval", sa.String(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("dry_run", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("counted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts_before", sa.Integer(), server_default="0", nullable=False),
        sa.Column("retried_at", sa.BigInteger(), nullable=True),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("cancel_requested", sa.Text(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("verify_at", sa.BigInteger(), nullable=True),
        sa.Column("effect", sa.String(), nullable=True),
        sa.Column("effect_seconds", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint(
            "source",
            "fingerprint",
            "action",
            "starts_at",
            "kind",
            "ordinal",
            name="uq_runs_source_fingerprint_action_starts_at_kind_ordinal",
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_runs_approval",
        "runs",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'awaiting_approval'"),
        postgresql_where=sa.text("state = 'awaiting_approval'"),
    )
    op.create_index(
        "ix_runs_due",
        "runs",
        ["action", "due_at", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_runs_finished",
        "runs",
        ["finished_at"],
        unique=False,
        sqlite_where=sa.text("state = 'finished'"),
        postgresql_where=sa.text("state = 'finished'"),
    )
    op.create_index(
        "ix_runs_running",
        "runs",
        ["action", "target"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "ix_runs_timed",
        "runs",
        ["due_at", "action"],
        unique=False,
        sqlite_where=sa.text("state = 'queued' AND due_at > 0"),
        postgresql_where=sa.text("state = 'queued' AND due_at > 0"),
    )
    op.create_index(
        "ix_runs_verify",
        "runs",
        ["verify_at"],
        unique=False,
        sqlite_where=sa.text("verify_at IS NOT NULL"),
        postgresql_where=sa.text("verify_at IS NOT NULL"),
    )
