"""Clocks of senders that are ahead."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add a column that may be NULL, and drop one that the version before does not use."""
    op.add_column("episodes", sa.Column("ahead_starts_at", sa.BigInteger(), nullable=True))
    # Only the version before 0002 wrote it.
    op.drop_column("attempts", "timed_out_at")
