"""Carries runs from due to finished: claims, outcomes, interruptions, verification.

At-least-once: an attempt is counted when it is claimed, so that a run which kills its process
cannot be claimed for ever; an outcome is written only by the owner of that very attempt.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import episodes
from receiver.episodes import Episode, EpisodeRun
from receiver.errors import OperationError
from receiver.journal import changes
from receiver.journal.journal import Journal
from receiver.journal.tables import Instant, attempts, runs
from receiver.journal.tables import episodes as episode_rows
from receiver.journal.tables import routes as route_rows
from receiver.policies import AttemptEnd, Next, Rules, after_attempt, idempotency_key

# A row of `runs`: its columns are attributes.
Row = Any


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that this process must now attempt; `attempt` counts from 1."""

    id: int
    source: str
    fingerprint: str
    action: str
    starts_at: datetime
    kind: str
    ordinal: int
    target: str
    alert_name: str
    alert: str
    receiver: str
    external_url: str
    received_at: datetime
    created_at: datetime
    due_at: datetime
    call: str | None
    attempt: int

    @property
    def idempotency_key(self) -> str:
        """The key of the run's identity, the same at every attempt."""
        return idempotency_key(
            self.source, self.fingerprint, self.action, self.starts_at, self.kind, self.ordinal
        )


_CLAIMED = [
    runs.c[name]
    for name in (
        "id", "source", "fingerprint", "action", "starts_at", "kind", "ordinal", "target",
        "alert_name", "alert", "receiver", "external_url", "received_at", "created_at", "due_at",
        "call", "attempts",
    )
]  # fmt: skip


def claim_due_runs(
    journal: Journal, owner: str, actions: Iterable[str], slots: int, rules: Rules
) -> list[ClaimedRun]:
    """Claim due runs of these actions for `owner`, at most `slots` in all, the longest due first.

    A run waits while another of its target runs, while as many of its action run as
    `max_concurrent` allows, and while its alert was not reported for `max_staleness`.
    """
    claimed: list[ClaimedRun] = []
    with journal.writing() as connection:
        journal.dialect.lock_claims(connection)
        now = journal.now(connection)
        for action in actions:
            free = rules.policy(action).max_concurrent - _running(connection, action)
            if free > 0:
                claimed += _due(journal, connection, action, min(free, slots), rules, now)
        claimed = sorted(claimed, key=lambda run: (run.due_at, run.id))[:slots]
        if claimed:
            _mark_claimed(connection, owner, claimed, now)
    return claimed


def _running(connection: Connection, action: str) -> int:
    """Return how many runs of an action hold a slot; a timed-out attempt has given its up."""
    latest = (attempts.c.run_id == runs.c.id) & (attempts.c.number == runs.c.attempts)
    query = (
        sa.select(sa.func.count())
        .select_from(runs.join(attempts, latest))
        .where(
            runs.c.action == action,
            runs.c.state == sa.literal_column("'running'"),
            attempts.c.timed_out_at.is_(None),
        )
    )
    return connection.execute(query).scalar_one()


def _due(
    journal: Journal,
    connection: Connection,
    action: str,
    limit: int,
    rules: Rules,
    now: datetime,
) -> list[ClaimedRun]:
    busy = runs.alias("busy")
    row = episode_rows
    same_row = (
        (row.c.source == runs.c.source)
        & (row.c.fingerprint == runs.c.fingerprint)
        & (row.c.action == runs.c.episode_action)
    )
    fresh = row.c.seen_at >= now - rules.policy(action).max_staleness
    query = (
        sa.select(*_CLAIMED)
        .select_from(runs.outerjoin(row, same_row))
        # Written out, not bound: only so is a partial index used.
        .where(
            runs.c.state == sa.literal_column("'queued'"),
            runs.c.action == action,
            runs.c.due_at <= now,
            (runs.c.kind == "resolved") | row.c.seen_at.is_(None) | fresh,
            ~sa.exists().where(
                busy.c.state == sa.literal_column("'running'"),
                busy.c.action == runs.c.action,
                busy.c.target == runs.c.target,
            ),
        )
        .order_by(runs.c.due_at, runs.c.id)
        .limit(limit)
    )
    found: dict[str, ClaimedRun] = {}
    for one in connection.execute(journal.dialect.for_update(query, skip_locked=True)):
        values = dict(one._mapping)
        made = values.pop("attempts")
        found.setdefault(one.target, ClaimedRun(**values, attempt=made + 1))
    return list(found.values())


def _mark_claimed(
    connection: Connection, owner: str, claimed: Sequence[ClaimedRun], now: datetime
) -> None:
    connection.execute(
        sa.update(runs)
        .where(runs.c.id == sa.bindparam("run_id"))
        .values(
            state="running",
            owner=owner,
            attempts=sa.bindparam("attempt"),
            started_at=sa.func.coalesce(runs.c.started_at, sa.literal(now, Instant())),
            reason=sa.bindparam("why"),
        ),
        [
            {"run_id": run.id, "attempt": run.attempt, "why": f"attempt {run.attempt} runs"}
            for run in claimed
        ],
    )
    connection.execute(
        sa.insert(attempts),
        [
            {"run_id": run.id, "number": run.attempt, "owner": owner, "started_at": now}
            for run in claimed
        ],
    )


def keep_calls(journal: Journal, calls: Mapping[int, str]) -> None:
    """Keep the worked-out arguments with their runs, by run id."""
    with journal.writing() as connection:
        connection.execute(
            sa.update(runs).where(runs.c.id == sa.bindparam("run_id")),
            [{"run_id": run_id, "call": call} for run_id, call in calls.items()],
        )


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
    """Write how attempts ended and what follows, all in one transaction.

    Only what `owner` still owns is written: the record of a run that was taken away stays as its
    new owner made it.
    """
    with journal.writing() as connection:
        now = journal.now(connection)
        recorded = []
        # In key order, as everyone who locks episodes does.
        for run, one in _owned(connection, owner, ended):
            step = None if run is None else _end(journal, connection, run, one, rules, now, jitter)
            recorded.append(Recorded(one, step))
    return recorded


def _owned(
    connection: Connection, owner: str, ended: Iterable[Ended]
) -> list[tuple[Row | None, Ended]]:
    by_id = {one.run_id: one for one in ended}
    query = sa.select(
        runs.c.id, runs.c.source, runs.c.fingerprint, runs.c.action, runs.c.episode_action,
        runs.c.starts_at, runs.c.kind, runs.c.ordinal, runs.c.attempts, runs.c.cancel_requested,
    ).where(
        runs.c.id.in_(list(by_id)), runs.c.owner == owner, runs.c.state == "running"
    ).order_by(runs.c.source, runs.c.fingerprint, runs.c.episode_action, runs.c.id)  # fmt: skip
    owned: dict[int, Row] = {
        run.id: run for run in connection.execute(query) if run.attempts == by_id[run.id].attempt
    }
    ours: list[tuple[Row | None, Ended]] = [(run, by_id[key]) for key, run in owned.items()]
    return ours + [(None, one) for key, one in by_id.items() if key not in owned]


# Built once: for a run that does nothing, putting statements together would cost most.
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
    step = after_attempt(one.end, one.attempt, policy, now, jitter())
    if step.outcome is None and run.cancel_requested is not None:
        step = Next("cancelled", run.cancel_requested)
    resolved_after = rules.resolved_after(run.action)
    cares = policy.repeat_after or policy.escalate_to or resolved_after is not None
    row = None
    if step.outcome != "succeeded" or cares:
        row = latest_episode(journal, connection, run)
    by_person = step.outcome == "cancelled"
    if step.outcome is None and row is not None and not row.is_open and run.kind != "resolved":
        step = Next("cancelled", "the alert resolved while the run waited for a retry")
    finished = step.outcome is not None
    verified = step.outcome == "succeeded" and run.kind in ("fired", "repeat")
    cancelled_by = "person" if by_person else "resolved"
    written = connection.execute(
        _END_RUN,
        {
            "run_id": run.id,
            "attempt": one.attempt,
            "state": "finished" if finished else "queued",
            "outcome": step.outcome,
            "reason": step.reason,
            "cancelled_by": cancelled_by if step.outcome == "cancelled" else None,
            "error": one.end.error,
            "result": one.end.result,
            "finished_at": now if finished else None,
            "due": step.due_at,
            "verify_at": now + policy.verify_after if verified and policy.verify_after else None,
        },
    )
    if written.rowcount != 1:
        return None
    connection.execute(
        _END_ATTEMPT,
        {
            "of_run": run.id,
            "made": one.attempt,
            "finished_at": now,
            "outcome": one.end.outcome,
            "error": one.end.error,
        },
    )
    if finished and (cares or step.outcome != "succeeded"):
        this = EpisodeRun(
            run.id, run.kind, run.ordinal, "finished", step.outcome, one.attempt, None
        )
        of_episode = changes.runs_of(connection, row) if row is not None else [this]
        follow = episodes.when_finished(this, of_episode, row, policy, resolved_after, now)
        changes.apply(journal, connection, follow, now)
    return step


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


def mark_timed_out(journal: Journal, run_id: int, attempt: int) -> None:
    """Note that an attempt is past its deadline and has not returned: it holds no slot now."""
    with journal.writing() as connection:
        now = journal.now(connection)
        connection.execute(
            sa.update(attempts)
            .where(attempts.c.run_id == run_id, attempts.c.number == attempt)
            .values(timed_out_at=now)
        )
        connection.execute(
            sa.update(runs)
            .where(runs.c.id == run_id, runs.c.attempts == attempt, runs.c.state == "running")
            .values(reason=f"attempt {attempt} is past its deadline and has not returned")
        )


def request_cancel(journal: Journal, run_id: int, reason: str) -> str:
    """Cancel a run for a person: at once while it waits, else by asking its attempt to stop.

    Returns the state that the run was in. What a person cancelled is never put back.
    """
    with journal.writing() as connection:
        query = sa.select(runs.c.state).where(runs.c.id == run_id)
        state: str | None = connection.execute(journal.dialect.for_update(query)).scalar()
        if state is None:
            raise OperationError(f"there is no run {run_id}")
        if state in episodes.WAITING:
            change = episodes.Cancel(run_id, "person", reason)
            changes.cancel(connection, [change], journal.now(connection))
        elif state == "running":
            connection.execute(
                sa.update(runs).where(runs.c.id == run_id).values(cancel_requested=reason)
            )
        return state


def cancel_requests(journal: Journal, owner: str) -> dict[int, str]:
    """Return run id -> reason of the runs of `owner` that a person wants stopped."""
    with journal.reading() as connection:
        query = sa.select(runs.c.id, runs.c.cancel_requested).where(
            runs.c.state == sa.literal_column("'running'"),
            runs.c.owner == owner,
            runs.c.cancel_requested.is_not(None),
        )
        return {found.id: found.cancel_requested for found in connection.execute(query)}


def owners_of_running(journal: Journal) -> list[str]:
    """Return every process that owns a running run, as far as the journal knows."""
    with journal.reading() as connection:
        query = sa.select(runs.c.owner).where(runs.c.state == sa.literal_column("'running'"))
        return sorted({owner for (owner,) in connection.execute(query) if owner})


def recover_from(
    journal: Journal, dead: str, rules: Rules, jitter: Callable[[], float]
) -> list[Recorded]:
    """End the attempts of a process that is proven dead, as `on_interrupt` says."""
    with journal.reading() as connection:
        query = sa.select(runs.c.id, runs.c.attempts).where(
            runs.c.state == sa.literal_column("'running'"), runs.c.owner == dead
        )
        end = AttemptEnd("interrupted", error=f"its process ({dead}) died")
        ended = [Ended(run_id, made, end) for run_id, made in connection.execute(query)]
    return record_ends(journal, dead, ended, rules, jitter) if ended else []


def verify_due(journal: Journal, rules: Rules, limit: int = 100) -> list[tuple[int, str]]:
    """Look what runs did to their alerts, where that is due; return (run id, effect) pairs."""
    seen: list[tuple[int, str]] = []
    with journal.writing() as connection:
        now = journal.now(connection)
        query = (
            sa.select(runs)
            .where(runs.c.verify_at <= now)
            .order_by(runs.c.source, runs.c.fingerprint, runs.c.episode_action, runs.c.id)
            .limit(limit)
        )
        for run in connection.execute(query).all():
            row = latest_episode(journal, connection, run)
            route = sa.select(route_rows.c.source).where(
                route_rows.c.source == run.source,
                route_rows.c.receiver == (row.receiver if row else ""),
            )
            resolves = connection.execute(route).first() is not None
            effect, took = episodes.effect_of(row, run.finished_at, resolves)
            seconds = None if took is None else round(took.total_seconds())
            connection.execute(
                sa.update(runs)
                .where(runs.c.id == run.id)
                .values(verify_at=None, effect=effect, effect_seconds=seconds)
            )
            this = EpisodeRun(
                run.id, run.kind, run.ordinal, run.state, run.outcome, run.attempts, None
            )
            follow = episodes.escalation(this, effect, rules.policy(run.action))
            changes.apply(journal, connection, follow, now)
            seen.append((run.id, effect))
    return seen


def next_due_at(journal: Journal, loaded: Iterable[str]) -> datetime | None:
    """Return when the next run of these actions, or look at an effect, is due."""
    with journal.reading() as connection:
        first = connection.execute(
            sa.select(sa.func.min(runs.c.due_at)).where(
                runs.c.state == sa.literal_column("'queued'"), runs.c.action.in_(sorted(loaded))
            )
        ).scalar()
        look = connection.execute(
            sa.select(sa.func.min(runs.c.verify_at)).where(runs.c.verify_at.is_not(None))
        ).scalar()
    return min((one for one in (first, look) if one is not None), default=None)
