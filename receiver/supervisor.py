"""`receiver serve`: web and worker as child processes, with restarts, signals and one exit."""

import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType

from receiver.processes import SUPERVISOR

# The exit status of a child that cannot start as it is set up; gunicorn's own for a failed boot.
CANNOT_START = 3
# A child that lived this long had started well: its next end is a new story.
_STEADY_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 10.0
_DEATHS = 10
# What a child may take longer than the grace period to end by itself.
_MARGIN_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass
class _Child:
    role: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    start_at: float = field(default_factory=time.monotonic)


class Supervisor:
    """Keeps its children running; ends when told to, or when one keeps dying."""

    def __init__(self, commands: Mapping[str, Sequence[str]], grace: timedelta) -> None:
        """`commands` maps a child's role to its command line."""
        self._children = [_Child(role, command) for role, command in commands.items()]
        self._grace = grace.total_seconds()
        self._told_to_stop = False

    def run(self) -> int:
        """Supervise until the end; return the exit code."""
        awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, _nothing)  # Handled, so that it wakes the wait below.
        code = 0
        while not self._told_to_stop and not code:
            code = self._look_after_children()
            if not code and not self._told_to_stop:
                select.select([awake], [], [], self._seconds_until_due())
                with suppress(BlockingIOError):
                    os.read(awake, 4096)
        self._end_children()
        return code

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
            if child.process is not None and (status := child.process.poll()) is not None:
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
            if child.process is None and child.start_at <= now:
                self._start(child)
        return 0

    def _start(self, child: _Child) -> None:
        child.process = subprocess.Popen(  # noqa: S603 - this program itself
            child.command,
            env={**os.environ, SUPERVISOR: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            # Ctrl-C reaches the supervisor alone, which stops the children in good order.
            start_new_session=True,
        )
        child.started = time.monotonic()

    def _end_children(self) -> None:
        """Tell the children to stop; kill what does not end in time."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace + _MARGIN_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("child did not end in time and is killed", extra={"pid": process.pid})
                process.kill()
                process.wait()


def _nothing(signum: int, frame: FrameType | None) -> None:
    del signum, frame
