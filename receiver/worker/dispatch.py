"""Hands each attempt to the process that performs it, and hears how it ended.

That is the performer, which has all of them in threads.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from receiver.errors import PerformerLostError
from receiver.policies import AttemptEnd, AttemptOutcome
from receiver.settings import Settings
from receiver.tracing import Tracing
from receiver.worker.attempts import Attempt
from receiver.worker.line import Cancel
from receiver.worker.performer import AT_ONCE_SECONDS, Performer

# An action that honours its deadline still needs a moment to return.
LATE_SECONDS = 0.5
# A performer that hears nothing for so long, although nothing in it has time left, never will.
_DEAF_SECONDS = 10.0
CURE = "let the action release the interpreter lock, or return at its deadline"
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
        self._waiting: deque[Attempt] = deque()
        self._settings = settings
        self._tracing = tracing
        self._wake = wake
        self._returned: queue.SimpleQueue[Returned] = queue.SimpleQueue()
        self._deaf_told = False
        self.is_lost = False

    @property
    def performer(self) -> int:
        """The process in which actions run that have none of their own."""
        return self._performer.pid

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Start attempts, each at once."""
        waiting: list[Attempt] = []
        for one in attempts:
            self._performing[one.run.id, one.run.attempt] = one
            waiting.append(one)
        if waiting:
            order = self._performer.perform([one.run for one in waiting])
            for one in waiting:
                one.order = order
            self._waiting += waiting

    def cancel(self, attempt: Attempt, reason: str) -> None:
        """Ask the action of an attempt to stop; the first reason stays."""
        if attempt.cancellation.reason is None:
            attempt.cancellation.cancel(reason)
            key = attempt.run.id, attempt.run.attempt
            if key in self._performing:
                self._performer.cancel(Cancel(*key, reason))

    def returned(self) -> Iterator[Returned]:
        """Yield what has ended by now; with the performer, all that it had under way."""
        self._note_begun()
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
            self._note_begun()
            while self._performing:
                _, attempt = self._performing.popitem()
                has_begun = attempt.order is None
                end = AttemptEnd(AttemptOutcome.INTERRUPTED, str(error), has_begun=has_begun)
                yield Returned(attempt, end)

    def _note_begun(self) -> None:
        """Let the time of those attempts run that the performer has begun."""
        while self._waiting and self._performer.taken >= (self._waiting[0].order or 0):
            begun = self._waiting.popleft()
            begun.order, begun.started = None, self._performer.taken_at

    def is_overdue(self, attempt: Attempt) -> bool:
        """Whether an attempt in a thread is past its deadline, and has nobody else to blame.

        While an action keeps the interpreter lock, none can return.
        """
        if attempt.order is not None:
            return False
        late = -attempt.seconds_left()
        if late < 0:
            return False
        # Whoever could not go on until a moment ago has as long as others.
        since = max(time.monotonic() - late, self._performer.deaf_until + LATE_SECONDS)
        return self._performer.listens(since) and late > LATE_SECONDS

    @property
    def is_deaf(self) -> bool:
        """Whether the performer cannot begin anything now."""
        return self._performer.deaf_seconds() > AT_ONCE_SECONDS

    def end_if_deaf(self) -> None:
        """End a performer that hears nothing any more, unless an action may still return."""
        seconds = self._performer.deaf_seconds()
        if seconds < _DEAF_SECONDS or self.is_lost:
            self._deaf_told &= seconds > 0
            return
        begun = [one for one in self._performing.values() if one.order is None]
        within = sorted({one.run.action for one in begun if one.seconds_left() > -LATE_SECONDS})
        told = {"seconds": round(seconds, 1), "cure": CURE}
        if not within:
            _log.critical("performer hears nothing, so the worker is replaced", extra=told)
            self._performer.kill()
        elif not self._deaf_told:
            _log.error("performer hears nothing while an action keeps the interpreter",
                       extra={**told, "actions": within})  # fmt: skip
        self._deaf_told = True

    def waiting(self) -> tuple[list[int], list[int]]:
        """Return what to wait for until it can be read, and until it can be written."""
        if self.is_lost:
            return [], []
        line = self._performer.line
        return [line.fileno()], [line.fileno()] if line.is_sending else []


def _kept_from_ending(one: Returned) -> Returned:
    """Take an attempt that was told to stop for the loss of its lease for interrupted."""
    if one.attempt.has_lost_lease and one.end.outcome is AttemptOutcome.CANCELLED:
        # Nobody wanted it stopped for good.
        return replace(one, end=replace(one.end, outcome=AttemptOutcome.INTERRUPTED))
    return one
