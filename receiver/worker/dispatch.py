"""Hands each attempt to the process that performs it, and hears how it ended.

That is the performer, which has all of them in threads, or with `isolation = "process"` one of its
own.
"""

import logging
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from receiver.errors import PerformerLostError
from receiver.journal.due import ClaimedRun
from receiver.policies import AttemptEnd
from receiver.settings import Settings
from receiver.tracing import Span, Tracing
from receiver.worker import isolation
from receiver.worker.attempts import Attempt
from receiver.worker.performance import describe_error, traced
from receiver.worker.performer import Order, Performer
from receiver.worker.threads import Threads

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Returned:
    """An attempt that is over, and how it ended."""

    attempt: Attempt
    end: AttemptEnd


class Dispatch:
    """All attempts of a worker that are under way; for its one thread only."""

    def __init__(
        self, performer: Performer, settings: Settings, tracing: Tracing, wake: Callable[[], None]
    ) -> None:
        """`wake` is called, by any thread, when an attempt in a process of its own has ended."""
        self._performer = performer
        self._performing: dict[tuple[int, int], Attempt] = {}
        self._settings = settings
        self._tracing = tracing
        self._wake = wake
        self._threads = Threads()
        self._returned: queue.SimpleQueue[Returned] = queue.SimpleQueue()
        self.is_lost = False

    @property
    def performer_pid(self) -> int:
        """The process in which most actions run."""
        return self._performer.pid

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Start attempts, each at once."""
        orders: list[Order] = []
        for one in attempts:
            if one.policy.isolation == "process":
                self._threads.start(partial(self._perform_apart, one))
            else:
                self._performing[one.run.id, one.run.attempt] = one
                orders.append(Order(one.run, one.started))
        if orders:
            self._performer.perform(orders)

    def cancel(self, attempt: Attempt, reason: str) -> None:
        """Ask the action of an attempt to stop; the first reason stays."""
        if attempt.cancellation.reason is None:
            attempt.cancellation.cancel(reason)
            key = attempt.run.id, attempt.run.attempt
            if key in self._performing:
                self._performer.cancel(*key, reason)

    def returned(self) -> Iterator[Returned]:
        """Yield what has ended by now; with the performer, all that it had under way."""
        while not self._returned.empty():
            yield _kept_from_ending(self._returned.get())
        try:
            for one in self._performer.performed():
                attempt = self._performing.pop((one.run_id, one.attempt))
                attempt.trace_id = one.trace_id
                yield _kept_from_ending(Returned(attempt, one.end))
        except PerformerLostError as error:
            if not self.is_lost:
                lost = {"error": str(error), "running": len(self._performing)}
                _log.critical("performer is lost, so the worker is replaced", extra=lost)
            self.is_lost = True
            while self._performing:
                _, attempt = self._performing.popitem()
                yield Returned(attempt, AttemptEnd("interrupted", error=str(error)))

    def waiting(self) -> list[int]:
        """Return what becomes readable when there is something to hear."""
        return [] if self.is_lost else [self._performer.fileno()]

    def _perform_apart(self, attempt: Attempt) -> None:
        def perform(run: ClaimedRun, span: Span) -> AttemptEnd:
            attempt.trace_id = span.trace_id
            return isolation.perform_in_process(attempt, run, self._settings)

        try:
            end, _ = traced(self._tracing, attempt.run, perform)
        except Exception as error:  # noqa: BLE001 - the thread's outermost loop
            _log.exception("attempt could not be made", extra=attempt.fields)
            end = AttemptEnd("failed", error=describe_error(error))
        self._returned.put(Returned(attempt, end))
        self._wake()


def _kept_from_ending(one: Returned) -> Returned:
    """Take an attempt that was told to stop for the loss of its lease for interrupted."""
    if one.attempt.has_lost_lease and one.end.outcome == "cancelled":
        # Nobody wanted it stopped for good.
        return replace(one, end=replace(one.end, outcome="interrupted"))
    return one
