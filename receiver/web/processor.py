"""Keeps the threads of a busy process on one processor: they wait less for the interpreter lock.

Only one thread runs Python at a time. Spread over several processors, each that lets go of the
lock, to read, write or sync, wakes another elsewhere and then waits for it: that costs more than
the work. On one processor, the thread that has the lock goes on.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

_LOOK_SECONDS = 0.25
# Shares of one processor's time. A process that uses less has nothing to gain; where others use as
# much, another processor may be better.
_BUSY = 0.25
_CONTENDED = 0.3
# So many looks pass before the next choice: where all are contended, it changes nothing.
_PATIENCE = 20
# For so long the kernel may choose freely: a thread that wakes is put on an idle processor.
_CHOICE_SECONDS = 0.005
_TICKS = os.sysconf("SC_CLK_TCK")


class Processor:
    """The one that this process stays on while it is busy; another one when others are in the way.

    Which one, the kernel says, among those that the process may use: several on one machine do
    not meet. An idle process is left alone.
    """

    def __init__(self) -> None:
        """Take note of what the process may use; nothing is changed yet."""
        self.allowed = os.sched_getaffinity(0)
        self._number: int | None = None
        self._patience = 0
        self._looked_at, self._own_seconds, self._all_seconds = time.monotonic(), 0.0, 0.0
        self._measure()

    def look(self) -> None:
        """Choose a processor, choose anew, or let go, by what was done since the last look.

        Raises OSError, ValueError or LookupError where that cannot be seen or done.
        """
        own, others = self._measure()
        self._patience -= 1
        if own < _BUSY:
            if self._number is not None:
                self._stay_on(None)
        elif self._number is None or (others >= _CONTENDED and self._patience <= 0):
            self._choose()

    def _choose(self) -> None:
        if self._number is not None:
            self._stay_on(None)
        time.sleep(_CHOICE_SECONDS)
        # Its name, in parentheses, may hold anything; this is the 39th field.
        stat = Path("/proc/thread-self/stat").read_text()
        self._stay_on(int(stat.rpartition(")")[2].split()[36]))
        self._patience = _PATIENCE

    def _stay_on(self, number: int | None) -> None:
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # It has ended meanwhile.
                os.sched_setaffinity(int(thread.name), self.allowed if number is None else [number])
        self._number = number
        self._measure()

    def _measure(self) -> tuple[float, float]:
        """Return the shares of its processor that it and others used since the last time."""
        before = self._looked_at, self._own_seconds, self._all_seconds
        self._looked_at, self._own_seconds = time.monotonic(), time.process_time()
        if self._number is not None:
            stat = Path("/proc/stat").read_text().split(f"\ncpu{self._number} ", 1)[1]
            # In user mode, nice, and in the kernel.
            self._all_seconds = sum(int(ticks) for ticks in stat.split(None, 3)[:3]) / _TICKS
        elapsed = max(self._looked_at - before[0], 1e-9)
        own = self._own_seconds - before[1]
        return own / elapsed, (self._all_seconds - before[2] - own) / elapsed


def stay_on_one() -> None:
    """Begin to look, in a thread; do nothing where there is no choice, or no way to choose."""
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) == 1:
        return
    processor = Processor()

    def keep_looking() -> None:
        # Forbidden here, or the container's processors were changed: the kernel decides alone.
        with suppress(OSError, ValueError, LookupError):
            while True:
                time.sleep(_LOOK_SECONDS)
                processor.look()

    threading.Thread(target=keep_looking, name="processor", daemon=True).start()
