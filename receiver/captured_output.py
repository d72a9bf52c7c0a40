"""What is written past the logs becomes lines of the log.

Plugins print while they are loaded, libraries print warnings, and a native library that fails
writes its last words to standard error. So descriptors 1 and 2 of the processes of a receiver lead
to another process, which outlives their crashes and logs what arrives. Under `receiver serve` that
is the supervisor. A `receiver web` or `receiver worker` starts a small process for it. A thread
would not do, because these processes fork.
"""

import faulthandler
import gc
import logging
import math
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from receiver import logs
from receiver.processes import DRAIN_SIGNALS, IGNORED_SIGNALS, ignore_signals, show_as

_STANDARD = {"stdout": 1, "stderr": 2}
_CHUNK_BYTES = 64 * 1024
# Half a line is logged after so long without the rest.
_PAUSE_SECONDS = 1.0
_END_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.01

_log = logging.getLogger("receiver.output")

# The process that captures, what descriptors 1 and 2 were before, and the process that logs.
_capture: tuple[int, dict[int, int], int] | None = None


class PipeLines:
    """What arrives in a pipe, by lines; `descriptor` is None once nothing more can arrive."""

    def __init__(self, descriptor: int) -> None:
        """Take over the end that is read."""
        os.set_blocking(descriptor, False)
        self.descriptor: int | None = descriptor
        self._part = b""
        self._read_at = 0.0

    def lines(self, *, is_end: bool) -> Iterator[str]:
        """Yield what has arrived, as far as one read returns it.

        `is_end`: half a line ends here too.
        """
        if self.descriptor is None:
            return
        try:
            text = os.read(self.descriptor, _CHUNK_BYTES)
            is_over = not text
            self._read_at = time.monotonic()
        except BlockingIOError:
            text, is_over = b"", False
        *whole, self._part = (self._part + text).split(b"\n")
        if is_end or is_over or len(self._part) >= _CHUNK_BYTES:
            whole, self._part = [*whole, self._part], b""
        if is_over:
            self.close()
        for line in whole:
            if line.strip():
                yield line.decode(errors="replace")

    def pause_seconds(self) -> float:
        """Return the time until half a line has waited long enough for the rest."""
        left = self._read_at + _PAUSE_SECONDS - time.monotonic()
        return max(0.0, left) if self._part else math.inf

    def close(self) -> None:
        """Read no more."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class PrintedOutput:
    """Pipes for what other processes print; this process logs what arrives, and never waits."""

    def __init__(self) -> None:
        """Make the pipes; forks inherit them, programs do not."""
        self._pipes: dict[str, PipeLines] = {}
        self._ends: dict[int, int] = {}
        for name, number in _STANDARD.items():
            output, self._ends[number] = os.pipe2(os.O_CLOEXEC)
            self._pipes[name] = PipeLines(output)

    def redirect(self) -> None:
        """Let descriptors 1 and 2 of this process lead to the process that logs."""
        _flush()
        for number, end in self._ends.items():
            os.dup2(end, number)
        self.close()
        open_streams()

    def descriptors(self) -> list[int]:
        """Return what can be read when something was printed."""
        return [one.descriptor for one in self._pipes.values() if one.descriptor is not None]

    def pause_seconds(self) -> float:
        """Return the time after which `log_lines` has something to log although nothing arrives."""
        return min(one.pause_seconds() for one in self._pipes.values())

    def log_lines(self, *, is_end: bool = False) -> None:
        """Log what has arrived; lines of standard error are a warning, as we write none there."""
        for name, pipe in self._pipes.items():
            level = logging.INFO if name == "stdout" else logging.WARNING
            for line in pipe.lines(is_end=is_end or not pipe.pause_seconds()):
                _log.log(level, "process printed", extra={"stream": name, "text": line})

    def log_rest(self, seconds: float = _END_SECONDS) -> None:
        """Log until no process can print any more, at most so long."""
        self._close_ends()
        deadline = time.monotonic() + seconds
        while (descriptors := self.descriptors()) and time.monotonic() < deadline:
            wait = min(deadline - time.monotonic(), self.pause_seconds(), _LONGEST_WAIT_SECONDS)
            select.select(descriptors, [], [], max(0.0, wait))
            self.log_lines()
        self.log_lines(is_end=True)

    def close(self) -> None:
        """Close the pipes in this process."""
        self._close_ends()
        for pipe in self._pipes.values():
            pipe.close()

    def _close_ends(self) -> None:
        while self._ends:
            os.close(self._ends.popitem()[1])


@contextmanager
def captured_output() -> Iterator[None]:
    """Log what this process and those that it starts print meanwhile.

    To be entered before there are threads. In a child that leaves the block nothing happens.
    """
    _begin()
    try:
        yield
    finally:
        release_output()


def _begin() -> None:
    """Start the process that logs, and let descriptors 1 and 2 lead to it."""
    global _capture
    before = {number: os.dup(number) for number in _STANDARD.values()}
    printed = PrintedOutput()
    try:
        pid = os.fork()
    except OSError as fault:
        _log.warning("printed output is not logged", extra={"error": str(fault)})
        printed.close()
        for descriptor in before.values():
            os.close(descriptor)
        return
    if pid == 0:
        for descriptor in before.values():
            os.close(descriptor)
        _become_logger(printed)
    _capture = os.getpid(), before, pid
    printed.redirect()


def open_streams() -> None:
    """Let `print`, and the last words of a crash, go to where descriptors 1 and 2 lead now.

    By lines, because a child must not inherit the first half of one, and print it again.
    """
    for name, number in _STANDARD.items():
        stream = os.fdopen(
            number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
        )
        setattr(sys, name, stream)
    faulthandler.enable(_STANDARD["stderr"], all_threads=False)


def release_output() -> None:
    """Give descriptors 1 and 2 back, and wait until everything is logged that was printed.

    It waits no longer than two seconds for processes that still can print.
    """
    global _capture
    if _capture is None or _capture[0] != os.getpid():
        return
    _, before, pid = _capture
    _capture = None
    _flush()
    for number, descriptor in before.items():
        os.dup2(descriptor, number)
        os.close(descriptor)
    deadline = time.monotonic() + _END_SECONDS
    with suppress(ChildProcessError):  # The supervisor has reaped it.
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def _become_logger(printed: PrintedOutput) -> NoReturn:
    """Log lines until no process can print any more."""
    try:
        os.setsid()
        ignore_signals(*IGNORED_SIGNALS, *DRAIN_SIGNALS)
        show_as("output")
        gc.disable()  # A collection writes into memory that is shared.
        _use_nothing()
        with logs.logged_end():
            printed.log_rest(math.inf)
    finally:
        os._exit(0)


def _use_nothing() -> None:
    """Let the standard descriptors lead nowhere: logs have their own."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, *_STANDARD.values()):
        os.dup2(nothing, number)
    os.close(nothing)
