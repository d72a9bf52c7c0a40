"""What is written past the logs becomes lines of the log.

Plugins print while they are loaded, libraries print warnings, and a native library that fails
writes its last words to standard error. So descriptors 1 and 2 of all processes of a receiver lead
to one small process, which logs what arrives. It is a process and not a thread, because the
processes that it serves fork, and because it outlives their crashes.
"""

import faulthandler
import gc
import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from receiver import logs
from receiver.processes import DRAIN_SIGNALS, IGNORED_SIGNALS, ignore_signals, show_as

_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2
_CHUNK_BYTES = 64 * 1024
# Half a line is logged after so long without the rest.
_PAUSE_SECONDS = 1.0
_END_SECONDS = 2.0
_LOOK_SECONDS = 0.01

_log = logging.getLogger("receiver.output")

# The process that captures, what descriptors 1 and 2 were before, and the process that logs.
_capture: tuple[int, tuple[int, int], int] | None = None


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
    before = (os.dup(_STANDARD_OUTPUT), os.dup(_STANDARD_ERROR))
    outputs, output = os.pipe2(os.O_CLOEXEC)
    errors, error = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError as fault:
        _log.warning("printed output is not logged", extra={"error": str(fault)})
        for descriptor in (outputs, output, errors, error, *before):
            os.close(descriptor)
        return
    if pid == 0:
        for descriptor in (output, error, *before):
            os.close(descriptor)
        _become_logger({outputs: "stdout", errors: "stderr"})
    _capture = os.getpid(), before, pid
    _flush()
    os.dup2(output, _STANDARD_OUTPUT)
    os.dup2(error, _STANDARD_ERROR)
    for descriptor in (outputs, errors, output, error):
        os.close(descriptor)
    open_streams()


def open_streams() -> None:
    """Let `print`, and the last words of a crash, go to where descriptors 1 and 2 lead now.

    By lines, because a child must not inherit the first half of one, and print it again.
    """
    for name, number in (("stdout", _STANDARD_OUTPUT), ("stderr", _STANDARD_ERROR)):
        stream = os.fdopen(
            number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
        )
        setattr(sys, name, stream)
    faulthandler.enable(_STANDARD_ERROR, all_threads=False)


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
    for descriptor, number in zip(before, (_STANDARD_OUTPUT, _STANDARD_ERROR), strict=True):
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


def _become_logger(sources: dict[int, str]) -> NoReturn:
    """Log lines until no process can print any more; `sources` are descriptors with their names."""
    try:
        os.setsid()
        ignore_signals(*IGNORED_SIGNALS, *DRAIN_SIGNALS)
        show_as("output")
        gc.disable()  # A collection writes into memory that is shared.
        _use_nothing()
        with logs.logged_end():
            _log_lines(sources)
    finally:
        os._exit(0)


def _log_lines(sources: dict[int, str]) -> None:
    parts = dict.fromkeys(sources, b"")
    while parts:
        pause = _PAUSE_SECONDS if any(parts.values()) else None
        ready, _, _ = select.select(list(parts), [], [], pause)
        for source in ready or list(parts):
            text = os.read(source, _CHUNK_BYTES) if ready else b""
            *lines, rest = (parts[source] + text).split(b"\n")
            if not text or len(rest) >= _CHUNK_BYTES:
                lines, rest = [*lines, rest], b""
            parts[source] = rest
            _log_printed(sources[source], lines)
            if ready and not text:
                del parts[source]


def _log_printed(stream: str, lines: list[bytes]) -> None:
    """Log lines; those of standard error are a warning, because nothing of ours writes there."""
    level = logging.INFO if stream == "stdout" else logging.WARNING
    for line in lines:
        if line.strip():
            fields = {"stream": stream, "text": line.decode(errors="replace")}
            _log.log(level, "process printed", extra=fields)


def _use_nothing() -> None:
    """Let the standard descriptors lead nowhere: logs have their own."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, _STANDARD_OUTPUT, _STANDARD_ERROR):
        os.dup2(nothing, number)
    os.close(nothing)
