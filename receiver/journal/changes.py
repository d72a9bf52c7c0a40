"""Carries out what `receiver.episodes` decided about the runs of an episode."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import guardrails
from receiver.alertmanager import Alert
from receiver.episodes import (
    WAITING,
    Cancel,
    Change,
    Create,
    EpisodeRun,
    Postpone,
    PutBack,
)
from receiver.guardrails import Verdict
from receiver.identity import Episode
from receiver.journal.dialects import Key
from receiver.journal.journal import Journal
from receiver.journal.tables import AT_ONCE, runs
from receiver.journal.tables import episodes as episode_rows
from receiver.policies import Policy, Rules
from receiver.subject import target_of

# What a run of the same episode copies from the one before it.
_COPIED = (
    "source", "fingerprint", "action", "starts_at", "episode_action", "alert_name", "alert",
    "receiver", "external_url", "traceparent", "received_at",
)  # fmt: skip


_EPISODE_RUN = [runs.c[name] for name in EpisodeRun.__dataclass_fields__]
_CHUNK = 200
_WAITS = sa.or_(*(runs.c.state == sa.literal_column(f"'{state}'") for state in WAITING))


def runs_of(connection: Connection, row: Episode) -> list[EpisodeRun]:
    """Return the runs of a row's latest episode, escalations included, the oldest first."""
    return runs_of_many(connection, [row])[_key(row)]


def runs_of_many(connection: Connection, rows: Sequence[Episode]) -> dict[Key, list[EpisodeRun]]:
    """Return the runs of the latest episodes of many rows, by (source, fingerprint, action)."""
    found: dict[Key, list[EpisodeRun]] = {_key(row): [] for row in rows}
    begun = {_key(row): row.starts_at for row in rows}
    for source in sorted({row.source for row in rows}):
        starts: dict[str, set[datetime]] = defaultdict(set)
        for row in rows:
            if row.source == source:
                starts[row.fingerprint].add(row.starts_at)
        fingerprints = sorted(starts)
        for start in range(0, len(fingerprints), _CHUNK):
            some = fingerprints[start : start + _CHUNK]
            query = (
                sa.select(runs.c.fingerprint, runs.c.episode_action, runs.c.starts_at,
                          *_EPISODE_RUN)
                .where(
                    runs.c.source == source,
                    runs.c.fingerprint.in_(some),
                    # In the index with them: an alert that flaps has thousands of earlier runs.
                    runs.c.starts_at.in_(sorted(set().union(*(starts[one] for one in some)))),
                )
                .order_by(runs.c.id)
            )  # fmt: skip
            for fingerprint, action, starts_at, *values in connection.execute(query):
                key = (source, fingerprint, action)
                if begun.get(key) == starts_at:
                    found[key].append(EpisodeRun(*values))
    return found


def _key(row: Episode) -> Key:
    return (row.source, row.fingerprint, row.action)


def latest_episode(journal: Journal, connection: Connection, run: Any) -> Episode | None:
    """Return the row of a run's episode, locked; None when a newer episode has its place."""
    row = episode_rows
    query = sa.select(
        row.c.source, row.c.fingerprint, row.c.action, row.c.starts_at, row.c.mark_at,
        row.c.seen_at, row.c.receiver, row.c.closed_at, row.c.ends_at, row.c.round,
        row.c.ahead_starts_at,
    ).where(
        row.c.source == run.source,
        row.c.fingerprint == run.fingerprint,
        row.c.action == run.episode_action,
        row.c.starts_at == run.starts_at,
    )  # fmt: skip
    found = connection.execute(journal.dialect.for_update(query)).first()
    return None if found is None else Episode(*found)


def has_fired_run(connection: Connection, key: Key, starts_at: datetime) -> bool:
    """Whether a run for this very startsAt was ever accepted."""
    source, fingerprint, action = key
    query = sa.select(runs.c.id).where(
        runs.c.source == source,
        runs.c.fingerprint == fingerprint,
        runs.c.action == action,
        runs.c.starts_at == starts_at,
        runs.c.kind == "fired",
        runs.c.ordinal == 0,
    )
    return connection.execute(query).first() is not None


def awaiting_approval(asked: Verdict, now: datetime) -> dict[str, object]:
    """Return the columns of a run that waits for a person."""
    return {
        "state": "awaiting_approval",
        "approval": "required",
        "expires_at": asked.until,
        "scheduled_at": now,
    }


def first_state(policy: Policy, is_dry_run: bool, reason: str, now: datetime) -> dict[str, object]:
    """Return the state columns of a new run: queued, or waiting for a person's approval."""
    if policy.approval == "required" and not is_dry_run:
        asked = guardrails.ask(policy, now)
        return {"reason": asked.reason, **awaiting_approval(asked, now)}
    return {
        "state": "queued",
        "reason": reason,
        "approval": None,
        "expires_at": None,
        "scheduled_at": None,
    }


def apply(
    journal: Journal,
    connection: Connection,
    rules: Rules,
    changes: Sequence[Change],
    now: datetime,
) -> None:
    """Write changes to the runs of episodes: what is cancelled, what is put back, and the rest."""
    cancels = [change for change in changes if isinstance(change, Cancel)]
    if cancels:
        cancel(connection, cancels, now)
    _put_back(connection, rules, [one for one in changes if isinstance(one, PutBack)], now)
    for change in changes:
        match change:
            case Create():
                _create(journal, connection, rules, change, now)
            case Postpone():
                later = sa.update(runs).where(runs.c.id == change.run_id)
                connection.execute(
                    later.values(
                        due_at=change.due_at, scheduled_at=now, held_since=None, held_by=None
                    )
                )


def cancel(connection: Connection, changes: Sequence[Cancel], now: datetime) -> None:
    """End runs that wait; one that has started meanwhile stays as it is."""
    connection.execute(
        sa.update(runs)
        .where(runs.c.id == sa.bindparam("run_id"), _WAITS)
        .values(
            state="finished",
            outcome="cancelled",
            cancelled_by=sa.bindparam("by"),
            reason=sa.bindparam("why"),
            finished_at=now,
        ),
        [{"run_id": one.run_id, "by": one.by, "why": one.reason} for one in changes],
    )


_PUT_BACK = (
    sa.update(runs)
    .where(runs.c.id == sa.bindparam("run_id"), runs.c.outcome == "cancelled")
    .values(
        outcome=None,
        cancelled_by=None,
        finished_at=None,
        held_since=None,
        held_by=None,
        **{
            name: sa.bindparam(f"new_{name}")
            for name in ("state", "reason", "due_at", "expires_at", "scheduled_at")
        },
    )
)


def _put_back(
    connection: Connection, rules: Rules, changes: Sequence[PutBack], now: datetime
) -> None:
    """Let cancelled runs wait again: as many as a whole group that was falsely resolved has."""
    for start in range(0, len(changes), _CHUNK):
        some = {change.run_id: change for change in changes[start : start + _CHUNK]}
        query = sa.select(
            runs.c.id, runs.c.action, runs.c.approval, runs.c.held_since, runs.c.due_at,
            runs.c.expires_at, runs.c.scheduled_at,
        ).where(runs.c.id.in_(some))  # fmt: skip
        values = [
            _waiting_again(run, some[run.id], rules, now) for run in connection.execute(query)
        ]
        if values:  # On PostgreSQL, retention may have deleted them meanwhile.
            connection.execute(_PUT_BACK, values)


def _waiting_again(run: Any, change: PutBack, rules: Rules, now: datetime) -> dict[str, object]:
    # What nobody has approved yet waits for that again.
    is_covered = run.approval != "required"
    first = first_state(rules.policy(run.action), is_covered, change.reason, now)
    # What was held is to be judged by what holds now, and since now.
    due_at = change.due_at or (run.due_at if run.held_since is None else AT_ONCE)
    return {
        "run_id": run.id,
        "new_state": first["state"],
        "new_reason": first["reason"],
        "new_due_at": due_at,
        "new_expires_at": first["expires_at"] or run.expires_at,
        # A due time that is kept keeps the time at which it was computed.
        "new_scheduled_at": now if first["expires_at"] or change.due_at else run.scheduled_at,
    }


def _create(
    journal: Journal, connection: Connection, rules: Rules, change: Create, now: datetime
) -> None:
    query = sa.select(*(runs.c[name] for name in (*_COPIED, "approval"))).where(
        runs.c.id == change.like
    )
    values: dict[str, Any] = {**connection.execute(query).mappings().one()}
    approval = values.pop("approval")
    if change.action is not None:
        values |= {"action": change.action, "escalated_from": change.like}
    alert = Alert.from_json(values["alert"])
    policy = rules.policy(values["action"])
    # A repeat is asked for when it is due, unless the action was approved.
    is_covered = change.kind in ("repeat", "resolved")
    is_dry_run = rules.is_dry_run(values["action"], alert.annotations)
    values |= {
        "kind": change.kind,
        "ordinal": change.ordinal,
        "created_at": now,
        "due_at": change.due_at or AT_ONCE,
        "target": target_of(policy, values["source"], values["fingerprint"], alert.labels),
        **first_state(policy, is_covered or is_dry_run, change.reason, now),
    }
    if change.due_at is not None:
        values["scheduled_at"] = now
    if is_covered:
        values["approval"] = approval
    if change.cancelled_by is not None:
        values |= {
            "state": "finished",
            "outcome": "cancelled",
            "cancelled_by": change.cancelled_by,
            "finished_at": now,
        }
    connection.execute(journal.dialect.insert(runs).on_conflict_do_nothing(), values)


_SUPERSEDE = (
    sa.update(runs)
    .where(
        runs.c.source == sa.bindparam("of_source"),
        runs.c.fingerprint == sa.bindparam("of_fingerprint"),
        runs.c.episode_action == sa.bindparam("of_action"),
        _WAITS,
        sa.or_(runs.c.kind == "resolved", runs.c.kind == "repeat"),
    )
    .values(
        state="finished",
        outcome="cancelled",
        cancelled_by="new episode",
        reason="a new episode of the alert began",
        finished_at=sa.bindparam("at"),
    )
)


def supersede(connection: Connection, keys: Sequence[Key], now: datetime) -> None:
    """Cancel the waiting `resolved` and `repeat` runs of older episodes of these rows."""
    if keys:
        rows = [
            {"of_source": source, "of_fingerprint": fingerprint, "of_action": action, "at": now}
            for source, fingerprint, action in keys
        ]
        connection.execute(_SUPERSEDE, rows)
