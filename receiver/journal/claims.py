"""Claims due runs, as far as the guardrails let them, and knows who works on what.

At-least-once: an attempt is counted when it is claimed, so that a run which kills its process
cannot be claimed for ever.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import episodes, guardrails
from receiver.alertmanager import Alert
from receiver.calls import call_of
from receiver.episodes import EpisodeRun
from receiver.guardrails import Asking, Verdict
from receiver.journal import changes
from receiver.journal.journal import Journal
from receiver.journal.past import ALL_ACTIONS, Past
from receiver.journal.tables import Instant, attempts, holds, runs
from receiver.journal.tables import episodes as episode_rows
from receiver.policies import Rules, idempotency_key


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that this process must now attempt; `attempt` counts from 1.

    `attempts_before` were made before a person asked for more. `was_started`: this is another
    attempt of what limits have counted already.
    """

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
    held_since: datetime | None
    call: str
    attempt: int
    attempts_before: int
    is_dry_run: bool
    was_started: bool

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
        "held_since", "call", "attempts", "attempts_before", "started_at",
    )
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claims:
    """What one look at the due runs gave: those claimed, and those that a guardrail moved.

    `moved` holds (run id, verdict) of runs that were delayed or skipped.
    """

    claimed: list[ClaimedRun]
    moved: list[tuple[int, Verdict]]


def claim_due_runs(
    journal: Journal, owner: str, actions: Iterable[str], slots: int, rules: Rules
) -> Claims:
    """Claim due runs in a transaction of their own; see `claim_in`."""
    with journal.writing() as connection:
        return claim_in(journal, connection, owner, actions, slots, rules)


def claim_in(
    journal: Journal,
    connection: Connection,
    owner: str,
    actions: Iterable[str],
    slots: int,
    rules: Rules,
) -> Claims:
    """Claim due runs of these actions for `owner`, at most `slots` in all, the longest due first.

    Everything is counted under the one claim lock, so that no limit is exceeded by however many
    claim at a time. A run whose alert was not reported for `max_staleness` waits until it is. At
    the first claim the arguments are worked out, and kept with the run.
    """
    found = Claims([], [])
    journal.dialect.lock_claims(connection)
    now = journal.now(connection)
    due: list[ClaimedRun] = []
    for action in actions:
        due += _due(journal, connection, action, slots, rules, now)
    past = Past(connection, rules, now)
    for run in sorted(due, key=lambda run: (run.due_at, run.id)):
        if len(found.claimed) == slots:
            break
        verdict = guardrails.decide(
            Asking(run.kind, run.was_started, run.held_since),
            rules.policy(run.action),
            rules.limits,
            past.history(run.action, run.target),
            now,
        )
        if verdict.kind == "run":
            found.claimed.append(run)
            past.note_start(run.action, run.target, run.is_dry_run, run.was_started)
        elif verdict.kind in ("delay", "skip"):
            found.moved.append((run.id, verdict))
            _move(journal, connection, run, verdict, rules, now)
    if found.claimed:
        _mark_claimed(connection, owner, found.claimed, now)
    return found


def _due_query() -> sa.Select[Any]:
    busy, row = runs.alias("busy"), episode_rows
    same_row = (
        (row.c.source == runs.c.source)
        & (row.c.fingerprint == runs.c.fingerprint)
        & (row.c.action == runs.c.episode_action)
    )
    fresh = row.c.seen_at >= sa.bindparam("fresh_since")
    return (
        sa.select(*_CLAIMED)
        .select_from(runs.outerjoin(row, same_row))
        # Written out, not bound: only so is a partial index used.
        .where(
            runs.c.state == sa.literal_column("'queued'"),
            runs.c.action == sa.bindparam("of_action"),
            runs.c.due_at <= sa.bindparam("now"),
            (runs.c.kind == "resolved") | row.c.seen_at.is_(None) | fresh,
            ~sa.exists().where(
                busy.c.state == sa.literal_column("'running'"),
                busy.c.action == runs.c.action,
                busy.c.target == runs.c.target,
            ),
            ~sa.exists().where(
                holds.c.kind == "pause",
                holds.c.action.in_((sa.bindparam("of_action"), ALL_ACTIONS)),
                holds.c.until.is_(None) | (holds.c.until > sa.bindparam("now")),
            ),
        )
        .order_by(runs.c.due_at, runs.c.id)
        .limit(sa.bindparam("most"))
    )


# Built once: for short runs, putting it together would cost more than all else.
_DUE = _due_query()


def _due(
    journal: Journal,
    connection: Connection,
    action: str,
    limit: int,
    rules: Rules,
    now: datetime,
) -> list[ClaimedRun]:
    query = journal.dialect.for_update(_DUE, skip_locked=True)
    bound = {
        "of_action": action,
        "now": now,
        "fresh_since": now - rules.policy(action).max_staleness,
        "most": limit,
    }
    found: list[ClaimedRun] = []
    for one in connection.execute(query, bound):
        values = dict(one._mapping)
        made, before = values.pop("attempts"), values.pop("attempts_before")
        dry = rules.policy(action).dry_run or rules.dry_run
        if not dry and "action_dry_run" in one.alert:
            dry = rules.is_dry_run(action, Alert.from_json(one.alert).annotations)
        started = values.pop("started_at") is not None and made > before
        # The one place that parses an expression; never in the web process.
        values["call"] = one.call or _call(one)
        found.append(
            ClaimedRun(
                **values,
                attempt=made + 1,
                attempts_before=before,
                is_dry_run=dry,
                was_started=started,
            )
        )
    return found


def _call(run: Any) -> str:
    return call_of(Alert.from_json(run.alert), run.received_at).to_json()


def _move(
    journal: Journal,
    connection: Connection,
    run: ClaimedRun,
    verdict: Verdict,
    rules: Rules,
    now: datetime,
) -> None:
    """Write that a run is delayed or skipped, and why; a skipped one escalates."""
    values: dict[str, Any] = {"reason": verdict.reason, "held_by": verdict.guardrail}
    if verdict.kind == "delay":
        values |= {"due_at": verdict.until, "held_since": run.held_since or now}
    else:
        values |= {"state": "finished", "outcome": "skipped", "finished_at": now}
    connection.execute(sa.update(runs).where(runs.c.id == run.id).values(values))
    if verdict.kind == "skip" and not run.is_dry_run:
        this = EpisodeRun(run.id, run.kind, run.ordinal, "finished", "skipped", 0, None)
        follow = episodes.escalation(this, "skipped", rules.policy(run.action))
        changes.apply(journal, connection, rules, follow, now)


_MARK_CLAIMED = (
    sa.update(runs)
    .where(runs.c.id == sa.bindparam("run_id"))
    .values(
        state="running",
        owner=sa.bindparam("claimed_by"),
        attempts=sa.bindparam("attempt"),
        started_at=sa.case(
            (sa.bindparam("retried", type_=sa.Boolean()), runs.c.started_at),
            else_=sa.bindparam("now", type_=Instant()),
        ),
        dry_run=sa.bindparam("dry"),
        call=sa.bindparam("arguments"),
        reason=sa.bindparam("why"),
        held_since=None,
        held_by=None,
    )
)


def _mark_claimed(
    connection: Connection, owner: str, claimed: Sequence[ClaimedRun], now: datetime
) -> None:
    """Mark runs as running. A person's retry starts a run anew, and so counts as a start."""
    connection.execute(
        _MARK_CLAIMED,
        [
            {
                "run_id": run.id,
                "attempt": run.attempt,
                "claimed_by": owner,
                "retried": run.was_started,
                "now": now,
                "dry": run.is_dry_run,
                "arguments": run.call,
                "why": f"attempt {run.attempt} runs",
            }
            for run in claimed
        ],
    )
    connection.execute(
        sa.insert(attempts),
        [
            {
                "run_id": run.id,
                "number": run.attempt,
                "action": run.action,
                "owner": owner,
                "started_at": now,
            }
            for run in claimed
        ],
    )


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


def next_due_at(journal: Journal, loaded: Iterable[str]) -> datetime | None:
    """Return when the next run of these actions, or look at an effect, is due."""
    with journal.reading() as connection:
        first = connection.execute(_NEXT_DUE, {"actions": sorted(loaded)}).scalar()
        look = connection.execute(_NEXT_LOOK).scalar()
    return min((one for one in (first, look) if one is not None), default=None)


_NEXT_DUE = sa.select(sa.func.min(runs.c.due_at)).where(
    runs.c.state == sa.literal_column("'queued'"),
    runs.c.action.in_(sa.bindparam("actions", expanding=True)),
)
_NEXT_LOOK = sa.select(sa.func.min(runs.c.verify_at)).where(runs.c.verify_at.is_not(None))
