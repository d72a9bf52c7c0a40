"""How the processes of one receiver hold together: none outlives the one that started it."""

import ctypes
import mmap
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from setproctitle import setproctitle

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LOOK_SECONDS = 0.01
_REAP_SECONDS = 0.001

# The table of signals in docs/operations.md, as code. The first of these drains.
DRAIN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# The second of these, during a drain, ends the process at once.
AT_ONCE_SIGNALS = (signal.SIGINT, signal.SIGQUIT)
# These have no effect on any process of the receiver.
IGNORED_SIGNALS = (
    signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip
_JOB_CONTROL = (signal.SIGTTIN, signal.SIGTTOU)


def ignore_signals(*numbers: signal.Signals) -> None:
    """Give signals no effect on this process and its forks.

    A program that is executed starts with the default actions, because a handler ends with `exec`.
    `SIG_IGN` would be inherited.
    """
    for number in numbers:
        signal.signal(number, _do_nothing)
        signal.siginterrupt(number, False)


def ignore_operator_signals(*, has_terminal: bool = False) -> None:
    """Give the signals of operators no effect: a reload, a reopening, more or fewer processes.

    `has_terminal` is for a process that a shell may start in the background. A handler would let
    such a process try for ever to write to a terminal that stops background output (`tostop`).
    """
    ignore_signals(*IGNORED_SIGNALS)
    if has_terminal:
        for number in _JOB_CONTROL:
            signal.signal(number, signal.SIG_IGN)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    del signum, frame


_inherited_umask: int | None = None


def close_umask() -> None:
    """Create files that only the receiver's user can read, from now on."""
    global _inherited_umask
    before = os.umask(0o077)
    if _inherited_umask is None:
        _inherited_umask = before


@contextmanager
def closed_umask() -> Iterator[None]:
    """Create files that only this user can read and write, for a while."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def restore_umask() -> None:
    """Create files with the umask that the receiver was started with, as actions expect."""
    if _inherited_umask is not None:
        os.umask(_inherited_umask)


class SharedFlag:
    """One bit that this process shares with the processes that it forks later."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Set the flag for all of them; nothing resets it."""
        self._memory[0] = 1

    @property
    def is_set(self) -> bool:
        """Whether one of the processes has set the flag."""
        return self._memory[0] == 1


class RestartPauses:
    """The growing pauses between the restarts of one process."""

    def __init__(self, longest_seconds: float = 30.0, steady_seconds: float = 30.0) -> None:
        """A process that lived `steady_seconds` had started well: its next pause is short again."""
        self.ends = 0
        self._longest_seconds = longest_seconds
        self._steady_seconds = steady_seconds

    def after(self, lived_seconds: float) -> float:
        """Return the seconds to wait after an end; called once for each end."""
        self.ends = 1 if lived_seconds >= self._steady_seconds else self.ends + 1
        # The exponent is bounded, because the number of ends is not.
        return min(0.1 * 2.0 ** min(self.ends - 1, 32), self._longest_seconds)


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


def descendants(pid: int, spared: Collection[int] = ()) -> set[int]:
    """Return the ids of all processes below this one, as /proc shows them at this moment.

    `spared` and what is below them are left out.
    """
    owner, present = _present_children
    spared = {*spared, *present} if pid == owner else spared
    children_of = _listed_children if _HAS_CHILDREN_FILES else _children_by_parent().__getitem__
    below: set[int] = set()
    unseen = [pid]
    while unseen:
        new = set(children_of(unseen.pop())).difference(below, spared)
        below |= new
        unseen += new
    return below


# The process that has noted its children, and they.
_present_children: tuple[int, frozenset[int]] = (0, frozenset())


def spare_present_children() -> None:
    """Never kill what was below this process before it began: a shell may have started it.

    `sh -c 'helper & exec receiver serve'` makes the helper a child of the receiver.
    """
    global _present_children
    _present_children = os.getpid(), frozenset(_children())


# Of kernels with CONFIG_PROC_CHILDREN. A look at all processes takes twenty times as long, in which
# a process that forks and exits again and again is never found.
_HAS_CHILDREN_FILES = Path(f"/proc/self/task/{os.getpid()}/children").exists()


def _listed_children(pid: int) -> set[int]:
    """Return the children of a process, by the files that the kernel keeps for its threads."""
    children: set[int] = set()
    with suppress(OSError):  # It has ended meanwhile.
        for thread in os.scandir(f"/proc/{pid}/task"):
            with suppress(OSError):
                children.update(map(int, Path(thread.path, "children").read_bytes().split()))
    return children


def _children_by_parent() -> Mapping[int, list[int]]:
    """Return process id -> children, by a look at all processes."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # It has ended meanwhile.
                # The name in parentheses may hold anything; the parent follows the state.
                words = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                children[int(words[1])].append(int(entry.name))
    return children


def kill_descendants(pid: int, spared: Collection[int] = ()) -> set[int]:
    """Kill everything below a process, sessions and daemons too; return what was killed.

    `spared` are children that stay, with all that is below them. A process that is stopped starts
    no other, so all are stopped until none is new, and then killed. The caller reaps its own
    children.
    """
    doomed: set[int] = set()
    while new := descendants(pid, spared) - doomed:
        for one in new:
            _send(one, signal.SIGSTOP)
        doomed |= new
    for one in doomed:
        _send(one, signal.SIGKILL)
    return doomed


def kill_tree(pid: int) -> None:
    """Kill a child of this process, and everything below the child."""
    _send(pid, signal.SIGSTOP)  # So that it starts nothing meanwhile.
    kill_descendants(pid)
    _send(pid, signal.SIGKILL)


def end_descendants(spared: Collection[int] = (), seconds: float = 10.0) -> set[int]:
    """Kill and reap everything below this process; return what is still there in the end.

    `spared` are children that stay, with all that is below them. The caller is a subreaper, so
    that the orphans of what is killed are below it too.
    """
    deadline = time.monotonic() + seconds
    while left := descendants(os.getpid(), spared):
        if time.monotonic() > deadline:
            return left
        kill_descendants(os.getpid(), spared)
        reap_adopted(spared)
        if descendants(os.getpid(), spared):
            time.sleep(_REAP_SECONDS)
    return set()


def reap_adopted(own: Collection[int]) -> None:
    """Collect the exit status of every child that has ended and is not one of `own`, as init does.

    `own` are the children whose exit status another part of the program collects.
    """
    for pid in _children() - set(own):
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _children() -> set[int]:
    """Return the children of this process, those that have ended too."""
    if _HAS_CHILDREN_FILES:
        return _listed_children(os.getpid())
    return set(_children_by_parent()[os.getpid()])


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
