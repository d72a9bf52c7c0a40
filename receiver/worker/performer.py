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
import time
from collections import deque
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
# What a performer that listens needs at most to hear something.
AT_ONCE_SECONDS = 0.25

_FORK = multiprocessing.get_context("fork")


class Performer:
    """A performer that was forked, and ends with the block that has it."""

    def __init__(self, settings: Settings) -> None:
        """Fork it; it loads the plugins while its caller does something else."""
        ours, theirs = socket.socketpair()
        self._line = Line(ours)
        self._sent_at: deque[float] = deque()
        self._sent = 0
        self._last_sent_at = 0.0
        # Until when it last heard something late.
        self.deaf_until = 0.0
        # Shared, so that to look needs nobody's help: how many messages it took, and when the last.
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
    def taken(self) -> int:
        """The number of the last order that it has begun to carry out."""
        return int(self._taken[0])

    @property
    def taken_at(self) -> float:
        """When it did, on the machine's monotonic clock."""
        return self._taken[1]

    def deaf_seconds(self) -> float:
        """Return for how long it has left something unheard; 0 when it has heard everything."""
        while len(self._sent_at) > self._sent - self.taken:
            if self.taken_at - self._sent_at.popleft() > AT_ONCE_SECONDS:
                self.deaf_until = self.taken_at
        return time.monotonic() - self._sent_at[0] if self._sent_at else 0.0

    def listens(self, since: float) -> bool:
        """Whether it was seen to listen, at once, after a moment; if that is not known, find out.

        Who asks again a little later gets the answer.
        """
        if self.deaf_seconds() > 0:
            return False
        if self._last_sent_at > since and self.taken_at - self._last_sent_at < AT_ONCE_SECONDS:
            return True
        self._send([])
        return False

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

    def perform(self, orders: Orders) -> int:
        """Start attempts, each at once in a thread; return the number of the order."""
        self._send(orders)
        return self._sent

    def cancel(self, order: Cancel) -> None:
        """Ask an action to stop."""
        self._send(order)

    def performed(self) -> Iterator[Performed]:
        """Yield what has ended by now; raises PerformerLostError when the performer has."""
        for one in self._received():
            assert isinstance(one, Performed)
            yield one

    def _send(self, message: object) -> None:
        self._sent += 1
        self._last_sent_at = time.monotonic()
        self._sent_at.append(self._last_sent_at)
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
