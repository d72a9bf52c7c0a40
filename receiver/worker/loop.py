"""The worker's loop: the one thread of the process that speaks to the journal.

Each turn records the attempts that ended, in one transaction, and claims as many due runs as there
are free slots, in another. Waiting is a column (`due_at`), never a sleeping thread.
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
from receiver.journal import claims, clock, due, outcomes, reading, retention
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended, Recorded
from receiver.journal.wakeup import Ears
from receiver.metrics.counts import WorkerCounts
from receiver.policies import AttemptEnd, AttemptOutcome
from receiver.settings import Settings
from receiver.tracing import Tracing
from receiver.worker.attempts import Attempt, fields_of_row, log_end
from receiver.worker.dispatch import Dispatch, Returned
from receiver.worker.leases import Instance
from receiver.worker.line import Loaded
from receiver.worker.performance import describe_error
from receiver.worker.performer import Performer

_POLL_SECONDS = 1.0
_UPKEEP_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_CLEAN_SECONDS = 60.0
_log = logging.getLogger(__name__)


class Worker:
    """Runs due runs until told to stop; `run` returns the exit code of the process."""

    def __init__(
        self,
        journal: Journal,
        performer: Performer,
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
            performer.hold(self._instance.lock)
        self._dispatch = Dispatch(performer, settings, tracing, self.ears.poke)
        # By run and number: what was taken away, and claimed again, may still be under way.
        self._running: dict[tuple[int, int], Attempt] = {}
        self._unrecorded: list[Returned] = []
        self._done: dict[str, float] = {}
        self._stopping = False
        self._is_worn_out = False

    def stop(self) -> None:
        """Stop claiming, let running attempts finish, and end; callable from a signal handler."""
        self._stopping = True
        self.ears.poke()

    def run(self) -> int:
        """Work until stopped."""
        _log.info("worker started", extra={"actions": self._actions,
                                           "instance": self._instance.id,
                                           "performer": self._dispatch.performer})  # fmt: skip
        self._judge_anew()
        while not self._stopping:
            wait = self._turn()
            if not self._stopping:
                self.ears.wait(wait, *self._dispatch.waiting())
        self._drain()
        return 1 if self._dispatch.is_lost or self._is_worn_out else 0

    def _judge_anew(self) -> None:
        """Hold what was delayed to the policies of today, which may be others than before."""
        try:
            with self._journal.writing() as connection:
                due.judge_anew(self._journal, connection, self._actions)
        except JournalError as error:
            self._note_failure(error)

    def _turn(self) -> float:
        """Do all that can be done now; return how many seconds the next turn may wait."""
        # Before all that may fail: what is told and not heard would let the next turn not wait.
        self._collect()
        try:
            self._mind_lease(self._instance.beat())
            if self._record_and_claim():
                return 0.0
            self._look_after_running()
            if self._is_due("upkeep", _UPKEEP_SECONDS):
                self._keep_up()
            if self._clean():
                return 0.0
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
                self._dispatch.cancel(attempt, "the lease of its worker was lost")
                _log.error("lease was lost, so the attempt should stop", extra=attempt.fields)

    def _is_due(self, what: str, seconds: float) -> bool:
        """Whether something that is done every so often is to be done now."""
        now = time.monotonic()
        if now - self._done.get(what, float("-inf")) < seconds:
            return False
        self._done[what] = now
        return True

    def _keep_up(self) -> None:
        """Find the dead, expired approvals and effects that are due to be looked at."""
        clock.correct_schedules(self._journal)
        self._recover()
        loaded = self._actions
        expired = outcomes.expire_approvals(self._journal, loaded, self._rules)
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
        if self._free() <= 0:
            return _POLL_SECONDS
        if self._dispatch.is_deaf:
            return _LOOK_SECONDS
        seconds = due.seconds_until_due(self._journal, self._actions)
        if seconds is None:
            return _POLL_SECONDS
        # What is due and was not claimed waits for something else: no reason to turn faster.
        wait = seconds if seconds > 0 else _POLL_SECONDS
        deadlines = [
            max(one.seconds_left(), _LOOK_SECONDS)
            for one in self._running.values()
            if not one.is_timed_out
        ]
        return min(wait, _POLL_SECONDS, *deadlines)

    def _startable(self) -> list[str]:
        """Return the actions whose runs could begin now."""
        return [] if self._dispatch.is_deaf else self._actions

    def _free(self) -> int:
        if any(one.run.runs_alone for one in self._running.values()):
            return 0
        under_way = sum(not one.is_timed_out for one in self._running.values())
        return self._settings.worker_threads - under_way

    def _look_after_running(self) -> None:
        """Note what is past its deadline, and pass on what a person wants stopped."""
        if not self._running or not self._is_due("look", _LOOK_SECONDS):
            return
        wanted = claims.cancel_requests(self._journal, self._instance.id)
        for attempt in self._running.values():
            if attempt.run.id in wanted:
                self._dispatch.cancel(attempt, wanted[attempt.run.id])
            if not attempt.is_timed_out and self._dispatch.is_overdue(attempt):
                claims.mark_timed_out(self._journal, attempt.run.id, attempt.run.attempt)
                attempt.is_timed_out = True  # Only now: what the journal missed is said again.
                _log.error("attempt is past its deadline", extra=attempt.fields)
                self._counts.abandoned(attempt.run.action)
        self._dispatch.end_if_deaf()

    def _clean(self) -> bool:
        """Delete a batch of what is old, once a minute; return whether there may be more."""
        if not self._is_due("cleaning", _CLEAN_SECONDS):
            return False
        deleted = retention.delete_old(self._journal, self._settings.retention)
        if deleted:
            _log.info("old rows deleted", extra={"rows": deleted})
            del self._done["cleaning"]  # There may be more.
        return bool(deleted)

    def _record_and_claim(self) -> bool:
        """Record what ended and claim what is due, in one transaction: one sync for both.

        Return whether another look may find more at once. What the journal cannot take is kept.
        """
        startable = self._startable()
        free = 0 if self._stopping else self._free()
        if not self._unrecorded and not (free > 0 and startable and self._may_claim(startable)):
            return False
        with self._journal.writing() as connection:
            self._mind_lease(self._instance.beat_in(connection))
            recorded = outcomes.record_in(
                self._journal, connection, self._instance.id, _ended(self._unrecorded),
                self._rules, self._jitter,
            )  # fmt: skip
            found = claims.claim_in(
                self._journal, connection, self._instance.id, startable, free, self._rules,
                under_way=len(self._running),
            )  # fmt: skip
        self._note(recorded)
        # Before anything else that may fail: what is claimed is this process's to attempt.
        attempts = [Attempt(run, self._rules.policy(run.action)) for run in found.claimed]
        self._running |= {one.key: one for one in attempts}
        self._dispatch.start(attempts)
        for run in found.claimed:
            self._counts.started(run)
        self._note_moved(dict(found.moved))
        # What was not claimed now waits for a slot, a target or a commit: each wakes the loop.
        return found.is_more

    def _note_moved(self, moved: dict[int, Verdict]) -> None:
        for run_id, held in reading.briefs_of(self._journal, moved).items():
            verdict = moved[run_id]
            said = {"guardrail": verdict.guardrail, "reason": verdict.reason}
            _log.warning("run held back", extra={**fields_of_row(held), **said})
            self._counts.held_back(held["action"], verdict.guardrail, verdict.kind)
            if verdict.kind == "skip":
                self._counts.run_ended(held["action"], "skipped")

    def _may_claim(self, startable: Sequence[str]) -> bool:
        """Whether anything is due: asked before the write lock is taken."""
        seconds = due.seconds_until_due(self._journal, startable)
        return seconds is not None and seconds <= 0

    def _record(self, returned: Sequence[Returned]) -> None:
        """Record how attempts ended, and claim nothing."""
        if returned:
            self._note(self._write(_ended(returned)))

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
                        **one.attempt.fields, "error": describe_error(error)})  # fmt: skip
                    said = f"what it said cannot be stored: {describe_error(error)}"
                    with suppress(JournalDataError):
                        self._record([replace(one, end=replace(one.end, error=said, result=None))])

    def _collect(self) -> None:
        for one in self._dispatch.returned():
            self._running.pop(one.attempt.key, None)
            self._unrecorded.append(one)
        self._stopping |= self._dispatch.is_lost

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
            error = "the claim was not confirmed"
            end = AttemptEnd(AttemptOutcome.INTERRUPTED, error, has_begun=False)
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
        """Let running attempts finish within the grace period, but for those given up before.

        What does not finish stays this process's: its death, which the next worker proves, makes
        it an interruption.
        """
        end = time.monotonic() + self._settings.grace_period.total_seconds()
        given_up = {key for key, one in self._running.items() if one.is_timed_out}
        _log.info("worker drains", extra={"running": len(self._running)})
        while time.monotonic() < end:
            self._collect()
            try:
                self._mind_lease(self._instance.beat())
                self._record(self._unrecorded)
                self._look_after_running()
                self._give_back()
            except JournalError as error:
                self._note_failure(error)
            if not self._unrecorded and self._running.keys() <= given_up:
                break
            self.ears.wait(min(0.2, max(0.0, end - time.monotonic())), *self._dispatch.waiting())
        for attempt in self._running.values():
            self._dispatch.cancel(attempt, "the worker stops")
            _log.warning("attempt did not return before the worker stopped", extra=attempt.fields)
        if not self._running and not self._unrecorded:
            try:
                self._instance.close()
            except JournalError as error:
                self._note_failure(error)
        self._journal.close()
        _log.info("worker stopped", extra={"pid": os.getpid()})


def _ended(returned: Sequence[Returned]) -> list[Ended]:
    return [Ended(*one.attempt.key, one.end) for one in returned]
