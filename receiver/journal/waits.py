"""Ends waits that nothing else would end: for a report of an alert, or for a worker.

A walk over the queued runs, in the order of the index that holds them, in small looks.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import episodes, guardrails
from receiver.clock import past
from receiver.episodes import EpisodeRun
from receiver.guardrails import UNLOADED, Verdict
from receiver.journal import approvals, changes
from receiver.journal.activity import count_unfinished
from receiver.journal.approvals import NOT_APPROVED
from receiver.journal.due import OF_EPISODE
from receiver.journal.instances import living_workers
from receiver.journal.journal import Journal
from receiver.journal.tables import AT_ONCE, runs
from receiver.journal.tables import episodes as episode_rows
from receiver.policies import Rules

# Rows of one look, and of one transaction; both take a few milliseconds.
_EXAMINED, _WRITTEN = 1_000, 100
# A row of `_queued`.
Row = Any


@dataclass(frozen=True, slots=True)
class EndedWait:
    """A run that was skipped, or whose action was found to be loaded nowhere."""

    run_id: int
    verdict: Verdict


def end_waits(
    journal: Journal,
    loaded: Collection[str],
    rules: Rules,
    examined: int = _EXAMINED,
    written: int = _WRITTEN,
) -> Iterator[list[EndedWait]]:
    """Walk over the queued runs, and give what each step has ended; others may write between them.

    `loaded` are the actions of this worker, whose policies are known here. Runs of actions that
    another worker has loaded are left to it.
    """
    with journal.reading() as connection:
        queued = count_unfinished(connection, "queued")
        awaiting = count_unfinished(connection, "awaiting_approval")
        elsewhere = {
            action
            for worker in living_workers(journal, connection)
            for action in worker.actions
            if action not in loaded
        }
    for action in sorted(queued.keys() - elsewhere):
        walk = _Walk(journal, action, action in loaded, rules, written)
        while not walk.is_over:
            yield walk.step(examined)
    # Each worker ends those of its own actions every second.
    yield from _end_approvals(journal, awaiting.keys() - elsewhere - {*loaded}, rules)


def _end_approvals(
    journal: Journal, actions: Collection[str], rules: Rules
) -> Iterator[list[EndedWait]]:
    """End what nobody approved in time, of actions that no worker has loaded."""
    verdict = Verdict("skip", "approval", NOT_APPROVED)
    while expired := approvals.expire_approvals(journal, actions, rules):
        yield [EndedWait(run_id, verdict) for run_id in expired]


class _Walk:
    """One pass over the queued runs of an action."""

    def __init__(
        self, journal: Journal, action: str, is_loaded: bool, rules: Rules, written: int
    ) -> None:
        self.is_over = False
        self._journal = journal
        self._action = action
        self._is_loaded = is_loaded
        self._rules = rules
        self._written = written
        self._cursor = (AT_ONCE, 0)

    def step(self, examined: int) -> list[EndedWait]:
        """Examine the next runs, and end those that have waited for too long."""
        with self._journal.reading() as connection:
            now = self._journal.now(connection)
            query = _queued(self._action, self._cursor, now).limit(examined)
            rows = connection.execute(query).all()
        self.is_over = len(rows) < examined
        if rows:
            self._cursor = (rows[-1].due_at, rows[-1].id)
        ids = [row.id for row in rows if self._changes(row, now)]
        ended: list[EndedWait] = []
        for start in range(0, len(ids), self._written):
            ended += self._write(ids[start : start + self._written])
        return ended

    def _changes(self, row: Row, now: datetime) -> bool:
        return self._verdict(row, now) is not None or self._is_found_again(row)

    def _is_found_again(self, row: Row) -> bool:
        """Whether no worker had loaded the action, and this one has."""
        return self._is_loaded and row.held_by == UNLOADED

    def _verdict(self, row: Row, now: datetime) -> Verdict | None:
        policy = self._rules.policy(self._action)
        if not self._is_loaded:
            since = row.held_since if row.held_by == UNLOADED else None
            return guardrails.end_unloaded_wait(policy, self._action, since, now)
        if row.kind == "resolved" or row.seen_at is None:
            return None
        reports = (past(at, now) for at in (row.seen_at, row.retried_at))
        reported_at = max(filter(None, reports), default=AT_ONCE)
        # What a clock created that was ahead has waited at least until now.
        waits_since = max(row.due_at, past(row.created_at, now) or now)
        return guardrails.end_stale_wait(policy, waits_since, reported_at, now)

    def _write(self, ids: Sequence[int]) -> list[EndedWait]:
        ended = []
        with self._journal.writing() as connection:
            # Nobody claims meanwhile, and a skipped run may escalate.
            self._journal.dialect.lock_claims(connection)
            now = self._journal.now(connection)
            query = _queued(self._action, (AT_ONCE, 0), now).where(runs.c.id.in_(ids))
            locked = self._journal.dialect.for_update(query, skip_locked=True)
            for row in connection.execute(locked).all():
                verdict = self._verdict(row, now)
                if verdict is not None:
                    self._apply(connection, row, verdict, now)
                    ended.append(EndedWait(row.id, verdict))
                elif self._is_found_again(row):
                    _update(connection, row.id, held_since=None, held_by=None)
        return ended

    def _apply(self, connection: Connection, row: Row, verdict: Verdict, now: datetime) -> None:
        said = {"reason": verdict.reason, "held_by": verdict.guardrail}
        if verdict.kind == "delay":
            _update(connection, row.id, held_since=now, **said)
            return
        _update(connection, row.id, state="finished", outcome="skipped", finished_at=now, **said)
        if self._is_loaded and not row.dry_run:
            this = EpisodeRun(
                row.id, row.kind, row.ordinal, "finished", "skipped", row.attempts, None, False
            )
            follow = episodes.escalation(this, "skipped", self._rules.policy(self._action))
            changes.apply(self._journal, connection, self._rules, follow, now)


def _update(connection: Connection, run_id: int, **values: object) -> None:
    connection.execute(sa.update(runs).where(runs.c.id == run_id).values(values))


def _queued(action: str, after: tuple[datetime, int], now: datetime) -> sa.Select[Any]:
    """Return the query for the due runs of an action, in order of the index of what is queued."""
    due_at, last_id = after
    names = ("id", "kind", "ordinal", "attempts", "dry_run", "created_at", "due_at", "retried_at",
             "held_since", "held_by")  # fmt: skip
    return (
        sa.select(*(runs.c[name] for name in names), episode_rows.c.seen_at)
        .select_from(runs.outerjoin(episode_rows, OF_EPISODE))
        # Written out, not bound: only so is a partial index used.
        .where(
            runs.c.state == sa.literal_column("'queued'"),
            runs.c.action == action,
            runs.c.due_at <= now,
            runs.c.due_at >= due_at,
            (runs.c.due_at > due_at) | (runs.c.id > last_id),
        )
        .order_by(runs.c.due_at, runs.c.id)
    )
