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
from receiver.journal.tables import AT_ONCE, rejected, runs

HOURS = 24
_STATES = ("running", "awaiting_approval", "queued")
_HOUR = timedelta(hours=1)
_MICROSECONDS = 3_600_000_000


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
    query = sa.select(*LISTED).where(_is_in(state)).order_by(runs.c.due_at, runs.c.id).limit(most)
    return [dict(found) for found in connection.execute(query).mappings()]


def _numbers(connection: Connection) -> Mapping[str, Mapping[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for state in _STATES:
        query = sa.select(runs.c.action, sa.func.count()).where(_is_in(state))
        for action, number in connection.execute(query.group_by(runs.c.action)):
            found[action][state] = number
    return found


def _ended(connection: Connection, now: datetime) -> Mapping[str, Any]:
    began = now - HOURS * _HOUR
    # Instants are kept as numbers, and only numbers can be divided.
    microseconds = (now - AT_ONCE) // timedelta(microseconds=1)
    ended = sa.type_coerce(runs.c.finished_at, sa.BigInteger)
    hours_ago = ((sa.literal(microseconds, sa.BigInteger) - ended) // _MICROSECONDS).label(
        "hours_ago"
    )
    query = (
        sa.select(runs.c.action, hours_ago, runs.c.outcome, sa.func.count())
        .where(
            _is_in("finished"),
            runs.c.finished_at > began,
            runs.c.finished_at <= latest_past(now),
        )
        .group_by(runs.c.action, "hours_ago", runs.c.outcome)
    )
    found: dict[str, dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for action, hours, outcome, number in connection.execute(query):
        # What is a little ahead counts as now.
        hour = HOURS - 1 - max(int(hours), 0)
        found[action][hour][outcome] = found[action][hour].get(outcome, 0) + number
    return found
