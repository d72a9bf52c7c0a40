"""Every recorded conversation, with a restart of the receiver between any two of its messages."""

import itertools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.notifications import SEQUENCES, sequence
from tests.support.processes import descendants_of, send
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until
from tests.support.witness import Record, Witness

# Message 1 of every conversation, message 2 of every conversation, …; each is its own source.
_ROUNDS = list(
    itertools.zip_longest(
        *([(folder, body) for _, body in sequence(folder)] for folder in SEQUENCES)
    )
)


def end_in_good_order(receiver: Receiver) -> None:
    assert receiver.stop() == 0


def kill_all(receiver: Receiver) -> None:
    """Kill all its processes, before any of them could notice that another is gone."""
    assert receiver.process is not None
    for pid in (receiver.process.pid, *descendants_of(receiver.process.pid)):
        send(pid, signal.SIGKILL)
    receiver.process.wait(10)


@pytest.mark.parametrize(
    ("end", "repeats"),
    [(end_in_good_order, False), (kill_all, True)],
    ids=["SIGTERM", "SIGKILL"],
)
def test_restarts_change_no_number_of_runs(
    tmp_path: Path, end: Callable[[Receiver], None], repeats: bool
) -> None:
    witness = Witness(tmp_path)
    record = Record(tmp_path / "data")
    receiver = Receiver(
        "serve",
        {
            "RECEIVER_DATA_DIR": str(tmp_path / "data"),
            "RECEIVER_ACTION_WITNESS_BACKOFF": "10ms..50ms",
            "RECEIVER_ACTION_WITNESS_MAX_ATTEMPTS": "20",
            **witness.environment,
        },
        tmp_path / "receiver.log",
    )
    try:
        for number, messages in enumerate(_ROUNDS):
            if number:
                end(receiver)
                receiver.start()
            receiver.wait_ready()
            # In the recording the next message came seconds later: its run had long ended.
            wait_until(lambda: record.unfinished() == 0, 60, "the runs of the round before")
            for folder, body in filter(None, messages):
                assert receiver.post(body, f"/webhook/witness?source={folder}").ok
        wait_until(lambda: record.unfinished() == 0, 60, "the last runs")
        assert receiver.stop() == 0
    finally:
        receiver.kill()

    runs = record.runs()
    counted = {folder: sum(run["source"] == folder for run in runs) for folder in SEQUENCES}
    assert counted == SEQUENCES
    assert len(runs) == sum(SEQUENCES.values())
    assert {run["outcome"] for run in runs} == {"succeeded"}
    for run in runs:
        outcomes = [one["outcome"] for one in record.attempts(run["id"])]
        assert outcomes == ["interrupted"] * (len(outcomes) - 1) + ["succeeded"]
        assert repeats or len(outcomes) == 1
        done = sum(seen.run_id == run["id"] for seen in witness.seen("ends"))
        assert done >= 1
        assert repeats or done == 1
