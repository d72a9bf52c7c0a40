"""The supervisor with small programs: restarts for ever, the first start, orphans, output."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import children_of
from tests.support.receivers import log_lines
from tests.support.waiting import wait_until

HEAD = """
import os, signal, subprocess, sys, time
from datetime import timedelta
from receiver import logs
from receiver.processes import SharedFlag
from receiver.supervisor import CANNOT_START, Program, Supervisor

def wait(has_started):
    has_started.set()
    time.sleep(600)

def serve(*programs, first=lambda: None, prepare=lambda: None):
    logs.keep_output()
    logs.configure("info", "json")
    supervisor = Supervisor(
        programs, timedelta(seconds=5), first, longest_pause=timedelta(seconds=0.05)
    )
    sys.exit(supervisor.run(prepare))
"""


class Supervised:
    """A supervisor in a process of its own, with the programs that `code` names."""

    def __init__(self, code: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HEAD + code], stdout=file, stderr=subprocess.STDOUT
            )

    def lines(self, message: str) -> list[dict[str, Any]]:
        return log_lines(self.log, message)

    def restarts(self) -> list[dict[str, Any]]:
        return self.lines("process ended and is started again")

    def printed(self) -> list[str]:
        return [line["text"] for line in self.lines("process printed")]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Any]:
    started: list[Supervised] = []

    def start(code: str) -> Supervised:
        started.append(Supervised(code, tmp_path / "supervisor.log"))
        return started[-1]

    yield start
    for supervised in started:
        if supervised.process.poll() is None:
            supervised.stop()


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "os._exit(9)", "os.abort()", "1 / 0", "has_started.set(), os._exit(3)"]
)
def test_program_that_ends_is_started_again_for_ever(supervise: Any, end: str) -> None:
    code = f"def die(has_started): {end}\nserve(Program('web', wait), Program('worker', die))"
    supervised = supervise(code)
    wait_until(lambda: len(supervised.restarts()) > 25)
    assert supervised.process.poll() is None
    assert {line["role"] for line in supervised.restarts()} == {"worker"}
    assert supervised.stop() == 0


@pytest.mark.parametrize("role", ["web", "worker"])
def test_program_that_cannot_start_as_configured_ends_the_first_start(
    supervise: Any, role: str
) -> None:
    other = {"web": "worker", "worker": "web"}[role]
    supervised = supervise(
        "def die(has_started): os._exit(CANNOT_START)\n"
        f"serve(Program('{other}', wait), Program('{role}', die))"
    )
    assert supervised.process.wait(60) == 1
    (line,) = supervised.lines("process cannot start, so the receiver ends")
    assert line["role"] == role


def test_program_that_cannot_start_later_is_started_again(supervise: Any) -> None:
    supervised = supervise(
        "first = os.pipe()\n"
        "def die(has_started):\n"
        "    os.set_blocking(first[0], False)\n"
        "    try:\n"
        "        os.read(first[0], 1)\n"
        "        os._exit(9)\n"
        "    except BlockingIOError:\n"
        "        os._exit(CANNOT_START)\n"
        "os.write(first[1], b'1')\n"
        "serve(Program('worker', die))"
    )
    wait_until(lambda: len(supervised.restarts()) > 5)
    reasons = [line["reason"] for line in supervised.restarts()]
    assert reasons[:3] == ["ended with status 9", "cannot start", "cannot start"]
    assert supervised.stop() == 0


@pytest.mark.parametrize("error", ["BlockingIOError(11, 'no process')", "OSError(12, 'no memory')"])
def test_machine_that_cannot_fork_for_a_while_delays_a_program(supervise: Any, error: str) -> None:
    supervised = supervise(
        "fork, calls = os.fork, []\n"
        "def limited():\n"
        "    calls.append(None)\n"
        "    if 1 < len(calls) < 12:\n"
        f"        raise {error}\n"
        "    return fork()\n"
        "os.fork = limited\n"
        "def run(has_started):\n"
        "    print('runs', flush=True)\n"
        "    wait(has_started)\n"
        "serve(Program('web', run))"
    )
    wait_until(lambda: "runs" in supervised.log.read_text())
    assert len(supervised.lines("process cannot be made, and is tried again")) == 10
    assert supervised.stop() == 0


def test_orphans_are_adopted_and_reaped(supervise: Any) -> None:
    supervised = supervise(
        "def run(has_started):\n"
        "    for _ in range(20):\n"
        "        subprocess.run(['sh', '-c', 'setsid sleep 0.2 & setsid sleep 600 &'])\n"
        "    print('runs', flush=True)\n"
        "    wait(has_started)\n"
        "serve(Program('web', wait), Program('worker', run, is_cleared=True))"
    )
    wait_until(lambda: "runs" in supervised.log.read_text())
    # The 20 that sleep for long, the web process and the worker.
    children = wait_until(
        lambda: found if len(found := children_of(supervised.process.pid)) == 22 else None
    )
    assert supervised.stop() == 0
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]


def test_child_that_prints_much_waits_until_the_supervisor_is_no_longer_busy(
    supervise: Any,
) -> None:
    supervised = supervise(
        "was_blocked = SharedFlag()\n"
        "def first():\n"
        "    os.set_blocking(1, False)\n"
        "    try:\n"
        "        while True:\n"
        "            os.write(1, b'f' * 4095 + b'\\n')\n"
        "    except BlockingIOError:\n"
        "        was_blocked.set()\n"
        "    os.set_blocking(1, True)\n"
        "    for number in range(10_000):\n"
        "        print(number, 'x' * 1000)\n"
        "def prepare():\n"
        "    while not was_blocked.is_set:\n"
        "        time.sleep(0.01)\n"
        "serve(Program('web', wait), first=first, prepare=prepare)"
    )
    wait_until(lambda: f"9999 {'x' * 1000}" in supervised.printed())
    printed = [line for line in supervised.printed() if not line.startswith("f")]
    assert printed == [f"{number} {'x' * 1000}" for number in range(10_000)]
    assert supervised.stop() == 0


def test_child_that_is_started_again_prints_as_before(supervise: Any) -> None:
    supervised = supervise(
        "def die(has_started):\n"
        "    print('an error', file=sys.stderr)\n"
        "    os.write(1, b'last words')\n"
        "    os._exit(9)\n"
        "serve(Program('web', wait), Program('worker', die))"
    )
    wait_until(lambda: len(supervised.restarts()) > 5)
    assert supervised.stop() == 0
    printed, starts = supervised.lines("process printed"), len(supervised.restarts())
    errors = [line for line in printed if line["stream"] == "stderr"]
    assert starts <= len(errors) <= starts + 1
    assert {(line["level"], line["text"]) for line in errors} == {("WARNING", "an error")}
    # Without the end of the line, those of several children may share one.
    words = [line for line in printed if line["stream"] == "stdout"]
    assert {line["level"] for line in words} == {"INFO"}
    assert "".join(line["text"] for line in words) == "last words" * len(errors)


def test_half_a_line_is_logged_when_nothing_follows(supervise: Any) -> None:
    supervised = supervise(
        "def run(has_started):\n"
        "    os.write(2, b'half a line')\n"
        "    wait(has_started)\n"
        "serve(Program('web', run))"
    )
    wait_until(lambda: supervised.printed() == ["half a line"])
    assert supervised.stop() == 0


def test_what_children_print_while_they_end_is_logged(supervise: Any) -> None:
    supervised = supervise(
        "def run(has_started):\n"
        "    def end(signum, frame):\n"
        "        for number in range(1_000):\n"
        "            print(number, 'x' * 1000)\n"
        "        os.write(1, b'half')\n"
        "        os._exit(0)\n"
        "    signal.signal(signal.SIGTERM, end)\n"
        "    print('runs')\n"
        "    wait(has_started)\n"
        "serve(Program('web', run))"
    )
    wait_until(lambda: "runs" in supervised.printed())
    assert supervised.stop() == 0
    numbers = [f"{number} {'x' * 1000}" for number in range(1_000)]
    assert supervised.printed() == ["runs", *numbers, "half"]


def test_process_that_can_still_print_delays_the_end_by_two_seconds(supervise: Any) -> None:
    supervised = supervise(
        "from receiver.captured_output import PrintedOutput\n"
        "logs.keep_output()\n"
        "logs.configure('info', 'json')\n"
        "printed = PrintedOutput()\n"
        "if (pid := os.fork()) == 0:\n"
        "    printed.redirect()\n"
        "    print('half', end='', flush=True)\n"
        "    time.sleep(600)\n"
        "began = time.monotonic()\n"
        "printed.log_rest()\n"
        "lasted = time.monotonic() - began\n"
        "os.kill(pid, signal.SIGKILL)\n"
        "sys.exit(0 if 1.9 < lasted < 10 else lasted)"
    )
    assert supervised.process.wait(60) == 0
    assert supervised.printed() == ["half"]
