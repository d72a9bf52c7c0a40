"""How the worker learns at once that there is something to do; polling is only the fallback.

On one machine: a named pipe beside the journal. The web process writes a byte after each commit.
On PostgreSQL: a notification, see `channel`.
"""

import errno
import os
import select
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from receiver.errors import JournalUnavailableError, JournalUnusableError
from receiver.journal.channel import Caller, Listener
from receiver.journal.journal import Journal


def _pipe_path(journal: Journal) -> Path | None:
    directory = journal.shared_directory
    return directory / "wake" if directory else None


def _opened(path: Path) -> int:
    """Open the worker's end of the pipe, and make the pipe if it is missing."""
    try:
        with suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        # For writing too: otherwise it would read as ended whenever the web goes away.
        return _open_pipe(path, os.O_RDWR)
    except FileExistsError:
        raise JournalUnusableError(f"{path} is in the way of the wake-up pipe; remove it") from None
    except OSError as error:
        raise JournalUnavailableError(f"the wake-up pipe cannot be opened: {error}") from error


def _open_pipe(path: Path, flags: int) -> int:
    """Open a named pipe and never wait; raise FileExistsError for anything else.

    Another user may have planted a link in a directory that others can write.
    """
    if not stat.S_ISFIFO(path.lstat().st_mode):
        raise FileExistsError(errno.EEXIST, "is no pipe", str(path))
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise FileExistsError(errno.EEXIST, "is no pipe", str(path))


class Bell:
    """The web's end: rings for the worker after a commit; never blocks, never fails."""

    def __init__(self, journal: Journal) -> None:
        self._path = _pipe_path(journal)
        self._pipe: int | None = None
        self._caller = Caller(journal.engine)

    def ring(self) -> None:
        """Wake the worker, if one listens."""
        if self._path is None:
            self._caller.call()
            return
        try:
            if self._pipe is None:
                self._pipe = _open_pipe(self._path, os.O_WRONLY)
            os.write(self._pipe, b"\0")
        except BlockingIOError:
            pass  # Full: the worker is awake.
        except OSError:
            # Nobody listens now; a worker that starts will look by itself.
            if self._pipe is not None:
                os.close(self._pipe)
                self._pipe = None

    def close(self) -> None:
        """Ring no more."""
        self._caller.close()
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


class Ears:
    """The worker's end: waits for the bell, for a finished attempt or for a time."""

    def __init__(self, journal: Journal) -> None:
        """Listen on the pipe beside the journal, made here if it is missing, or to PostgreSQL.

        Raises JournalUnusableError when something else has the pipe's name, and
        JournalUnavailableError when it cannot be made now.
        """
        self._own_read, self._own_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._listening = [self._own_read]
        path = _pipe_path(journal)
        self._listener = Listener(journal.engine, self.poke) if path is None else None
        if path is not None:
            self._listening.append(_opened(path))

    def poke(self) -> None:
        """Wake the waiting thread, from any other."""
        with suppress(BlockingIOError):
            os.write(self._own_write, b"\0")

    def wait(
        self, seconds: float, to_read: Sequence[int] = (), to_write: Sequence[int] = ()
    ) -> bool:
        """Return when woken, or when one of the others is ready; at the latest after so long.

        The result says whether the web process rang, which it does on one machine alone.
        """
        called = self._listener.listen() if self._listener else None
        waiting = [*self._listening, *to_read, *([] if called is None else [called])]
        ready, _, _ = select.select(waiting, to_write, [], seconds)
        if self._listener and called in ready:
            self._listener.hear()
        rung = set(ready).intersection(self._listening)
        for pipe in rung:
            with suppress(BlockingIOError):
                while len(os.read(pipe, 4096)) == 4096:
                    pass
        return any(pipe != self._own_read for pipe in rung)

    def close(self) -> None:
        """Stop listening."""
        if self._listener:
            self._listener.close()
        for pipe in (*self._listening, self._own_write):
            os.close(pipe)
