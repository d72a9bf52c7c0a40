"""What people ask of the journal: each request is carried out and audited in one transaction."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import episodes
from receiver.alertmanager import storable
from receiver.durations import format_duration
from receiver.errors import NotFoundError, OperationError
from receiver.journal import changes
from receiver.journal.due import delay_anew, judge_anew
from receiver.journal.journal import Journal
from receiver.journal.past import ALL_ACTIONS, has_failed_last
from receiver.journal.tables import AT_ONCE, audit, breaker_resets, holds, is_key, lasts, runs

_RETRIED = ("failed", "unknown", "cancelled", "skipped")


@dataclass(frozen=True)
class Person:
    """Who asks, and from where: what the audit keeps."""

    who: str
    origin: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "who", storable(self.who))
        object.__setattr__(self, "origin", storable(self.origin))


def cancel(journal: Journal, person: Person, run_id: int, reason: str = "") -> str:
    """Cancel a run: at once while it waits, else by asking its attempt to stop.

    What a person cancelled is never put back. Returns what was done, in words; raises
    OperationError for a run that has finished.
    """
    why = f"cancelled by {person.who}" + (f": {storable(reason)}" if reason else "")
    with journal.writing() as connection:
        now = journal.now(connection)
        run = _run(journal, connection, run_id)
        if run.state in episodes.WAITING:
            changes.cancel(connection, [episodes.Cancel(run_id, "person", why)], now)
            done = f"run {run_id} is cancelled"
        elif run.state == "running":
            _update(connection, run_id, cancel_requested=why)
            done = f"run {run_id} is running; its attempt was asked to stop"
        else:
            raise OperationError(f"run {run_id} has finished: {run.outcome}, {run.reason}")
        _audit(connection, person, now, "cancel", run.action, run_id, reason)
    return done


def retry(journal: Journal, person: Person, run_id: int) -> str:
    """Let a finished run that did not succeed run again, with all its attempts.

    What its attempts saved stays, so that a job that was started elsewhere is not started again;
    `max_duration` and the bound of interruptions begin anew. A retry approves the run, counts as a
    report of its alert, and limits count it anew.
    Raises OperationError for any other run.
    """
    with journal.writing() as connection:
        now = journal.now(connection)
        run = _run(journal, connection, run_id)
        if run.state != "finished" or run.outcome not in _RETRIED:
            state = run.outcome or run.state
            raise OperationError(
                f"run {run_id} is {state}; only one that ended {', '.join(_RETRIED)} can be retried"
            )
        _update(
            connection,
            run_id,
            state="queued",
            outcome=None,
            cancelled_by=None,
            cancel_requested=None,
            reason=f"retried by {person.who}",
            due_at=AT_ONCE,
            held_since=None,
            held_by=None,
            finished_at=None,
            attempts_before=run.attempts,
            interruptions=0,
            retried_at=now,
            counted=False,
            approval="approved",
        )
        _audit(connection, person, now, "retry", run.action, run_id, "")
    return f"run {run_id} is queued again"


def approve(journal: Journal, person: Person, run_id: int) -> str:
    """Let a run that waits for approval run; raises OperationError for any other."""
    with journal.writing() as connection:
        now = journal.now(connection)
        run = _awaiting(journal, connection, run_id)
        if run.expires_at is not None and run.expires_at <= now:
            raise OperationError(
                f"the time to approve run {run_id} was over at "
                f"{run.expires_at:%Y-%m-%d %H:%M:%S} UTC; see `receiver retry`"
            )
        _update(
            connection, run_id, state="queued", approval="approved",
            reason=f"approved by {person.who}",
        )  # fmt: skip
        _audit(connection, person, now, "approve", run.action, run_id, "")
    return f"run {run_id} is approved"


def reject(journal: Journal, person: Person, run_id: int, reason: str = "") -> str:
    """Cancel a run that waits for approval; raises OperationError for any other."""
    why = f"rejected by {person.who}" + (f": {storable(reason)}" if reason else "")
    with journal.writing() as connection:
        now = journal.now(connection)
        run = _awaiting(journal, connection, run_id)
        changes.cancel(connection, [episodes.Cancel(run_id, "person", why)], now)
        _audit(connection, person, now, "reject", run.action, run_id, reason)
    return f"run {run_id} is rejected"


def pause(
    journal: Journal,
    person: Person,
    action: str | None,
    reason: str = "",
    lasting: timedelta | None = None,
) -> str:
    """Start no run of an action, or of any (`action` None), until resumed or for a while.

    Every worker obeys at its next claim; what runs goes on, and acceptance too.
    """
    if lasting is not None and lasting < timedelta(seconds=1):
        raise OperationError("a pause lasts a second at least; see `receiver resume`")
    with journal.writing() as connection:
        # Who claims at this moment has claimed before the pause was said to hold.
        journal.dialect.lock_claims(connection)
        now = journal.now(connection)
        why = f"by {person.who}" + (f": {storable(reason)}" if reason else "")
        _hold(journal, connection, action or ALL_ACTIONS, why, now, lasting)
        _audit(connection, person, now, "pause", action, None, reason)
    said = "" if lasting is None else f" for {format_duration(lasting)}"
    return f"{action or 'all actions'} paused{said}"


def resume(journal: Journal, person: Person, action: str | None) -> str:
    """Take a pause away, and reset the action's breaker: earlier failures do not count any more.

    `action` None takes the pause of all actions away; those of single actions stay, and so do all
    breakers. Raises OperationError when there is neither a pause nor a failure to forget.
    """
    name = action or ALL_ACTIONS
    with journal.writing() as connection:
        # Who claims at this moment may be delaying runs: they are to be among those found here.
        journal.dialect.lock_claims(connection)
        now = journal.now(connection)
        held = set(connection.execute(sa.select(holds.c.action).where(lasts(now))).scalars())
        is_reset = action is not None and _reset_breaker(journal, connection, action, now)
        if name not in held and not is_reset:
            what = f"{action} is not paused" if action else "not all actions are paused"
            others = ", ".join("all actions" if one == ALL_ACTIONS else one for one in sorted(held))
            raise OperationError(f"{what}; " + (f"paused: {others}" if held else "nothing is"))
        connection.execute(sa.delete(holds).where(holds.c.action == name))
        # While it was paused, no limit delayed it.
        delay_anew(journal, connection, action, now)
        judge_anew(journal, connection, [name], held_by="breaker")
        _audit(connection, person, now, "resume", action, None, "breaker reset" if is_reset else "")
    if name not in held:
        done = f"the breaker of {action} is reset"
    else:
        done = f"{action or 'all actions'} resumed" + (", its breaker is reset" if is_reset else "")
    return done + ("; all actions are still paused" if action and ALL_ACTIONS in held else "")


def _reset_breaker(journal: Journal, connection: Connection, action: str, now: datetime) -> bool:
    """Forget the failures of an action; return whether its latest attempt that counts failed."""
    if not has_failed_last(connection, action, now):
        return False
    insert = journal.dialect.insert(breaker_resets).values(action=action, reset_at=now)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["action"], set_={"reset_at": insert.excluded.reset_at}
        )
    )
    return True


def _hold(
    journal: Journal,
    connection: Connection,
    action: str,
    reason: str,
    now: datetime,
    lasting: timedelta | None,
) -> None:
    """Pause an action, in place of an earlier pause."""
    insert = journal.dialect.insert(holds).values(
        action=action,
        kind="pause",
        since=now,
        until=None if lasting is None else now + lasting,
        reason=reason,
    )
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["action", "kind"],
            set_={name: insert.excluded[name] for name in ("since", "until", "reason")},
        )
    )


def note(journal: Journal, person: Person, operation: str, detail: str) -> None:
    """Audit a request that was carried out elsewhere."""
    with journal.writing() as connection:
        _audit(connection, person, journal.now(connection), operation, None, None, detail)


def _run(journal: Journal, connection: Connection, run_id: int) -> Any:
    query = sa.select(runs).where(runs.c.id == run_id)
    locked = journal.dialect.for_update(query)
    found = connection.execute(locked).first() if is_key(run_id) else None
    if found is None:
        raise NotFoundError(f"there is no run {run_id}; see `receiver runs`")
    return found


def _awaiting(journal: Journal, connection: Connection, run_id: int) -> Any:
    run = _run(journal, connection, run_id)
    if run.state != "awaiting_approval":
        raise OperationError(
            f"run {run_id} waits for no approval: it is {run.outcome or run.state}"
        )
    return run


def _update(connection: Connection, run_id: int, **values: object) -> None:
    connection.execute(sa.update(runs).where(runs.c.id == run_id).values(values))


def _audit(
    connection: Connection,
    person: Person,
    now: datetime,
    operation: str,
    action: str | None,
    run_id: int | None,
    detail: str,
) -> None:
    connection.execute(
        sa.insert(audit).values(
            at=now,
            who=person.who,
            origin=person.origin,
            operation=operation,
            action=action,
            run_id=run_id,
            detail=storable(detail),
        )
    )
