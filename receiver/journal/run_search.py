"""Finds runs by filters: one index leads, and the rows that are examined have a bound.

Several filters can match few of very many rows, whatever indexes there are. So one look examines
at most `EXAMINED` rows. Then its page is not full, and has a cursor all the same.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.journal.tables import runs

# Examining so many takes about 40 ms of processor time.
EXAMINED = 50_000
# A condition on an expression uses no index. A sort by it lets the other conditions choose theirs.
_UNINDEXED_ID = runs.c.id + sa.literal_column("0")
_Condition = sa.ColumnElement[bool]
# The name of a column, and a condition on it.
_Rest = tuple[str, Callable[[sa.ColumnElement[Any]], _Condition]]


@dataclass(frozen=True)
class RunFilters:
    """Which runs: by the values of columns, and created from `since` on and before `until`."""

    equal: Mapping[str, object]
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class FoundIds:
    """The ids of some runs, the newest first; `next` is where another look goes on, if any."""

    ids: list[int]
    next: int | None


@dataclass(frozen=True)
class _Lead:
    """Conditions that one index answers, and the filter that they stand for.

    `key` is the id, in the form that lets the database use this index.
    """

    conditions: tuple[_Condition, ...] = ()
    answers: str = ""
    key: sa.ColumnElement[int] = runs.c.id


def find_run_ids(
    connection: Connection,
    filters: RunFilters,
    limit: int,
    before: int | None = None,
    most: int = EXAMINED,
) -> FoundIds:
    """Return the ids of the newest runs that match, older than the run `before`.

    At most `most` rows are examined.
    """
    bounds = _bounds(connection, filters)
    if bounds is None:
        return FoundIds([], None)
    lead = _choose_lead(filters.equal)
    conditions = [*lead.conditions]
    if before is not None:
        conditions.append(lead.key < before)
    first, last = bounds
    if first is not None:
        conditions.append(lead.key >= first)
    if last is not None:
        conditions.append(lead.key <= last)
    rest = _rest(filters, lead.answers)
    names = {"id", *(name for name, _ in rest)}
    # In a subquery, so that the bound counts the rows that are examined, not those that match.
    query = sa.select(*(runs.c[name] for name in sorted(names))).where(*conditions)
    if not rest:
        ids = list(connection.execute(query.order_by(lead.key.desc()).limit(limit + 1)).scalars())
        return FoundIds(ids[:limit], ids[limit - 1] if len(ids) > limit else None)
    examined = query.order_by(lead.key.desc()).limit(most).subquery("examined")
    matching = (
        sa.select(examined.c.id)
        .where(*(condition(examined.c[name]) for name, condition in rest))
        .order_by(examined.c.id.desc())
        .limit(limit + 1)
    )
    ids = list(connection.execute(matching).scalars())
    if len(ids) > limit:
        return FoundIds(ids[:limit], ids[limit - 1])
    number, oldest = connection.execute(
        sa.select(sa.func.count(), sa.func.min(examined.c.id))
    ).one()
    return FoundIds(ids, oldest if number == most else None)


def _bounds(connection: Connection, filters: RunFilters) -> tuple[int | None, int | None] | None:
    """Return between which ids runs of these times lie; None: there are none.

    Ids grow with time. What a clock created that was ahead of its neighbours may be left out.
    """
    created, first, last = runs.c.created_at, None, None
    if filters.since is not None:
        query = sa.select(runs.c.id).where(created >= filters.since)
        first = connection.execute(query.order_by(created, runs.c.id).limit(1)).scalar()
        if first is None:
            return None
    if filters.until is not None:
        query = sa.select(runs.c.id).where(created < filters.until)
        newest = query.order_by(created.desc(), runs.c.id.desc()).limit(1)
        last = connection.execute(newest).scalar()
        if last is None:
            return None
    return first, last


def _choose_lead(equal: Mapping[str, object]) -> _Lead:
    """Choose the index that leaves the fewest rows, because SQLite would only guess."""
    state, kind, outcome = (equal.get(name) for name in ("state", "kind", "outcome"))
    if "id" in equal:
        return _Lead((runs.c.id == equal["id"],), "id")
    if "fingerprint" in equal:
        conditions = (runs.c.source.in_(_SOURCES), runs.c.fingerprint == equal["fingerprint"])
        return _Lead(conditions, "fingerprint", _UNINDEXED_ID)
    if "alert_name" in equal:
        return _Lead((runs.c.alert_name == equal["alert_name"],), "alert_name")
    if state in _UNFINISHED:
        return _Lead((runs.c.state == _UNFINISHED[str(state)],), "state", _UNINDEXED_ID)
    if kind is not None and kind != "fired":
        return _Lead((runs.c.kind == kind, runs.c.kind != sa.literal_column("'fired'")), "kind")
    if outcome is not None and outcome != "succeeded":
        seldom = runs.c.outcome != sa.literal_column("'succeeded'")
        return _Lead((runs.c.outcome == outcome, seldom), "outcome")
    if "action" in equal:
        always = runs.c.id > sa.literal_column("0")  # See the index in `tables`.
        return _Lead((runs.c.action == equal["action"], always), "action")
    return _Lead()


def _rest(filters: RunFilters, answered: str) -> list[_Rest]:
    """Return the conditions that the index that leads does not answer."""
    rest: list[_Rest] = [
        (name, partial(_equals, value)) for name, value in filters.equal.items() if name != answered
    ]
    if filters.since is not None:
        rest.append(("created_at", partial(operator.le, filters.since)))
    if filters.until is not None:
        rest.append(("created_at", partial(operator.gt, filters.until)))
    return rest


def _equals(value: object, column: sa.ColumnElement[Any]) -> _Condition:
    return column == value


def _distinct_sources() -> sa.Select[Any]:
    """Return the query for all sources, of which there are few: one look into an index for each."""
    sources = sa.select(sa.func.min(runs.c.source).label("source")).cte("sources", recursive=True)
    other = runs.alias("other")
    following = sa.select(sa.func.min(other.c.source)).where(other.c.source > sources.c.source)
    known = sources.c.source.is_not(None)
    sources = sources.union_all(sa.select(following.scalar_subquery()).where(known))
    return sa.select(sources.c.source).where(sources.c.source.is_not(None))


_SOURCES = _distinct_sources()
# Written out, not bound: only so is a partial index used.
_UNFINISHED: dict[str, sa.ColumnElement[str]] = {
    state: sa.literal_column(f"'{state}'") for state in ("queued", "awaiting_approval", "running")
}
