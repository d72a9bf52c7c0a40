"""Deletes old rows and ends endless waits, in a thread of the worker beside the one that claims.

The thread has its own connection. Its transactions are short, and it rests after each step for
several times as long as the step took. So claims and notifications wait for it a few milliseconds
at most.
"""

import logging
import threading
import time
from collections.abc import Collection
from datetime import datetime, timedelta

from receiver.errors import JournalError
from receiver.journal import reading
from receiver.journal.journal import Journal
from receiver.journal.retention import Retention, RetentionWalk
from receiver.journal.waits import EndedWait, end_waits
from receiver.metrics.counts import WorkerCounts
from receiver.policies import Rules
from receiver.settings import Settings
from receiver.worker.execution import describe_error
from receiver.worker.running import fields_of_row

# The part of the time in which the thread works is 1 / (1 + this).
_RESTS = 4
_SHORTEST_REST_SECONDS = 0.02
_WAITS_SECONDS = 2.0
_PASS_SECONDS = 60.0
# What stayed is examined again so seldom: most of it stays.
_REWIND_SECONDS = 3600.0
_PATIENCE_SECONDS = 60.0
# A clock that jumps by more may be wrong. Nothing is deleted until it has been steady for so long.
_JUMP, _STEADY_SECONDS = timedelta(minutes=1), 3600.0
_STOP_SECONDS = 5.0
_log = logging.getLogger(__name__)


class SteadyClock:
    """Watches the clock of the journal: it must not run ahead of this process's own."""

    def __init__(self) -> None:
        """Trust the first look."""
        self._seen: tuple[datetime, float] | None = None
        self._jumped_at = float("-inf")

    def is_steady(self, now: datetime, monotonic: float) -> bool:
        """Whether the clock has not jumped ahead for long."""
        if self._seen is not None:
            expected = self._seen[0] + timedelta(seconds=monotonic - self._seen[1])
            if now - expected > _JUMP:
                self._jumped_at = monotonic
        self._seen = now, monotonic
        return monotonic - self._jumped_at > _STEADY_SECONDS


class Cleaning:
    """The thread; `start` it once, and `stop` it before the journal is closed."""

    def __init__(
        self,
        journal: Journal,
        actions: Collection[str],
        rules: Rules,
        settings: Settings,
        counts: WorkerCounts,
    ) -> None:
        """Do nothing yet."""
        self._journal = journal
        self._actions = frozenset(actions)
        self._rules = rules
        self._counts = counts
        self._walk = RetentionWalk(journal, retention_of(settings))
        self._clock = SteadyClock()
        self._was_steady = True
        self._due = {"waits": 0.0, "pass": 0.0, "rewind": 0.0}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cleaning", daemon=True)

    def start(self) -> None:
        """Begin; at once with a first pass."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                rest = self._turn()
            except JournalError as error:
                # The claiming thread reports it too, and more often.
                _log.error("journal fails the cleaning", extra={"error": describe_error(error)})
                rest = _PATIENCE_SECONDS
            self._stopping.wait(rest)

    def _turn(self) -> float:
        """Do what is due; return how many seconds to rest."""
        began = time.monotonic()
        if not self._may_clean(began):
            return _PATIENCE_SECONDS
        if began >= self._due["waits"]:
            self._end_waits()
            self._due["waits"] = _later(began, _WAITS_SECONDS)
        if began >= self._due["rewind"]:
            self._walk.rewind()
            self._due["rewind"] = _later(began, _REWIND_SECONDS)
        if began >= self._due["pass"]:
            deleted, is_over = self._walk.step()
            if deleted:
                _log.info("old rows deleted", extra={"rows": deleted})
            if is_over:
                self._due["pass"] = time.monotonic() + _PASS_SECONDS
            return max(_SHORTEST_REST_SECONDS, _RESTS * (time.monotonic() - began))
        return max(_SHORTEST_REST_SECONDS, min(self._due.values()) - time.monotonic())

    def _may_clean(self, monotonic: float) -> bool:
        with self._journal.reading() as connection:
            is_steady = self._clock.is_steady(self._journal.now(connection), monotonic)
        if self._was_steady and not is_steady:
            _log.warning("clock has jumped ahead, so nothing is deleted for an hour")
        self._was_steady = is_steady
        return is_steady

    def _end_waits(self) -> None:
        began = time.monotonic()
        for ended in end_waits(self._journal, self._actions, self._rules):
            self._note(ended)
            self._stopping.wait(_RESTS * (time.monotonic() - began))
            if self._stopping.is_set():
                return
            began = time.monotonic()

    def _note(self, ended: list[EndedWait]) -> None:
        verdicts = {one.run_id: one.verdict for one in ended}
        for run_id, run in reading.briefs_of(self._journal, verdicts).items():
            verdict = verdicts[run_id]
            said = {"guardrail": verdict.guardrail, "reason": verdict.reason}
            _log.warning("run held back", extra={**fields_of_row(run), **said})
            if run["action"] in self._actions:  # Only what is loaded is counted.
                self._counts.held_back(run["action"], verdict.guardrail, verdict.kind)
                self._counts.run_ended(run["action"], "skipped")


def retention_of(settings: Settings) -> Retention:
    """Return how long rows are kept."""
    audit = settings.audit_retention or settings.retention
    return Retention(settings.retention, settings.episode_retention, audit)


def _later(began: float, seconds: float) -> float:
    """Return when to do something again: not so soon that it takes a large part of the time."""
    now = time.monotonic()
    return now + max(seconds, 2 * _RESTS * (now - began))
