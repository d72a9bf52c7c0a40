"""Executes one attempt: calls the plugin for a claimed run and returns how the attempt ended."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from receiver import logs, plainjson
from receiver.alertmanager import Alert
from receiver.calls import Call
from receiver.context import ActionContext, Cancellation, RunLogger, keep_nothing
from receiver.errors import (
    DeadlineExceededError,
    PermanentError,
    RunCancelledError,
    StillRunning,
    TemporaryError,
)
from receiver.journal.due import ClaimedRun
from receiver.plugins import Actions
from receiver.policies import AttemptEnd, AttemptOutcome, Policy
from receiver.tracing import trace_id_of
from receiver.worker.running import log_fields

_LONGEST_TEXT = 2_000
_LONGEST_RESULT = 16_384

_log = logging.getLogger("receiver.action")


class AttemptExecution:
    """The call of a plugin for one attempt, with its context."""

    def __init__(
        self,
        run: ClaimedRun,
        policy: Policy,
        actions: Actions,
        deadline: float,
        cancellation: Cancellation,
        save_state: Callable[[str], None],
    ) -> None:
        """`deadline` is on the monotonic clock. `save_state` stores a JSON text with the run."""
        self._run = run
        self._actions = actions
        self._cancellation = cancellation
        self._fields = log_fields(run, trace_id_of(run.traceparent))
        self._call = Call.from_json(run.call)
        self._context = ActionContext(
            run_id=run.id,
            action=run.action,
            kind=run.kind,
            attempt=run.attempt,
            max_attempts=run.attempts_before + policy.max_attempts,
            idempotency_key=run.idempotency_key,
            alert=Alert.from_json(run.alert),
            source=run.source,
            receiver=run.receiver,
            external_url=run.external_url,
            deadline=datetime.now(UTC) + timedelta(seconds=deadline - time.monotonic()),
            settings=actions.plugins[run.action].values,
            log=RunLogger(_log, self._fields),
            state=json.loads(run.saved_state) if run.saved_state else None,
            deadline_monotonic=deadline,
            cancellation=cancellation,
            _store=keep_nothing if run.is_dry_run else save_state,
        )

    @property
    def _arguments(self) -> Mapping[str, object]:
        return {
            "context": self._context,
            "metric_name": self._call.metric_name,
            "value": self._call.value,
            "threshold": self._call.threshold,
            "duration": self._call.duration,
        }

    def run(self) -> AttemptEnd:
        """Call the plugin and return how the attempt ended; never raises."""
        with logs.fields_of_run(self._fields):
            if self._call.warnings and self._run.attempt == 1:
                _log.warning("arguments had to be guessed", extra={"warnings": self._call.warnings})
            return self._describe() if self._run.is_dry_run else self._execute()

    def _describe(self) -> AttemptEnd:
        """Ask the action what it would do; nothing else of it is called."""
        name = self._run.action
        said = f"would call {name}, which does not say what it does (no describe hook)"
        if self._run.kind == "resolved":
            said = f"would call the resolved hook of {name}"
        elif self._actions.has_hook(name, "describe"):
            try:
                said = _cut(str(self._actions.call(name, "describe", self._arguments)))
            except StillRunning as error:
                text = f"describe() must not raise {describe_error(error)}"
                return AttemptEnd(AttemptOutcome.FAILED, error=text)
            except BaseException as error:  # noqa: BLE001 - a plugin's call
                return self._failed(error)
        return AttemptEnd(AttemptOutcome.SUCCEEDED, result=plainjson.dumps({"dry_run": said}))

    def _execute(self) -> AttemptEnd:
        hook = "resolved" if self._run.kind == "resolved" else "execute"
        try:
            returned = self._actions.call(self._run.action, hook, self._arguments)
            return AttemptEnd(AttemptOutcome.SUCCEEDED, result=_as_json(returned))
        except BaseException as error:  # noqa: BLE001 - a plugin's call
            return self._failed(error)

    def _failed(self, error: BaseException) -> AttemptEnd:
        text = describe_error(error)
        if isinstance(error, StillRunning):
            return AttemptEnd(
                AttemptOutcome.STILL_RUNNING, error=_cut(str(error)) or None,
                check_after=_plain_pause(error),
            )  # fmt: skip
        if isinstance(error, PermanentError):
            return AttemptEnd(AttemptOutcome.FAILED, error=text, permanent=True)
        if isinstance(error, RunCancelledError) and self._cancellation.reason is not None:
            return AttemptEnd(AttemptOutcome.CANCELLED, error=self._cancellation.reason)
        if isinstance(error, DeadlineExceededError):
            return AttemptEnd(AttemptOutcome.FAILED, error=text)
        if isinstance(error, TemporaryError):
            at, after = _times_named(error)
            return AttemptEnd(AttemptOutcome.FAILED, error=text, retry_at=at, retry_after=after)
        # A text that had to be cut would fill the log once more in the traceback.
        is_short = len(text) < _LONGEST_TEXT
        _log.warning(
            "action raised an unexpected exception",
            exc_info=error if is_short else None,
            extra={} if is_short else {"error": text},
        )
        return AttemptEnd(AttemptOutcome.FAILED, error=text)


def execute_attempt(
    run: ClaimedRun,
    policy: Policy,
    actions: Actions,
    deadline: float,
    cancellation: Cancellation,
    save_state: Callable[[str], None],
) -> AttemptEnd:
    """Make one attempt, see AttemptExecution; never raises."""
    try:
        return AttemptExecution(run, policy, actions, deadline, cancellation, save_state).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, the attempt has ended
        _log.exception("attempt could not be made", extra=log_fields(run, ""))
        return AttemptEnd(AttemptOutcome.FAILED, error=describe_error(error))


def describe_error(error: BaseException) -> str:
    """Return the chain of causes in one bounded line each."""
    texts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(texts) < 5:
        said = _cut(plainjson.text_of(seen))
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
        at, after = named.retry_at, named.retry_after
        # Plain ones: a class of the plugin's own is unknown to the process that is told.
        return (
            None if at is None else datetime.fromtimestamp(at.timestamp(), UTC),
            None if after is None else timedelta(after.days, after.seconds, after.microseconds),
        )
    except BaseException:  # noqa: BLE001 - a plugin's object
        _log.warning("error names no time to try again", exc_info=True)
        return None, None


def _plain_pause(error: StillRunning) -> timedelta:
    """Return `check_after` in a class that every process knows."""
    after = error.check_after
    return timedelta(after.days, after.seconds, after.microseconds)


def _as_json(returned: Any) -> str | None:
    """Return what an action returned as JSON, bounded; what JSON cannot hold as its text."""
    if returned is None:
        return None
    if isinstance(returned, str):
        returned = returned[: _LONGEST_RESULT + 1]
    try:
        text = plainjson.dumps(returned)
    except MemoryError:  # The action has succeeded all the same.
        return json.dumps({"shortened": f"a {type(returned).__name__} too large to be stored"})
    if len(text) > _LONGEST_RESULT:
        return json.dumps({"shortened": text[:_LONGEST_RESULT]})
    return text
