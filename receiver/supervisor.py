"""`receiver serve`: web and worker as child processes, with restarts, signals and one exit.

They are forked, not started anew: what their programs are made of is in memory once for all.
"""

import gc
import logging
import multiprocessing
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.process import BaseProcess
from types import FrameType

from receiver.processes import ends_within, follow_parent, show_as

# The exit status of a child that cannot start as it is set up; gunicorn's own for a failed boot.
CANNOT_START = 3
# A child that lived this long had started well: its next end is a new story.
_STEADY_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 10.0
_DEATHS = 10
# What a child may take longer than the grace period to end by itself.
_MARGIN_SECONDS = 5.0
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_FORK = multiprocessing.get_context("fork")
_log = logging.getLogger(__name__)


@dataclass
class _Child:
    role: str
    program: Callable[[], None]
    process: BaseProcess | None = None
    started: float = 0.0
    deaths: int = 0
    start_at: float = field(default_factory=time.monotonic)

    @property
    def is_running(self) -> bool:
        """Whether it has a process that has not ended."""
        return self.process is not None and self.process.exitcode is None


class Supervisor:
    """Keeps its children running; ends when told to, or when one keeps dying."""

    def __init__(
        self,
        programs: Mapping[str, Callable[[], None]],
        grace: timedelta,
        first: Callable[[], None],
    ) -> None:
        """`programs` maps a child's role to what it does all its life.

        `first` is done before, once, by a child that takes with it what only that needs. Whether
        it succeeds is no matter here. Signals are heeded from now on.
        """
        self._first = _Child("start", first)
        self._children = [_Child(role, program) for role, program in programs.items()]
        self._grace = grace.total_seconds()
        self._told_to_stop = False
        self._awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, _nothing)  # Handled, so that it wakes the wait below.

    def run(self, prepare: Callable[[], None]) -> int:
        """Supervise until the end; return the exit code.

        `prepare` is called here, beside `first`: what it imports, the children share.
        """
        code = 0
        try:
            if not self._told_to_stop:
                self._start(self._first)
                prepare()
                gc.freeze()  # What is never looked at again stays shared.
            while self._first.is_running and not self._told_to_stop:
                self._wait(_LONGEST_PAUSE_SECONDS)
            while not self._told_to_stop and not code:
                code = self._look_after_children()
                if not code:
                    self._wait(self._seconds_until_due())
        finally:
            self._end_children()
        return code

    def _wait(self, seconds: float) -> None:
        """Wait for a signal, at most so long."""
        if not self._told_to_stop:
            select.select([self._awake], [], [], seconds)
            with suppress(BlockingIOError):
                os.read(self._awake, 4096)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self._told_to_stop = True

    def _seconds_until_due(self) -> float:
        due = [child.start_at for child in self._children if child.process is None]
        return max(0.0, min(due) - time.monotonic()) if due else 60.0

    def _look_after_children(self) -> int:
        """Start what is due and note what died; return an exit code when it is the end."""
        now = time.monotonic()
        for child in self._children:
            if child.process is None and child.start_at <= now:
                self._start(child)
            if not child.is_running and child.start_at <= now:
                status = child.process.exitcode if child.process is not None else None
                child.process = None
                child.deaths = 1 if now - child.started > _STEADY_SECONDS else child.deaths + 1
                seen = {"role": child.role, "status": status, "times": child.deaths}
                if status == CANNOT_START:
                    _log.critical("child cannot start, so the receiver ends", extra=seen)
                    return 1
                if child.deaths >= _DEATHS:
                    _log.critical("child keeps ending, so the receiver ends", extra=seen)
                    return 1
                pause = min(0.1 * 2 ** (child.deaths - 1), _LONGEST_PAUSE_SECONDS)
                child.start_at = now + pause
                seen["pause_seconds"] = pause
                _log.error("child ended, it is started again", extra=seen)
        return 0

    def _start(self, child: _Child) -> None:
        """Start a child; without a process, when the machine has none to give."""
        process = _FORK.Process(target=_live, args=(child.role, child.program, os.getpid()))
        child.started = time.monotonic()
        # A child that is told to stop at once does so, when it has its own way to take signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            process.start()
            child.process = process
        except OSError as error:
            _log.error("child cannot be made", extra={"role": child.role, "error": str(error)})
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    def _end_children(self) -> None:
        """Tell the children to stop; kill what does not end in time."""
        children = [self._first, *self._children]
        running = [child.process for child in children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._grace + _MARGIN_SECONDS
        for process in running:
            if not ends_within(process, deadline - time.monotonic()):
                _log.error("child did not end in time and is killed", extra={"pid": process.pid})
                process.kill()
                process.join()


def _live(role: str, program: Callable[[], None], supervisor: int) -> None:
    """A child's whole life."""
    # Ctrl-C reaches the supervisor alone, which stops the children in good order.
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    follow_parent(supervisor)
    show_as(role)
    program()


def _nothing(signum: int, frame: FrameType | None) -> None:
    del signum, frame
