"""A wall clock that jumps by an hour, and senders whose clock is an hour ahead."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.traffic import ANNOTATIONS, Traffic
from tests.support.waiting import wait_until
from tests.support.witness import PLUGIN, Record, Witness

HOUR = timedelta(hours=1)
_RETRY_SECONDS = 5
# Runs until it may end.
_SLOW = PLUGIN.replace(
    "    time.sleep(",
    "    while not os.path.exists(os.environ['SLOW_MAY_END']):\n"
    "        time.sleep(0.05)\n"
    "    time.sleep(",
)
# Fails once, and names the time of the next attempt.
_FLAKY = PLUGIN.replace(
    "    time.sleep(",
    "    if context.attempt == 1:\n"
    f"        raise TemporaryError('not yet', retry_after={_RETRY_SECONDS})\n"
    "    time.sleep(",
).replace("import hookimpl", "import TemporaryError, hookimpl")
# libfaketime 0.9.10 breaks the system call below time.sleep when it leaves the monotonic clock
# alone; gunicorn needs it at start.
_SLEEP = """
import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


class Clock:
    """The wall clock of a receiver: so far from the real one as it is told to be.

    Only the wall clock: the monotonic one goes on, as it does when NTP sets the time.
    """

    def __init__(self, directory: Path) -> None:
        self._offset = timedelta(0)
        self._file = directory / "clock"
        self._modules = directory / "modules"
        self._modules.mkdir()
        (self._modules / "sitecustomize.py").write_text(_SLEEP)
        self.set(timedelta(0))
        found = subprocess.run(
            ["faketime", "-m", "-f", "+0", "printenv", "LD_PRELOAD"],
            check=True,
            capture_output=True,
            text=True,
        )
        self.environment = {
            "LD_PRELOAD": found.stdout.strip(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",  # gunicorn keeps its heartbeat in the time of a file.
            "PYTHONPATH": str(self._modules),
        }

    def set(self, offset: timedelta) -> None:
        """Let the clock jump."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset.total_seconds():+.0f}")
        new.replace(self._file)
        self._offset = offset

    def now(self) -> datetime:
        """Return what the receiver takes for the time."""
        return datetime.now(UTC) + self._offset


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    if shutil.which("faketime") is None:
        reason = "faketime not found; apt-get install faketime"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    clear_shared_memory()
    yield Clock(tmp_path)
    clear_shared_memory()


def clear_shared_memory() -> None:
    """Delete what libfaketime left of processes that are gone.

    It names its shared memory by the process, leaves it there unless that ends in good order, and
    ends a later process that happens to have the same number.
    """
    for one in Path("/dev/shm").glob("*faketime_s*_*"):
        if not Path("/proc", one.name.rpartition("_")[2]).exists():
            one.unlink(missing_ok=True)


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    one = Witness(tmp_path)
    (one.plugins / "slow.py").write_text(_SLOW)
    (one.plugins / "flaky.py").write_text(_FLAKY)
    return one


@contextmanager
def running(directory: Path, clock: Clock, witness: Witness) -> Iterator[Receiver]:
    """Run `receiver serve` by a clock until the block ends."""
    receiver = Receiver(
        "serve",
        {
            "RECEIVER_DATA_DIR": str(directory / "data"),
            "RECEIVER_ACTION_SLOW_MAX_CONCURRENT": "1",
            "SLOW_MAY_END": str(directory / "slow may end"),
            **witness.environment,
            **clock.environment,
        },
        directory / "receiver.log",
    )
    try:
        yield receiver.wait_ready()
    finally:
        receiver.kill()


def post(receiver: Receiver, action: str, *alerts: dict[str, Any]) -> dict[str, int]:
    """Post alerts to an action; return the counts."""
    answer = receiver.post(notification(*alerts), f"/webhook/{action}")
    assert answer.status_code == 200
    counts: dict[str, int] = answer.json()
    return counts


def known(fingerprint: str, **more: Any) -> dict[str, Any]:
    """An alert whose arguments need no guessing."""
    annotations = {**ANNOTATIONS, **more.pop("annotations", {})}
    return alert(fingerprint, annotations=annotations, **more)


JUMPS = pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["an hour on", "an hour back"])


@JUMPS
def test_jump_of_the_clock_neither_loses_nor_repeats_what_is_queued_or_runs(
    tmp_path: Path, clock: Clock, witness: Witness, jump: timedelta
) -> None:
    slow = [known(f"slow {number}") for number in range(3)]
    with running(tmp_path, clock, witness) as receiver:
        record = Record(tmp_path / "data")
        assert post(receiver, "slow", *slow)["accepted"] == 3
        wait_until(lambda: witness.seen("begins"))
        states = sorted(run["state"] for run in record.runs("slow"))
        assert states == ["queued", "queued", "running"]
        with Traffic(receiver) as traffic:
            wait_until(lambda: len(traffic.accepted) >= 5)
            clock.set(jump)
            after = len(traffic.accepted)
            wait_until(lambda: len(traffic.accepted) >= after + 5)
            # Alertmanager sends again: it is the same episode, whatever the clock says.
            assert post(receiver, "slow", *slow)["duplicate"] == 3
            (tmp_path / "slow may end").touch()
            wait_until(lambda: len(record.rows(_FINISHED, "slow")) == 3, 60, "the slow runs")
        traffic.check()
        clock.set(timedelta(0))
        assert post(receiver, "slow", *slow)["duplicate"] == 3
        wait_until(lambda: record.unfinished() == 0, 60, "all runs")
        runs = [*record.runs("slow"), *record.runs("witness")]
        assert len(runs) == 3 + len(traffic.accepted)
        assert {(run["outcome"], run["attempts"]) for run in runs} == {("succeeded", 1)}
        done = sorted(one.run_id for one in witness.seen("ends"))
        assert done == sorted(run["id"] for run in runs)
        assert len(receiver.lines("worker started")) == 1
        assert len(receiver.lines("web started")) == 1


_FINISHED = "SELECT id FROM runs WHERE state = 'finished' AND action = ?"


@JUMPS
def test_jump_of_the_clock_neither_loses_nor_repeats_what_waits_for_a_retry(
    tmp_path: Path, clock: Clock, witness: Witness, jump: timedelta
) -> None:
    with running(tmp_path, clock, witness) as receiver:
        record = Record(tmp_path / "data")
        assert post(receiver, "flaky", known("flaky"))["accepted"] == 1
        wait_until(lambda: [run["attempts"] for run in record.runs("flaky")] == [1])
        wait_until(lambda: [run["state"] for run in record.runs("flaky")] == ["queued"])
        clock.set(jump)
        with Traffic(receiver) as traffic:
            wait_until(lambda: len(traffic.accepted) >= 10)
        traffic.check()
        assert post(receiver, "flaky", known("flaky"))["duplicate"] == 1
        # A retry is due at a time of the wall clock: one that was put back is waited for.
        clock.set(timedelta(0))
        wait_until(lambda: record.unfinished() == 0, 60, "the second attempt")
        (run,) = record.runs("flaky")
        assert (run["outcome"], run["attempts"]) == ("succeeded", 2)
        assert [one.attempt for one in witness.seen("begins") if one.run_id == run["id"]] == [1, 2]


def test_sender_whose_clock_is_an_hour_ahead_makes_no_alert_deaf(
    tmp_path: Path, clock: Clock, witness: Witness
) -> None:
    with running(tmp_path, clock, witness) as receiver:
        record = Record(tmp_path / "data")
        ahead = known("deaf?", starts_at=clock.now() + HOUR)
        assert post(receiver, "witness", ahead)["accepted"] == 1
        assert post(receiver, "witness", ahead)["duplicate"] == 1
        # Six minutes later its clock is right; the alert has resolved and fires again.
        clock.set(timedelta(minutes=6))
        again = known("deaf?", starts_at=clock.now())
        assert post(receiver, "witness", again)["accepted"] == 1
        assert post(receiver, "witness", again)["duplicate"] == 1
        # What the other peer still says of the time before is nothing new.
        assert post(receiver, "witness", ahead)["duplicate"] == 1
        wait_until(lambda: record.unfinished() == 0)
        runs = record.runs()
        assert [(run["outcome"], run["attempts"]) for run in runs] == [("succeeded", 1)] * 2
        assert len(witness.seen("ends")) == 2
