"""What happened before, as the guardrails ask for it: read under the claim lock, once per claim."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.clock import latest_past
from receiver.declarations import Window
from receiver.guardrails import History
from receiver.journal.tables import Instant, attempts, breaker_resets, holds, runs
from receiver.policies import BREAKER_OUTCOMES, AttemptOutcome, Rules

ALL_ACTIONS = "*"


class Past:
    """The history of one claim; the starts that it makes itself are counted at once."""

    def __init__(self, connection: Connection, rules: Rules, now: datetime) -> None:
        self._connection = connection
        self._rules = rules
        self._now = now
        self._targets: dict[tuple[str, str], list[datetime]] = {}
        self._actions: dict[str, list[datetime]] = {}
        self._all: list[datetime] | None = None
        self._ends: dict[str, list[tuple[datetime, bool]]] = {}
        self._busy: set[tuple[str, str]] = set()
        self._running: dict[str, int] = defaultdict(int)
        self._paused: dict[str, str] = {}
        self._pauses_ended: dict[str, datetime] = {}
        self._read_running()

    def history(self, action: str, target: str) -> History:
        """Return what a verdict on a run of this action and target needs."""
        policy = self._rules.policy(action)
        limits = self._rules.limits
        windows = (*policy.rate_limit, *_cooldown(policy.cooldown))
        if windows and (action, target) not in self._targets:
            of_target = (attempts.c.action == action) & (attempts.c.target == target)
            self._targets[action, target] = self._starts(of_target, windows)
        if policy.overall_rate_limit and action not in self._actions:
            self._actions[action] = self._starts(
                attempts.c.action == action, policy.overall_rate_limit
            )
        if limits.rate_limit and self._all is None:
            self._all = self._starts(sa.true(), limits.rate_limit)
        if policy.breaker is not None and action not in self._ends:
            self._ends[action] = self._latest_ends(action, policy.breaker.failures)
        paused = self._paused.get(action)
        return History(
            paused=self._paused.get(ALL_ACTIONS) if paused is None else paused,
            target_busy=(action, target) in self._busy,
            running=self._running[action],
            running_all=self.running_in_all,
            target_starts=self._targets.get((action, target), ()),
            action_starts=self._actions.get(action, ()),
            all_starts=self._all or (),
            ends=self._ends.get(action, ()),
            paused_until=max(
                (one for name in (action, ALL_ACTIONS) if (one := self._pauses_ended.get(name))),
                default=None,
            ),
        )

    def running(self, action: str) -> int:
        """How many runs of an action hold a slot."""
        return self._running[action]

    @property
    def running_in_all(self) -> int:
        """How many runs of all actions hold a slot."""
        return sum(self._running.values())

    def note_start(self, action: str, target: str, is_counted: bool) -> None:
        """Count a run that is being claimed; a dry run or another attempt is no start."""
        self._busy.add((action, target))
        self._running[action] += 1
        if not is_counted:
            return
        for starts in (self._targets.get((action, target)), self._actions.get(action), self._all):
            if starts is not None:
                starts.insert(0, self._now)

    def _read_running(self) -> None:
        for action, target in self._connection.execute(_RUNNING):
            self._busy.add((action, target))
            self._running[action] += 1
        for action, until, reason in self._connection.execute(_PAUSES):
            if until is None or until > self._now:
                self._paused[action] = reason
            else:
                self._pauses_ended[action] = until

    def _starts(self, whose: sa.ColumnElement[bool], windows: Sequence[Window]) -> list[datetime]:
        """Return the starts that can count for these windows, the newest first."""
        since = self._now - max(window.period for window in windows)
        query = (
            sa.select(attempts.c.counted_at)
            .where(
                whose,
                attempts.c.counted_at > since,
                attempts.c.counted_at <= latest_past(self._now),
            )
            .order_by(attempts.c.counted_at.desc())
            .limit(max(window.number for window in windows))
        )
        return list(self._connection.execute(query).scalars())

    def _latest_ends(self, action: str, number: int) -> list[tuple[datetime, bool]]:
        bound = {"of_action": action, "most": number, "latest": latest_past(self._now)}
        found = self._connection.execute(_ENDS, bound)
        return [(ended, outcome != "succeeded") for ended, outcome in found]


_RUNNING = sa.select(runs.c.action, runs.c.target).where(
    runs.c.state == sa.literal_column("'running'")
)
_PAUSES = sa.select(holds.c.action, holds.c.until, holds.c.reason).where(
    holds.c.kind == sa.literal_column("'pause'")
)
_LATEST: sa.BindParameter[Any] = sa.bindparam("latest", type_=Instant())
_RESET_AT = (
    sa.select(breaker_resets.c.reset_at)
    .where(
        breaker_resets.c.action == sa.bindparam("of_action"), breaker_resets.c.reset_at <= _LATEST
    )
    .scalar_subquery()
)
_SUCCEEDED: sa.ColumnElement[str] = sa.literal_column("'succeeded'")
# Not counted are a dry run and the `resolved` hook, because they say nothing about the action.
_ENDS = (
    sa.select(attempts.c.finished_at, attempts.c.outcome)
    .where(
        attempts.c.action == sa.bindparam("of_action"),
        attempts.c.finished_at > sa.func.coalesce(_RESET_AT, sa.literal_column("0")),
        attempts.c.finished_at <= _LATEST,
        attempts.c.outcome.in_([sa.literal_column(f"'{one}'") for one in BREAKER_OUTCOMES]),
        attempts.c.dry_run.is_(sa.false()),
        attempts.c.kind != sa.literal_column("'resolved'"),
    )
    # Recorded at once, they have one time: the success then is the latest, on every database.
    .order_by(attempts.c.finished_at.desc(), sa.desc(attempts.c.outcome == _SUCCEEDED))
    .limit(sa.bindparam("most"))
)


def has_failed_last(connection: Connection, action: str, now: datetime) -> bool:
    """Whether the latest attempt of an action that the breaker counts failed."""
    bound = {"of_action": action, "most": 1, "latest": latest_past(now)}
    latest = connection.execute(_ENDS, bound).first()
    return latest is not None and latest.outcome != AttemptOutcome.SUCCEEDED


def _cooldown(cooldown: timedelta | None) -> tuple[Window, ...]:
    return (Window(1, cooldown),) if cooldown is not None else ()
