"""The table of signals in docs/operations.md: which signals drain, and which have no effect."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from receiver.journal import reading
from receiver.journal.journal import Journal
from receiver.processes import AT_ONCE_SIGNALS, DRAIN_SIGNALS, IGNORED_SIGNALS
from tests.support.notifications import alert, notification
from tests.support.processes import descendants_of
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]

# Begins, and returns once the test opens its gate.
GATED = """
import os, time
from pathlib import Path
from receiver import hookimpl
@hookimpl
def execute(context):
    gate = Path(os.environ["GATES"]) / context.alert.fingerprint
    gate.with_suffix(".begun").touch()
    while not gate.exists():
        time.sleep(0.01)
    return "done"
"""


def environment(directory: Path) -> dict[str, str]:
    """Return the settings of a receiver with the gated action."""
    (directory / "plugins").mkdir()
    (directory / "plugins" / "gated.py").write_text(GATED)
    return {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "PLUGIN_DIR": str(directory / "plugins"),
        "GATES": str(directory),
        "RECEIVER_ACTION_GATED_MAX_ATTEMPTS": "1",
    }


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    directory = tmp_path_factory.mktemp("signals")
    started = Receiver("serve", environment(directory), directory / "receiver.log")
    try:
        yield started.wait_ready()
    finally:
        started.kill()


def begin_action(receiver: Receiver, name: str) -> Path:
    """Start an attempt; return the gate that lets it end."""
    assert receiver.post(notification(alert(name)), "/webhook/gated").ok
    gate = receiver.log.parent / name
    wait_until(gate.with_suffix(".begun").exists, 60, "the action has begun")
    return gate


def lasting_processes_of(receiver: Receiver) -> dict[int, str]:
    """Return the same without the executors of an action that runs for a moment only."""
    processes = processes_of(receiver)
    return {pid: title for pid, title in processes.items() if "executor log_action" not in title}


def processes_of(receiver: Receiver) -> dict[int, str]:
    """Return pid -> title of every process of the receiver."""
    assert receiver.process is not None
    pids = [receiver.process.pid, *descendants_of(receiver.process.pid)]
    return {
        pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip() for pid in pids
    }


def is_delivered(pid: int) -> bool:
    """Whether no signal to a process is pending; an ended process has none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return all(
        int(line.split()[1], 16) == 0
        for line in status.splitlines()
        if line.startswith(("SigPnd", "ShdPnd"))
    )


def outcomes_of(receiver: Receiver, fingerprint: str) -> list[tuple[str, int]]:
    """Return the outcome and the number of attempts of the runs that have finished."""
    journal = Journal(f"sqlite:///{receiver.log.parent / 'data' / 'journal.db'}")
    try:
        finished = reading.list_runs(journal, state="finished", fingerprint=fingerprint)
        return [(run["outcome"], run["attempts"]) for run in finished]
    finally:
        journal.close()


@pytest.mark.parametrize("number", [*IGNORED_SIGNALS, signal.SIGWINCH], ids=lambda one: one.name)
def test_signal_to_any_process_has_no_effect_on_an_action_or_on_the_processes(
    receiver: Receiver, number: signal.Signals
) -> None:
    gate = begin_action(receiver, number.name)
    before = lasting_processes_of(receiver)
    assert len(before) >= 5
    for pid in processes_of(receiver):
        os.kill(pid, number)
        wait_until(lambda pid=pid: is_delivered(pid), 10)  # type: ignore[misc]
    assert receiver.post(notification(alert(f"{number.name} beside")), "/webhook/log_action").ok
    wait_until(lambda: outcomes_of(receiver, f"{number.name} beside"))
    assert lasting_processes_of(receiver) == before
    gate.touch()
    assert wait_until(lambda: outcomes_of(receiver, number.name)) == [("succeeded", 1)]
    assert processes_of(receiver).keys() >= {pid for pid in before if "receiver" in before[pid]}


@pytest.mark.parametrize("number", DRAIN_SIGNALS, ids=lambda one: one.name)
def test_signal_drains_the_receiver(
    start_receiver: Start, tmp_path: Path, number: signal.Signals
) -> None:
    receiver = start_receiver(**environment(tmp_path)).wait_ready()
    gate = begin_action(receiver, "drained")
    assert receiver.process is not None
    receiver.process.send_signal(number)
    wait_until(lambda: receiver.lines("worker drains"))
    receiver.process.send_signal(signal.SIGTERM)  # Again: it changes nothing.
    pid = receiver.process.pid
    wait_until(lambda: is_delivered(pid), 10)
    gate.touch()
    assert receiver.process.wait(60) == 0
    assert outcomes_of(receiver, "drained") == [("succeeded", 1)]


@pytest.mark.parametrize("command", ["web", "worker"])
@pytest.mark.parametrize("number", AT_ONCE_SIGNALS, ids=lambda one: one.name)
def test_interrupt_drains_a_program_that_runs_alone(
    start_receiver: Start, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    receiver = start_receiver(command, **environment(tmp_path)).wait_ready()
    assert receiver.process is not None
    receiver.process.send_signal(number)
    assert receiver.process.wait(60) == 0


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize("number", AT_ONCE_SIGNALS, ids=lambda one: one.name)
def test_second_interrupt_ends_everything_at_once(
    start_receiver: Start, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    settings = environment(tmp_path)
    receiver = start_receiver(command, **settings).wait_ready()
    poster = receiver if command == "serve" else start_receiver("web", **settings).wait_ready()
    begin_action(poster, "cut-off")
    processes = processes_of(receiver)
    assert receiver.process is not None
    receiver.process.send_signal(number)
    wait_until(lambda: receiver.lines("worker drains"))
    receiver.process.send_signal(number)
    assert receiver.process.wait(5) == 1
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
