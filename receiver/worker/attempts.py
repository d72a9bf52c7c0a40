"""One attempt: calls the plugin for a claimed run and says how it ended."""

import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from receiver import logs, plainjson
from receiver.alertmanager import Alert
from receiver.calls import Call
from receiver.context import ActionContext, Cancellation, RunLogger
from receiver.errors import (
    DeadlineExceededError,
    PermanentError,
    RunCancelledError,
    TemporaryError,
)
from receiver.journal.due import ClaimedRun
from receiver.journal.outcomes import Recorded
from receiver.plugins import Actions
from receiver.policies import AttemptEnd, Policy
from receiver.tracing import trace_id_of

_LONGEST_TEXT = 2_000
_LONGEST_RESULT = 16_384

_log = logging.getLogger("receiver.action")


class Attempt:
    """One attempt of one run, from the claim until it returns."""

    def __init__(self, run: ClaimedRun, policy: Policy, actions: Actions) -> None:
        """Start the clock: the deadline counts from the claim."""
        self.run = run
        self.policy = policy
        self.cancellation = Cancellation()
        self.started = time.monotonic()
        self.deadline_monotonic = self.started + policy.timeout.total_seconds()
        self.is_timed_out = False
        self.has_lost_lease = False
        self.trace_id = trace_id_of(run.traceparent)
        self._actions = actions
        alert = Alert.from_json(run.alert)
        self.call = Call.from_json(run.call)
        self._context = ActionContext(
            run_id=run.id,
            action=run.action,
            kind=run.kind,
            attempt=run.attempt,
            max_attempts=run.attempts_before + policy.max_attempts,
            idempotency_key=run.idempotency_key,
            alert=alert,
            source=run.source,
            receiver=run.receiver,
            external_url=run.external_url,
            deadline=datetime.now(UTC) + policy.timeout,
            settings=actions.plugins[run.action].values,
            log=RunLogger(_log, self.fields),
            deadline_monotonic=self.deadline_monotonic,
            cancellation=self.cancellation,
        )

        if self.call.warnings and run.attempt == 1:
            _log.warning(
                "arguments had to be guessed", extra={**self.fields, "warnings": self.call.warnings}
            )

    @property
    def fields(self) -> Mapping[str, object]:
        """The fields of every log line about this attempt."""
        return {
            "run_id": self.run.id,
            "action": self.run.action,
            "kind": self.run.kind,
            "attempt": self.run.attempt,
            **({"dry_run": True} if self.run.is_dry_run else {}),
            **({"trace_id": self.trace_id} if self.trace_id else {}),
            "alertname": self.run.alert_name,
            "fingerprint": self.run.fingerprint,
        }

    @property
    def _arguments(self) -> Mapping[str, object]:
        return {
            "context": self._context,
            "metric_name": self.call.metric_name,
            "value": self.call.value,
            "threshold": self.call.threshold,
            "duration": self.call.duration,
        }

    def _describe(self) -> AttemptEnd:
        """Ask the action what it would do; nothing else of it is called."""
        name = self.run.action
        said = f"would call {name}, which does not say what it does (no describe hook)"
        if self.run.kind == "resolved":
            said = f"would call the resolved hook of {name}"
        elif self._actions.has_hook(name, "describe"):
            try:
                said = _cut(str(self._actions.call(name, "describe", self._arguments)))
            except BaseException as error:  # noqa: BLE001 - a plugin's call
                return self._failed(error)
        return AttemptEnd("succeeded", result=plainjson.dumps({"dry_run": said}))

    def perform(self) -> AttemptEnd:
        """Call the plugin; never raises."""
        with logs.fields_of_run(self.fields):
            return self._describe() if self.run.is_dry_run else self._execute()

    def _execute(self) -> AttemptEnd:
        hook = "resolved" if self.run.kind == "resolved" else "execute"
        try:
            returned = self._actions.call(self.run.action, hook, self._arguments)
        except BaseException as error:  # noqa: BLE001 - a plugin's call
            return self._failed(error)
        return AttemptEnd("succeeded", result=_as_json(returned))

    def _failed(self, error: BaseException) -> AttemptEnd:
        text = describe_error(error)
        if isinstance(error, PermanentError):
            return AttemptEnd("failed", error=text, permanent=True)
        if isinstance(error, RunCancelledError) and self.cancellation.reason is not None:
            return AttemptEnd("cancelled", error=self.cancellation.reason)
        if isinstance(error, DeadlineExceededError):
            return AttemptEnd("failed", error=text)
        if isinstance(error, TemporaryError):
            at, after = _times_named(error)
            return AttemptEnd("failed", error=text, retry_at=at, retry_after=after)
        _log.warning("action raised an unexpected exception", extra=self.fields, exc_info=error)
        return AttemptEnd("failed", error=text)

    def lose_lease(self) -> None:
        """Ask the action to stop: by now another worker may make the next attempt."""
        self.has_lost_lease = True
        self.cancellation.cancel("the lease of its worker was lost")

    def seconds_left(self) -> float:
        """Return the time until the deadline, negative once it has passed."""
        return self.deadline_monotonic - time.monotonic()

    def seconds(self) -> float:
        """Return how long the attempt has been under way."""
        return time.monotonic() - self.started


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


def describe_error(error: BaseException) -> str:
    """Return the chain of causes in one bounded line each."""
    texts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(texts) < 5:
        said = plainjson.text_of(seen)
        texts.append(f"{type(seen).__name__}: {said}" if said else type(seen).__name__)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return _cut("; caused by ".join(texts))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _times_named(error: TemporaryError) -> tuple[datetime | None, timedelta | None]:
    """Return the error's `retry_at` and `retry_after`, nothing for what is no time.

    They are attributes like any other: set to a number later, or never set by a class of its own.
    """
    try:
        named = TemporaryError(
            retry_at=getattr(error, "retry_at", None),
            retry_after=getattr(error, "retry_after", None),
        )
        at = named.retry_at
        return at and at.astimezone(UTC), named.retry_after
    except Exception:  # noqa: BLE001 - a plugin's object
        _log.warning("error names no time to try again", exc_info=True)
        return None, None


def _as_json(returned: Any) -> str | None:
    """Return what an action returned as JSON, bounded; what JSON cannot hold as its text."""
    if returned is None:
        return None
    text = plainjson.dumps(returned)
    if len(text) > _LONGEST_RESULT:
        return json.dumps({"shortened": text[:_LONGEST_RESULT]})
    return text
