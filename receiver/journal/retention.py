"""Deletes what has been finished for long, in batches small enough to delay nobody."""

from datetime import datetime, timedelta

import sqlalchemy as sa

from receiver.clock import latest_past
from receiver.journal.journal import Journal
from receiver.journal.tables import attempts, episodes, rejected, runs

# So many rows take a few milliseconds of the write lock, which a notification may have to wait.
_BATCH = 200


def delete_old(journal: Journal, retention: timedelta, batch: int = _BATCH) -> int:
    """Delete one batch of what is older than `retention`; return how many rows that were.

    A run goes once it is finished for so long, but not while its episode is open: what follows a
    resolved needs it. An episode goes when it is closed, was not seen for so long, and has no run.
    """
    with journal.reading() as connection:
        # Many rows may have to be looked at to find a few: nobody is to wait for that.
        now = journal.now(connection)
        conditions = _old(now - retention, latest_past(now))
        found = {}
        for table, old, is_ahead in conditions:
            query = sa.select(table.c.id).limit(batch)
            found[table] = list(connection.execute(query.where(old)).scalars())
            # A clock that was ahead says nothing about the age of a row; its number does: a row
            # that was created later is old.
            earlier = is_ahead & (table.c.id < max(found[table], default=0))
            found[table] += connection.execute(query.where(earlier)).scalars()
    deleted = 0
    if any(found.values()):
        with journal.writing() as connection:
            for table, old, is_ahead in conditions:
                # It may not be old any more, or about to be put back, retried or seen.
                old_still = sa.select(table.c.id).where(
                    table.c.id.in_(found[table]), old | is_ahead
                )
                locked = journal.dialect.for_update(old_still, skip_locked=True)
                ids = list(connection.execute(locked).scalars())
                if table is runs:
                    connection.execute(sa.delete(attempts).where(attempts.c.run_id.in_(ids)))
                connection.execute(sa.delete(table).where(table.c.id.in_(ids)))
                deleted += len(ids)
    return deleted


_Condition = sa.ColumnElement[bool]


def _old(before: datetime, latest: datetime) -> list[tuple[sa.Table, _Condition, _Condition]]:
    """Return which rows of each table are to go, and which of a clock that was ahead may go."""
    is_open = sa.exists().where(
        episodes.c.source == runs.c.source,
        episodes.c.fingerprint == runs.c.fingerprint,
        episodes.c.action == runs.c.episode_action,
        episodes.c.starts_at == runs.c.starts_at,
        episodes.c.closed_at.is_(None),
    )
    has_run = sa.exists().where(
        runs.c.source == episodes.c.source,
        runs.c.fingerprint == episodes.c.fingerprint,
        runs.c.episode_action == episodes.c.action,
    )
    is_done = sa.and_(
        runs.c.state == sa.literal_column("'finished'"), runs.c.verify_at.is_(None), ~is_open
    )
    is_over = sa.and_(episodes.c.closed_at.is_not(None), ~has_run)
    return [
        (runs, is_done & (runs.c.finished_at < before), is_done & (runs.c.finished_at > latest)),
        (
            episodes,
            is_over & (episodes.c.seen_at < before),
            is_over & (episodes.c.seen_at > latest),
        ),
        (rejected, rejected.c.seen_at < before, rejected.c.seen_at > latest),
    ]
