"""What the web process and the worker process count, as the events that they see."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache

from prometheus_client import CollectorRegistry

from receiver.intake import Counts
from receiver.journal.due import ClaimedRun
from receiver.metrics.instruments import make
from receiver.policies import AttemptOutcome

OUTCOMES = ("succeeded", "failed", "cancelled", "skipped", "unknown")
ATTEMPT_OUTCOMES = tuple(AttemptOutcome)
EFFECTS = ("effective", "ineffective", "unverified")
_ANSWERS = (200, 400, 401, 403, 404, 405, 413, 415, 500, 503)
_OTHER = "other"


class JournalCounts:
    """Write transactions of one process; `wrote` is what the journal calls."""

    def __init__(self, registry: CollectorRegistry, process: str) -> None:
        self._seconds = make("receiver_journal_write_duration_seconds", registry).labels(process)
        self._errors = make("receiver_journal_errors_total", registry).labels(process)

    def wrote(self, seconds: float, failed: bool) -> None:
        """Count one write transaction."""
        self._seconds.observe(seconds)
        if failed:
            self._errors.inc()


class SupervisorCounts:
    """What the first process of `receiver serve` counts."""

    def __init__(self, roles: Iterable[str]) -> None:
        """Make the series, at 0: a rate needs to see them before the first event."""
        self.registry = CollectorRegistry()
        restarts = make("receiver_process_restarts_total", self.registry)
        self._restarts = {role: restarts.labels(role) for role in roles}

    def restarted(self, role: str) -> None:
        """Count a process that was started again after its end."""
        self._restarts[role].inc()


class WebCounts:
    """What the web process counts."""

    def __init__(self) -> None:
        """Make the series, at 0: a rate needs to see them before the first event."""
        self.registry = CollectorRegistry()
        self.journal = JournalCounts(self.registry, "web")
        notifications = make("receiver_notifications_total", self.registry)
        self._answers = {one: notifications.labels(str(one)) for one in _ANSWERS}
        self._other_answer = notifications.labels(_OTHER)
        alerts = make("receiver_alerts_total", self.registry)
        self._accepted, self._duplicate, self._resolved, self._rejected = (
            alerts.labels(fate) for fate in ("accepted", "duplicate", "resolved", "rejected")
        )
        self._truncated = make("receiver_truncated_alerts_total", self.registry)
        self._future = make("receiver_future_alerts_total", self.registry)
        self._replicas = make("receiver_replica_alerts_total", self.registry)
        auth = make("receiver_auth_failures_total", self.registry)
        self._auth = {status: auth.labels(str(status)) for status in (401, 403)}
        self._seconds = make("receiver_notification_duration_seconds", self.registry)
        self._batch = make("receiver_commit_batch_notifications", self.registry)

    def answered(self, status: int) -> None:
        """Count an answer of the webhook."""
        self._answers.get(status, self._other_answer).inc()

    def refused(self, status: int) -> None:
        """Count a request whose credentials were not good, if that is what the status says."""
        if status in self._auth:
            self._auth[status].inc()

    def recorded(self, counts: Counts, truncated: int, seconds: float) -> None:
        """Count a notification that is in the journal."""
        self._seconds.observe(seconds)
        for number, counter in (
            (counts.accepted, self._accepted),
            (counts.duplicate, self._duplicate),
            (counts.resolved, self._resolved),
            (counts.rejected, self._rejected),
            (counts.ahead, self._future),
            (max(0, truncated), self._truncated),
        ):
            if number:
                counter.inc(number)

    def found_replicas(self, alerts: int) -> None:
        """Count alerts that differ from others only in a replica label."""
        self._replicas.inc(alerts)

    def committed(self, notifications: int) -> None:
        """Count one transaction of the writer."""
        self._batch.observe(notifications)


class WorkerCounts:
    """What the worker process counts. Only actions that it has loaded become labels."""

    def __init__(
        self, actions: Iterable[str], now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Make the series, at 0: a rate needs to see them before the first event."""
        self.registry = CollectorRegistry()
        self.journal = JournalCounts(self.registry, "worker")
        self._now = now
        # From label values to a series, each looked up once: that costs more than to count.
        made = {
            name: cache(make(f"receiver_{name}", self.registry).labels)
            for name in (
                "runs_total", "attempts_total",
                "attempt_duration_seconds", "run_duration_seconds", "run_wait_seconds",
                "reaction_seconds", "guardrail_decisions_total", "effects_total",
                "time_to_resolve_seconds",
            )
        }  # fmt: skip
        self._runs, self._attempts = made["runs_total"], made["attempts_total"]
        self._attempt_seconds = made["attempt_duration_seconds"]
        self._run_seconds, self._wait = made["run_duration_seconds"], made["run_wait_seconds"]
        self._reaction = made["reaction_seconds"]
        self._decisions, self._effects = made["guardrail_decisions_total"], made["effects_total"]
        self._resolve_seconds = made["time_to_resolve_seconds"]
        for action in sorted(actions):
            self._make_series(action)

    def _make_series(self, action: str) -> None:
        for series, values in (
            (self._runs, OUTCOMES),
            (self._attempts, ATTEMPT_OUTCOMES),
            (self._effects, EFFECTS),
        ):
            for value in values:
                series(action, value)
        for series in (
            self._attempt_seconds, self._run_seconds, self._wait, self._reaction,
            self._resolve_seconds,
        ):  # fmt: skip
            series(action)

    def started(self, run: ClaimedRun) -> None:
        """Count how long a run took to start, at its first attempt."""
        if run.attempt > 1:
            return
        now = self._now()
        self._wait(run.action).observe(_seconds(run.created_at, now))
        if run.kind == "fired":
            self._reaction(run.action).observe(_seconds(run.starts_at, now))

    def attempt_ended(self, action: str, outcome: str, seconds: float | None = None) -> None:
        """Count an attempt; `seconds` is None when its process died and nobody knows."""
        self._attempts(action, outcome).inc()
        if seconds is not None:
            self._attempt_seconds(action).observe(seconds)

    def run_ended(self, action: str, outcome: str, created_at: datetime | None = None) -> None:
        """Count a run that has its outcome; `created_at` unless it never started."""
        self._runs(action, outcome).inc()
        if created_at is not None:
            self._run_seconds(action).observe(_seconds(created_at, self._now()))

    def held_back(self, action: str, guardrail: str, decision: str) -> None:
        """Count a run that a guardrail delayed or skipped."""
        self._decisions(action, guardrail, decision).inc()

    def verified(self, action: str, effect: str, seconds: int | None) -> None:
        """Count what a run did to its alert, and the time to resolve."""
        self._effects(action, effect).inc()
        if seconds is not None:
            self._resolve_seconds(action).observe(seconds)


def _seconds(since: datetime, now: datetime) -> float:
    # The clocks of alertmanager, database and worker need not agree.
    return max(0.0, (now - since).total_seconds())
