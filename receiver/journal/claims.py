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
from receiver.journal.due import ClaimedRun, Due
from receiver.journal.journal import Journal
from receiver.journal.past import Past
from receiver.journal.prepared import prepared
from receiver.journal.tables import Instant, attempts, runs
from receiver.policies import Rules


@dataclass(frozen=True, slots=True)
class Claims:
    """What one look at the due runs gave: those claimed, and those that a guardrail moved.

    `moved` holds (run id, verdict) of runs that were delayed, skipped, or wait for a person now.
    `is_more`: another look may find more to claim at once. `is_left`: due runs may be left that
    wait for a slot or a target.
    """

    claimed: list[ClaimedRun]
    moved: list[tuple[int, Verdict]]
    is_more: bool = False
    is_left: bool = False


def claim_due_runs(
    journal: Journal,
    owner: str,
    actions: Iterable[str],
    slots: int,
    rules: Rules,
    *,
    under_way: int = 0,
) -> Claims:
    """Claim due runs in a transaction of their own; see `claim_in`."""
    with journal.writing() as connection:
        return claim_in(journal, connection, owner, actions, slots, rules, under_way=under_way)


def claim_in(
    journal: Journal,
    connection: Connection,
    owner: str,
    actions: Iterable[str],
    slots: int,
    rules: Rules,
    *,
    under_way: int = 0,
) -> Claims:
    """Claim due runs of these actions for `owner`, at most `slots` in all.

    What waits longest comes first: a stream of new runs must not take every place that a limit
    gives, nor every slot before a retry.

    Everything is counted under the one claim lock, so that no limit is exceeded by however many
    claim at a time. A run whose alert was not reported for `max_staleness` waits until it is. At
    the first claim the arguments are worked out, and kept with the run.

    A run that must run alone is claimed alone, by a worker that has no attempt under way
    (`under_way`). From its turn on nothing else is claimed, so that the worker becomes free.
    """
    journal.dialect.lock_claims(connection)
    now = journal.now(connection)
    if slots <= 0:
        return Claims([], [])
    past = Past(connection, rules, now)
    due = Due(journal, connection, rules, now)
    claimed: list[ClaimedRun] = []
    moved: list[tuple[int, Verdict]] = []
    with_room = _with_room(actions, rules, past)
    rows = due.rows(with_room, slots)
    for row in rows:
        if len(claimed) == slots:
            break
        if not _with_room([row.action], rules, past):
            continue
        run = due.run(row)
        policy = rules.policy(run.action)
        unapproved = guardrails.needs_approval(
            policy, run.kind, run.approval, run.is_dry_run, run.was_counted
        )
        verdict = guardrails.decide(
            Asking(run.kind, run.was_counted, run.held_since, unapproved),
            policy,
            rules.limits,
            past.history(run.action, run.target),
            now,
        )
        if verdict.kind == "run":
            if run.runs_alone and (claimed or under_way):
                break
            claimed.append(run)
            past.note_start(run.action, run.target, run.is_start)
            if run.runs_alone:
                break
        elif verdict.kind != "wait":
            moved.append((run.id, verdict))
            _move(journal, connection, run, verdict, rules, now)
    if claimed:
        _mark_claimed(connection, owner, claimed, rules, now)
    # What was claimed keeps its target busy: the next look sees past others of that target.
    may_go_on = 0 < len(claimed) < slots and not claimed[-1].runs_alone
    is_cut = may_go_on and bool(_with_room(due.cut, rules, past))
    is_left = len(claimed) < len(rows) or bool(due.cut) or set(with_room) < set(actions)
    return Claims(claimed, moved, bool(moved) or is_cut, is_left)


def _with_room(actions: Iterable[str], rules: Rules, past: Past) -> list[str]:
    """Return those of the actions of which a run may be claimed now, or be put before a person."""
    return [
        action
        for action in actions
        if past.running(action) < (policy := rules.policy(action)).max_concurrent
        or policy.approval == "required"
    ]


def _move(
    journal: Journal,
    connection: Connection,
    run: ClaimedRun,
    verdict: Verdict,
    rules: Rules,
    now: datetime,
) -> None:
    """Write that a run is delayed, skipped or not approved, and why; a skipped one escalates."""
    values: dict[str, Any] = {"reason": verdict.reason, "held_by": verdict.guardrail}
    if verdict.kind == "ask":
        values |= changes.awaiting_approval(verdict, now)
    elif verdict.kind == "delay":
        values |= {
            "due_at": verdict.until,
            "held_since": run.held_since or now,
            "scheduled_at": now,
        }
    else:
        values |= {"state": "finished", "outcome": "skipped", "finished_at": now}
    connection.execute(sa.update(runs).where(runs.c.id == run.id).values(values))
    if verdict.kind == "skip" and not run.is_dry_run:
        this = EpisodeRun(
            run.id, run.kind, run.ordinal, "finished", "skipped", run.attempt - 1, None, False
        )
        follow = episodes.escalation(this, "skipped", rules.policy(run.action))
        changes.apply(journal, connection, rules, follow, now)


_MARK_CLAIMED = (
    sa.update(runs)
    .where(runs.c.id == sa.bindparam("run_id"))
    .values(
        state=sa.literal_column("'running'"),
        owner=sa.bindparam("claimed_by"),
        attempts=sa.bindparam("attempt"),
        started_at=sa.bindparam("since", type_=Instant()),
        scheduled_at=sa.null(),
        dry_run=sa.bindparam("dry"),
        counted=sa.bindparam("has_counted"),
        call=sa.bindparam("arguments"),
        reason=sa.bindparam("why"),
        held_since=sa.null(),
        held_by=sa.null(),
    )
)
_BEGIN_ATTEMPT = sa.insert(attempts).inline()
_BEGIN_NAMES = (
    "run_id", "number", "action", "kind", "target", "dry_run", "owner", "started_at", "counted_at",
)  # fmt: skip


def _mark_claimed(
    connection: Connection,
    owner: str,
    claimed: Sequence[ClaimedRun],
    rules: Rules,
    now: datetime,
) -> None:
    """Mark runs as running, with their arguments, which are worked out at the first claim."""
    # The one place that parses an expression; never in the web process.
    for run in claimed:
        run.call = run.call or _call(run, rules.grafana_value)
    prepared(_MARK_CLAIMED, connection.dialect).execute(
        connection,
        [
            {
                "run_id": run.id,
                "attempt": run.attempt,
                "claimed_by": owner,
                "since": run.running_since,
                "dry": run.is_dry_run,
                "has_counted": run.was_counted or run.is_start,
                "arguments": run.call,
                "why": f"attempt {run.attempt} runs",
            }
            for run in claimed
        ],
    )
    prepared(_BEGIN_ATTEMPT, connection.dialect, _BEGIN_NAMES).execute(
        connection,
        [
            {
                "run_id": run.id,
                "number": run.attempt,
                "action": run.action,
                "kind": run.kind,
                "target": run.target,
                "dry_run": run.is_dry_run,
                "owner": owner,
                "started_at": now,
                "counted_at": now if run.is_start else None,
            }
            for run in claimed
        ],
    )


def _call(run: ClaimedRun, grafana_value: str) -> str:
    return call_of(Alert.from_json(run.alert), run.received_at, grafana_value).to_json()


def cancel_requests(journal: Journal, owner: str) -> dict[int, str]:
    """Return run id -> reason of the runs of `owner` that a person wants stopped."""
    with journal.reading() as connection:
        query = sa.select(runs.c.id, runs.c.cancel_requested).where(
            runs.c.state == sa.literal_column("'running'"),
            runs.c.owner == owner,
            runs.c.cancel_requested.is_not(None),
        )
        return {found.id: found.cancel_requested for found in connection.execute(query)}


def attempts_of(journal: Journal, owner: str) -> set[tuple[int, int]]:
    """Return run id and number of the attempts that a process has under way, by the journal."""
    with journal.reading() as connection:
        query = sa.select(runs.c.id, runs.c.attempts).where(
            runs.c.state == sa.literal_column("'running'"), runs.c.owner == owner
        )
        return {(found.id, found.attempts) for found in connection.execute(query)}


def owners_of_running(journal: Journal) -> list[str]:
    """Return every process that owns a running run, as far as the journal knows."""
    with journal.reading() as connection:
        query = sa.select(runs.c.owner).where(runs.c.state == sa.literal_column("'running'"))
        return sorted({owner for (owner,) in connection.execute(query) if owner})
