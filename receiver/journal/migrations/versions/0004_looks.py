"""Indexes for the filters of the page and the API, and for the retention of every table."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create indexes, and drop one without which the version before is slower, but works."""
    op.drop_index("ix_runs_finished", "runs")
    _create_partial("ix_runs_ended", ["action", "outcome", "finished_at"], "state = 'finished'")
    _create_partial("ix_runs_action", ["action", "id"], "id > 0")
    _create_partial("ix_runs_kind", ["kind", "id"], "kind <> 'fired'")
    _create_partial("ix_runs_outcome", ["outcome", "id"], "outcome <> 'succeeded'")
    for name, table, columns in (
        ("ix_runs_alert", "runs", ["alert_name", "id"]),
        ("ix_runs_created", "runs", ["created_at", "id"]),
        ("ix_episodes_seen", "episodes", ["seen_at", "id"]),
        ("ix_rejected_seen", "rejected", ["seen_at", "id"]),
        ("ix_routes_resolved", "routes", ["resolved_at"]),
        ("ix_audit_at", "audit", ["at"]),
    ):
        op.create_index(name, table, columns, unique=False)


def _create_partial(name: str, columns: list[str], condition: str) -> None:
    op.create_index(
        name,
        "runs",
        columns,
        unique=False,
        sqlite_where=sa.text(condition),
        postgresql_where=sa.text(condition),
    )
