"""An attempt as the worker sees it: from the claim until its end is recorded."""

import logging
import time
from collections.abc import Mapping

from receiver.journal import reading
from receiver.journal.due import ClaimedRun
from receiver.journal.outcomes import Recorded
from receiver.policies import AttemptEnd, AttemptOutcome, Policy
from receiver.tracing import Span, trace_id_of

_log = logging.getLogger("receiver.action")


class RunningAttempt:
    """One attempt of one run; an executor makes it."""

    def __init__(self, run: ClaimedRun, policy: Policy, span: Span) -> None:
        """Start the clock. The attempt belongs to `span`, which `finish` ends."""
        self.run = run
        self.policy = policy
        self.started = time.monotonic()
        self.cancel_reason: str | None = None
        self.has_lost_lease = False
        self._span = span
        self.trace_id = span.trace_id or trace_id_of(run.traceparent)

    @property
    def key(self) -> tuple[int, int]:
        """The numbers of its run and of the attempt, which no other attempt has."""
        return self.run.id, self.run.attempt

    @property
    def log_fields(self) -> Mapping[str, object]:
        """The fields of every log line about this attempt."""
        return log_fields(self.run, self.trace_id)

    @property
    def deadline(self) -> float:
        """When the action must have returned, on the monotonic clock."""
        return self.started + self.policy.timeout.total_seconds()

    def seconds(self) -> float:
        """Return how long the attempt has been under way."""
        return time.monotonic() - self.started

    def finish(self, end: AttemptEnd) -> None:
        """End its span."""
        self._span.note({"outcome": end.outcome})
        if end.outcome not in (AttemptOutcome.SUCCEEDED, AttemptOutcome.STILL_RUNNING):
            self._span.fail(end.error or end.outcome)
        self._span.end()


def log_fields(run: ClaimedRun, trace_id: str) -> Mapping[str, object]:
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


def log_end(attempt: RunningAttempt, recorded: Recorded) -> None:
    """Log how an attempt ended, and what became of its run."""
    step = recorded.next
    fields: dict[str, object] = {
        **attempt.log_fields,
        "outcome": recorded.ended.end.outcome,
        "seconds": round(attempt.seconds(), 3),
        "error": recorded.ended.end.error,
        "run_outcome": step.outcome if step else None,
        "reason": step.reason if step else "the run had another owner by then",
        "due_at": step.due_at.isoformat() if step and step.due_at else None,
    }
    is_good = recorded.ended.end.outcome in (
        AttemptOutcome.SUCCEEDED, AttemptOutcome.STILL_RUNNING
    )  # fmt: skip
    known = {name: value for name, value in fields.items() if value is not None}
    _log.log(logging.INFO if is_good else logging.WARNING, "attempt ended", extra=known)


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
