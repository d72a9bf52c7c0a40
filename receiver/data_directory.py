"""The directory of the journal, checked before any process opens a file in it.

And how files are opened in a directory that other users may be able to write.
"""

import errno
import logging
import os
import pwd
import stat
from pathlib import Path

from receiver.errors import SettingsError

_REGULAR, _DIRECTORY, _PIPE = "regular file", "directory", "named pipe"
_IS_KIND = {_REGULAR: stat.S_ISREG, _DIRECTORY: stat.S_ISDIR, _PIPE: stat.S_ISFIFO}
# Files that the receiver opens in the directory.
_OWN_FILES = {
    "journal.db": _REGULAR,
    "journal.db-wal": _REGULAR,
    "journal.db-shm": _REGULAR,
    "journal.db.migrate.lock": _REGULAR,
    "instances": _DIRECTORY,
    "wake": _PIPE,
}
_SET_IT = "set RECEIVER_DATA_DIR to a directory that this user can write"
_log = logging.getLogger(__name__)


def prepare_data_directory(directory: Path) -> None:
    """Create the directory if it is missing; raise SettingsError unless it can hold a journal.

    The error names the directory, the reason and the cure, one line for each problem.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        problems = check_data_directory(directory) or [_describe(directory, error)]
        raise SettingsError(problems) from None
    problems = check_data_directory(directory)
    if problems:
        raise SettingsError(problems)
    _warn_of_other_users(directory)


def check_data_directory(directory: Path) -> list[str]:
    """Return every reason why this directory cannot hold the journal; change nothing."""
    try:
        mode = directory.stat().st_mode
    except FileNotFoundError:
        return _check_parent(directory)
    except OSError as error:
        return [_describe(directory, error)]
    if not stat.S_ISDIR(mode):
        return [_describe(directory, NotADirectoryError(errno.ENOTDIR, ""))]
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return [_why_not_writable(directory)]
    return [
        problem
        for name, kind in _OWN_FILES.items()
        for problem in _check_file(directory / name, kind)
    ]


def _check_parent(directory: Path) -> list[str]:
    """Return why a directory that is missing cannot be created."""
    parent = next(one for one in directory.absolute().parents if os.path.lexists(one))
    if not parent.is_dir():
        return [_describe(directory, NotADirectoryError(errno.ENOTDIR, ""))]
    return [] if os.access(parent, os.W_OK | os.X_OK) else [_why_not_writable(parent)]


def _check_file(file: Path, kind: str) -> list[str]:
    try:
        if planter := _who_may_have_planted(file):
            return [
                f"RECEIVER_DATA_DIR: {file} belongs to {planter}, who may have planted it; move it "
                f"away, and run `chmod o-w {file.parent}`"
            ]
        status = file.stat()
    except FileNotFoundError:
        return []
    except OSError as error:
        return [_describe(file, error)]
    # Opening a FIFO would wait without an end.
    if not _IS_KIND[kind](status.st_mode):
        return [f"RECEIVER_DATA_DIR: {file} is not a {kind}; move it away"]
    # A journal of this user that is read-only for a while is no reason to end: the web answers 503.
    if status.st_uid == os.geteuid() or os.access(file, os.R_OK | os.W_OK):
        return []
    return [_why_not_writable(file)]


def open_regular_file(file: Path, flags: int, *, is_own: bool = False) -> int:
    """Open a regular file, of this user if `is_own`, and never wait.

    Raises PermissionError for anything else, and OSError as `os.open` does.

    Another user may be able to write the directory, and to plant a link or a FIFO there.
    """
    kind = "is not a regular file of this user" if is_own else "is not a regular file"
    try:
        descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise PermissionError(errno.EPERM, kind, str(file)) from error
        raise
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (not is_own or status.st_uid == os.geteuid()):
        return descriptor
    os.close(descriptor)
    raise PermissionError(errno.EPERM, kind, str(file))


def _who_may_have_planted(file: Path) -> str:
    """Return the other user who can have put a file there; empty for one that can be trusted.

    A file of another user is usual where this user was changed and the group may write.
    """
    status = file.lstat()
    is_others = status.st_uid not in (0, os.geteuid())
    is_open = file.parent.stat().st_mode & 0o002
    return _user(status.st_uid) if is_others and (is_open or stat.S_ISLNK(status.st_mode)) else ""


def _why_not_writable(path: Path) -> str:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return _describe(path, OSError(errno.EROFS, ""))
    owner, mode = path.stat().st_uid, stat.filemode(path.stat().st_mode)
    if owner != os.geteuid():
        return (
            f"RECEIVER_DATA_DIR: {path} belongs to {_user(owner)} ({mode}), and {_user()} cannot "
            f"write it; run the receiver as that user, change the owner, or {_SET_IT}"
        )
    return (
        f"RECEIVER_DATA_DIR: {path} ({mode}) cannot be written by {_user()}; "
        f"run `chmod u+rwX {path}`, or {_SET_IT}"
    )


def _describe(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"RECEIVER_DATA_DIR: {path} is a file, or lies below a file; {_SET_IT}"
    if error.errno == errno.EROFS:
        return f"RECEIVER_DATA_DIR: {path} is on a read-only disk; {_SET_IT}"
    return (
        f"RECEIVER_DATA_DIR: {path} cannot be used by {_user()}: "
        f"{os.strerror(error.errno or 0)}; {_SET_IT}"
    )


def _user(uid: int | None = None) -> str:
    """Return the name and number of a user; of this process by default."""
    uid = os.geteuid() if uid is None else uid
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _warn_of_other_users(directory: Path) -> None:
    """Log what existing modes open to other users; new files are closed."""
    file = directory / "journal.db"
    if directory.stat().st_mode & 0o002:
        hint = f"run `chmod o-w {directory}`"
        fields = {"directory": str(directory), "hint": hint}
        _log.warning("other users can write the data directory", extra=fields)
    if directory.stat().st_uid != os.geteuid():
        # Common with volumes of Kubernetes, where the group may write.
        fields = {"directory": str(directory), "owner": _user(directory.stat().st_uid)}
        _log.info("data directory belongs to another user", extra=fields)
    if directory.stat().st_mode & 0o007 and file.exists() and file.stat().st_mode & 0o004:
        hint = f"run `chmod 700 {directory}`"
        _log.warning("other users can read the journal", extra={"file": str(file), "hint": hint})
