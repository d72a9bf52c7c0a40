"""Writes a file of a set size, once per run: whole and on the disk, or not at all.

Its name is `metric_<name>_<unix>_<unique>.bin`: the metric's name made safe, the Unix time at
which the alert began to fire, and a hash of the run's idempotency key. All three are the same at
every attempt of a run, so that an attempt finds the file which an earlier one had finished.
"""

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from receiver import ActionContext, PermanentError, Setting, TemporaryError, hookimpl

LARGEST_SIZE = 100 * 2**30

_DEFAULT_DIRECTORY = "/tmp/metric-files"  # noqa: S108 - where metric-reader put them
_BLOCK_SIZE = 2**20
_BLOCKS_PER_SYNC = 64
_LONGEST_NAME = 100
_UNSAFE = re.compile(r"[^A-Za-z0-9_:-]")

# What no later attempt mends: somebody has to change a setting, a right or a mount first.
_PERMANENT = frozenset({
    errno.EACCES, errno.EEXIST, errno.EFBIG, errno.EINVAL, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ENOSYS, errno.ENOTDIR, errno.EOPNOTSUPP, errno.EPERM, errno.EROFS,
})  # fmt: skip
_CURES = {
    errno.EACCES: "give its user the right to write there, or set FILE_ACTION_DIR to another",
    errno.EDQUOT: "raise the quota or remove files there",
    errno.EFBIG: "lower FILE_ACTION_SIZE",
    errno.ENOSPC: "remove files there, or lower FILE_ACTION_SIZE",
    errno.EROFS: "mount it writable, or set FILE_ACTION_DIR to another",
}


@hookimpl
def settings() -> list[Setting]:
    """Declare where the files go and how large they are."""
    return [
        Setting(
            "FILE_ACTION_DIR",
            "path",
            _DEFAULT_DIRECTORY,
            "the directory of the files; created when it is missing",
        ),
        Setting("FILE_ACTION_SIZE", "size", "1MiB", "the size of each file, at most 100GiB"),
    ]


@hookimpl
def validate_config(settings: Mapping[str, Any]) -> None:
    """Refuse a directory that can never be one, or is not writable, and a size out of bounds.

    A missing directory is no problem here: only the worker may have that volume.
    """
    directory: Path = settings["FILE_ACTION_DIR"]
    size: int = settings["FILE_ACTION_SIZE"]
    if not 0 <= size <= LARGEST_SIZE:
        raise ValueError(f"FILE_ACTION_SIZE: {size} is not a size from 0 to 100GiB; write 1MiB")
    try:
        is_directory = stat.S_ISDIR(directory.stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(
            f"FILE_ACTION_DIR: {directory} cannot be used: {error.strerror}; name a directory"
        ) from error
    if not is_directory:
        raise ValueError(f"FILE_ACTION_DIR: {directory} is not a directory; name one")
    # A default that nobody chose must not stop the start of a service that never uses it.
    if str(directory) != _DEFAULT_DIRECTORY and not os.access(directory, os.W_OK | os.X_OK):
        raise ValueError(
            f"FILE_ACTION_DIR: {directory} is not writable; give this user the right to write "
            "there, or name another directory"
        )


@hookimpl
def execute(context: ActionContext, metric_name: str) -> dict[str, Any]:
    """Write the file, unless an earlier attempt of this run did; return its path and size.

    The directory and its missing parents are created, for their owner and group alone. Whatever
    goes wrong, a cancel included, leaves no part of a file behind.
    """
    context.raise_if_cancelled()
    directory, size = _directory(context), context.settings["FILE_ACTION_SIZE"]
    name = file_name(metric_name, context)
    try:
        _make_directory(directory)
        with _opened(directory) as folder:
            written = _size_of(folder, name)
            if written is None:
                _write(folder, name, size, context)
                written = size
            # Also when it was there already: the attempt that wrote it may have died before this.
            os.fsync(folder)
    except OSError as error:
        raise as_action_error(error, directory / name) from error
    return {"path": str(directory / name), "bytes": written}


@hookimpl
def describe(context: ActionContext, metric_name: str) -> str:
    """Say which file would be written, or that it is there already."""
    path = _directory(context) / file_name(metric_name, context)
    if os.path.lexists(path):
        return f"would write nothing: {path} is there already"
    return f"would write {context.settings['FILE_ACTION_SIZE']} bytes to {path}"


def file_name(metric_name: str, context: ActionContext) -> str:
    """Return the name of the run's file: ASCII, no separator, no dot in front, below NAME_MAX."""
    name = _UNSAFE.sub("_", metric_name[:_LONGEST_NAME]) or "unnamed"
    began_at = int(context.alert.starts_at.timestamp())
    unique = hashlib.sha256(context.idempotency_key.encode()).hexdigest()[:16]
    return f"metric_{name}_{began_at}_{unique}.bin"


def as_action_error(error: OSError, path: Path) -> PermanentError | TemporaryError:
    """Return the action's error for one of the system: a full disk may have room again later."""
    number = error.errno or 0
    cure = _CURES.get(number, "look at FILE_ACTION_DIR and what is mounted there")
    message = f"{path} cannot be written: {error.strerror or error}; {cure}"
    return PermanentError(message) if number in _PERMANENT else TemporaryError(message)


def _directory(context: ActionContext) -> Path:
    directory: Path = context.settings["FILE_ACTION_DIR"]
    return directory.absolute()


def _make_directory(directory: Path) -> None:
    missing = []
    for one in (directory, *directory.parents):
        if one.is_dir():
            break
        missing.append(one)
    for one in reversed(missing):
        one.mkdir(mode=0o750, exist_ok=True)
        with _opened(one.parent) as parent:
            os.fsync(parent)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """Hold the directory open: all that follows happens in it, even if its path is changed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _size_of(folder: int, name: str) -> int | None:
    """Return the size of a finished file, None when there is none."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise PermanentError(f"{name} is there but is no regular file; remove it")
    return status.st_size


def _write(folder: int, name: str, size: int, context: ActionContext) -> None:
    """Write under a temporary name of this attempt's own, then rename.

    Own, because an earlier attempt may still be stuck in a system call: it must not rename what
    is half-written here. Those that were killed left theirs behind; this clears them away.
    """
    for attempt in range(1, context.attempt + 1):
        _remove(folder, _temporary_name(name, attempt))
    temporary = _temporary_name(name, context.attempt)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, 0o640, dir_fd=folder)
        with FileIO(descriptor, "w") as file:
            _fill(file, size, context)
        context.raise_if_cancelled()
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with contextlib.suppress(OSError):
            _remove(folder, temporary)


def _temporary_name(name: str, attempt: int) -> str:
    return f".{name}.{attempt}.tmp"


def _remove(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _fill(file: FileIO, size: int, context: ActionContext) -> None:
    # Random, so that it takes up its size on a file system that compresses, too.
    block = memoryview(os.urandom(min(size, _BLOCK_SIZE)))
    written = blocks = 0
    while written < size:
        context.raise_if_cancelled()
        written += file.write(block[: size - written])
        blocks += 1
        # One sync of everything at the end could take minutes, and nothing can interrupt it.
        if blocks % _BLOCKS_PER_SYNC == 0:
            os.fsync(file.fileno())
    os.fsync(file.fileno())
