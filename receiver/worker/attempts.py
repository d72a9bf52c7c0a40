"""One attempt as the worker sees it: from the claim until it is recorded how it ended."""

import logging
import time
from collections.abc import Mapping

from receiver.context import Cancellation
from receiver.journal import reading
from receiver.journal.due import ClaimedRun
from receiver.journal.outcomes import Recorded
from receiver.policies import Policy
from receiver.tracing import trace_id_of

_log = logging.getLogger("receiver.action")


class Attempt:
    """One attempt of one run; who performs it is another process."""

    def __init__(self, run: ClaimedRun, policy: Policy) -> None:
        """Start the clock; it starts anew if the performer begins the attempt later."""
        self.run = run
        self.policy = policy
        self.cancellation = Cancellation()
        self.started = time.monotonic()
        self.order: int | None = None  # The performer's, until it is known to have begun.
        self.is_timed_out = False
        self.has_lost_lease = False
        self.trace_id = trace_id_of(run.traceparent)

    @property
    def key(self) -> tuple[int, int]:
        """What no other attempt has: the number of its run, and its own."""
        return self.run.id, self.run.attempt

    @property
    def fields(self) -> Mapping[str, object]:
        """The fields of every log line about this attempt."""
        return fields_of(self.run, self.trace_id)

    def seconds_left(self) -> float:
        """Return the time until the deadline, negative once it has passed."""
        return self.policy.timeout.total_seconds() - self.seconds()

    def seconds(self) -> float:
        """Return how long the attempt has been under way."""
        return time.monotonic() - self.started


def fields_of(run: ClaimedRun, trace_id: str) -> Mapping[str, object]:
    """Return the fields of every log line about an attempt of this run."""
    return {
        "run_id": run.id,
        "action": run.action,
        "kind": run.kind,
        "attempt": run.attempt,
        **({"dry_run": True} if run.is_dry_run else {}),
        **({"trace_id": trace_id} if trace_id else {}),
        "alertname": run.alert_name,
        "fingerprint": run.fingerprint,
    }


def log_end(attempt: Attempt, recorded: Recorded) -> None:
    """Log how an attempt ended, and what became of its run."""
    step = recorded.next
    fields: dict[str, object] = {
        **attempt.fields,
        "outcome": recorded.ended.end.outcome,
        "seconds": round(attempt.seconds(), 3),
        "error": recorded.ended.end.error,
        "run_outcome": step.outcome if step else None,
        "reason": step.reason if step else "the run had another owner by then",
        "due_at": step.due_at.isoformat() if step and step.due_at else None,
    }
    level = logging.INFO if recorded.ended.end.outcome == "succeeded" else logging.WARNING
    known = {name: value for name, value in fields.items() if value is not None}
    _log.log(level, "attempt ended", extra=known)


def fields_of_row(run: reading.Row) -> dict[str, object]:
    """Return the fields of a log line about a run that is not being attempted."""
    return {
        "run_id": run["id"],
        "action": run["action"],
        "kind": run["kind"],
        "alertname": run["alert_name"],
        "fingerprint": run["fingerprint"],
        **({"trace_id": trace_id} if (trace_id := trace_id_of(run["traceparent"])) else {}),
    }
