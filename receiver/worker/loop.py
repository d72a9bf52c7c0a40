"""The worker's loop: the one thread of the process that speaks to the journal.

Each turn records the attempts that ended, in one transaction, and claims as many due runs as there
are free slots, in another. Waiting is a column (`due_at`), never a sleeping thread.
"""

import logging
import os
import queue
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from receiver.errors import JournalError
from receiver.journal import claims
from receiver.journal.claims import ClaimedRun, Ended, Recorded
from receiver.journal.journal import Journal
from receiver.journal.wakeup import Ears
from receiver.plugins import Actions
from receiver.policies import AttemptEnd, Rules
from receiver.worker.attempts import Attempt, describe_error
from receiver.worker.leases import Instance
from receiver.worker.threads import Threads

_POLL_SECONDS = 1.0
_RECOVER_SECONDS = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Returned:
    attempt: Attempt
    end: AttemptEnd


class Worker:
    """Runs due runs until told to stop; `run` returns the exit code of the process."""

    def __init__(
        self,
        journal: Journal,
        actions: Actions,
        rules: Rules,
        *,
        threads: int,
        grace: timedelta,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Enter the journal and listen; nothing is claimed before `run`."""
        self._journal = journal
        self._actions = actions
        self._rules = rules
        self._slots = threads
        self._grace = grace
        self._jitter = jitter
        self.ears = Ears(journal)
        self._instance = Instance(journal, "worker", actions.loaded)
        self._threads = Threads()
        self._running: dict[int, Attempt] = {}
        self._returned: queue.SimpleQueue[_Returned] = queue.SimpleQueue()
        self._unrecorded: list[_Returned] = []
        self._recovered = float("-inf")
        self._stopping = False

    def stop(self) -> None:
        """Stop claiming, let running attempts finish, and end; callable from a signal handler."""
        self._stopping = True
        self.ears.poke()

    def run(self) -> int:
        """Work until stopped."""
        _log.info("worker started", extra={"actions": sorted(self._actions.loaded),
                                           "instance": self._instance.id})  # fmt: skip
        while not self._stopping:
            wait = self._turn()
            if not self._stopping:
                self.ears.wait(wait)
        return self._drain()

    def _turn(self) -> float:
        """Do all that can be done now; return how many seconds the next turn may wait."""
        try:
            self._instance.beat()
            self._record_returned()
            self._recover()
            claimed = self._claim()
            for run_id, effect in claims.verify_due(self._journal, self._rules):
                _log.info("effect verified", extra={"run_id": run_id, "effect": effect})
            if claimed:
                return 0.0
            return self._seconds_until_due()
        except JournalError as error:
            _log.error("journal fails the worker", extra={"error": describe_error(error)})
            return _POLL_SECONDS

    def _seconds_until_due(self) -> float:
        if not self._free():
            return _POLL_SECONDS
        due_at = claims.next_due_at(self._journal, self._actions.loaded)
        if due_at is None:
            return _POLL_SECONDS
        with self._journal.reading() as connection:
            seconds = (due_at - self._journal.now(connection)).total_seconds()
        # What is due and was not claimed waits for something else: no reason to turn faster.
        return seconds if 0 < seconds < _POLL_SECONDS else _POLL_SECONDS

    def _free(self) -> int:
        return self._slots - len(self._running)

    def _claim(self) -> list[ClaimedRun]:
        free = self._free()
        if free <= 0 or not self._actions.loaded:
            return []
        runs = claims.claim_due_runs(
            self._journal, self._instance.id, sorted(self._actions.loaded), free, self._rules
        )
        calls: dict[int, str] = {}
        attempts = []
        for run in runs:
            attempt = Attempt(run, self._rules.policy(run.action), self._actions)
            if run.call is None:
                calls[run.id] = attempt.call.to_json()
            attempts.append(attempt)
        if calls:
            claims.keep_calls(self._journal, calls)
        for attempt in attempts:
            self._running[attempt.run.id] = attempt
            self._threads.start(partial(self._perform, attempt))
        return runs

    def _perform(self, attempt: Attempt) -> None:
        self._returned.put(_Returned(attempt, attempt.perform()))
        self.ears.poke()

    def _record_returned(self) -> None:
        """Record the attempts that ended; what the journal cannot take now is kept for later."""
        while not self._returned.empty():
            one = self._returned.get()
            self._running.pop(one.attempt.run.id, None)
            self._unrecorded.append(one)
        if not self._unrecorded:
            return
        ended = [Ended(one.attempt.run.id, one.attempt.run.attempt, one.end)
                 for one in self._unrecorded]  # fmt: skip
        recorded = claims.record_ends(
            self._journal, self._instance.id, ended, self._rules, self._jitter
        )
        attempts = {one.attempt.run.id: one.attempt for one in self._unrecorded}
        self._unrecorded = []
        for outcome in recorded:
            _log_end(attempts[outcome.ended.run_id], outcome)

    def _recover(self) -> None:
        now = time.monotonic()
        if now - self._recovered < _RECOVER_SECONDS:
            return
        self._recovered = now
        for owner in claims.owners_of_running(self._journal):
            if self._instance.is_dead(owner):
                for one in claims.recover_from(self._journal, owner, self._rules, self._jitter):
                    _log.warning(
                        "interrupted attempt found",
                        extra={"run_id": one.ended.run_id, "attempt": one.ended.attempt,
                               "owner": owner, "next": one.next.reason if one.next else None},
                    )  # fmt: skip
        self._instance.bury_dead()

    def _drain(self) -> int:
        """Let running attempts finish within the grace period; the rest is left interrupted."""
        end = time.monotonic() + self._grace.total_seconds()
        _log.info("worker drains", extra={"running": len(self._running)})
        while self._running and time.monotonic() < end:
            self.ears.wait(min(_POLL_SECONDS, max(0.0, end - time.monotonic())))
            try:
                self._record_returned()
            except JournalError as error:
                _log.error("journal fails the worker", extra={"error": describe_error(error)})
        for attempt in self._running.values():
            attempt.cancellation.cancel("the worker stops")
            _log.warning("attempt did not finish in time", extra=attempt.fields)
            end_of_it = AttemptEnd("interrupted", error="its worker stopped before it returned")
            self._returned.put(_Returned(attempt, end_of_it))
        try:
            self._record_returned()
            self._instance.close()
        except JournalError as error:
            _log.error("journal fails the worker", extra={"error": describe_error(error)})
        _log.info("worker stopped", extra={"pid": os.getpid()})
        return 0


def _log_end(attempt: Attempt, recorded: Recorded) -> None:
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
