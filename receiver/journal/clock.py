"""Corrects waits that were computed while the clock was ahead.

A look at the past ignores what a wrong clock recorded (`receiver.clock`). A wait lies in the future
by its nature, so it is corrected: it gets the length that it had, from now on.
"""

import time
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.clock import latest_past
from receiver.journal.journal import Journal
from receiver.journal.tables import AT_ONCE, Instant, holds, runs

# At start a clock can be far behind until NTP corrects it, and then all that is recorded seems to
# lie ahead. So waits are corrected only after they were found ahead for so long.
PATIENCE = timedelta(minutes=1)
# So many rows take a few milliseconds of the write lock.
_BATCH = 200


def correct_schedules(journal: Journal, patience: timedelta = PATIENCE) -> int:
    """Correct the waits that a clock computed that was ahead; return how many.

    Call this about every second. It only reads as long as there is nothing to correct.
    """
    with journal.reading() as connection:
        if not _is_any_ahead(connection, latest_past(journal.now(connection))):
            journal.ahead_since = None
            return 0
    if journal.ahead_since is None:
        journal.ahead_since = time.monotonic()
    if time.monotonic() - journal.ahead_since < patience.total_seconds():
        return 0
    with journal.writing() as connection:
        # Nobody claims or pauses meanwhile.
        journal.dialect.lock_claims(connection)
        now = journal.now(connection)
        return (
            _correct_runs(journal, connection, now)
            + _correct_verifications(journal, connection, now)
            + _correct_pauses(connection, now)
        )


_LATEST: sa.BindParameter[Any] = sa.bindparam("latest", type_=Instant())
_RUNS_AHEAD = sa.select(
    runs.c.id, runs.c.due_at, runs.c.expires_at, runs.c.scheduled_at, runs.c.held_since
).where(runs.c.scheduled_at > _LATEST)
_VERIFIED_LAST = (
    sa.select(runs.c.finished_at)
    .where(runs.c.verify_at.is_not(None), runs.c.verify_at > _LATEST)
    .order_by(runs.c.verify_at.desc())
    .limit(1)
)
_VERIFICATIONS_AHEAD = sa.select(runs.c.id, runs.c.finished_at, runs.c.verify_at).where(
    runs.c.verify_at.is_not(None), runs.c.verify_at > _LATEST, runs.c.finished_at > _LATEST
)
# A pause without an end holds whatever the clock says.
_PAUSES_AHEAD = sa.select(holds).where(holds.c.since > _LATEST, holds.c.until.is_not(None))


def _is_any_ahead(connection: Connection, latest: datetime) -> bool:
    bound = {"latest": latest}
    if connection.execute(_RUNS_AHEAD.limit(1), bound).first() is not None:
        return True
    if connection.execute(_PAUSES_AHEAD.limit(1), bound).first() is not None:
        return True
    finished_at = connection.execute(_VERIFIED_LAST, bound).scalar()
    return finished_at is not None and finished_at > latest


def _correct_runs(journal: Journal, connection: Connection, now: datetime) -> int:
    bound = {"latest": latest_past(now)}
    ahead = journal.dialect.for_update(_RUNS_AHEAD.limit(_BATCH), skip_locked=True)
    found = connection.execute(ahead, bound).all()
    for run in found:
        values: dict[str, datetime | None] = {"scheduled_at": now}
        if run.due_at > AT_ONCE:
            values["due_at"] = _corrected(run.due_at, run.scheduled_at, now)
        if run.expires_at is not None:
            values["expires_at"] = _corrected(run.expires_at, run.scheduled_at, now)
        if run.held_since is not None:
            values["held_since"] = min(run.held_since, now)
        connection.execute(sa.update(runs).where(runs.c.id == run.id).values(values))
    return len(found)


def _correct_verifications(journal: Journal, connection: Connection, now: datetime) -> int:
    bound = {"latest": latest_past(now)}
    ahead = journal.dialect.for_update(_VERIFICATIONS_AHEAD.limit(_BATCH), skip_locked=True)
    found = connection.execute(ahead, bound).all()
    for run in found:
        verify_at = _corrected(run.verify_at, run.finished_at, now)
        connection.execute(sa.update(runs).where(runs.c.id == run.id).values(verify_at=verify_at))
    return len(found)


def _correct_pauses(connection: Connection, now: datetime) -> int:
    found = connection.execute(_PAUSES_AHEAD, {"latest": latest_past(now)}).all()
    for pause in found:
        connection.execute(
            sa.update(holds)
            .where(holds.c.action == pause.action, holds.c.kind == pause.kind)
            .values(since=now, until=_corrected(pause.until, pause.since, now))
        )
    return len(found)


def _corrected(until: datetime, computed_at: datetime, now: datetime) -> datetime:
    """Return a time that gives a wait the length that it had, from now on."""
    return min(until, now + max(until - computed_at, timedelta(0)))
