"""What is below a process, and that all of it can be killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from receiver.processes import descendants, kill_descendants
from tests.support.waiting import wait_until

# A shell with a child, a grandchild in a session of its own, and an orphan that was adopted.
FAMILY = """
import subprocess, sys, time
from receiver.processes import become_subreaper
become_subreaper()
subprocess.Popen(["sleep", "600"])
subprocess.Popen(["sh", "-c", "setsid sleep 600; :"])
subprocess.run(["sh", "-c", "setsid sleep 600 & setsid sleep 600 &"])
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A process below which four programs sleep."""
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        assert top.stdout.readline() == "started\n"
        # Four that sleep, and the shell that waits for one of them.
        wait_until(lambda: sleeping(descendants(top.pid)) == 4, 30, "all sleep")
        yield top
        for pid in (*descendants(top.pid), top.pid):
            os.kill(pid, signal.SIGKILL)


def sleeping(pids: set[int]) -> int:
    return sum(read_command(pid)[0] == b"sleep" for pid in pids)


def read_command(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")
    except FileNotFoundError:
        return [b""]


def test_everything_below_a_process_is_found_and_killed(family: subprocess.Popen[str]) -> None:
    below = descendants(family.pid)
    assert len(below) == 5

    killed = kill_descendants(family.pid)

    assert killed == below
    wait_until(lambda: sleeping(below) == 0, 30, "none sleeps")
    assert family.poll() is None


def test_child_that_is_spared_keeps_what_is_below_it(family: subprocess.Popen[str]) -> None:
    (shell,) = [pid for pid in descendants(family.pid) if read_command(pid)[0] == b"sh"]

    kill_descendants(family.pid, spared=[shell])

    wait_until(lambda: sleeping(descendants(family.pid)) == 1, 30, "one sleeps")
    assert sleeping(descendants(shell)) == 1


def test_nothing_is_below_a_process_that_has_ended() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(30)

    assert descendants(ended.pid) == set()
    assert kill_descendants(ended.pid) == set()
