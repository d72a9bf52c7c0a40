"""What the journal holds, read when `/metrics` is asked: bounded, indexed, and kept for seconds.

Every replica on one journal shows the same: aggregate these gauges by `max`, not `sum`.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import Any

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.engine import Connection

from receiver import guardrails
from receiver.clock import latest_past
from receiver.errors import JournalError
from receiver.journal.activity import count_unfinished
from receiver.journal.due import IS_FRESH, OF_EPISODE
from receiver.journal.instances import living_workers
from receiver.journal.journal import Journal
from receiver.journal.past import Past
from receiver.journal.tables import AT_ONCE, Instant, attempts, episodes, rejected, runs
from receiver.metrics.instruments import BY_NAME
from receiver.plugins import Actions
from receiver.policies import Rules

_KEPT_SECONDS = 3.0
_MOST, _MOST_STALE = 100_000, 10_000
# No action can have this name: of what the journal holds for actions that are not loaded.
NOT_LOADED = "(not loaded)"
_log = logging.getLogger(__name__)

_STATES = ("queued", "running", "awaiting_approval")


_QUEUED = (
    (runs.c.state == sa.literal_column("'queued'"))
    & (runs.c.action == sa.bindparam("of_action"))
    & (runs.c.due_at <= sa.bindparam("now", type_=Instant()))
)
_WAITING = (
    sa.select(runs.c.created_at, runs.c.due_at, IS_FRESH.label("is_fresh"))
    .select_from(runs.outerjoin(episodes, OF_EPISODE))
    .limit(sa.bindparam("most"))
)
_AT_ONCE = _WAITING.where(_QUEUED, runs.c.due_at == AT_ONCE).order_by(runs.c.id)
_TIMED = _WAITING.where(_QUEUED, runs.c.due_at > AT_ONCE).order_by(runs.c.due_at, runs.c.id)
_RUNNING_SINCE = (
    sa.select(runs.c.action, sa.func.min(attempts.c.started_at).label("since"))
    .select_from(
        runs.join(
            attempts, (attempts.c.run_id == runs.c.id) & (attempts.c.number == runs.c.attempts)
        )
    )
    .where(runs.c.state == sa.literal_column("'running'"))
    .group_by(runs.c.action)
)
_OPEN_REJECTED = sa.select(sa.func.count()).select_from(
    sa.select(rejected.c.id).where(rejected.c.closed_at.is_(None)).limit(_MOST).subquery()
)


@dataclass
class _Seen:
    """Metric -> (label values, value) pairs, as they were at one moment."""

    values: dict[str, list[tuple[tuple[str, ...], float]]] = field(default_factory=dict)

    def add(self, name: str, value: float, *labels: str) -> None:
        self.values.setdefault(name, []).append((labels, value))


class JournalState(Collector):
    """The gauges. A journal that cannot be read fails no scrape: `receiver_journal_up` is 0."""

    def __init__(self, journal: Journal, actions: Actions, rules: Rules) -> None:
        self._journal = journal
        self._actions = sorted(actions.loaded)
        self._plugins = sorted((one.name, one.state) for one in actions.plugins.values())
        self._rules = rules
        self._lock = threading.Lock()
        self._seen = _Seen()
        self._seen_at = float("-inf")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield every gauge of the table that has a value now."""
        with self._lock:
            if time.monotonic() - self._seen_at > _KEPT_SECONDS:
                self._seen = self._look()
                self._seen_at = time.monotonic()
            seen = self._seen
        for name, samples in seen.values.items():
            one = BY_NAME[name]
            family = GaugeMetricFamily(name, one.help, labels=one.labels)
            for labels, value in samples:
                family.add_metric(labels, value)
            yield family

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the names alone: registering reads no journal."""
        return [GaugeMetricFamily(one.name, one.help) for one in BY_NAME.values()
                if one.type == "gauge"]  # fmt: skip

    def _look(self) -> _Seen:
        seen = _Seen()
        seen.add(
            "receiver_build_info",
            1,
            version("alert-receiver"),
            ".".join(str(one) for one in sys.version_info[:3]),
            self._journal.dialect.name,
        )
        for name, state in self._plugins:
            seen.add("receiver_plugin_info", 1, name, state)
        try:
            with self._journal.reading() as connection:
                self._read(connection, seen)
        except JournalError as error:
            _log.warning("journal fails the metrics", extra={"error": str(error)})
            seen.add("receiver_journal_up", 0)
        else:
            seen.add("receiver_journal_up", 1)
        return seen

    def _read(self, connection: Connection, seen: _Seen) -> None:
        now = self._journal.now(connection)
        age_not_loaded = 0.0
        for state in _STATES:
            counts = dict.fromkeys(self._actions, 0)
            for action, number in count_unfinished(connection, state).items():
                known = action if action in counts else NOT_LOADED
                counts[known] = counts.get(known, 0) + number
                if known is NOT_LOADED and state == "queued":
                    age_not_loaded = max(
                        age_not_loaded,
                        self._due_age(connection, action, now),
                    )
            for action, number in counts.items():
                seen.add("receiver_unfinished_runs", number, action, state)
        seen.add("receiver_due_run_age_seconds", age_not_loaded, NOT_LOADED)
        running_since = {one.action: one.since for one in connection.execute(_RUNNING_SINCE)}
        past = Past(connection, self._rules, now)
        for action in self._actions:
            seen.add(
                "receiver_due_run_age_seconds",
                self._due_age(connection, action, now),
                action,
            )
            since = running_since.get(action)
            age = _age(since, now)
            seen.add("receiver_running_attempt_age_seconds", age, action)
            history = past.history(action, "")
            is_open = guardrails.is_open(self._rules.policy(action), history.ends)
            seen.add("receiver_action_paused", history.paused is not None, action)
            seen.add("receiver_breaker_open", is_open, action)
        seen.add("receiver_open_rejected_alerts", connection.execute(_OPEN_REJECTED).scalar_one())
        seen.add("receiver_workers", len(living_workers(self._journal, connection)))
        size, free = self._journal.dialect.size(connection)
        seen.add("receiver_journal_size_bytes", size)
        if free is not None:
            seen.add("receiver_journal_free_bytes", free)

    def _due_age(self, connection: Connection, action: str, now: datetime) -> float:
        """Return how long the oldest run has been due that waits for no report of its alert."""
        bound = {
            "of_action": action,
            "now": now,
            "fresh_since": now - self._rules.policy(action).max_staleness,
            "latest": latest_past(now),
        }
        ages = [0.0]
        for query in (_AT_ONCE, _TIMED):
            row = _first_fresh(connection, query, bound)
            if row is not None:
                ages.append(_age(row.created_at if query is _AT_ONCE else row.due_at, now))
        return max(ages)


def _first_fresh(
    connection: Connection, query: sa.Select[Any], bound: Mapping[str, object]
) -> Any | None:
    # As a rule the first one is: only beside stale ones is it worth looking at many.
    for most in (1, _MOST_STALE):
        rows = connection.execute(query, {**bound, "most": most}).all()
        if (row := next((row for row in rows if row.is_fresh), None)) is not None:
            return row
        if len(rows) < most:
            break
    return None


def _age(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())
