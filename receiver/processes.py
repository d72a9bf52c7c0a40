"""How the processes of one receiver hold together: none outlives the one that started it."""

import ctypes
import os
import signal
import sys

# The variable that tells a child the process id of its supervisor.
SUPERVISOR = "_ALERT_RECEIVER_SUPERVISOR"
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> bool:
    """Ask the kernel to end this process when its supervisor dies; return whether it has one."""
    parent = os.environ.pop(SUPERVISOR, None)
    if parent is None:
        return False
    follow_parent(int(parent))
    return True


def follow_parent(parent: int, how: signal.Signals = signal.SIGTERM) -> None:
    """Get a signal when the process that started this one dies (on Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, how)
        if os.getppid() != parent:
            sys.exit(1)  # It died before the kernel was asked.


def ending(exitcode: int | None) -> str:
    """Say how a process ended, by the exit code that `multiprocessing` knows it by."""
    if exitcode is not None and exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}"
