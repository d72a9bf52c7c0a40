"""Answers questions about the journal; changes nothing, and waits for nobody."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from receiver.alertmanager import storable
from receiver.errors import CursorError, NotFoundError
from receiver.journal.journal import Journal
from receiver.journal.run_search import RunFilters, find_run_ids
from receiver.journal.tables import (
    attempts,
    audit,
    episodes,
    holds,
    is_key,
    lasts,
    rejected,
    runs,
)

Row = dict[str, Any]
# Up to 64 KiB each, of up to a thousand rows: `find_run` and `find_rejected` return them.
LARGE = ("alert",)
LISTED = [column for column in runs.columns if column.name not in LARGE]
_LISTED_REJECTED = [column for column in rejected.columns if column.name not in LARGE]
_CURSOR = re.compile(r"\d{1,18}(\.\d{1,18})*", re.ASCII)
_CHUNK = 500  # Older versions of SQLite take no more than 999 values.


@dataclass(frozen=True)
class Page:
    """Some rows, and the cursor that gives those after them; None where there are no more.

    Rows that come or change meanwhile shift nothing: a cursor names the last row that was seen.
    """

    rows: list[Row]
    next: str | None = None


def page_of_runs(
    journal: Journal,
    limit: int = 100,
    cursor: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
    **equal: object,
) -> Page:
    """Return runs without what is large, the newest first, created from `since` on, not `until`.

    `equal` names columns and the values they must have. A page that is not full has a cursor too,
    if there are more runs to examine. Raises CursorError for no cursor of theirs.
    """
    wanted = {
        name: storable(value) if isinstance(value, str) else value for name, value in equal.items()
    }
    (before,) = _numbers_of(cursor, 1) if cursor else (None,)
    with journal.reading() as connection:
        found = find_run_ids(connection, RunFilters(wanted, since, until), limit, before)
        rows: list[Row] = []
        for start in range(0, len(found.ids), _CHUNK):
            of_ids = runs.c.id.in_(found.ids[start : start + _CHUNK])
            query = sa.select(*LISTED).where(of_ids).order_by(runs.c.id.desc())
            rows += [dict(run) for run in connection.execute(query).mappings()]
    return Page(rows, None if found.next is None else str(found.next))


def page_of_episodes(journal: Journal, limit: int = 100, cursor: str = "") -> Page:
    """Return the latest episode of each (source, fingerprint, action), the last seen first."""
    query = sa.select(episodes).where(episodes.c.starts_at.is_not(None))
    return _page(journal, query, [episodes.c.seen_at, episodes.c.id], limit, cursor)


def page_of_rejected(journal: Journal, limit: int = 100, cursor: str = "") -> Page:
    """Return rejected alerts without the alerts themselves, the last seen first."""
    order = [rejected.c.seen_at, rejected.c.id]
    return _page(journal, sa.select(*_LISTED_REJECTED), order, limit, cursor)


def page_of_audit(journal: Journal, limit: int = 100, cursor: str = "") -> Page:
    """Return what people asked for, the latest first."""
    return _page(journal, sa.select(audit), [audit.c.id], limit, cursor)


def _with_values(query: sa.Select[Any], equal: Mapping[str, object]) -> sa.Select[Any]:
    """Return the query for runs whose columns have these values."""
    for column, value in equal.items():
        query = query.where(
            runs.c[column] == (storable(value) if isinstance(value, str) else value)
        )
    return query


_BRIEF = [
    runs.c[name]
    for name in (
        "id", "action", "kind", "alert_name", "fingerprint", "outcome", "created_at", "effect",
        "effect_seconds", "traceparent",
    )
]  # fmt: skip


def list_runs(journal: Journal, limit: int = 100, **equal: object) -> list[Row]:
    """Return whole runs, the newest first; `equal` names columns and the values they must have."""
    query = _with_values(sa.select(runs), equal).order_by(runs.c.id.desc()).limit(limit)
    return _rows(journal, query)


def attempts_of(journal: Journal, run_id: int) -> list[Row]:
    """Return the attempts of a run, the first one first."""
    query = sa.select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.number)
    return _rows(journal, query)


def list_episodes(journal: Journal, limit: int = 100) -> list[Row]:
    """Return the latest episode of each (source, fingerprint, action), the last seen first."""
    return page_of_episodes(journal, limit).rows


def list_rejected(journal: Journal, limit: int = 100) -> list[Row]:
    """Return whole rejected alerts, the last seen first."""
    order = (rejected.c.seen_at.desc(), rejected.c.id.desc())
    return _rows(journal, sa.select(rejected).order_by(*order).limit(limit))


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
    if not ids:  # As a rule; to put the query together costs as much as to carry it out.
        return {}
    query = sa.select(*_BRIEF).where(runs.c.id.in_(ids))
    return {found["id"]: found for found in _rows(journal, query)}


def find_run(journal: Journal, run_id: int) -> Row:
    """Return one run; raise OperationError when there is none."""
    found = list_runs(journal, id=run_id) if is_key(run_id) else []
    if not found:
        raise NotFoundError(f"there is no run {run_id}; see `receiver runs`")
    return found[0]


def audit_of(journal: Journal, run_id: int | None = None, limit: int = 100) -> list[Row]:
    """Return what people asked for, of one run or of all, the latest first."""
    query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    return _rows(journal, query if run_id is None else query.where(audit.c.run_id == run_id))


def list_holds(journal: Journal) -> list[Row]:
    """Return the pauses that last."""
    with journal.reading() as connection:
        query = sa.select(holds).where(lasts(journal.now(connection)))
        query = query.order_by(holds.c.action, holds.c.kind)
        return [dict(found) for found in connection.execute(query).mappings()]


def firing_alerts(journal: Journal, limit: int = 500) -> list[tuple[str, str]]:
    """Return the source and the JSON of the alerts that fire, as far as their runs are the latest.

    Alerts longer than 16 KiB are left out: a person waits for the answer.
    """
    query = (
        sa.select(runs.c.source, runs.c.alert)
        .join(
            episodes,
            sa.and_(
                episodes.c.source == runs.c.source,
                episodes.c.fingerprint == runs.c.fingerprint,
                episodes.c.action == runs.c.action,
                episodes.c.starts_at == runs.c.starts_at,
            ),
        )
        .where(
            runs.c.id.in_(sa.select(runs.c.id).order_by(runs.c.id.desc()).limit(limit)),
            runs.c.kind == "fired",
            episodes.c.closed_at.is_(None),
            sa.func.length(runs.c.alert) <= 16 * 1024,
        )
        .order_by(runs.c.id)
    )
    with journal.reading() as connection:
        return [(source, alert) for source, alert in connection.execute(query)]


def find_rejected(journal: Journal, rejected_id: int) -> Row:
    """Return one rejected alert; raise NotFoundError when there is none."""
    query = sa.select(rejected).where(rejected.c.id == rejected_id)
    found = _rows(journal, query) if is_key(rejected_id) else []
    if not found:
        raise NotFoundError(f"there is no rejected alert {rejected_id}; see `receiver rejected`")
    return found[0]


def _page(
    journal: Journal,
    query: sa.Select[Any],
    order: Sequence[sa.Column[Any]],
    limit: int,
    cursor: str,
) -> Page:
    """Return the page after `cursor`: the numbers of `order`, of the last row that was seen."""
    keys = [sa.type_coerce(one, sa.BigInteger) for one in order]
    if cursor:
        query = query.where(sa.tuple_(*keys) < sa.tuple_(*_numbers_of(cursor, len(keys))))
    query = query.order_by(*(one.desc() for one in order)).limit(limit + 1)
    named = [one.label(f"key {number}") for number, one in enumerate(keys)]
    rows = _rows(journal, query.add_columns(*named))
    last = [[row.pop(one.name) for one in named] for row in rows]
    if len(rows) <= limit:
        return Page(rows)
    return Page(rows[:limit], ".".join(str(number) for number in last[limit - 1]))


def _numbers_of(cursor: str, number: int) -> list[int]:
    numbers = [int(one) for one in cursor.split(".")] if _CURSOR.fullmatch(cursor) else []
    if len(numbers) != number:
        raise CursorError(f"{cursor[:64]!r} is no cursor that a page of these gave")
    return numbers


def _rows(journal: Journal, query: sa.Select[Any]) -> list[Row]:
    with journal.reading() as connection:
        return [dict(found) for found in connection.execute(query).mappings()]
