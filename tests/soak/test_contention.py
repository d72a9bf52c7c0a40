"""Processes in each other's way on the one write lock that SQLite has."""

import statistics
import subprocess
import sys
from pathlib import Path

from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.traffic import ANNOTATIONS, Traffic
from tests.support.waiting import wait_until
from tests.support.witness import Record, Witness

_RUNS = 1500
_BESIDE = 10


def test_queue_of_short_runs_delays_no_acceptance(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    record = Record(tmp_path / "data")
    receiver = Receiver(
        "serve",
        {
            "RECEIVER_DATA_DIR": str(tmp_path / "data"),
            "RECEIVER_ACTION_WITNESS_MAX_CONCURRENT": "16",
            **witness.environment,
        },
        tmp_path / "receiver.log",
    )
    annotations = {**ANNOTATIONS, "seconds": "0"}
    queues = 0

    def queue() -> None:
        nonlocal queues
        queues += 1
        names = [f"queued {queues}.{number}" for number in range(_RUNS)]
        body = notification(*[alert(name, annotations=annotations) for name in names])
        assert receiver.post(body, "/webhook/witness").json()["accepted"] == _RUNS

    try:
        receiver.wait_ready()
        queue()
        with Traffic(receiver, pause_seconds=0.01) as traffic:
            while True:
                are_done = lambda: len(witness.seen("ends")) >= queues * _RUNS  # noqa: E731
                wait_until(are_done, 120, "the queue worked off")
                if len(traffic.accepted) >= _BESIDE:
                    break
                queue()  # Another: this one did not last until enough had come beside it.
        wait_until(lambda: record.unfinished() == 0, 60)
    finally:
        receiver.kill()
    runs = record.runs()
    assert len(runs) == queues * _RUNS + len(traffic.accepted)
    assert {(run["outcome"], run["attempts"]) for run in runs} == {("succeeded", 1)}
    assert statistics.median(traffic.seconds) < 0.5
    traffic.check()


# Opens a new journal for each line that it is sent.
_OPENS = """
import sys
from receiver.errors import JournalError
from receiver.journal.journal import Journal

print("ready", flush=True)
for line in sys.stdin:
    try:
        journal = Journal(line.strip())
        journal.check_writable()
        journal.close()
    except JournalError as error:
        print(error, flush=True)
    else:
        print("opened", flush=True)
"""


def test_new_journal_can_be_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(4):
            one = subprocess.Popen(
                [sys.executable, "-c", _OPENS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            processes.append(one)
        said = [read(one) for one in processes]
        assert said == ["ready"] * 4
        for number in range(10):
            for one in processes:
                assert one.stdin is not None
                one.stdin.write(f"sqlite:///{tmp_path / str(number) / 'journal.db'}\n")
            assert [read(one) for one in processes] == ["opened"] * 4
    finally:
        for one in processes:
            one.kill()
            one.communicate()


def read(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints, empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
