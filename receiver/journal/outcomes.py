"""Records how attempts ended, and what follows: retries, repeats, escalations, verification.

An outcome is written only by the owner of that very attempt. That protects the record; the side
effect of a process that was frozen and wakes too late it cannot undo.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import episodes
from receiver.episodes import EpisodeRun
from receiver.journal import changes
from receiver.journal.journal import Journal
from receiver.journal.prepared import prepared
from receiver.journal.tables import Instant, attempts, runs
from receiver.journal.tables import routes as route_rows
from receiver.policies import (
    AttemptEnd,
    AttemptOutcome,
    Next,
    Rules,
    RunProgress,
    after_attempt,
    counted_end,
    running_since,
)

# A row of `runs`: its columns are attributes.
Row = Any


@dataclass(frozen=True, slots=True)
class Ended:
    """One attempt that ended, as its owner reports it."""

    run_id: int
    attempt: int
    end: AttemptEnd


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a reported attempt; `next` is None when the run had another owner by then."""

    ended: Ended
    next: Next | None


def record_ends(
    journal: Journal,
    owner: str,
    ended: Sequence[Ended],
    rules: Rules,
    jitter: Callable[[], float],
) -> list[Recorded]:
    """Write how attempts ended in a transaction of their own; see `record_in`."""
    with journal.writing() as connection:
        return record_in(journal, connection, owner, ended, rules, jitter)


def record_in(
    journal: Journal,
    connection: Connection,
    owner: str,
    ended: Sequence[Ended],
    rules: Rules,
    jitter: Callable[[], float],
) -> list[Recorded]:
    """Write how attempts ended and what follows.

    Only what `owner` still owns is written: the record of a run that was taken away stays as its
    new owner made it.
    """
    if not ended:
        return []
    # First of all locks: a worker that claims in the same transaction must not wait for the claim
    # lock with rows in its hands that the owner of that lock may want.
    journal.dialect.lock_claims(connection)
    now = journal.now(connection)
    recorded = []
    ends = _Ends(connection)
    # In key order, as everyone who locks episodes does.
    for run, one in _owned(connection, owner, ended):
        if run is None:
            recorded.append(Recorded(one, None))
            continue
        end = counted_end(one.end, run.interruptions)
        interruptions = run.interruptions + one.end.is_interruption
        counted = one if end is one.end else replace(one, end=end)
        step = _end(journal, connection, run, counted, interruptions, rules, now, jitter, ends)
        recorded.append(Recorded(counted, step))
    ends.write()
    _end_attempts(connection, [one.ended for one in recorded if one.next is not None], now)
    return recorded


def _end_attempts(connection: Connection, ended: Sequence[Ended], now: datetime) -> None:
    if not ended:
        return
    values = [_attempt_values(one, now) for one in ended]
    prepared(_END_ATTEMPT, connection.dialect).execute(connection, values)
    polled = [
        {"of_run": one.run_id, "made": one.attempt}
        for one in ended
        if one.end.outcome is AttemptOutcome.STILL_RUNNING
    ]
    if polled:
        connection.execute(_FORGET_POLLS, polled)
    unbegun = [
        {"of_run": one.run_id, "made": one.attempt} for one in ended if not one.end.has_begun
    ]
    if unbegun:
        connection.execute(_FORGET_START, unbegun)


def _attempt_values(one: Ended, now: datetime) -> dict[str, Any]:
    return {
        "of_run": one.run_id,
        "made": one.attempt,
        "finished_at": now,
        "outcome": one.end.outcome,
        "error": one.end.error,
    }


def _owned(
    connection: Connection, owner: str, ended: Iterable[Ended]
) -> list[tuple[Row | None, Ended]]:
    by_key = {(one.run_id, one.attempt): one for one in ended}
    ids = sorted({run_id for run_id, _ in by_key})
    owned: dict[tuple[int, int], Row] = {
        (run.id, run.attempts): run
        for run in connection.execute(_OWNED, {"ids": ids, "of_owner": owner})
        if (run.id, run.attempts) in by_key
    }
    ours: list[tuple[Row | None, Ended]] = [(run, by_key[key]) for key, run in owned.items()]
    return ours + [(None, one) for key, one in by_key.items() if key not in owned]


# Built once: for a run that does nothing, putting statements together would cost most.
_OWNED = sa.select(
    runs.c.id, runs.c.source, runs.c.fingerprint, runs.c.action, runs.c.episode_action,
    runs.c.starts_at, runs.c.kind, runs.c.ordinal, runs.c.attempts, runs.c.attempts_before,
    runs.c.dry_run, runs.c.retried_at, runs.c.interruptions, runs.c.started_at,
).where(
    runs.c.id.in_(sa.bindparam("ids", expanding=True)),
    runs.c.owner == sa.bindparam("of_owner"),
    runs.c.state == sa.literal_column("'running'"),
).order_by(runs.c.source, runs.c.fingerprint, runs.c.episode_action, runs.c.id)  # fmt: skip
_END_RUN = (
    sa.update(runs)
    .where(
        runs.c.id == sa.bindparam("run_id"),
        runs.c.attempts == sa.bindparam("attempt"),
        runs.c.state == sa.literal_column("'running'"),
    )
    .values(
        owner=sa.null(),
        due_at=sa.func.coalesce(sa.bindparam("due", type_=Instant()), runs.c.due_at),
        attempts_before=runs.c.attempts_before + sa.bindparam("unused", type_=sa.Integer()),
        **{
            name: sa.bindparam(name)
            for name in ("state", "outcome", "reason", "cancelled_by", "error", "result",
                         "finished_at", "verify_at", "interruptions", "scheduled_at")
        },
    )
)  # fmt: skip
_END_ATTEMPT = (
    sa.update(attempts)
    .where(attempts.c.run_id == sa.bindparam("of_run"), attempts.c.number == sa.bindparam("made"))
    .values({name: sa.bindparam(name) for name in ("finished_at", "outcome", "error")})
)
# A job that is polled for hours must not fill the journal. The attempt that limits count stays.
_FORGET_POLLS = sa.delete(attempts).where(
    attempts.c.run_id == sa.bindparam("of_run"),
    attempts.c.number < sa.bindparam("made"),
    attempts.c.outcome == AttemptOutcome.STILL_RUNNING,
    attempts.c.counted_at.is_(None),
)
# The first attempt that begins is the start of the run.
_FORGET_START = (
    sa.update(runs)
    .where(
        runs.c.id == sa.bindparam("of_run"),
        sa.exists().where(
            attempts.c.run_id == runs.c.id,
            attempts.c.number == sa.bindparam("made"),
            attempts.c.started_at == runs.c.started_at,
        ),
    )
    .values(started_at=None)
)


class _Ends:
    """The ends of runs that wait to be written together: one statement for each costs too much."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.values: list[dict[str, Any]] = []

    def write(self) -> None:
        """Write what waits. Under the claim lock, nobody takes a run from its owner meanwhile."""
        if self.values:
            prepared(_END_RUN, self._connection.dialect).execute(self._connection, self.values)
            self.values = []


def _end(
    journal: Journal,
    connection: Connection,
    run: Row,
    one: Ended,
    interruptions: int,
    rules: Rules,
    now: datetime,
    jitter: Callable[[], float],
    ends: _Ends,
) -> Next:
    policy = rules.policy(run.action)
    since = running_since(run.started_at, run.retried_at, now)
    progress = RunProgress(one.attempt - run.attempts_before, interruptions, since)
    step = after_attempt(one.end, progress, policy, now, jitter())
    if step.outcome == "succeeded" and run.dry_run:
        step = Next("succeeded", "a dry run: the action only said what it would do")
    resolved_after = rules.resolved_after(run.action)
    cares = policy.repeat_after or policy.escalate_to or resolved_after is not None
    row = None
    if step.outcome != "succeeded" or cares:
        ends.write()  # Those before it in key order: no lock of an episode is taken before them.
        row = changes.latest_episode(journal, connection, run)
    if step.outcome != "succeeded" and (asked := _asked_to_stop(journal, connection, run)):
        step = Next("cancelled", asked)
    cancelled_by = "person" if step.outcome == "cancelled" else None
    if step.outcome is None and (
        unwanted := episodes.when_retried(run.kind, row, now, run.retried_at)
    ):
        cancelled_by, reason = unwanted
        # Its time is kept: should the run be put back, it still waits until then.
        step = replace(step, outcome="cancelled", reason=reason)
    finished = step.outcome is not None
    verified = step.outcome == "succeeded" and run.kind in ("fired", "repeat") and not run.dry_run
    ends.values.append(
        {
            "run_id": run.id,
            "attempt": one.attempt,
            "state": "finished" if finished else "queued",
            "outcome": step.outcome,
            "reason": step.reason,
            "cancelled_by": cancelled_by,
            "error": one.end.error,
            "result": one.end.result,
            "finished_at": now if finished else None,
            "due": step.due_at,
            "scheduled_at": None if step.due_at is None else now,
            "unused": int(not step.uses_attempt),
            "interruptions": interruptions,
            "verify_at": now + policy.verify_after if verified and policy.verify_after else None,
        }
    )
    if finished and not run.dry_run and (cares or step.outcome != "succeeded"):
        ends.write()
        this = EpisodeRun(
            run.id, run.kind, run.ordinal, "finished", step.outcome, one.attempt, None, run.dry_run
        )
        of_episode = changes.runs_of(connection, row) if row is not None else [this]
        follow = episodes.when_finished(this, of_episode, row, policy, resolved_after, now)
        changes.apply(journal, connection, rules, follow, now)
    return step


def _asked_to_stop(journal: Journal, connection: Connection, run: Row) -> str | None:
    """Return why a person wants a run to stop; from now on, nobody can until this is committed."""
    query = sa.select(runs.c.cancel_requested).where(runs.c.id == run.id)
    # Locked after its episode, as by everyone who locks both.
    return connection.execute(journal.dialect.for_update(query)).scalar()


def recover_from(
    journal: Journal,
    dead: str,
    actions: Iterable[str],
    rules: Rules,
    jitter: Callable[[], float],
    is_still_dead: Callable[[Connection], bool] | None = None,
) -> list[Recorded]:
    """End the attempts of a process that is proven dead, as `on_interrupt` says.

    Only those of these actions, whose policies are known here: who has loaded others ends theirs;
    and those that a person wants stopped, which needs no policy.
    `is_still_dead` is asked while nobody can claim: a process that was frozen may have come back.
    """
    with journal.writing() as connection:
        journal.dialect.lock_claims(connection)
        if is_still_dead is not None and not is_still_dead(connection):
            return []
        query = sa.select(runs.c.id, runs.c.attempts).where(
            runs.c.state == sa.literal_column("'running'"),
            runs.c.owner == dead,
            sa.or_(runs.c.action.in_(sorted(actions)), runs.c.cancel_requested.is_not(None)),
        )
        end = AttemptEnd(AttemptOutcome.INTERRUPTED, error=f"its process ({dead}) died")
        ended = [Ended(run_id, made, end) for run_id, made in connection.execute(query)]
        return record_in(journal, connection, dead, ended, rules, jitter)


def verify_due(
    journal: Journal, actions: Iterable[str], rules: Rules, limit: int = 100
) -> list[tuple[int, str]]:
    """Look what runs of these actions did to their alerts; return (run id, effect) pairs."""
    seen: list[tuple[int, str]] = []
    if not _is_any_due(journal, actions):
        return seen
    with journal.writing() as connection:
        # Escalations are created under it: two actions may escalate the same alerts to a third.
        journal.dialect.lock_claims(connection)
        now = journal.now(connection)
        query = (
            sa.select(runs)
            .where(runs.c.verify_at <= now, runs.c.action.in_(sorted(actions)))
            .order_by(runs.c.source, runs.c.fingerprint, runs.c.episode_action, runs.c.id)
            .limit(limit)
        )
        for run in connection.execute(query).all():
            row = changes.latest_episode(journal, connection, run)
            route = sa.select(route_rows.c.source).where(
                route_rows.c.source == run.source,
                route_rows.c.receiver == (row.receiver[:200] if row else ""),
            )
            resolves = connection.execute(route).first() is not None
            effect, took = episodes.effect_of(row, run.finished_at, resolves)
            seconds = None if took is None else round(took.total_seconds())
            looked = connection.execute(
                sa.update(runs)
                .where(runs.c.id == run.id, runs.c.verify_at.is_not(None))
                .values(verify_at=None, effect=effect, effect_seconds=seconds)
            )
            if not looked.rowcount:
                continue  # Another worker was quicker.
            this = EpisodeRun(
                run.id, run.kind, run.ordinal, run.state, run.outcome, run.attempts, None,
                run.dry_run,
            )  # fmt: skip
            follow = episodes.escalation(this, effect, rules.policy(run.action))
            changes.apply(journal, connection, rules, follow, now)
            seen.append((run.id, effect))
    return seen


def _is_any_due(journal: Journal, actions: Iterable[str]) -> bool:
    """Whether an effect of these actions is to be verified: a look that waits for nobody."""
    with journal.reading() as connection:
        query = sa.select(runs.c.id).where(
            runs.c.verify_at.is_not(None),
            runs.c.verify_at <= journal.now(connection),
            runs.c.action.in_(sorted(actions)),
        )
        return connection.execute(query.limit(1)).first() is not None
