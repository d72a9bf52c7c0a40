"""What is going on, and what went on in the last day: the status page's look at the journal.

Every query here is answered from a small index, however many runs have finished.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.clock import latest_past
from receiver.journal.instances import living_workers
from receiver.journal.journal import Journal
from receiver.journal.reading import LISTED, Row
from receiver.journal.tables import Instant, rejected, runs

HOURS = 24
_STATES = ("running", "awaiting_approval", "queued")
_HOUR = timedelta(hours=1)
_MOST_COUNTED = 100_000


@dataclass(frozen=True)
class Activity:
    """One look.

    `unfinished` are the first runs of what runs, waits for approval, is queued; `numbers` says how
    many there are: action -> state -> number. `ended` counts the runs that ended in the last day:
    action -> hour (0 the oldest) -> outcome -> number.
    """

    now: datetime
    workers: int
    loaded: frozenset[str]
    open_rejected: int
    unfinished: list[Row] = field(default_factory=list)
    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ended: Mapping[str, Mapping[int, Mapping[str, int]]] = field(default_factory=dict)

    def number(self, state: str) -> int:
        """Return how many runs there are in a state."""
        return sum(states.get(state, 0) for states in self.numbers.values())

    @property
    def ended_by_hour(self) -> Mapping[int, Mapping[str, int]]:
        """Hour -> outcome -> number, of all actions together."""
        found: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for hours in self.ended.values():
            for hour, outcomes in hours.items():
                for outcome, number in outcomes.items():
                    found[hour][outcome] += number
        return found


def look(journal: Journal, most: int = 50) -> Activity:
    """Return what is going on; of each state at most so many runs."""
    with journal.reading() as connection:
        now = journal.now(connection)
        workers = living_workers(journal, connection)
        still_open = sa.select(sa.func.count()).where(rejected.c.closed_at.is_(None))
        return Activity(
            now,
            len(workers),
            frozenset(action for worker in workers for action in worker.actions),
            connection.execute(still_open).scalar_one(),
            [row for state in _STATES for row in _first_in(connection, state, most)],
            _numbers(connection),
            _ended(connection, now),
        )


def _is_in(state: str) -> sa.ColumnElement[bool]:
    # As a literal: only so is the partial index of the state used.
    return runs.c.state == sa.literal_column(f"'{state}'")


def _first_in(connection: Connection, state: str, most: int) -> list[Row]:
    # First only what an index holds: a long queue is not to be sorted with its rows.
    first = sa.select(runs.c.id).where(_is_in(state)).order_by(runs.c.due_at, runs.c.id).limit(most)
    ids = list(connection.execute(first).scalars())
    query = sa.select(*LISTED).where(runs.c.id.in_(ids)).order_by(runs.c.due_at, runs.c.id)
    return [dict(found) for found in connection.execute(query).mappings()]


def count_unfinished(connection: Connection, state: str) -> Mapping[str, int]:
    """Return how many runs of each action are in a state; at most 100,000 runs are counted."""
    some = sa.select(runs.c.action).where(_is_in(state)).limit(_MOST_COUNTED).subquery()
    query = sa.select(some.c.action, sa.func.count()).group_by(some.c.action)
    return {row.action: row[1] for row in connection.execute(query)}


def _numbers(connection: Connection) -> Mapping[str, Mapping[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for state in _STATES:
        for action, number in count_unfinished(connection, state).items():
            found[action][state] = number
    return found


def _ended(connection: Connection, now: datetime) -> Mapping[str, Any]:
    """Count the runs that ended in each hour: a range of an index each, so nothing is sorted."""
    found: dict[str, dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    ends = _kinds_of_ends(connection)
    if not ends:
        return found
    until = [now - number * _HOUR for number in range(HOURS + 1)]
    # What is a little ahead counts as now.
    until[0] = latest_past(now)
    hours = sa.values(
        sa.column("hour", sa.Integer), sa.column("after", Instant), sa.column("until", Instant)
    ).data([(HOURS - 1 - ago, until[ago + 1], until[ago]) for ago in range(HOURS)])
    kinds = sa.values(sa.column("action", sa.String), sa.column("outcome", sa.String)).data(ends)
    hour, kind = hours.cte("hours"), kinds.cte("kinds")
    number = (
        sa.select(sa.func.count())
        .where(
            _is_in("finished"),
            runs.c.action == kind.c.action,
            runs.c.outcome == kind.c.outcome,
            runs.c.finished_at > hour.c.after,
            runs.c.finished_at <= hour.c.until,
        )
        .scalar_subquery()
    )
    query = sa.select(kind.c.action, hour.c.hour, kind.c.outcome, number).select_from(
        sa.join(kind, hour, sa.true())
    )
    for action, ended_in, outcome, count in connection.execute(query):
        if count:
            found[action][ended_in][outcome] = count
    return found


def _kinds_of_ends(connection: Connection) -> list[tuple[str, str]]:
    """Return every action and outcome of the finished runs: one look into an index for each."""
    kinds: list[tuple[str, str]] = []
    bound = {"last_action": "", "last_outcome": ""}
    queries = (_NEXT_OUTCOME, _NEXT_ACTION)
    while row := next(
        filter(None, (connection.execute(one, bound).first() for one in queries)), None
    ):
        kinds.append((row.action, row.outcome))
        bound = {"last_action": row.action, "last_outcome": row.outcome}
    return kinds


_ENDED = sa.select(runs.c.action, runs.c.outcome).where(_is_in("finished")).limit(1)
_NEXT_OUTCOME = _ENDED.where(
    runs.c.action == sa.bindparam("last_action"), runs.c.outcome > sa.bindparam("last_outcome")
).order_by(runs.c.outcome)
_NEXT_ACTION = _ENDED.where(runs.c.action > sa.bindparam("last_action")).order_by(
    runs.c.action, runs.c.outcome
)
