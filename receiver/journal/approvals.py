"""Ends runs that nobody approved in time."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from receiver import episodes
from receiver.episodes import EpisodeRun
from receiver.journal import changes
from receiver.journal.journal import Journal
from receiver.journal.tables import runs
from receiver.policies import Rules

NOT_APPROVED = "skipped: nobody approved it in time"


def expire_approvals(
    journal: Journal, actions: Iterable[str], rules: Rules, limit: int = 100
) -> list[int]:
    """Skip the runs of these actions that nobody approved in time; return their numbers."""
    with journal.reading() as connection:  # A look that waits for nobody.
        if connection.execute(_expired(actions, journal.now(connection), 1)).first() is None:
            return []
    with journal.writing() as connection:
        journal.dialect.lock_claims(connection)  # A skipped run may escalate.
        now = journal.now(connection)
        query = _expired(actions, now, limit)
        # Locked: a person may be approving one of them.
        expired = connection.execute(journal.dialect.for_update(query, skip_locked=True)).all()
        for run in expired:
            connection.execute(
                sa.update(runs)
                .where(runs.c.id == run.id)
                .values(
                    state="finished",
                    outcome="skipped",
                    held_by="approval",
                    reason=NOT_APPROVED,
                    finished_at=now,
                )
            )
            this = EpisodeRun(
                run.id, run.kind, run.ordinal, "finished", "skipped", run.attempts, None, False
            )
            follow = episodes.escalation(this, "skipped", rules.policy(run.action))
            changes.apply(journal, connection, rules, follow, now)
    return [run.id for run in expired]


def _expired(actions: Iterable[str], now: datetime, limit: int) -> sa.Select[Any]:
    return (
        sa.select(runs)
        .where(
            runs.c.state == sa.literal_column("'awaiting_approval'"),
            runs.c.expires_at <= now,
            runs.c.action.in_(sorted(actions)),
        )
        .order_by(runs.c.expires_at, runs.c.id)
        .limit(limit)  # Whole groups expire at once, and notifications are not to wait.
    )
