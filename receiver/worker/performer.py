"""The performer, as its worker has it: the process in which the actions run.

It holds the plugins and never touches the journal; the worker speaks to the journal and imports no
plugin. So an action that keeps the interpreter lock never stops a process in the midst of a write
transaction, for which all who write to the same SQLite file would wait. It is forked from the
worker before that has threads, a journal or anything else of its own, and they live and die
together.
"""

import gc
import mmap
import multiprocessing
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from receiver.errors import PerformerLostError
from receiver.processes import ending, ends_within
from receiver.settings import Settings
from receiver.worker.line import Cancel, Line, Loaded, Orders, Performed
from receiver.worker.stage import live

# Its last words take less, see `tracing`.
_END_SECONDS = 3.0
_LOOK_SECONDS = 1.0

_FORK = multiprocessing.get_context("fork")


class Performer:
    """A performer that was forked, and ends with the block that has it."""

    def __init__(self, settings: Settings) -> None:
        """Fork it; it loads the plugins while its caller does something else."""
        ours, theirs = socket.socketpair()
        self._line = Line(ours)
        self._given = 0
        # Shared, so that to look at it needs nobody's help: how many it has taken, and when last.
        self._taken = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")
        gc.freeze()  # What is never looked at again stays shared.
        target = partial(live, settings, ours, theirs, self._taken, os.getpid())
        self._process = _FORK.Process(target=target, name="performer")
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def untaken(self) -> int:
        """How many runs it was given and has not begun to attempt."""
        return self._given - int(self._taken[0])

    @property
    def taken_at(self) -> float:
        """When it last began an attempt, on the machine's monotonic clock."""
        return self._taken[1]

    @property
    def line(self) -> Line:
        """What can be read when an attempt has ended, or the performer has."""
        return self._line

    def loaded(self) -> Loaded:
        """Wait for the plugins; raises what `load_actions` and `rules_of` raise."""
        answer = self._answer()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Loaded)
        return answer

    def hold(self, lock: Path) -> None:
        """Let it hold the worker's lock too: the instance is not dead before both of them are."""
        self._send(lock)
        self._answer()

    def _answer(self) -> object:
        while True:
            for one in self._received():
                return one
            self._line.wait(_LOOK_SECONDS)

    def perform(self, orders: Orders) -> None:
        """Start attempts, each at once in a thread."""
        self._given += len(orders)
        self._send(orders)

    def cancel(self, order: Cancel) -> None:
        """Ask an action to stop."""
        self._send(order)

    def performed(self) -> Iterator[Performed]:
        """Yield what has ended by now; raises PerformerLostError when the performer has."""
        for one in self._received():
            assert isinstance(one, Performed)
            yield one

    def _send(self, message: object) -> None:
        try:
            self._line.send(message)
        except OSError:
            self.kill()  # That it has ended is found when it is heard next.

    def _received(self) -> Iterator[object]:
        # Looked at first: what it said before its end is to be heard.
        has_ended = self._process.exitcode is not None
        try:
            self._line.send_on()
            yield from self._line.received()
        except (EOFError, OSError):
            has_ended = True
        if has_ended:
            self.kill()
            how = ending(self._process.exitcode)
            raise PerformerLostError(f"the process of the actions {how}")

    def kill(self) -> None:
        """End it at once, unless it is about to end by itself."""
        if not ends_within(self._process, 0.1):
            self._process.kill()
            ends_within(self._process, _END_SECONDS)

    def __enter__(self) -> "Performer":
        return self

    def __exit__(self, *error: object) -> None:
        """Let it end, with the threads of actions that never returned."""
        self._line.close()
        if not ends_within(self._process, _END_SECONDS):
            self.kill()
