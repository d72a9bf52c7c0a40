"""One scrape sees all processes: each counts in memory-mapped files that the web process adds up.

This is prometheus_client's multiprocess mode, with one set of files for each role rather than for
each process id: a worker that is replaced counts on where its predecessor ended.
"""

import fcntl
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector

from receiver.data_directory import open_regular_file
from receiver.metrics import SHARED_DIRECTORY

_PREFIX = "alert-receiver-metrics-"
_RESERVED_BYTES = 256 * 1024
_MEMORY = Path("/dev/shm")  # noqa: S108 - counting must never wait for a disk

_log = logging.getLogger(__name__)

# Another user may have made a FIFO or a link of this name; opening it neither waits nor follows.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# A lock ends with the process that holds it, or with its file.
_slots: list[TextIO] = []


@contextmanager
def shared_directory() -> Iterator[None]:
    """Let the processes that are started meanwhile share their counts, unless they already do."""
    if os.environ.get(SHARED_DIRECTORY):
        yield
        return
    try:
        parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        _remove_left_behind(parent)
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
        held = os.open(made, _DIRECTORY)
    except OSError as error:
        _log.warning("metrics of the worker are not shared", extra={"error": str(error)})
        yield
        return
    # It has its name only once it is locked: another receiver that starts would remove it.
    fcntl.flock(held, fcntl.LOCK_EX)
    directory = made.rename(parent / made.name.removeprefix("."))
    os.environ[SHARED_DIRECTORY] = str(directory)
    try:
        yield
    finally:
        os.environ.pop(SHARED_DIRECTORY, None)
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)


def _remove_left_behind(parent: Path) -> None:
    """Remove the directories of receivers that were killed: nobody holds their lock.

    Every user can make files there. So a FIFO, a link, a file or a directory of another user is
    left alone.
    """
    for left in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # It is no directory, or another receiver removes it.
            held = os.open(left, _DIRECTORY)
            try:
                if os.fstat(held).st_uid == os.geteuid():
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
            finally:
                os.close(held)


def count_as(role: str) -> None:
    """Count into the shared directory, if there is one; before any metric is made."""
    directory = os.environ.get(SHARED_DIRECTORY)
    if not directory:
        return
    try:
        slot = _take_slot(Path(directory), role)
        for kind in ("counter", "histogram"):
            _reserve(Path(directory) / f"{kind}_{slot}.db")
    except OSError as error:
        _log.warning("metrics of this process are not shared", extra={"error": str(error)})
        del os.environ[SHARED_DIRECTORY]
        values.ValueClass = values.MutexValue
    else:
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]


def count_alone() -> None:
    """Let what plugins count stay in this process and its forks, before any metric is made."""
    os.environ.pop(SHARED_DIRECTORY, None)
    values.ValueClass = values.MutexValue


def _reserve(file: Path) -> None:
    """Raise OSError unless there is room: to count where there is none would end the process."""
    with suppress(FileNotFoundError):
        os.close(open_regular_file(file, os.O_RDWR, is_own=True))
        return
    # An empty file, seen by a scrape, would fail it.
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = open_regular_file(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, is_own=True)
    try:
        os.posix_fallocate(descriptor, 0, _RESERVED_BYTES)
        new.rename(file)
    finally:
        os.close(descriptor)
        new.unlink(missing_ok=True)


def _take_slot(directory: Path, role: str) -> str:
    """Return a name for this process's files that no process alive has."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in itertools.count():
        lock = directory / f"{role}-{number}.lock"
        flags = os.O_RDWR | os.O_CREAT
        file = os.fdopen(open_regular_file(lock, flags, is_own=True), "w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            continue
        _slots.append(file)
        return f"{role}-{number}"
    raise AssertionError  # It counts for ever.


def all_counts(own: CollectorRegistry) -> CollectorRegistry:
    """Return what all processes have counted; where they share nothing, what this one has."""
    if not os.environ.get(SHARED_DIRECTORY):
        return own
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
