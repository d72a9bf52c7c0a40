"""Deletes what is old: each table has a retention, and a cursor that walks over what stays.

What must stay although it is old is examined once in a pass, not before each deletion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from receiver.clock import latest_past
from receiver.journal.journal import Journal
from receiver.journal.tables import AT_ONCE, attempts, audit, episodes, rejected, routes, runs

# Rows that one look examines. It takes a few milliseconds, and waits for nobody.
_EXAMINED = 500
# Rows that one transaction deletes. A notification may have to wait for it: a few milliseconds.
_DELETED = 200
_Condition = sa.ColumnElement[bool]


@dataclass(frozen=True, slots=True)
class Retention:
    """How long the rows are kept.

    `runs` is for finished runs with their attempts, rejected alerts, and the Alertmanager receivers
    that send resolved alerts. `episodes` is for the rows by which re-sent alerts are recognized.
    """

    runs: timedelta
    episodes: timedelta
    audit: timedelta


@dataclass(frozen=True, slots=True)
class _Kept:
    """Rows of one table: since when they are old, which of them stay, and where the walk is.

    `newest` is the highest id of an old row. A clock that was ahead says nothing about the age of
    a row, but its id does: a row that was created later is old.
    """

    table: sa.Table
    aged_at: sa.Column[datetime]
    before: datetime
    may_go: tuple[_Condition, ...] = ()
    cursor: tuple[datetime, int] = (AT_ONCE, 0)
    newest: int = 0


class RetentionWalk:
    """One pass after the other over all tables; each step deletes what it finds old.

    A pass begins where the last one ended: what is behind the cursor stays until `rewind`.
    """

    def __init__(
        self,
        journal: Journal,
        retention: Retention,
        examined: int = _EXAMINED,
        deleted: int = _DELETED,
    ) -> None:
        """Begin before the oldest row."""
        self._journal = journal
        self._retention = retention
        self._examined = examined
        self._deleted = deleted
        self._walked: dict[str, tuple[tuple[datetime, int], int]] = {}
        self._place = 0

    def rewind(self) -> None:
        """Let the next pass examine again what stayed: it may be old by now."""
        self._walked = {name: ((AT_ONCE, 0), newest) for name, (_, newest) in self._walked.items()}

    def step(self) -> tuple[int, bool]:
        """Examine and delete some rows; return how many were deleted, and if the pass is over."""
        with self._journal.reading() as connection:
            now = self._journal.now(connection)
        tables = self._tables(now)
        if self._place == len(tables):
            self._place = 0
            return _delete_routes(self._journal, now - self._retention.runs, self._deleted)
        kept = tables[self._place]
        deleted, at_end = self._walk(kept, now)
        self._place += at_end
        return deleted, False

    def _tables(self, now: datetime) -> list[_Kept]:
        before = now - self._retention.runs
        rows = (
            _Kept(runs, runs.c.created_at, before, _finished_run(before, latest_past(now))),
            _Kept(rejected, rejected.c.seen_at, before),
            _Kept(audit, audit.c.at, now - self._retention.audit),
            _Kept(episodes, episodes.c.seen_at, now - self._retention.episodes, (_has_no_run(),)),
        )
        walked = [self._walked.get(kept.table.name, (kept.cursor, kept.newest)) for kept in rows]
        return [
            replace(kept, cursor=cursor, newest=newest)
            for kept, (cursor, newest) in zip(rows, walked, strict=True)
        ]

    def _walk(self, kept: _Kept, now: datetime) -> tuple[int, bool]:
        with self._journal.reading() as connection:
            rows = connection.execute(_old_rows(kept, self._examined)).all()
            newest = max((row.id for row in rows), default=kept.newest)
            kept = replace(kept, newest=max(newest, kept.newest))
            at_end = len(rows) < self._examined
            ahead: Sequence[Any] = []
            if at_end and kept.newest:
                ahead = connection.execute(_rows_ahead(kept, now, self._examined)).all()
        going = [row for row in rows if row.may_go]
        if len(going) > self._deleted:  # One transaction a step: others write between two.
            going, at_end = going[: self._deleted], False
            rows = going
        elif at_end:
            room = self._deleted - len(going)
            going += [row for row in ahead if row.may_go][:room]
        deleted = self._delete(kept, [row.id for row in going], now) if going else 0
        cursor = (rows[-1].aged_at, rows[-1].id) if rows else kept.cursor
        self._walked[kept.table.name] = cursor, kept.newest
        return deleted, at_end

    def _delete(self, kept: _Kept, ids: Sequence[int], now: datetime) -> int:
        """Delete rows that are old still: one may be about to be put back, retried or seen."""
        is_old = (kept.aged_at < kept.before) | (kept.aged_at > latest_past(now))
        with self._journal.writing() as connection:
            old_still = sa.select(kept.table.c.id).where(
                kept.table.c.id.in_(ids), is_old, *kept.may_go
            )
            locked = self._journal.dialect.for_update(old_still, skip_locked=True)
            old = list(connection.execute(locked).scalars())
            if kept.table is runs:
                connection.execute(sa.delete(attempts).where(attempts.c.run_id.in_(old)))
            connection.execute(sa.delete(kept.table).where(kept.table.c.id.in_(old)))
        return len(old)


def delete_all_old(journal: Journal, retention: Retention) -> int:
    """Walk over all tables once; return how many rows were deleted."""
    walk, number, is_over = RetentionWalk(journal, retention), 0, False
    while not is_over:
        deleted, is_over = walk.step()
        number += deleted
    return number


def _old_rows(kept: _Kept, limit: int) -> sa.Select[Any]:
    """Return the query for the next old rows after the cursor; `may_go` says which can go."""
    at, last_id = kept.cursor
    table, aged_at = kept.table, kept.aged_at
    conditions = [
        aged_at < kept.before,
        aged_at >= at,
        (aged_at > at) | (table.c.id > last_id),
    ]
    query = _examining(kept, conditions)
    return query.order_by(aged_at, table.c.id).limit(limit)


def _rows_ahead(kept: _Kept, now: datetime, limit: int) -> sa.Select[Any]:
    # On an expression: the index of the time is to be used, in which there are few such rows.
    unindexed_id = kept.table.c.id + sa.literal_column("0")
    conditions = [kept.aged_at > latest_past(now), unindexed_id < kept.newest]
    return _examining(kept, conditions).limit(limit)


def _examining(kept: _Kept, conditions: Sequence[_Condition]) -> sa.Select[Any]:
    may_go = sa.and_(sa.true(), *kept.may_go).label("may_go")
    return sa.select(kept.table.c.id, kept.aged_at.label("aged_at"), may_go).where(*conditions)


def _finished_run(before: datetime, latest: datetime) -> tuple[_Condition, ...]:
    """Return which finished runs may go: those of no episode that is open and was seen lately.

    What follows a resolved alert needs the runs of its episode. An effect that nobody has verified
    for so long is not verified any more.
    """
    # A value, not EXISTS: PostgreSQL could read all episodes to answer that for a few runs.
    firing_at = (
        sa.select(episodes.c.seen_at)
        .where(
            episodes.c.source == runs.c.source,
            episodes.c.fingerprint == runs.c.fingerprint,
            episodes.c.action == runs.c.episode_action,
            episodes.c.starts_at == runs.c.starts_at,
            episodes.c.closed_at.is_(None),
        )
        .scalar_subquery()
    )
    is_firing = sa.func.coalesce(firing_at, sa.literal_column("0")).between(before, latest)
    # What a clock finished that was ahead is as old as its creation.
    is_old = (runs.c.finished_at < before) | (runs.c.finished_at > latest)
    is_verified = runs.c.verify_at.is_(None) | (runs.c.verify_at < before)
    return runs.c.state == sa.literal_column("'finished'"), is_old, is_verified, ~is_firing


def _has_no_run() -> _Condition:
    some_run = (
        sa.select(runs.c.id)
        .where(
            runs.c.source == episodes.c.source,
            runs.c.fingerprint == episodes.c.fingerprint,
            runs.c.episode_action == episodes.c.action,
        )
        .limit(1)
        .scalar_subquery()
    )
    return some_run.is_(None)


def _delete_routes(journal: Journal, before: datetime, limit: int) -> tuple[int, bool]:
    """Delete receivers of Alertmanager that sent no resolved alert for so long."""
    is_old = routes.c.resolved_at < before
    query = sa.select(routes.c.source, routes.c.receiver).where(is_old).limit(limit)
    with journal.reading() as connection:
        old = [
            {"old_source": row.source, "old_receiver": row.receiver}
            for row in connection.execute(query)
        ]
    if not old:
        return 0, True
    same = (
        routes.c.source == sa.bindparam("old_source"),
        routes.c.receiver == sa.bindparam("old_receiver"),
    )
    with journal.writing() as connection:
        connection.execute(sa.delete(routes).where(*same, is_old), old)
    return len(old), len(old) < limit
