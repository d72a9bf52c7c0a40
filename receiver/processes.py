"""How the processes of one receiver hold together: none outlives the one that started it."""

import ctypes
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess

from setproctitle import setproctitle

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.01


def show_as(role: str) -> None:
    """Name this process for `ps`, `top` and the like: forked ones else all look the same."""
    setproctitle(f"receiver {role}")


def follow_parent(parent: int, how: signal.Signals = signal.SIGTERM) -> None:
    """Get a signal when the process that started this one dies (on Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, how)
        if os.getppid() != parent:
            sys.exit(1)  # It died before the kernel was asked.


def ends_within(process: BaseProcess, seconds: float) -> bool:
    """Wait for a child to end, at most so long; return whether it has.

    `join` would also wait for what the child has left running.
    """
    deadline = time.monotonic() + seconds
    while process.exitcode is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def ending(exitcode: int | None) -> str:
    """Say how a process ended, by the exit code that `multiprocessing` knows it by."""
    if exitcode is not None and exitcode < 0:
        try:
            return f"was ended by {signal.Signals(-exitcode).name}"
        except ValueError:  # A real-time signal has no name.
            return f"was ended by signal {-exitcode}"
    return f"ended with status {exitcode}"
