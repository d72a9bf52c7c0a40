"""Deletes what has been finished for long, in batches small enough to delay nobody."""

from datetime import timedelta

import sqlalchemy as sa

from receiver.journal.journal import Journal
from receiver.journal.tables import attempts, episodes, rejected, runs

# So many rows take a few milliseconds of the write lock, which a notification may have to wait.
_BATCH = 200


def delete_old(journal: Journal, retention: timedelta, batch: int = _BATCH) -> int:
    """Delete one batch of what is older than `retention`; return how many rows that were.

    A run goes once it is finished for so long, but not while its episode is open: what follows a
    resolved needs it. An episode goes when it is closed, was not seen for so long, and has no run.
    """
    with journal.writing() as connection:
        before = journal.now(connection) - retention
        is_open = sa.exists().where(
            episodes.c.source == runs.c.source,
            episodes.c.fingerprint == runs.c.fingerprint,
            episodes.c.action == runs.c.episode_action,
            episodes.c.starts_at == runs.c.starts_at,
            episodes.c.closed_at.is_(None),
        )
        old_runs = (
            sa.select(runs.c.id)
            .where(
                runs.c.state == sa.literal_column("'finished'"),
                runs.c.finished_at < before,
                runs.c.verify_at.is_(None),
                ~is_open,
            )
            .limit(batch)
        )
        ids = list(connection.execute(old_runs).scalars())
        if ids:
            connection.execute(sa.delete(attempts).where(attempts.c.run_id.in_(ids)))
            connection.execute(sa.delete(runs).where(runs.c.id.in_(ids)))
        has_run = sa.exists().where(
            runs.c.source == episodes.c.source,
            runs.c.fingerprint == episodes.c.fingerprint,
            runs.c.episode_action == episodes.c.action,
        )
        old_episodes = (
            sa.select(episodes.c.id)
            .where(episodes.c.closed_at.is_not(None), episodes.c.seen_at < before, ~has_run)
            .limit(batch)
        )
        old_rejected = sa.select(rejected.c.id).where(rejected.c.seen_at < before).limit(batch)
        deleted = len(ids)
        for table, query in ((episodes, old_episodes), (rejected, old_rejected)):
            deleted += connection.execute(sa.delete(table).where(table.c.id.in_(query))).rowcount
    return deleted
