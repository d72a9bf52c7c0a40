"""How the processes of one receiver hold together: none outlives the one that started it."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from setproctitle import setproctitle

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
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


def become_subreaper() -> None:
    """Adopt orphans: a descendant whose parent dies becomes a child of this process (Linux).

    Children that this process forks do not inherit it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> set[int]:
    """Return the ids of all processes below this one, as /proc shows them at this moment."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # It has ended meanwhile.
                # The name in parentheses may hold anything; the parent follows the state.
                words = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                children.setdefault(int(words[1]), []).append(int(entry.name))
    below: set[int] = set()
    unseen = [pid]
    while unseen:
        new = set(children.get(unseen.pop(), ())) - below
        below |= new
        unseen += new
    return below


def kill_descendants(pid: int, spared: Collection[int] = ()) -> set[int]:
    """Kill everything below a process, sessions and daemons too; return what was killed.

    `spared` are children that stay, with all that is below them. A process that is stopped starts
    no other, so all are stopped until none is new, and then killed. The caller reaps its own
    children.
    """
    doomed: set[int] = set()
    while new := descendants(pid) - doomed - _with_descendants(spared):
        for one in new:
            _send(one, signal.SIGSTOP)
        doomed |= new
    for one in doomed:
        _send(one, signal.SIGKILL)
    return doomed


def _with_descendants(pids: Collection[int]) -> set[int]:
    return set(pids).union(*(descendants(pid) for pid in pids))


def _send(pid: int, number: signal.Signals) -> None:
    # One that runs as root, because its program is set-uid, cannot be killed by others.
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


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
