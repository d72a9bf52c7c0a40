"""Which queued runs are due, in whose turn; read under the claim lock by those who claim."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.alert import LARGEST_ALERT, Alert, bounded
from receiver.clock import latest_past, past
from receiver.journal.journal import Journal
from receiver.journal.past import ALL_ACTIONS
from receiver.journal.tables import AT_ONCE, Instant, holds, lasts, runs
from receiver.journal.tables import episodes as episode_rows
from receiver.packing import Packed
from receiver.policies import Rules, running_since, runs_alone
from receiver.subject import idempotency_key


@dataclass(slots=True)
class ClaimedRun(Packed):
    """A run that this process must now attempt; `attempt` counts from 1.

    `attempts_before` use up none of `max_attempts`. `was_counted`: limits have counted an earlier
    attempt as the start of the run. `saved_state` is the JSON text that an earlier attempt saved.
    `running_since` is the time of the first attempt since a person last asked for a retry, and
    `interruptions` the number of deaths of workers since then.
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
    traceparent: str | None
    received_at: datetime
    created_at: datetime
    due_at: datetime
    held_since: datetime | None
    call: str
    attempt: int
    attempts_before: int
    approval: str | None
    is_dry_run: bool
    was_counted: bool
    saved_state: str | None
    running_since: datetime
    interruptions: int

    @property
    def is_start(self) -> bool:
        """Whether limits count this attempt as the start of its run."""
        return not (self.is_dry_run or self.was_counted)

    @property
    def runs_alone(self) -> bool:
        """Whether its worker executes nothing else meanwhile."""
        return runs_alone(self.interruptions)

    @property
    def idempotency_key(self) -> str:
        """The key of the run's identity, the same at every attempt."""
        return idempotency_key(
            self.source, self.fingerprint, self.action, self.starts_at, self.kind, self.ordinal
        )


# SQLite takes 500 parts of a query, older ones fewer.
_MOST_ASKED = 100
# A row with the columns of `_CLAIMED` as attributes.
Row = Any
# An alert that an older version stored may be far larger: it is read alone, once it is its turn.
_ALERT = sa.case((sa.func.length(runs.c.alert) <= LARGEST_ALERT, runs.c.alert)).label("alert")
# Of the alerts of one look.
_MOST_BYTES = 16 * 1024 * 1024
_CLAIMED = [
    _ALERT if name == "alert" else runs.c[name]
    for name in (
        "id", "source", "fingerprint", "action", "starts_at", "kind", "ordinal", "target",
        "alert_name", "alert", "receiver", "external_url", "traceparent", "received_at",
        "created_at", "due_at", "held_since", "call", "attempts", "attempts_before", "approval",
        "counted", "saved_state", "interruptions", "started_at", "retried_at",
    )
]  # fmt: skip


class Due:
    """The due runs of one look.

    Runs that are due at once and those that waited for a time are asked for apart, for the first
    of the one are not to hide the first of the other; in turn they stand together.
    """

    def __init__(
        self, journal: Journal, connection: Connection, rules: Rules, now: datetime
    ) -> None:
        self._journal = journal
        self._connection = connection
        self._rules = rules
        self._now = now
        # Actions of which there may be more due runs than were returned.
        self.cut: set[str] = set()

    def rows(self, actions: Iterable[str], most: int) -> list[Row]:
        """Return the due runs of some actions, in turn.

        Of each action, at most so many that are due at once, and as many that waited for a time.
        No more actions are asked for once the alerts take too many bytes.
        """
        found: list[Row] = []
        size = 0
        at_once = actions = frozenset(actions)
        if not actions:
            return found
        timed = frozenset(self._connection.execute(_ACTIONS_TIMED, {"now": self._now}).scalars())
        if 1 < len(actions) <= _MOST_ASKED:
            at_once = frozenset(self._connection.execute(_actions_untimed(actions)).scalars())
        for action in sorted(actions):
            for query, waiting in ((_TIMED, timed), (_UNTIMED, at_once)):
                if action in waiting and size > _MOST_BYTES:
                    self.cut.add(action)
                elif action in waiting:
                    some = self._find(query, action, most)
                    if len(some) == most:
                        self.cut.add(action)
                    found += some
                    size += sum([len(row.alert or "") for row in some])
        return sorted(found, key=self._turn)

    def _find(self, query: sa.Select[Any], action: str, most: int) -> Sequence[Row]:
        bound = {
            "of_action": action,
            "now": self._now,
            "fresh_since": self._now - self._rules.policy(action).max_staleness,
            "latest": latest_past(self._now),
            "most": most,
        }
        query = self._journal.dialect.for_update(query, skip_locked=True)
        return self._connection.execute(query, bound).all()

    def _turn(self, row: Row) -> tuple[datetime, int]:
        """Return whose turn is first: since when it could have started, but for guardrails."""
        waits_since = past(row.held_since, self._now) or max(row.due_at, row.created_at)
        # What a clock created that was ahead has waited at least until now.
        return min(waits_since, self._now), row.id

    def run(self, row: Row) -> ClaimedRun:
        """Return the run of a row, as its claim would begin it."""
        rules = self._rules
        values = dict(row._mapping)
        values["call"] = row.call or ""
        if row.alert is None:
            values["alert"] = self._large_alert(row.id)
        values["held_since"] = past(row.held_since, self._now)
        since = running_since(values.pop("started_at"), values.pop("retried_at"), self._now)
        values["running_since"] = since or self._now
        dry = rules.policy(row.action).dry_run or rules.dry_run
        if not dry and "action_dry_run" in values["alert"]:
            dry = rules.is_dry_run(row.action, Alert.from_json(values["alert"]).annotations)
        made, counted = values.pop("attempts"), values.pop("counted")
        return ClaimedRun(**values, attempt=made + 1, is_dry_run=dry, was_counted=counted)

    def _large_alert(self, run_id: int) -> str:
        query = sa.select(runs.c.alert).where(runs.c.id == run_id)
        text: str = self._connection.execute(query).scalar_one()
        return bounded(Alert.from_json(text)).to_json()


def judge_anew(
    journal: Journal, connection: Connection, actions: Iterable[str], held_by: str | None = None
) -> None:
    """Let guardrails look at once at runs that they have delayed: what held them has changed."""
    which: list[sa.ColumnElement[bool]] = [runs.c.action.in_(sorted(actions))]
    if held_by:
        which.append(runs.c.held_by == held_by)
    _update_delayed(journal, connection, which, due_at=AT_ONCE)


def delay_anew(journal: Journal, connection: Connection, action: str | None, now: datetime) -> None:
    """Let the delay of runs that guardrails have delayed begin now; `action` None: of any."""
    which: list[sa.ColumnElement[bool]] = [] if action is None else [runs.c.action == action]
    _update_delayed(journal, connection, which, held_since=now)


def _update_delayed(
    journal: Journal,
    connection: Connection,
    which: Sequence[sa.ColumnElement[bool]],
    **values: object,
) -> None:
    query = (
        sa.select(runs.c.id)
        .where(
            runs.c.state == sa.literal_column("'queued'"), runs.c.held_since.is_not(None), *which
        )
        .order_by(runs.c.id)
    )
    # What somebody else has in hand is being decided anew already.
    free = journal.dialect.for_update(query, skip_locked=True)
    if rows := [{"run_id": run_id} for run_id in connection.execute(free).scalars()]:
        of_id = sa.update(runs).where(runs.c.id == sa.bindparam("run_id"))
        connection.execute(of_id.values(values), rows)


_NOW: sa.BindParameter[Any] = sa.bindparam("now", type_=Instant())
# The row of a run's episode, or of a newer one in its place.
OF_EPISODE = (
    (episode_rows.c.source == runs.c.source)
    & (episode_rows.c.fingerprint == runs.c.fingerprint)
    & (episode_rows.c.action == runs.c.episode_action)
)
_REPORTS = (sa.bindparam("fresh_since", type_=Instant()), sa.bindparam("latest", type_=Instant()))
# Whether a run waits for no report. What a person asks for is as good as one.
IS_FRESH = (
    (runs.c.kind == "resolved")
    | episode_rows.c.seen_at.is_(None)
    | episode_rows.c.seen_at.between(*_REPORTS)
    | runs.c.retried_at.between(*_REPORTS)
)


def _due_query(*when: sa.ColumnElement[bool]) -> sa.Select[Any]:
    busy, row = runs.alias("busy"), episode_rows
    return (
        sa.select(*_CLAIMED)
        .select_from(runs.outerjoin(row, OF_EPISODE))
        # Written out, not bound: only so is a partial index used.
        .where(
            runs.c.state == sa.literal_column("'queued'"),
            runs.c.action == sa.bindparam("of_action"),
            *when,
            IS_FRESH,
            ~sa.exists().where(
                busy.c.state == sa.literal_column("'running'"),
                busy.c.action == runs.c.action,
                busy.c.target == runs.c.target,
            ),
            ~sa.exists().where(
                holds.c.action.in_(
                    (sa.bindparam("of_action"), sa.literal_column(f"'{ALL_ACTIONS}'"))
                ),
                lasts(_NOW),
            ),
        )
        .order_by(runs.c.due_at, runs.c.id)
        .limit(sa.bindparam("most"))
    )


# Written out, not bound: only so is a partial index used. Nothing but one condition on the time:
# SQLite could choose the other, and then sort all that are queued.
_IS_TIMED = runs.c.due_at > sa.literal_column("0")
_UNTIMED = _due_query(runs.c.due_at == sa.literal_column("0"))
_TIMED = _due_query(_IS_TIMED, runs.c.due_at <= _NOW)
_ACTIONS_TIMED = (
    sa.select(runs.c.action)
    .distinct()
    .where(
        runs.c.state == sa.literal_column("'queued'"),
        _IS_TIMED,
        runs.c.due_at <= _NOW,
    )
)


@lru_cache(maxsize=16)
def _actions_untimed(actions: frozenset[str]) -> sa.CompoundSelect[Any]:
    """Return the query for those of the actions of which a run is due at once.

    One short look into the index for each: not to read all that are queued, and not to ask for
    the runs of every action that is loaded.
    """
    return sa.union_all(
        *(
            sa.select(sa.literal(action)).where(
                sa.exists().where(
                    runs.c.state == sa.literal_column("'queued'"),
                    runs.c.action == action,
                    runs.c.due_at == sa.literal_column("0"),
                )
            )
            for action in sorted(actions)
        )
    )


def seconds_until_due(journal: Journal, loaded: Iterable[str]) -> float | None:
    """Return the time until a run of these actions, or a look at an effect, is due.

    It is negative when one is; None: there is none. A look that waits for nobody.
    """
    with journal.reading() as connection:
        first = connection.execute(_NEXT_DUE, {"actions": sorted(loaded)}).scalar()
        look = connection.execute(_NEXT_LOOK).scalar()
        due_at = min((one for one in (first, look) if one is not None), default=None)
        return None if due_at is None else (due_at - journal.now(connection)).total_seconds()


_NEXT_DUE = sa.select(sa.func.min(runs.c.due_at)).where(
    runs.c.state == sa.literal_column("'queued'"),
    runs.c.action.in_(sa.bindparam("actions", expanding=True)),
)
_NEXT_LOOK = sa.select(sa.func.min(runs.c.verify_at)).where(runs.c.verify_at.is_not(None))
