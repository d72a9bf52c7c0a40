"""Hands attempts to executors, and collects how they ended."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from receiver.errors import ExecutorLostError
from receiver.journal.due import ClaimedRun
from receiver.policies import AttemptEnd, AttemptOutcome, Policy
from receiver.tracing import Tracing
from receiver.worker.executor_main import DESCRIPTORS
from receiver.worker.executors import Executor, ExecutorPool
from receiver.worker.messages import Cancel, Exited, Finished, Order, SaveState, StateStored
from receiver.worker.running import RunningAttempt, log_fields

# An action that honours its deadline still needs a moment to return.
GRACE_SECONDS = 0.5
# Where the machine has no process to give, it may have one a moment later.
_PAUSE_SECONDS = 1.0
_log = logging.getLogger(__name__)
_output = logging.getLogger("receiver.action.output")


@dataclass(frozen=True, slots=True)
class FinishedAttempt:
    """An attempt that is over with everything that it started, and how it ended."""

    attempt: RunningAttempt
    end: AttemptEnd


@dataclass(frozen=True, slots=True)
class StateToSave:
    """A state that an action wants to be stored before it goes on."""

    attempt: RunningAttempt
    state: str


class Dispatcher:
    """All attempts of a worker that are under way. Used by one thread."""

    def __init__(self, pool: ExecutorPool, tracing: Tracing) -> None:
        self._pool = pool
        self._tracing = tracing
        self._executors: dict[tuple[int, int], Executor] = {}
        self._states: list[StateToSave] = []
        self._not_started: list[FinishedAttempt] = []
        self._starts_again_at = 0.0
        self.is_lost = False

    @property
    def running(self) -> list[RunningAttempt]:
        """The attempts that have not ended."""
        return [attempt for executor in self._executors.values() if (attempt := executor.attempt)]

    @property
    def is_held_up(self) -> bool:
        """Whether the machine had no process for an attempt a moment ago."""
        return time.monotonic() < self._starts_again_at

    def start(self, run: ClaimedRun, policy: Policy) -> RunningAttempt:
        """Start an attempt."""
        fields = log_fields(run, "")
        span = self._tracing.start_span(f"attempt {run.action}", run.traceparent, fields)
        attempt = RunningAttempt(run, policy, span)
        traced = replace(run, traceparent=span.traceparent) if span.traceparent else run
        try:
            executor = self._give(Order(traced, attempt.deadline))
        except OSError as error:  # This process has no descriptors left.
            text = f"its process could not be started: {error.strerror}"
            end = AttemptEnd(AttemptOutcome.CRASHED, error=text, has_begun=False)
            attempt.finish(end)
            self._not_started.append(FinishedAttempt(attempt, end))
            self._starts_again_at = time.monotonic() + _PAUSE_SECONDS
            return attempt
        executor.attempt = attempt
        self._executors[attempt.key] = executor
        return attempt

    def _give(self, order: Order) -> Executor:
        """Return the executor that was sent an order; a new one if an idle one has ended."""
        while True:
            executor = self._pool.take(order.run.action)
            try:
                executor.send(order)
            except OSError as error:
                fields = {**log_fields(order.run, ""), "error": str(error)}
                if executor.attempts:
                    _log.info("idle executor has ended", extra=fields)
                    self._pool.retire(executor)
                    continue
                _log.error("executor took no order", extra=fields)
                self._pool.kill(executor, _NO_ORDER)
            return executor

    def cancel(self, attempt: RunningAttempt, reason: str) -> None:
        """Ask the action of an attempt to stop; the first reason stays."""
        if attempt.cancel_reason is None:
            attempt.cancel_reason = reason
            try:
                self._executors[attempt.key].send(Cancel(reason))
            except OSError:
                return  # It is about to end, which is found soon.

    def kill_overdue(self) -> None:
        """Kill the attempts whose deadline and grace have passed."""
        now = time.monotonic()
        for executor in self._executors.values():
            attempt = executor.attempt
            if (
                attempt
                and executor.killed_because is None
                and now > attempt.deadline + GRACE_SECONDS
            ):
                seconds = attempt.policy.timeout.total_seconds()
                _log.error("attempt is past its deadline and is killed", extra=attempt.log_fields)
                self._pool.kill(
                    executor,
                    f"killed at its deadline, after {seconds:g} s, with everything it had started",
                )

    def seconds_until_overdue(self) -> float:
        """Return the time until the next attempt must be killed; infinite without one."""
        now = time.monotonic()
        times = [
            executor.attempt.deadline + GRACE_SECONDS - now
            for executor in self._executors.values()
            if executor.attempt and executor.killed_because is None
        ]
        return max(0.0, min(times, default=float("inf")))

    def stop_all(self) -> None:
        """Kill every attempt, because the worker stops."""
        for executor in self._executors.values():
            self._pool.kill(executor, _STOPPED)

    def finished(self) -> Iterator[FinishedAttempt]:
        """Yield the attempts that have ended by now."""
        not_started, self._not_started = self._not_started, []
        yield from not_started
        messages, output = self._pool.readable()
        for executor in messages:
            # One message each: what is left is found at the next look.
            yield from self._handle(executor, executor.receive())
        for executor in output:
            self._log_output(executor)
        try:
            for executor, exited in self._pool.exited():
                while (message := executor.receive()) is not None:
                    yield from self._handle(executor, message)
                self._log_output(executor, is_end=True)
                if executor.attempt is not None:
                    end = _end_of_exit(executor, exited)
                    yield self._finish(executor, end)
                    if not end.has_begun:
                        self._starts_again_at = time.monotonic() + _PAUSE_SECONDS
        except ExecutorLostError as error:
            if not self.is_lost:
                lost = {"error": str(error), "running": len(self._executors)}
                _log.critical("fork server has ended, so the worker is replaced", extra=lost)
            self.is_lost = True
            for executor in tuple(self._executors.values()):
                end = AttemptEnd(AttemptOutcome.INTERRUPTED, error=str(error))
                yield self._finish(executor, end)

    def _handle(self, executor: Executor, message: object) -> Iterator[FinishedAttempt]:
        if isinstance(message, Finished) and executor.attempt is not None:
            self._log_output(executor, is_end=True)
            if message.leftovers:
                # Connections that a client keeps open are no fault.
                level = logging.DEBUG if message.leftovers == (DESCRIPTORS,) else logging.INFO
                left = {"left": list(message.leftovers)}
                _log.log(level, _LEFTOVERS, extra={**executor.attempt.log_fields, **left})
            yield self._finish(executor, message.end)
            self._pool.release(executor, message.leftovers)
        elif isinstance(message, SaveState) and executor.attempt is not None:
            self._states.append(StateToSave(executor.attempt, message.state))

    def _finish(self, executor: Executor, end: AttemptEnd) -> FinishedAttempt:
        attempt, executor.attempt = executor.attempt, None
        assert attempt is not None
        del self._executors[attempt.key]
        if attempt.has_lost_lease and end.outcome == AttemptOutcome.CANCELLED:
            # Nobody wanted it stopped for good.
            end = replace(end, outcome=AttemptOutcome.INTERRUPTED)
        attempt.finish(end)
        return FinishedAttempt(attempt, end)

    def _log_output(self, executor: Executor, *, is_end: bool = False) -> None:
        """Log what the action and its programs have printed."""
        attempt = executor.attempt
        fields = {"action": executor.action} if attempt is None else attempt.log_fields
        for line in executor.output.lines(is_end=is_end):
            _output.info("action printed", extra={**fields, "text": line})

    def take_states(self) -> list[StateToSave]:
        """Return the states that wait to be stored; each wants an answer."""
        states, self._states = self._states, []
        return states

    def answer(self, to_save: StateToSave, error: str | None) -> None:
        """Let an action go on whose state was stored, or could not be because of `error`."""
        if executor := self._executors.get(to_save.attempt.key):
            try:
                executor.send(StateStored(error))
            except OSError:
                return  # It is about to end, which is found soon.

    def keep_up(self) -> None:
        """Retire executors that are not needed."""
        self._pool.keep_up()

    def descriptors(self) -> list[int]:
        """Return what can be read when an attempt may have ended."""
        return [] if self.is_lost else self._pool.descriptors()


_LEFTOVERS = "attempt left something behind, so its executor is not used again"
_STOPPED = "the worker stopped before it had ended"
_NO_ORDER = "its executor took no order"


def _end_of_exit(executor: Executor, exited: Exited) -> AttemptEnd:
    """Return how an attempt ended whose executor ended before the action returned."""
    if not exited.has_begun:
        return AttemptEnd(
            AttemptOutcome.CRASHED, error=f"its process {exited.how}", has_begun=False
        )
    if executor.killed_because == _NO_ORDER:
        return AttemptEnd(AttemptOutcome.CRASHED, error=_NO_ORDER, has_begun=False)
    if executor.killed_because == _STOPPED:
        return AttemptEnd(AttemptOutcome.STOPPED, error=_STOPPED)
    if executor.killed_because is not None:
        return AttemptEnd(AttemptOutcome.KILLED, error=executor.killed_because)
    error = f"its process {exited.how} before the action returned"
    return AttemptEnd(AttemptOutcome.CRASHED, error=error)
