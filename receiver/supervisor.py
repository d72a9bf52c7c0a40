"""`receiver serve`: web and worker as child processes, with restarts, signals and one exit.

The children are forked, so that they share the memory of the modules that they all import. The
supervisor is a subreaper: every process whose parent dies becomes its child, and is reaped here.
It logs what they print, see `captured_output`. Its own output leads where it did, so that it never
waits for itself.
"""

import gc
import logging
import multiprocessing
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.process import BaseProcess
from types import FrameType

from receiver import logs
from receiver.captured_output import PrintedOutput
from receiver.processes import (
    AT_ONCE_SIGNALS,
    DRAIN_SIGNALS,
    IGNORED_SIGNALS,
    RestartPauses,
    SharedFlag,
    become_subreaper,
    end_descendants,
    ending,
    follow_parent,
    ignore_operator_signals,
    reap_adopted,
    show_as,
)

# The exit status of a child that cannot start as configured; gunicorn's own for a failed boot.
CANNOT_START = 3
# What a child may take longer than the grace period to end by itself.
_MARGIN_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 60.0
_HANDLED = (*DRAIN_SIGNALS, *IGNORED_SIGNALS, signal.SIGCHLD)
_FORK = multiprocessing.get_context("fork")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """What a child executes.

    `run` gets a flag, and sets it once the program has started well. `is_cleared` says that
    everything that the program left running is killed before it is started again.
    """

    role: str
    run: Callable[[SharedFlag], None]
    is_cleared: bool = False


@dataclass
class _Child:
    program: Program
    pauses: RestartPauses
    process: BaseProcess | None = None
    starts: int = 0
    started_at: float = 0.0
    start_at: float = field(default_factory=time.monotonic)
    has_started: SharedFlag = field(default_factory=SharedFlag)

    @property
    def is_running(self) -> bool:
        """Whether it has a process that has not ended."""
        return self.process is not None and self.process.exitcode is None


class Supervisor:
    """Keeps its children running until a signal stops it.

    `on_restart` is called with the role of each child that is started again. `on_stop` is called
    once, before the children are told to stop.
    """

    on_restart: Callable[[str], None] | None = None
    on_stop: Callable[[], None] | None = None

    def __init__(
        self,
        programs: Sequence[Program],
        grace: timedelta,
        first: Callable[[], None],
        longest_pause: timedelta = timedelta(seconds=30),
    ) -> None:
        """Handle signals from now on.

        `first` is called once, in a child of its own, before the programs start. Its result does
        not matter here.
        """
        self._longest_pause = longest_pause.total_seconds()
        self._first = self._child(Program("start", lambda _: first()))
        self._children = [self._child(program) for program in programs]
        self._grace = grace.total_seconds()
        self._is_stopping = False
        self._stops_at_once = False
        self._printed = PrintedOutput()
        self._awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        ignore_operator_signals(has_terminal=True)
        for number in DRAIN_SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, _nothing)  # Handled, so that it ends the wait below.

    def _child(self, program: Program) -> _Child:
        return _Child(program, RestartPauses(self._longest_pause))

    def run(self, prepare: Callable[[], None]) -> int:
        """Supervise until the end; return the exit code.

        `prepare` is called here, while `first` runs: the children share what it imports.
        """
        code = 0
        become_subreaper()
        try:
            if not self._is_stopping:
                self._start(self._first)
                prepare()
                gc.freeze()  # Objects that are never looked at again stay shared.
            while self._first.is_running and not self._is_stopping:
                self._wait(_LONGEST_WAIT_SECONDS)
            while not self._is_stopping and not code:
                code = self._reap_and_restart()
                if not code and not self._is_stopping:
                    self._wait(self._seconds_until_due())
        finally:
            code = self._end_children() or code
            self._printed.log_rest()
        return code

    def _wait(self, seconds: float) -> None:
        """Wait for a signal or for output, at most so long; then log, and reap what was adopted."""
        seconds = max(0.0, min(seconds, self._printed.pause_seconds()))
        select.select([self._awake, *self._printed.descriptors()], [], [], seconds)
        self._printed.log_lines()
        with suppress(BlockingIOError):
            for number in set(os.read(self._awake, 4096)).intersection(IGNORED_SIGNALS):
                name = signal.Signals(number).name
                hint = "restart the receiver to change its settings"
                _log.warning("signal ignored", extra={"signal": name, "hint": hint})
        reap_adopted(self._own_pids())

    def _own_pids(self) -> list[int]:
        return [
            child.process.pid
            for child in (self._first, *self._children)
            if child.process is not None and child.process.pid is not None
        ]

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if self._is_stopping and signum in AT_ONCE_SIGNALS:
            self._stops_at_once = True
        self._is_stopping = True

    def _seconds_until_due(self) -> float:
        due = [child.start_at for child in self._children if child.process is None]
        return min(due) - time.monotonic() if due else _LONGEST_WAIT_SECONDS

    def _reap_and_restart(self) -> int:
        """Start the children that are due, and note those that ended; return 1 to end all."""
        for child in self._children:
            now = time.monotonic()
            if child.process is None and child.start_at <= now:
                self._start(child)
            if not child.is_running and child.start_at <= now and self._note_end(child):
                return 1
        return 0

    def _note_end(self, child: _Child) -> bool:
        """Plan the next start of a child that ended; return whether that ends the receiver."""
        status = child.process.exitcode if child.process is not None else None
        role = child.program.role
        was_made, child.process = child.process is not None, None
        if child.program.is_cleared and was_made:
            self._clear(role)
        if status == CANNOT_START and child.starts == 1 and not child.has_started.is_set:
            fields = {"role": role, "status": status}
            _log.critical("process cannot start, so the receiver ends", extra=fields)
            return True
        pause = child.pauses.after(time.monotonic() - child.started_at)
        child.start_at = time.monotonic() + pause
        if was_made:
            _log.error(
                "process ended and is started again",
                extra={
                    "role": role,
                    "status": status,
                    "reason": "cannot start" if status == CANNOT_START else ending(status),
                    "times": child.pauses.ends,
                    "pause_seconds": pause,
                },
            )
        return False

    def _clear(self, role: str) -> None:
        """Kill everything that a program left running."""
        left = end_descendants([pid for pid in self._own_pids() if pid is not None])
        if left:
            fields = {"role": role, "pids": sorted(left)}
            _log.error("processes that were left running cannot be killed", extra=fields)

    def _start(self, child: _Child) -> None:
        """Start a child; without a process, when the machine cannot fork now."""
        process = _FORK.Process(target=_live, args=(child, os.getpid(), self._printed))
        child.started_at = time.monotonic()
        # A signal that arrives now waits until the child has its own handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            process.start()
            child.process = process
            child.starts += 1
        except OSError as error:
            fields = {"role": child.program.role, "error": str(error)}
            _log.error("process cannot be made, and is tried again", extra=fields)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        if child.starts > 1 and child.process is not None and self.on_restart is not None:
            self.on_restart(child.program.role)

    def _end_children(self) -> int:
        """Tell the children to stop; kill those that do not end in time, and all below them.

        Returns 1 when a second signal has cut the drain off.
        """
        self._is_stopping = True
        if self.on_stop is not None:
            self.on_stop()
        running = [one for one in (self._first, *self._children) if one.is_running]
        for child in running:
            assert child.process is not None
            child.process.terminate()
        deadline = time.monotonic() + self._grace + _MARGIN_SECONDS
        while any(child.is_running for child in running) and not self._stops_at_once:
            if time.monotonic() > deadline:
                roles = [child.program.role for child in running if child.is_running]
                _log.error("processes did not end in time and are killed", extra={"roles": roles})
                break
            self._wait(deadline - time.monotonic())
        if self._stops_at_once:
            _log.error("a second signal ends the receiver at once")
        for child in running:
            if child.process is not None and child.is_running:
                child.process.kill()
                child.process.join()
        self._first.process = None
        for child in self._children:
            child.process = None
        self._clear("all")
        return 1 if self._stops_at_once else 0


def _live(child: _Child, supervisor: int, printed: PrintedOutput) -> None:
    """Execute the program of a child."""
    printed.redirect()
    # Ctrl-C reaches the supervisor alone, which stops the children in good order.
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (*DRAIN_SIGNALS, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    ignore_operator_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    follow_parent(supervisor)
    show_as(child.program.role)
    with logs.logged_end():
        child.program.run(child.has_started)


def _nothing(signum: int, frame: FrameType | None) -> None:
    del signum, frame
