"""The processes of a running receiver, by pid: which there are, and signals to them."""

import os
import signal
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Return the pids of the children of a process, none when it is gone."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def descendants_of(pid: int) -> list[int]:
    """Return the pids of all that descends from a process, parents before their children."""
    children = children_of(pid)
    return children + [one for child in children for one in descendants_of(child)]


def title_of(pid: int) -> str:
    """Return the title of a process, as `ps` shows it."""
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        # The state follows the name, which may itself hold spaces and brackets.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; return whether the process was still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
