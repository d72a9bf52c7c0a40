"""Records how attempts ended, and what follows: retries, repeats, escalations, verification.

An outcome is written only by the owner of that very attempt. That protects the record; the side
effect of a process that was frozen and wakes too late it cannot undo.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import episodes
from receiver.episodes import Episode, EpisodeRun
from receiver.journal import changes
from receiver.journal.journal import Journal
from receiver.journal.tables import Instant, attempts, runs
from receiver.journal.tables import episodes as episode_rows
from receiver.journal.tables import routes as route_rows
from receiver.policies import AttemptEnd, Next, Rules, after_attempt

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
    # In key order, as everyone who locks episodes does.
    for run, one in _owned(connection, owner, ended):
        step = None if run is None else _end(journal, connection, run, one, rules, now, jitter)
        recorded.append(Recorded(one, step))
    if ends := [_attempt_values(one.ended, now) for one in recorded if one.next is not None]:
        connection.execute(_END_ATTEMPT, ends)
    return recorded


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
    runs.c.dry_run, runs.c.retried_at,
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
        owner=None,
        due_at=sa.func.coalesce(sa.bindparam("due", type_=Instant()), runs.c.due_at),
        # What did nothing is none of `max_attempts`.
        attempts_before=runs.c.attempts_before + sa.bindparam("not_begun", type_=sa.Integer()),
        **{
            name: sa.bindparam(name)
            for name in ("state", "outcome", "reason", "cancelled_by", "error", "result",
                         "finished_at", "verify_at")
        },
    )
)  # fmt: skip
_END_ATTEMPT = (
    sa.update(attempts)
    .where(attempts.c.run_id == sa.bindparam("of_run"), attempts.c.number == sa.bindparam("made"))
    .values({name: sa.bindparam(name) for name in ("finished_at", "outcome", "error")})
)


def _end(
    journal: Journal,
    connection: Connection,
    run: Row,
    one: Ended,
    rules: Rules,
    now: datetime,
    jitter: Callable[[], float],
) -> Next | None:
    policy = rules.policy(run.action)
    made = one.attempt - run.attempts_before
    step = after_attempt(one.end, made, policy, now, jitter())
    if step.outcome == "succeeded" and run.dry_run:
        step = Next("succeeded", "a dry run: the action only said what it would do")
    resolved_after = rules.resolved_after(run.action)
    cares = policy.repeat_after or policy.escalate_to or resolved_after is not None
    row = None
    if step.outcome != "succeeded" or cares:
        row = latest_episode(journal, connection, run)
    if step.outcome != "succeeded" and (asked := _asked_to_stop(journal, connection, run)):
        step = Next("cancelled", asked)
    cancelled_by = "person" if step.outcome == "cancelled" else None
    if step.outcome is None and (unwanted := episodes.when_retried(run.kind, row, run.retried_at)):
        cancelled_by, reason = unwanted
        # Its time is kept: should the run be put back, it still waits until then.
        step = Next("cancelled", reason, step.due_at)
    finished = step.outcome is not None
    verified = step.outcome == "succeeded" and run.kind in ("fired", "repeat") and not run.dry_run
    written = connection.execute(
        _END_RUN,
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
            "not_begun": int(not one.end.has_begun),
            "verify_at": now + policy.verify_after if verified and policy.verify_after else None,
        },
    )
    if written.rowcount != 1:
        return None
    if finished and not run.dry_run and (cares or step.outcome != "succeeded"):
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


def latest_episode(journal: Journal, connection: Connection, run: Row) -> Episode | None:
    """Return the row of a run's episode, locked; None when a newer episode has its place."""
    row = episode_rows
    query = sa.select(
        row.c.source, row.c.fingerprint, row.c.action, row.c.starts_at, row.c.mark_at,
        row.c.seen_at, row.c.receiver, row.c.closed_at, row.c.ends_at, row.c.round,
    ).where(
        row.c.source == run.source,
        row.c.fingerprint == run.fingerprint,
        row.c.action == run.episode_action,
        row.c.starts_at == run.starts_at,
    )  # fmt: skip
    found = connection.execute(journal.dialect.for_update(query)).first()
    return None if found is None else Episode(*found)


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
        end = AttemptEnd("interrupted", error=f"its process ({dead}) died")
        ended = [Ended(run_id, made, end) for run_id, made in connection.execute(query)]
        return record_in(journal, connection, dead, ended, rules, jitter)


def verify_due(
    journal: Journal, actions: Iterable[str], rules: Rules, limit: int = 100
) -> list[tuple[int, str]]:
    """Look what runs of these actions did to their alerts; return (run id, effect) pairs."""
    seen: list[tuple[int, str]] = []
    if not _is_any(journal, runs.c.verify_at):
        return seen
    with journal.writing() as connection:
        now = journal.now(connection)
        query = (
            sa.select(runs)
            .where(runs.c.verify_at <= now, runs.c.action.in_(sorted(actions)))
            .order_by(runs.c.source, runs.c.fingerprint, runs.c.episode_action, runs.c.id)
            .limit(limit)
        )
        for run in connection.execute(query).all():
            row = latest_episode(journal, connection, run)
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
                run.id,
                run.kind,
                run.ordinal,
                run.state,
                run.outcome,
                run.attempts,
                None,
                run.dry_run,
            )
            follow = episodes.escalation(this, effect, rules.policy(run.action))
            changes.apply(journal, connection, rules, follow, now)
            seen.append((run.id, effect))
    return seen


def expire_approvals(
    journal: Journal, actions: Iterable[str], rules: Rules, limit: int = 100
) -> list[int]:
    """Skip the runs of these actions that nobody approved in time; return their numbers."""
    if not _is_any(journal, runs.c.expires_at, "awaiting_approval"):
        return []
    with journal.writing() as connection:
        now = journal.now(connection)
        query = (
            sa.select(runs)
            .where(
                runs.c.state == sa.literal_column("'awaiting_approval'"),
                runs.c.expires_at <= now,
                runs.c.action.in_(sorted(actions)),
            )
            .order_by(runs.c.expires_at, runs.c.id)
            .limit(limit)  # Whole groups expire at once, and notifications are not to wait.
        )
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
                    reason="skipped: nobody approved it in time",
                    finished_at=now,
                )
            )
            this = EpisodeRun(
                run.id, run.kind, run.ordinal, "finished", "skipped", run.attempts, None, False
            )
            follow = episodes.escalation(this, "skipped", rules.policy(run.action))
            changes.apply(journal, connection, rules, follow, now)
    return [run.id for run in expired]


def _is_any(journal: Journal, column: sa.Column[Any], state: str = "finished") -> bool:
    """Whether a time in this column has come for any run: a look that waits for nobody."""
    with journal.reading() as connection:
        query = (
            sa.select(runs.c.id)
            .where(runs.c.state == sa.literal_column(f"'{state}'"))
            .where(column.is_not(None), column <= journal.now(connection))
            .limit(1)
        )
        return connection.execute(query).first() is not None
