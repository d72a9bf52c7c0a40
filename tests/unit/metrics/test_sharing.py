"""The directory in which the processes of one receiver count: made, shared, and not left behind."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from receiver.metrics import SHARED_DIRECTORY, sharing

COUNT = """
from receiver.metrics import sharing
from receiver.metrics.counts import WorkerCounts
from tests.support.root import needs_root
sharing.count_as("worker")
counts = WorkerCounts(["log_action"])
counts.run_ended("log_action", "succeeded")
print("counted", flush=True)
input()
"""
RUNS = "receiver_runs_total"
SUCCEEDED = {"action": "log_action", "outcome": "succeeded"}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SHARED_DIRECTORY, str(tmp_path))
    return tmp_path


def start() -> "subprocess.Popen[str]":
    """Start a process that counts one run, and goes on living."""
    process = subprocess.Popen(
        [sys.executable, "-c", COUNT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "counted\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_processes_alive_at_the_same_time_are_added_up(directory: Path) -> None:
    processes = [start(), start()]
    try:
        shared = sharing.all_counts(CollectorRegistry())
        assert shared.get_sample_value(RUNS, SUCCEEDED) == 2
    finally:
        for one in processes:
            end(one)
    assert len(list(directory.glob("counter_*.db"))) == 2


def test_process_that_follows_a_dead_one_takes_its_files(directory: Path) -> None:
    for number in (1, 2, 3):
        end(start())
        shared = sharing.all_counts(CollectorRegistry())
        assert shared.get_sample_value(RUNS, SUCCEEDED) == number
    assert len(list(directory.glob("counter_*.db"))) == 1


def test_directory_is_made_for_the_processes_and_removed_after_them() -> None:
    assert SHARED_DIRECTORY not in os.environ
    with sharing.shared_directory():
        made = Path(os.environ[SHARED_DIRECTORY])
        assert made.is_dir()
        assert made.stat().st_mode & 0o777 == 0o700
    assert not made.exists()
    assert SHARED_DIRECTORY not in os.environ


def test_directory_that_is_set_is_used_and_stays(directory: Path) -> None:
    with sharing.shared_directory():
        assert os.environ[SHARED_DIRECTORY] == str(directory)
    assert directory.is_dir()


def test_directory_of_a_killed_receiver_is_removed_by_the_next_and_that_of_a_living_one_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Of their own: any receiver on this machine that starts just now would remove it, too.
    monkeypatch.setattr(sharing, "_MEMORY", tmp_path)
    code = (
        "import os; from pathlib import Path\n"
        "from receiver.metrics import SHARED_DIRECTORY, sharing\n"
        f"sharing._MEMORY = Path({str(tmp_path)!r})\n"
        "with sharing.shared_directory():\n"
        "    print(os.environ[SHARED_DIRECTORY], flush=True)\n"
        "    input()"
    )
    one = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert one.stdout is not None
    made = Path(one.stdout.readline().strip())
    with sharing.shared_directory():
        assert made.is_dir()
    end(one)
    assert made.is_dir()
    with sharing.shared_directory():
        assert not made.exists()


def test_process_without_room_for_its_counts_keeps_them_to_itself(directory: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "import logging; logging.basicConfig()\n"
        "from prometheus_client import CollectorRegistry\n"
        "from receiver.metrics import sharing\n"
        "from receiver.metrics.counts import WorkerCounts\n"
        "sharing.count_as('worker')\n"
        "counts = WorkerCounts(['log_action'])\n"
        "counts.run_ended('log_action', 'succeeded')\n"
        f"print(sharing.all_counts(counts.registry).get_sample_value({RUNS!r}, {SUCCEEDED!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr
    assert "metrics of this process are not shared" in done.stderr
    assert sharing.all_counts(CollectorRegistry()).get_sample_value(RUNS, SUCCEEDED) is None


@pytest.mark.parametrize("kind", ["FIFO", "file", "link", "socket", "link to a directory"])
def test_what_another_user_made_with_the_name_of_a_directory_neither_blocks_nor_is_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(sharing, "_MEMORY", tmp_path)
    name = tmp_path / "alert-receiver-metrics-foreign"
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    match kind:
        case "FIFO":
            os.mkfifo(name)
        case "file":
            name.touch()
        case "link":
            name.symlink_to(other / "kept")
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(name))
        case "link to a directory":
            name.symlink_to(other)
    with sharing.shared_directory():
        assert Path(os.environ[SHARED_DIRECTORY]).is_dir()
    assert os.path.lexists(name)
    assert (other / "kept").exists()


@pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"),
    reason="only root can make a directory of another user",
)
def test_directory_of_another_user_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sharing, "_MEMORY", tmp_path)
    foreign = tmp_path / "alert-receiver-metrics-foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    with sharing.shared_directory():
        assert foreign.is_dir()
    assert foreign.is_dir()


@pytest.mark.parametrize("name", ["worker-0.lock", "counter_worker-0.db"])
@pytest.mark.parametrize("kind", ["FIFO", "link"])
def test_process_keeps_its_counts_to_itself_when_a_file_of_the_directory_is_not_its_own(
    directory: Path, name: str, kind: str
) -> None:
    if kind == "FIFO":
        os.mkfifo(directory / name)
    else:
        (directory / "target").write_text("kept")
        (directory / name).symlink_to(directory / "target")
    code = (
        "import logging, os; logging.basicConfig()\n"
        "from receiver.metrics import sharing\n"
        "sharing.count_as('worker')\n"
        "print(os.environ.get('PROMETHEUS_MULTIPROC_DIR'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert "metrics of this process are not shared" in done.stderr
    if kind == "link":
        assert (directory / "target").read_text() == "kept"


def test_receiver_without_a_place_for_temporary_files_shares_no_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sharing, "_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing too"))
    with sharing.shared_directory():
        assert SHARED_DIRECTORY not in os.environ
    assert [record.message for record in caplog.records] == ["metrics of the worker are not shared"]
