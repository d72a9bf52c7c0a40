"""Hands each attempt to the process that performs it, and hears how it ended.

That is the performer, which has all of them in threads, or with `isolation = "process"` one of its
own.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from receiver.errors import PerformerLostError
from receiver.journal.due import ClaimedRun
from receiver.policies import AttemptEnd
from receiver.settings import Settings
from receiver.tracing import Tracing
from receiver.worker import isolation
from receiver.worker.attempts import Attempt
from receiver.worker.line import Cancel
from receiver.worker.performance import traced
from receiver.worker.performer import Performer
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
        self._untaken: deque[Attempt] = deque()
        self._settings = settings
        self._tracing = tracing
        self._wake = wake
        self._threads = Threads()
        self._returned: queue.SimpleQueue[Returned] = queue.SimpleQueue()
        self.is_lost = False

    @property
    def performer(self) -> int:
        """The process in which actions run that have none of their own."""
        return self._performer.pid

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Start attempts, each at once."""
        orders: list[ClaimedRun] = []
        for one in attempts:
            if one.policy.isolation == "process":
                self._threads.start(partial(self._perform_apart, one))
            else:
                one.is_begun = False
                self._untaken.append(one)
                self._performing[one.run.id, one.run.attempt] = one
                orders.append(one.run)
        if orders:
            self._performer.perform(orders)

    def cancel(self, attempt: Attempt, reason: str) -> None:
        """Ask the action of an attempt to stop; the first reason stays."""
        if attempt.cancellation.reason is None:
            attempt.cancellation.cancel(reason)
            key = attempt.run.id, attempt.run.attempt
            if key in self._performing:
                self._performer.cancel(Cancel(*key, reason))

    def returned(self) -> Iterator[Returned]:
        """Yield what has ended by now; with the performer, all that it had under way."""
        while not self._returned.empty():
            yield _kept_from_ending(self._returned.get())
        try:
            for one in self._performer.performed():
                # An action may have forked; only one of the two is the attempt.
                if attempt := self._performing.pop((one.run_id, one.attempt), None):
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

    def deaf_seconds(self) -> float:
        """Return for how long the performer has begun nothing of what it was given.

        An action that keeps the interpreter lock does that; what waits has its whole time then.
        """
        while len(self._untaken) > self._performer.untaken:
            begun = self._untaken.popleft()
            begun.is_begun, begun.started = True, self._performer.taken_at
        return time.monotonic() - self._untaken[0].started if self._untaken else 0.0

    def give_up(self) -> None:
        """End the performer, whatever it does."""
        self._performer.kill()

    def waiting(self) -> tuple[list[int], list[int]]:
        """Return what to wait for until it can be read, and until it can be written."""
        if self.is_lost:
            return [], []
        line = self._performer.line
        return [line.fileno()], [line.fileno()] if line.is_sending else []

    def _perform_apart(self, attempt: Attempt) -> None:
        def perform(run: ClaimedRun) -> AttemptEnd:
            return isolation.perform_in_process(attempt, run, self._settings)

        end, attempt.trace_id = traced(self._tracing, attempt.run, perform)
        self._returned.put(Returned(attempt, end))
        self._wake()


def _kept_from_ending(one: Returned) -> Returned:
    """Take an attempt that was told to stop for the loss of its lease for interrupted."""
    if one.attempt.has_lost_lease and one.end.outcome == "cancelled":
        # Nobody wanted it stopped for good.
        return replace(one, end=replace(one.end, outcome="interrupted"))
    return one
