"""Answers questions about the journal; changes nothing, and waits for nobody."""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from receiver.alertmanager import storable
from receiver.errors import OperationError
from receiver.journal.journal import Journal
from receiver.journal.tables import attempts, audit, episodes, holds, rejected, runs

Row = dict[str, Any]

_BRIEF = [
    runs.c[name]
    for name in (
        "id", "action", "kind", "alert_name", "fingerprint", "outcome", "created_at", "effect",
        "effect_seconds", "traceparent",
    )
]  # fmt: skip


def list_runs(journal: Journal, limit: int = 100, **equal: object) -> list[Row]:
    """Return runs, the newest first; `equal` names columns and the values they must have."""
    query = sa.select(runs).order_by(runs.c.id.desc()).limit(limit)
    for column, value in equal.items():
        query = query.where(
            runs.c[column] == (storable(value) if isinstance(value, str) else value)
        )
    return _rows(journal, query)


def attempts_of(journal: Journal, run_id: int) -> list[Row]:
    """Return the attempts of a run, the first one first."""
    query = sa.select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.number)
    return _rows(journal, query)


def list_episodes(journal: Journal, limit: int = 100) -> list[Row]:
    """Return the latest episode of each (source, fingerprint, action), the last seen first."""
    query = sa.select(episodes).where(episodes.c.starts_at.is_not(None))
    return _rows(journal, query.order_by(episodes.c.seen_at.desc()).limit(limit))


def list_rejected(journal: Journal, limit: int = 100) -> list[Row]:
    """Return rejected alerts, the last seen first."""
    return _rows(journal, sa.select(rejected).order_by(rejected.c.seen_at.desc()).limit(limit))


def count_runs(journal: Journal) -> dict[tuple[str, str | None], int]:
    """Return how many runs there are of each (state, outcome)."""
    query = sa.select(runs.c.state, runs.c.outcome, sa.func.count()).group_by(
        runs.c.state, runs.c.outcome
    )
    with journal.reading() as connection:
        found: Sequence[Any] = connection.execute(query).all()
    return {(state, outcome): number for state, outcome, number in found}


def briefs_of(journal: Journal, run_ids: Iterable[int]) -> dict[int, Row]:
    """Return what logs and metrics say of these runs, by their numbers."""
    ids = sorted(run_ids)
    query = sa.select(*_BRIEF).where(runs.c.id.in_(ids))
    return {found["id"]: found for found in _rows(journal, query)} if ids else {}


def find_run(journal: Journal, run_id: int) -> Row:
    """Return one run; raise OperationError when there is none."""
    # No database has a number as high, nor can look for one.
    found = list_runs(journal, id=run_id) if 0 < run_id < 2**63 else []
    if not found:
        raise OperationError(f"there is no run {run_id}; see `receiver runs`")
    return found[0]


def audit_of(journal: Journal, run_id: int | None = None, limit: int = 100) -> list[Row]:
    """Return what people asked for, of one run or of all, the latest first."""
    query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    return _rows(journal, query if run_id is None else query.where(audit.c.run_id == run_id))


def list_holds(journal: Journal) -> list[Row]:
    """Return the pauses and the breakers that abandoned attempts opened, as far as they last."""
    with journal.reading() as connection:
        lasting = holds.c.until.is_(None) | (holds.c.until > journal.now(connection))
        query = sa.select(holds).where(lasting).order_by(holds.c.action, holds.c.kind)
        return [dict(found) for found in connection.execute(query).mappings()]


def _rows(journal: Journal, query: sa.Select[Any]) -> list[Row]:
    with journal.reading() as connection:
        return [dict(found) for found in connection.execute(query).mappings()]
