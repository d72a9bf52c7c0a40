"""What an action is told about its run beyond the call's four values, and how it is stopped."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from receiver import plainjson
from receiver.errors import DeadlineExceededError, RunCancelledError
from receiver.policies import MAX_STATE_BYTES

if TYPE_CHECKING:
    from receiver.alertmanager import Alert


class Cancellation:
    """A one-way switch shared by the worker, which throws it, and the action, which looks."""

    def __init__(self) -> None:
        self._thrown = threading.Event()
        self._reason = ""

    def cancel(self, reason: str) -> None:
        """Ask the action to stop; the first reason stays."""
        if not self._thrown.is_set():
            self._reason = reason
            self._thrown.set()

    @property
    def reason(self) -> str | None:
        """Why the action should stop, None while it should not."""
        return self._reason if self._thrown.is_set() else None

    def wait(self, seconds: float) -> bool:
        """Wait until cancelled, at most so long; return whether it is."""
        return self._thrown.wait(seconds)


_RESERVED = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the run's fields to every line; a plugin's own `extra` is kept."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Merge both sets of fields; a name of the run, or of logging, gets an underscore."""
        own, of_run = kwargs.get("extra") or {}, self.extra or {}
        merged = {
            f"{name}_" if name in _RESERVED or name in of_run else name: value
            for name, value in own.items()
        }
        kwargs["extra"] = {**of_run, **merged}
        return msg, kwargs


def keep_nothing(state: str) -> None:
    """Store no state: in a dry run, and in a test of a plugin."""
    del state


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionContext:
    """One attempt of one run, as the action sees it.

    `idempotency_key` is the same at every attempt of a run and different for every other run:
    hand it to whatever the action calls. `settings` holds the plugin's own declared settings,
    parsed. `log` adds the run's fields to every line. `deadline` is for showing; to decide, use
    `remaining_seconds()`, which no change of the wall clock disturbs. `state` is what an earlier
    attempt of this run gave to `save`, None at first.
    """

    run_id: int
    action: str
    kind: str
    attempt: int
    max_attempts: int
    idempotency_key: str
    alert: "Alert"
    source: str
    receiver: str
    external_url: str
    deadline: datetime
    settings: Mapping[str, Any]
    log: logging.LoggerAdapter[logging.Logger]
    state: Any = None
    deadline_monotonic: float = field(repr=False)
    cancellation: Cancellation = field(default_factory=Cancellation, repr=False)
    _store: Callable[[str], None] = field(default=keep_nothing, repr=False)

    def remaining_seconds(self) -> float:
        """Return the time left, never negative; 0 once the run is cancelled or was taken away."""
        if self.cancellation.reason is not None:
            return 0.0
        return max(0.0, self.deadline_monotonic - time.monotonic())

    @property
    def is_cancelled(self) -> bool:
        """Whether the action should stop: cancelled, or out of time."""
        return self.remaining_seconds() == 0.0

    def raise_if_cancelled(self) -> None:
        """Raise RunCancelledError (DeadlineExceededError when time is up) if it should stop.

        Call it between steps, and let the exception pass.
        """
        reason = self.cancellation.reason
        if reason is not None:
            raise RunCancelledError(reason)
        if self.remaining_seconds() == 0.0:
            raise DeadlineExceededError("the deadline of this attempt has passed")

    def save(self, state: Any) -> None:
        """Store a state with the run; it is durable when this returns.

        `state` is anything that JSON can hold, at most 4 KiB of it. The next attempt of the run
        finds it as `context.state`, also after a crash or a restart: store the id of a job before
        waiting for the job. Raises ValueError for what JSON cannot hold or what is too long,
        and TemporaryError when the journal cannot store it now.
        """
        try:
            text = json.dumps(state, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"a state must be something that JSON can hold: {error}") from error
        if len(text) > MAX_STATE_BYTES:
            raise ValueError(
                f"a state is at most {MAX_STATE_BYTES} bytes of JSON, not {len(text)}; store an id"
            )
        self._store(text)

    def sleep(self, seconds: float) -> None:
        """Wait, but never past the deadline or a cancel: then raise as raise_if_cancelled does."""
        self.cancellation.wait(min(seconds, self.remaining_seconds()))
        self.raise_if_cancelled()


def call_as_json(
    context: ActionContext, metric_name: str, value: float, threshold: str, duration: timedelta
) -> dict[str, Any]:
    """Return the whole call as JSON can hold it, for what is not written in Python.

    All text is the alert's own, and hostile. A value that is no number in JSON is a text.
    """
    alert = context.alert
    return {
        "metric_name": metric_name,
        "value": plainjson.number(value),
        "threshold": threshold,
        "duration_seconds": duration.total_seconds(),
        "action": context.action,
        "kind": context.kind,
        "run_id": context.run_id,
        "attempt": context.attempt,
        "idempotency_key": context.idempotency_key,
        "source": context.source,
        "receiver": context.receiver,
        "alert": {
            "labels": dict(alert.labels),
            "annotations": dict(alert.annotations),
            "starts_at": alert.starts_at.isoformat(),
            "fingerprint": alert.fingerprint,
            "generator_url": alert.generator_url,
        },
    }
