"""What is below a process, and that all of it can be killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.processes import (
    DRAIN_SIGNALS,
    IGNORED_SIGNALS,
    RestartPauses,
    SharedFlag,
    descendants,
    kill_descendants,
)
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


# Everything below runs in a process of its own, because it changes what a process has once.


def run_python(code: str) -> str:
    """Return what a new Python prints; its standard error is shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ignored_signals_have_no_effect_and_programs_do_not_inherit_that() -> None:
    code = """
import os, subprocess
from receiver.processes import DRAIN_SIGNALS, IGNORED_SIGNALS, ignore_signals
ignore_signals(*IGNORED_SIGNALS, *DRAIN_SIGNALS)
for number in (*IGNORED_SIGNALS, *DRAIN_SIGNALS):
    os.kill(os.getpid(), number)
ignored = {int(number) for number in (*IGNORED_SIGNALS, *DRAIN_SIGNALS)}
status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
(mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")]
print([number for number in ignored if int(mask, 16) >> number - 1 & 1])
"""
    assert run_python(code) == "[]\n"


def test_fork_of_a_process_that_ignores_signals_ignores_them_too() -> None:
    code = """
import os
from receiver.processes import IGNORED_SIGNALS, ignore_operator_signals
ignore_operator_signals(has_terminal=True)
if (pid := os.fork()) == 0:
    for number in IGNORED_SIGNALS:
        os.kill(os.getpid(), number)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(code) == "7\n"


def test_everything_below_this_process_is_killed_and_reaped() -> None:
    code = f"""
import os, subprocess
from receiver.processes import become_subreaper, descendants, end_descendants
become_subreaper()
spared = subprocess.Popen(["sleep", "600"])
subprocess.Popen([{sys.executable!r}, "-c", {FAMILY!r}], stdout=subprocess.PIPE).stdout.readline()
print(len(descendants(os.getpid())) > 4, end_descendants([spared.pid]))
print(descendants(os.getpid()) == {{spared.pid}}, spared.poll(), end_descendants())
"""
    assert run_python(code) == "True set()\nTrue None set()\n"


def test_adopted_children_are_reaped_and_own_children_keep_their_status() -> None:
    code = """
import os, subprocess, time
from receiver.processes import become_subreaper, descendants, reap_adopted
become_subreaper()
own = subprocess.Popen(["sh", "-c", "exit 5"])
subprocess.run(["sh", "-c", "sleep 0.1 &"])
deadline = time.monotonic() + 30
while descendants(os.getpid()) != {own.pid} and time.monotonic() < deadline:
    reap_adopted([own.pid])
    time.sleep(0.01)
print(descendants(os.getpid()) == {own.pid}, own.wait())
"""
    assert run_python(code) == "True 5\n"


def test_umask_is_closed_for_the_receiver_and_restored_for_actions() -> None:
    code = """
import os
from receiver.processes import close_umask, restore_umask
os.umask(0o027)
close_umask()
close_umask()
print(oct(os.umask(0o077)))
restore_umask()
print(oct(os.umask(0)))
"""
    assert run_python(code) == "0o77\n0o27\n"


def test_flag_that_a_fork_sets_is_set_here() -> None:
    flag = SharedFlag()
    assert not flag.is_set
    process = multiprocessing.get_context("fork").Process(target=flag.set)
    process.start()
    process.join(30)
    assert flag.is_set


def test_pauses_grow_to_their_limit_and_begin_anew_after_a_steady_life() -> None:
    pauses = RestartPauses()
    grown = [pauses.after(0) for _ in range(12)]
    assert grown == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30]
    for _ in range(2000):
        assert pauses.after(29.9) == 30
    assert pauses.after(30) == 0.1
    assert pauses.ends == 1


def test_table_of_signals_in_the_documents_names_every_signal_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    table = text.partition("## Signals\n")[2].partition("## ")[0]
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table.splitlines()
        if line.startswith("| ") and "signal" not in line
    }
    without_effect = {
        f"SIG{name}"
        for names, cells in rows.items()
        if all(cell.startswith("no effect") for cell in cells)
        for name in names.split(", ")
        if name.isupper()
    }
    draining = {
        f"SIG{name}"
        for names, cells in rows.items()
        if cells[0].startswith("drains")
        for name in names.split(", ")
    }
    assert without_effect == {number.name for number in IGNORED_SIGNALS} | {"SIGWINCH", "SIGPIPE"}
    assert draining == {number.name for number in DRAIN_SIGNALS}


# A loop of programs, each of which leaves an orphan that this process adopts.
BUSY = """
import subprocess
from receiver.processes import become_subreaper
become_subreaper()
print("started", flush=True)
subprocess.run(["sh", "-c", "while :; do sh -c '(sh -c true &) ; :'; done"])
"""


# The parent of such a process, with no other child.
SPARES = f"""
import os, signal, subprocess, sys
from receiver.processes import kill_descendants
with subprocess.Popen([sys.executable, "-c", {BUSY!r}], stdout=subprocess.PIPE) as spared:
    assert spared.stdout.readline() == b"started\\n"
    killed = [kill_descendants(os.getpid(), spared=[spared.pid]) for _ in range(500)]
    os.kill(spared.pid, signal.SIGSTOP)
    kill_descendants(spared.pid)
    spared.kill()
print(set().union(*killed))
"""


def test_what_a_spared_child_starts_and_adopts_meanwhile_is_never_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPARES], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
