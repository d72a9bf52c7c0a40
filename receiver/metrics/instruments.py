"""The table of all metrics: it feeds `/metrics`, docs/metrics.md and the tests.

Labels take only values that are known beforehand (actions that are loaded, outcomes, answers):
nothing that an alert says can make a series.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ATTEMPT = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_WAIT = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800, 7200, 86400)
_REACTION = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)
_GROUP = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Instrument:
    """One metric. Gauges are read from the journal; counters and histograms live in a process."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


def _counter(name: str, labels: str, help: str) -> Instrument:  # noqa: A002
    return Instrument(name, "counter", tuple(labels.split()), help)


def _histogram(name: str, labels: str, buckets: tuple[float, ...], help: str) -> Instrument:  # noqa: A002
    return Instrument(name, "histogram", tuple(labels.split()), help, buckets)


def _gauge(name: str, labels: str, help: str) -> Instrument:  # noqa: A002
    return Instrument(name, "gauge", tuple(labels.split()), help)


INSTRUMENTS = (
    # The web process counts these.
    _counter("receiver_notifications_total", "answer", "notifications by the status answered"),
    _counter(
        "receiver_alerts_total",
        "fate",
        "alerts per action: `accepted`, `duplicate`, `resolved` or `rejected`",
    ),
    _counter(
        "receiver_truncated_alerts_total", "", "alerts that Alertmanager left out (`max_alerts`)"
    ),
    _counter(
        "receiver_future_alerts_total", "", "alerts whose startsAt lay more than 5 minutes ahead"
    ),
    _counter(
        "receiver_replica_alerts_total",
        "",
        "firing alerts that differ from another one only in a replica label, re-sends included",
    ),
    _counter(
        "receiver_auth_failures_total", "answer", "requests refused for their credentials: 401, 403"
    ),
    _histogram(
        "receiver_notification_duration_seconds",
        "",
        _SHORT,
        "from reading a notification to its commit, of those answered 200",
    ),
    _histogram(
        "receiver_commit_batch_notifications", "", _GROUP, "notifications in one transaction"
    ),
    # The supervisor counts this.
    _counter(
        "receiver_process_restarts_total",
        "role",
        "processes of `receiver serve` that ended and were started again: `web` or `worker`",
    ),
    # Both processes count these.
    _histogram(
        "receiver_journal_write_duration_seconds",
        "process",
        _SHORT,
        "write transactions on the journal, waiting for the lock and the sync included",
    ),
    _counter(
        "receiver_journal_errors_total", "process", "write transactions on the journal that failed"
    ),
    # The worker process counts these.
    _counter(
        "receiver_runs_total",
        "action outcome",
        "runs that a worker ended: `succeeded`, `failed`, `cancelled`, `skipped` or `unknown`; "
        "not those cancelled while they waited",
    ),
    _counter(
        "receiver_attempts_total",
        "action outcome",
        "attempts: `succeeded`, `failed`, `cancelled`, `crashed`, `killed`, `interrupted`, "
        "`stopped` or `still_running`",
    ),
    _histogram("receiver_attempt_duration_seconds", "action", _ATTEMPT, "one call of the plugin"),
    _histogram(
        "receiver_run_duration_seconds",
        "action",
        _WAIT,
        "from a run's creation to its end, waiting and retries included",
    ),
    _histogram(
        "receiver_run_wait_seconds", "action", _WAIT, "from acceptance to the start of the action"
    ),
    _histogram(
        "receiver_reaction_seconds",
        "action",
        _REACTION,
        "from the alert's startsAt to the start of the action",
    ),
    _counter(
        "receiver_guardrail_decisions_total",
        "action guardrail decision",
        "runs that a guardrail held back: `delay` or `skip`",
    ),
    _counter(
        "receiver_effects_total",
        "action effect",
        "verified runs: `effective`, `ineffective` or `unverified`",
    ),
    _histogram(
        "receiver_time_to_resolve_seconds",
        "action",
        _REACTION,
        "from an action's success to the end of its alert, where it was effective",
    ),
    # Read when asked.
    _gauge(
        "receiver_unfinished_runs",
        "action state",
        "runs that are `queued`, `running` or `awaiting_approval`; counted to 100,000",
    ),
    _gauge(
        "receiver_due_run_age_seconds",
        "action",
        "how long the oldest queued run has been due, unless it waits for a report of its alert; "
        "0 when none is",
    ),
    _gauge(
        "receiver_running_attempt_age_seconds",
        "action",
        "how long the oldest running attempt has run; 0 when none does",
    ),
    _gauge("receiver_action_paused", "action", "1 while a person has paused the action"),
    _gauge(
        "receiver_breaker_open", "action", "1 from the opening of the breaker to the next success"
    ),
    _gauge("receiver_open_rejected_alerts", "", "rejected alerts that are not closed"),
    _gauge("receiver_workers", "", "worker processes that are running"),
    _gauge("receiver_journal_up", "", "1 when the journal could be read for this scrape"),
    _gauge("receiver_journal_size_bytes", "", "the size of the journal"),
    _gauge(
        "receiver_journal_free_bytes", "", "free space on the disk of the journal (SQLite only)"
    ),
    _gauge(
        "receiver_plugin_info", "plugin state", "1 for each plugin that was found, with its state"
    ),
    _gauge("receiver_build_info", "version python database", "1; the labels say what is running"),
)

BY_NAME: Mapping[str, Instrument] = {one.name: one for one in INSTRUMENTS}


def make(name: str, registry: CollectorRegistry) -> Any:
    """Return the counter or histogram of this name, for this process to count with."""
    one = BY_NAME[name]
    # When a series was made says nothing that `up` and `rate` do not.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    if one.type == "histogram":
        return Histogram(one.name, one.help, one.labels, buckets=one.buckets, registry=registry)
    return Counter(one.name, one.help, one.labels, registry=registry)
