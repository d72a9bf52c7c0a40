"""The worker: one thread that claims due runs, and records how their attempts ended.

Each turn records the attempts that have ended and claims as many due runs as there are free
executors, in one transaction. A run waits by its column `due_at`, never in a sleeping thread.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from receiver.errors import JournalDataError, JournalError
from receiver.guardrails import Verdict
from receiver.journal import approvals, claims, due, outcomes, reading
from receiver.journal.clock import correct_schedules
from receiver.journal.due import ClaimedRun
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended, Recorded
from receiver.journal.saved_state import save_state
from receiver.journal.wakeup import Ears
from receiver.metrics.counts import WorkerCounts
from receiver.policies import AttemptEnd, AttemptOutcome
from receiver.settings import Settings
from receiver.tracing import Tracing
from receiver.worker.cleaning import Cleaning
from receiver.worker.dispatcher import Dispatcher, FinishedAttempt
from receiver.worker.execution import describe_error
from receiver.worker.executors import ExecutorPool
from receiver.worker.leases import Instance
from receiver.worker.messages import Loaded
from receiver.worker.running import RunningAttempt, fields_of_row, log_end

_POLL_SECONDS = 1.0
_UPKEEP_SECONDS = 1.0
_LOOK_SECONDS = 0.25
# For killing, and for recording what was killed.
_CUT_OFF_SECONDS = 3.0
_log = logging.getLogger(__name__)


class Worker:
    """Runs due runs until told to stop; `run` returns the exit code of the process."""

    def __init__(
        self,
        journal: Journal,
        pool: ExecutorPool,
        loaded: Loaded,
        settings: Settings,
        counts: WorkerCounts,
        tracing: Tracing,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Enter the journal and listen; nothing is claimed before `run`."""
        self._journal = journal
        self._actions = sorted(loaded.actions)
        self._rules = loaded.rules
        self._settings = settings
        self._counts = counts
        journal.wrote = counts.journal.wrote
        self._jitter = jitter
        self.ears = Ears(journal)
        self._instance = Instance(journal, "worker", loaded.actions, settings.lease)
        if self._instance.lock is not None:
            pool.hold(self._instance.lock)
        self._pool = pool
        self._dispatcher = Dispatcher(pool, tracing)
        # Keyed by run and attempt: an attempt that was lost may go on while its run is claimed
        # again.
        self._running: dict[tuple[int, int], RunningAttempt] = {}
        self._unrecorded: list[FinishedAttempt] = []
        self._done: dict[str, float] = {}
        self._stopping = False
        self._was_rung = False
        self._is_due_left = False
        self._cleaning = Cleaning(journal, self._actions, self._rules, settings, counts)

    def stop(self) -> None:
        """Stop claiming, let running attempts finish, and end; callable from a signal handler."""
        self._stopping = True
        self.ears.poke()

    def run(self) -> int:
        """Work until stopped."""
        _log.info("worker started", extra={"actions": self._actions,
                                           "instance": self._instance.id,
                                           "fork_server": self._pool.pid})  # fmt: skip
        self._judge_anew()
        self._cleaning.start()
        while not self._stopping:
            wait = self._turn()
            if not self._stopping:
                self._was_rung = self.ears.wait(wait, self._dispatcher.descriptors())
        self._drain()
        return 1 if self._dispatcher.is_lost else 0

    def _judge_anew(self) -> None:
        """Hold what was delayed to the policies of today, which may be others than before."""
        try:
            with self._journal.writing() as connection:
                due.judge_anew(self._journal, connection, self._actions)
        except JournalError as error:
            self._note_failure(error)

    def _turn(self) -> float:
        """Do all that can be done now; return how many seconds the next turn may wait."""
        # Read first: an unread message would end the next wait at once.
        self._collect()
        self._dispatcher.kill_overdue()  # Also while the journal cannot be written.
        try:
            self._save_states()
            self._mind_lease(self._instance.beat())
            if self._record_and_claim():
                return 0.0
            self._look_after_running()
            if self._is_due("upkeep", _UPKEEP_SECONDS):
                self._keep_up()
            return self._seconds_until_due()
        except JournalError as error:
            self._note_failure(error)
            return _POLL_SECONDS

    def _note_failure(self, error: JournalError) -> None:
        _log.error("journal fails the worker", extra={"error": describe_error(error)})
        self._mind_lease(not self._instance.has_lost_lease())
        if isinstance(error, JournalDataError):
            self._record_apart()

    def _mind_lease(self, is_held: bool) -> None:
        """Ask attempts to stop, once others may have taken their runs for interrupted."""
        if is_held:
            return
        for attempt in self._running.values():
            if not attempt.has_lost_lease:
                attempt.has_lost_lease = True
                self._dispatcher.cancel(attempt, "the lease of its worker was lost")
                _log.error("lease was lost, so the attempt should stop", extra=attempt.log_fields)

    def _is_due(self, what: str, seconds: float) -> bool:
        """Whether something that is done every so often is to be done now."""
        now = time.monotonic()
        if now - self._done.get(what, float("-inf")) < seconds:
            return False
        self._done[what] = now
        return True

    def _keep_up(self) -> None:
        """Find the dead, expired approvals and effects that are due to be looked at."""
        self._dispatcher.keep_up()
        correct_schedules(self._journal)
        self._recover()
        loaded = self._actions
        expired = approvals.expire_approvals(self._journal, loaded, self._rules)
        for run in reading.briefs_of(self._journal, expired).values():
            _log.warning("approval expired", extra=fields_of_row(run))
            self._counts.held_back(run["action"], "approval", "skip")
            self._counts.run_ended(run["action"], "skipped")
        verified = dict(outcomes.verify_due(self._journal, loaded, self._rules))
        for run in reading.briefs_of(self._journal, verified).values():
            _log.info(
                "effect verified", extra={**fields_of_row(run), "effect": verified[run["id"]]}
            )
            self._counts.verified(run["action"], verified[run["id"]], run["effect_seconds"])

    def _seconds_until_due(self) -> float:
        longest = min(_POLL_SECONDS, self._dispatcher.seconds_until_overdue())
        if self._free() <= 0:
            return longest
        seconds = due.seconds_until_due(self._journal, self._actions)
        # What is due and was not claimed waits for something else: no reason to turn faster.
        return longest if seconds is None or seconds <= 0 else min(seconds, longest)

    def _free(self) -> int:
        """Return how many runs may be claimed now."""
        runs_alone = any(one.run.runs_alone for one in self._running.values())
        if self._stopping or runs_alone or self._dispatcher.is_held_up:
            return 0
        return self._settings.worker_executors - len(self._running)

    def _save_states(self) -> None:
        """Store the states that actions want to be stored before they go on."""
        for to_save in self._dispatcher.take_states():
            error: str | None = None
            try:
                is_saved = save_state(
                    self._journal, self._instance.id, *to_save.attempt.key, to_save.state
                )
            except JournalError as problem:
                error = describe_error(problem)
                self._note_failure(problem)
            except ValueError as problem:  # A plugin went around `context.save`.
                error = describe_error(problem)
            else:
                error = None if is_saved else "the run has another owner"
            self._dispatcher.answer(to_save, error)

    def _look_after_running(self) -> None:
        """Pass on what a person wants stopped."""
        if not self._running or not self._is_due("look", _LOOK_SECONDS):
            return
        wanted = claims.cancel_requests(self._journal, self._instance.id)
        for attempt in self._running.values():
            if attempt.run.id in wanted:
                self._dispatcher.cancel(attempt, wanted[attempt.run.id])

    def _record_and_claim(self) -> bool:
        """Record what ended and claim what is due, in one transaction: one sync for both.

        Return whether another look may find more at once. What the journal cannot take is kept.
        """
        free = self._free()
        if free > 0 and not self._may_claim():
            free = 0
        if not self._unrecorded and free <= 0:
            return False
        with self._journal.writing() as connection:
            self._mind_lease(self._instance.beat_in(connection))
            recorded = outcomes.record_in(
                self._journal, connection, self._instance.id, _ended(self._unrecorded),
                self._rules, self._jitter,
            )  # fmt: skip
            found = claims.claim_in(
                self._journal, connection, self._instance.id, self._actions, free, self._rules,
                under_way=len(self._running),
            )  # fmt: skip
        if free > 0:
            self._is_due_left = found.is_left
        self._note(recorded)
        # Before anything else that may fail: only this process attempts what it has claimed.
        for run in found.claimed:
            self._start(run)
        self._note_moved(dict(found.moved))
        # What was not claimed now waits for a slot, a target or a commit: each wakes the loop.
        return found.is_more

    def _start(self, run: ClaimedRun) -> None:
        attempt = self._dispatcher.start(run, self._rules.policy(run.action))
        self._running[attempt.key] = attempt
        self._counts.started(run)

    def _note_moved(self, moved: dict[int, Verdict]) -> None:
        for run_id, held in reading.briefs_of(self._journal, moved).items():
            verdict = moved[run_id]
            said = {"guardrail": verdict.guardrail, "reason": verdict.reason}
            _log.warning("run held back", extra={**fields_of_row(held), **said})
            self._counts.held_back(held["action"], verdict.guardrail, verdict.kind)
            if verdict.kind == "skip":
                self._counts.run_ended(held["action"], "skipped")

    def _may_claim(self) -> bool:
        """Whether anything is due: asked before the write lock is taken, unless it is known."""
        if self._was_rung or self._is_due_left:
            return True
        seconds = due.seconds_until_due(self._journal, self._actions)
        return seconds is not None and seconds <= 0

    def _record(self, finished: Sequence[FinishedAttempt]) -> None:
        """Record how attempts ended, and claim nothing."""
        if finished:
            self._note(self._write(_ended(finished)))

    def _write(self, ended: Sequence[Ended]) -> list[Recorded]:
        return outcomes.record_ends(
            self._journal, self._instance.id, ended, self._rules, self._jitter
        )

    def _record_apart(self) -> None:
        """Record one by one what the journal refuses together; of the culprit, that it ended.

        Else what one attempt said would keep all others from being recorded, for ever.
        """
        with suppress(JournalError):  # The next turn tries again.
            for one in tuple(self._unrecorded):
                try:
                    self._record([one])
                except JournalDataError as error:
                    _log.error("what an attempt said cannot be stored", extra={
                        **one.attempt.log_fields, "error": describe_error(error)})  # fmt: skip
                    said = f"what it said cannot be stored: {describe_error(error)}"
                    with suppress(JournalDataError):
                        self._record([replace(one, end=replace(one.end, error=said, result=None))])

    def _collect(self) -> None:
        for finished in self._dispatcher.finished():
            self._running.pop(finished.attempt.key, None)
            self._unrecorded.append(finished)
        self._stopping |= self._dispatcher.is_lost

    def _note(self, recorded: Sequence[Recorded]) -> None:
        """Log what has been recorded, and forget it."""
        waiting = {one.attempt.key: one for one in self._unrecorded}
        for outcome in recorded:
            ended, step = outcome.ended, outcome.next
            attempt, end = waiting.pop((ended.run_id, ended.attempt)).attempt, ended.end
            log_end(attempt, outcome)
            if step is not None:  # Else the run had another owner, who counts it.
                self._counts.attempt_ended(attempt.run.action, end.outcome, attempt.seconds())
                if step.outcome is not None:
                    run = attempt.run
                    self._counts.run_ended(run.action, step.outcome, run.created_at)
        self._unrecorded = list(waiting.values())

    def _give_back(self) -> None:
        """End attempts that this worker has claimed, and does not know of: none has begun.

        The answer to a commit can be lost, where the database is on another machine.
        """
        known = {*self._running, *(one.attempt.key for one in self._unrecorded)}
        if unknown := claims.attempts_of(self._journal, self._instance.id) - known:
            end = AttemptEnd(
                AttemptOutcome.INTERRUPTED, error="the claim was not confirmed", has_begun=False
            )
            recorded = self._write([Ended(*key, end) for key in sorted(unknown)])
            self._note_recovered(self._instance.id, recorded)

    def _recover(self) -> None:
        for owner in claims.owners_of_running(self._journal):
            if owner == self._instance.id:
                self._give_back()
            elif self._instance.is_dead(owner):
                recovered = outcomes.recover_from(
                    self._journal, owner, self._actions, self._rules, self._jitter,
                    partial(self._instance.is_still_dead, other=owner),
                )  # fmt: skip
                self._note_recovered(owner, recovered)
        self._instance.bury_dead()

    def _note_recovered(self, owner: str, recorded: Sequence[Recorded]) -> None:
        runs = reading.briefs_of(self._journal, [one.ended.run_id for one in recorded])
        for one in recorded:
            run, step = runs.get(one.ended.run_id), one.next
            if run is None or step is None:  # Another worker found it first.
                continue
            said = {"attempt": one.ended.attempt, "owner": owner, "next": step.reason}
            _log.warning("interrupted attempt found", extra={**fields_of_row(run), **said})
            if run["action"] not in self._actions:
                continue  # Only what is loaded is counted.
            self._counts.attempt_ended(run["action"], one.ended.end.outcome)
            if step.outcome is not None:
                self._counts.run_ended(run["action"], step.outcome, run["created_at"])

    def _drain(self) -> None:
        """Let running attempts finish within the grace period; kill what does not.

        An attempt that was cut off counts as nothing: the next worker makes it again. If the fork
        server has ended, attempts are recorded as interrupted and there is nothing to wait for.
        """
        deadline = time.monotonic() + self._settings.grace_period.total_seconds()
        _log.info("worker drains", extra={"running": len(self._running)})
        is_over = False
        while self._running or self._unrecorded:
            if not is_over and time.monotonic() > deadline:
                is_over = True
                for attempt in self._running.values():
                    _log.warning("attempt is cut off, because the worker stops",
                                 extra=attempt.log_fields)  # fmt: skip
                self._dispatcher.stop_all()
            if time.monotonic() > deadline + _CUT_OFF_SECONDS:
                break  # What was not recorded is found as interrupted by the next worker.
            self._drain_turn()
            wait = min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic()) or _LOOK_SECONDS)
            self.ears.wait(wait, self._dispatcher.descriptors())
        try:
            self._give_back()
            if not self._running and not self._unrecorded:
                self._instance.close()
        except JournalError as error:
            self._note_failure(error)
        self._cleaning.stop()
        self._journal.close()
        _log.info("worker stopped", extra={"pid": os.getpid()})

    def _drain_turn(self) -> None:
        self._collect()
        self._dispatcher.kill_overdue()
        try:
            self._save_states()
            self._mind_lease(self._instance.beat())
            self._record(self._unrecorded)
            self._look_after_running()
        except JournalError as error:
            self._note_failure(error)


def _ended(finished: Sequence[FinishedAttempt]) -> list[Ended]:
    return [Ended(*one.attempt.key, one.end) for one in finished]
