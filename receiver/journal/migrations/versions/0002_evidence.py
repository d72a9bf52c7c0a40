"""Interruptions, saved states, and when a wait was computed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add columns with defaults and a table, which the version before does not use."""
    op.add_column(
        "runs", sa.Column("interruptions", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column("runs", sa.Column("saved_state", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("scheduled_at", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_runs_scheduled",
        "runs",
        ["scheduled_at"],
        unique=False,
        sqlite_where=sa.text("scheduled_at IS NOT NULL"),
        postgresql_where=sa.text("scheduled_at IS NOT NULL"),
    )
    op.create_table(
        "breaker_resets",
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("reset_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("action", name="pk_breaker_resets"),
    )
    # What a wait of today was computed from: the end of its latest attempt, or its creation.
    op.execute(
        "UPDATE runs SET scheduled_at = coalesce((SELECT max(attempts.finished_at) FROM attempts "
        "WHERE attempts.run_id = runs.id), created_at) "
        "WHERE (state = 'queued' AND due_at > 0) OR state = 'awaiting_approval'"
    )
    # Breakers that attempts without an end had opened; no version writes them any more.
    op.execute("DELETE FROM holds WHERE kind = 'breaker'")
