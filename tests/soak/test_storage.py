"""Storage that fails: full, write-protected, locked, damaged. Nothing answered 200 is ever lost."""

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.notifications import alert, notification
from tests.support.processes import descendants_of
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until
from tests.support.witness import Record, Witness

_DISK_BYTES = 16 * 2**20
_PAGE_BYTES = 4096
_FRAME_BYTES = _PAGE_BYTES + 24  # A page in SQLite's log, with its header.
_FAILURE = "journal fails the worker"
_NO_LIMIT = resource.RLIM_INFINITY
_ANNOTATIONS = {"metric_name": "m", "value": "1", "threshold": "> 0", "for": "1m"}
# Root may write to any file, unless it is denied that.
_HEEDING_MODES = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
)
_MOUNT = 'mount -t tmpfs -o size="$1" none "$0" && shift && exec "$@"'


def body(fingerprint: str, seconds: float = 0.01) -> bytes:
    """A notification about one alert; its run takes so long."""
    return notification(alert(fingerprint, annotations={"seconds": str(seconds), **_ANNOTATIONS}))


def post(receiver: Receiver, fingerprint: str, seconds: float = 0.01) -> requests.Response:
    return receiver.post(body(fingerprint, seconds), "/webhook/witness")


def is_ready(receiver: Receiver) -> bool:
    return requests.get(f"{receiver.url}/-/ready", timeout=10).status_code == 200


class Fault(ABC):
    """A way in which writing to the disk of a running receiver fails, and works again."""

    wrapper: tuple[str, ...] = ()

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"

    @abstractmethod
    def begin(self, receiver: Receiver) -> None:
        """Let every write of all its processes fail from now on."""

    @abstractmethod
    def end(self, receiver: Receiver) -> None:
        """Let writes succeed again."""

    def record(self, receiver: Receiver, directory: Path) -> Record:
        """Return the journal, of a receiver that is at rest."""
        return Record(self.data)


def limit_files(receiver: Receiver, size: int) -> None:
    """Let no process of the receiver write to a file beyond this size."""
    assert receiver.process is not None
    for pid in (receiver.process.pid, *descendants_of(receiver.process.pid)):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, _NO_LIMIT))


class SizeLimit(Fault):
    """No file may be larger than a page of the journal, whoever one is: no write to it succeeds.

    What the actions note is less than that.
    """

    def begin(self, receiver: Receiver) -> None:
        limit_files(receiver, _PAGE_BYTES)

    def end(self, receiver: Receiver) -> None:
        limit_files(receiver, _NO_LIMIT)


class WriteProtection(Fault):
    """The journal's files refuse writes, through open descriptors too.

    A disk that turned read-only after an error does the same. By the immutable flag where we may
    set it and it does that; else by a limit on the size of files.
    """

    def begin(self, receiver: Receiver) -> None:
        if not self._protect():
            limit_files(receiver, _PAGE_BYTES)

    def end(self, receiver: Receiver) -> None:
        limit_files(receiver, _NO_LIMIT)
        self._unprotect()

    @property
    def _files(self) -> list[Path]:
        # Not journal.db-shm: a process that maps a file which turns immutable may get SIGBUS.
        return [self.data / name for name in ("probe", "journal.db", "journal.db-wal")]

    def _protect(self) -> bool:
        with (self.data / "probe").open("wb", buffering=0) as opened:
            changed = subprocess.run(["chattr", "+i", *self._files], capture_output=True)
            try:
                opened.write(b"x")
            except PermissionError:
                return changed.returncode == 0
            self._unprotect()
            return False

    def _unprotect(self) -> None:
        subprocess.run(["chattr", "-i", *self._files], capture_output=True)


class FullDisk(Fault):
    """A disk of the receiver's own, filled to the last byte."""

    def __init__(self, directory: Path, namespace: tuple[str, ...]) -> None:
        super().__init__(directory)
        self.data.mkdir()
        self.wrapper = (*namespace, "sh", "-c", _MOUNT, str(self.data), str(_DISK_BYTES))

    def begin(self, receiver: Receiver) -> None:
        with self._filler(receiver).open("wb", buffering=0) as filler:
            for size in (2**16, 2**12, 1):
                try:
                    while True:
                        filler.write(b"x" * size)
                except OSError:
                    continue

    def end(self, receiver: Receiver) -> None:
        self._filler(receiver).unlink()

    def record(self, receiver: Receiver, directory: Path) -> Record:
        copy = directory / "copy"
        copy.mkdir()
        for file in self._seen(receiver).glob("journal.db*"):
            shutil.copy(file, copy)
        return Record(copy)

    def _seen(self, receiver: Receiver) -> Path:
        assert receiver.process is not None
        return Path(f"/proc/{receiver.process.pid}/root{self.data}")

    def _filler(self, receiver: Receiver) -> Path:
        return self._seen(receiver) / "filler"


def mounting_namespace() -> tuple[str, ...] | None:
    """Return the command that may mount a disk which only its own processes see, if any may."""
    for namespace in (("unshare", "-m"), ("unshare", "-Urm")):
        try:
            subprocess.run(
                [*namespace, "mount", "-t", "tmpfs", "none", "/tmp"],
                check=True,
                capture_output=True,
            )
        except (subprocess.CalledProcessError, FileNotFoundError):
            continue
        return namespace
    return None


@pytest.fixture(params=["full disk", "size limit", "write protection"])
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> Fault:
    if request.param == "write protection":
        return WriteProtection(tmp_path)
    namespace = mounting_namespace()
    # Where nobody may mount a disk, not even in a container of his own, the nearest to a full one.
    if request.param == "size limit" or namespace is None:
        return SizeLimit(tmp_path)
    return FullDisk(tmp_path, namespace)


@contextmanager
def running(
    directory: Path, more: Mapping[str, str] | None = None, wrapper: tuple[str, ...] = ()
) -> Iterator[Receiver]:
    """Run `receiver serve` until the block ends."""
    environment = {"RECEIVER_DATA_DIR": str(directory / "data"), **(more or {})}
    receiver = Receiver("serve", environment, directory / "receiver.log", wrapper)
    try:
        yield receiver.wait_ready()
    finally:
        receiver.kill()


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path)


def starts(receiver: Receiver) -> tuple[int, int]:
    """Return how often its web and its worker have started."""
    return len(receiver.lines("web started")), len(receiver.lines("worker started"))


def all_run_once(witness: Witness, record: Record, fingerprints: Sequence[str]) -> None:
    """Check that each alert has one run, which succeeded at its first and only attempt."""
    runs = {run["fingerprint"]: run for run in record.runs()}
    assert sorted(runs) == sorted(fingerprints)
    assert {(run["outcome"], run["attempts"]) for run in runs.values()} == {("succeeded", 1)}
    done = sorted(one.run_id for one in witness.seen("ends"))
    assert done == sorted(run["id"] for run in runs.values())


def test_journal_that_takes_no_writes_answers_503_and_recovers_by_itself(
    fault: Fault, tmp_path: Path, witness: Witness
) -> None:
    with running(tmp_path, witness.environment, fault.wrapper) as receiver:
        accepted = ["slow 1", "slow 2"]
        assert all(post(receiver, one, seconds=0.8).ok for one in accepted)
        wait_until(lambda: len(witness.seen("begins")) == 2)
        fault.begin(receiver)
        try:
            for number in range(10):
                answer = post(receiver, f"refused {number}")
                assert answer.status_code == 503
                assert answer.headers["Retry-After"]
            wait_until(lambda: not is_ready(receiver), 60, "not ready")
            assert requests.get(f"{receiver.url}/-/healthy", timeout=5).ok
            # Their ends cannot be recorded now, and must not be forgotten.
            wait_until(lambda: len(witness.seen("ends")) == 2)
        finally:
            fault.end(receiver)
        wait_until(lambda: post(receiver, "first after").ok, 60, "accepting again")
        wait_until(lambda: is_ready(receiver), 60, "ready again")
        accepted += ["first after", *(f"refused {number}" for number in range(10))]
        assert all(post(receiver, one).ok for one in accepted)
        wait_until(lambda: len(witness.seen("ends")) >= len(accepted), 60, "all runs")
        wait_until(lambda: len(receiver.lines("attempt ended")) >= len(accepted), 60)
        all_run_once(witness, fault.record(receiver, tmp_path), accepted)
        assert starts(receiver) == (1, 1)


def is_stopped(pid: int) -> bool:
    """Whether all threads of a process have been stopped by a signal."""
    try:
        tasks = [one.read_text() for one in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # One has ended meanwhile.
        return False
    return all(text.rpartition(")")[2].split()[0] == "T" for text in tasks)


def halt(receiver: Receiver, record: Record) -> int:
    """Stop the worker where it holds no lock on the journal; return its pid."""
    pid = receiver.children()["worker"]

    def halted_between_transactions() -> bool:
        os.kill(pid, signal.SIGSTOP)
        # The signal is only on its way: until all its threads have stopped, one may take the lock.
        wait_until(lambda: is_stopped(pid), what="the worker stopped")
        with closing(sqlite3.connect(record.file, timeout=0.1, isolation_level=None)) as file:
            try:
                file.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                return False
        return True

    wait_until(halted_between_transactions, 60, "the worker at rest")
    return pid


def run_with_pages(receiver: Receiver, record: Record, pages: int) -> bool:
    """Let an alert's run be done while the worker may write so many pages, then wait for it.

    Returns whether that was enough for all that had to be written.
    """
    fingerprint = f"with {pages} pages"
    failures = receiver.text().count(_FAILURE)
    worker = halt(receiver, record)
    assert post(receiver, fingerprint).ok
    written = record.file.with_name("journal.db-wal").stat().st_size
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (written + pages * _FRAME_BYTES, _NO_LIMIT))
    os.kill(worker, signal.SIGCONT)

    def is_recorded() -> bool:
        (run,) = record.rows("SELECT state FROM runs WHERE fingerprint = ?", fingerprint)
        return bool(run["state"] == "finished")

    wait_until(lambda: is_recorded() or receiver.text().count(_FAILURE) > failures)
    enough = is_recorded()
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (_NO_LIMIT, _NO_LIMIT))
    # Alertmanager sends it again, which wakes the worker.
    assert post(receiver, fingerprint).json()["duplicate"] == 1
    wait_until(is_recorded, 60, f"the outcome of the run that had {pages} pages")
    return enough


def test_worker_whose_disk_fills_between_any_two_writes_loses_and_repeats_nothing(
    tmp_path: Path, witness: Witness
) -> None:
    with running(tmp_path, witness.environment) as receiver:
        record = Record(tmp_path / "data")
        pages = 0
        while not run_with_pages(receiver, record, pages):
            pages += 1
            assert pages < 60, "the limit has no effect"
        # Fewer, and not every write of a run can have failed once.
        assert pages >= 5
        all_run_once(witness, record, [f"with {number} pages" for number in range(pages + 1)])
        assert starts(receiver) == (1, 1)


def test_deadline_that_passes_while_nothing_can_be_written_still_frees_the_slot(
    tmp_path: Path, witness: Witness
) -> None:
    environment = {
        # More than it takes to see that it runs and to stop all writing.
        "RECEIVER_ACTION_WITNESS_TIMEOUT": "4s",
        "RECEIVER_ACTION_WITNESS_MAX_CONCURRENT": "1",
    }
    with running(tmp_path, {**witness.environment, **environment}) as receiver:
        worker = receiver.children()["worker"]
        assert post(receiver, "hangs", seconds=600).ok
        wait_until(lambda: witness.seen("begins"))
        written = (tmp_path / "data" / "journal.db-wal").stat().st_size
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (written, _NO_LIMIT))
        wait_until(lambda: _FAILURE in receiver.text())
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (_NO_LIMIT, _NO_LIMIT))
        assert post(receiver, "next").ok
        wait_until(lambda: len(witness.seen("begins")) == 2, 60, "the run that waits for the slot")
        wait_until(lambda: witness.seen("ends"))


REFUSED = """
from receiver import PermanentError, hookimpl

@hookimpl
def execute():
    raise PermanentError("nobody stores this")
"""
_REFUSING = """
CREATE TRIGGER refusing BEFORE UPDATE ON attempts WHEN NEW.error LIKE '%nobody stores this%'
BEGIN SELECT RAISE(ABORT, 'no room for such words'); END
"""


def test_words_that_the_journal_refuses_are_left_out_and_hold_up_no_other_run(
    tmp_path: Path, witness: Witness
) -> None:
    (witness.plugins / "refused.py").write_text(REFUSED)
    with running(tmp_path, witness.environment) as receiver:
        record = Record(tmp_path / "data")
        with closing(sqlite3.connect(record.file, timeout=10)) as journal:
            journal.execute(_REFUSING)
        assert receiver.post(body("first"), "/webhook/refused").ok
        wait_until(lambda: _FAILURE in receiver.text())
        assert post(receiver, "second").ok
        wait_until(lambda: record.unfinished() == 0, 60, "all runs")
        assert witness.seen("ends")
        (said,) = receiver.lines("what an attempt said cannot be stored")
        with closing(sqlite3.connect(record.file)) as journal:
            ends = dict(journal.execute("SELECT action, outcome FROM runs"))
            (error,) = journal.execute("SELECT error FROM runs WHERE action = 'refused'").fetchone()
    assert ends == {"refused": "failed", "witness": "succeeded"}
    assert (said["action"], said["fingerprint"]) == ("refused", "first")
    assert error.startswith("what it said cannot be stored: JournalDataError")
    assert "no room for such words" in error


def set_modes(record: Record, mode: int) -> None:
    """Set the mode of a journal and of all files beside it."""
    # The database first: SQLite gives its mode to the files that it makes later.
    for file in sorted(record.file.parent.glob(f"{record.file.name}*")):
        file.chmod(mode)


def test_journal_that_was_read_only_at_start_is_written_once_it_may_be(
    tmp_path: Path, witness: Witness
) -> None:
    with running(tmp_path, witness.environment) as receiver:
        assert post(receiver, "before").ok
        wait_until(lambda: witness.seen("ends"))
        assert receiver.stop() == 0
    record = Record(tmp_path / "data")
    set_modes(record, 0o400)
    environment = {"RECEIVER_DATA_DIR": str(tmp_path / "data"), **witness.environment}
    receiver = Receiver("serve", environment, tmp_path / "read-only.log", _HEEDING_MODES)
    try:
        wait_until(lambda: receiver.lines("web started"), 60)
        assert not is_ready(receiver)
        for _ in range(10):
            assert post(receiver, "refused").status_code == 503
        set_modes(record, 0o600)
        wait_until(lambda: post(receiver, "after").ok, 60, "accepting")
        wait_until(lambda: is_ready(receiver), 60, "ready")
        wait_until(lambda: len(witness.seen("ends")) == 2, 60, "the run")
        wait_until(lambda: record.unfinished() == 0, 60, "its outcome")
        all_run_once(witness, record, ["before", "after"])
        assert starts(receiver)[0] == 1  # The worker, which has nothing to do until then, retries.
    finally:
        receiver.kill()


def test_journal_locked_by_another_process_answers_503_in_time_and_recovers(
    tmp_path: Path, witness: Witness
) -> None:
    with running(tmp_path, witness.environment) as receiver:
        record = Record(tmp_path / "data")
        assert post(receiver, "slow", seconds=0.8).ok
        wait_until(lambda: witness.seen("begins"))
        fingerprints = [f"locked {number}" for number in range(6)]
        answers: dict[str, tuple[int, float]] = {}

        def post_timed(fingerprint: str) -> None:
            began = time.monotonic()
            status = post(receiver, fingerprint).status_code
            answers[fingerprint] = status, time.monotonic() - began

        threads = [threading.Thread(target=post_timed, args=(one,)) for one in fingerprints]
        with closing(sqlite3.connect(record.file, timeout=10, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert {status for status, _ in answers.values()} == {503}
        assert max(seconds for _, seconds in answers.values()) < 10
        wait_until(lambda: post(receiver, "first after").ok, 60, "accepting again")
        assert all(post(receiver, one).ok for one in fingerprints)
        wait_until(lambda: is_ready(receiver), 60, "ready again")
        wait_until(lambda: record.unfinished() == 0, 60, "all runs")
        all_run_once(witness, record, ["slow", "first after", *fingerprints])
        assert starts(receiver) == (1, 1)


@pytest.fixture(scope="module")
def sound_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with some content, all of it in the one file."""
    directory = tmp_path_factory.mktemp("sound")
    with running(directory) as receiver:
        for number in range(20):
            alerts = [alert(f"{number}.{one}", annotations=_ANNOTATIONS) for one in range(10)]
            assert receiver.post(notification(*alerts), "/webhook/log_action").ok
        assert receiver.stop() == 0
    file = directory / "data" / "journal.db"
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file


def overwrite_header(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"not a database, not any more" * 4)


def garble_middle_page(file: Path) -> None:
    middle = file.stat().st_size // _PAGE_BYTES // 2
    with file.open("r+b") as opened:
        opened.seek(middle * _PAGE_BYTES)
        opened.write(b"\xa5" * _PAGE_BYTES)


@pytest.mark.parametrize("command", ["serve", "web", "worker"])
@pytest.mark.parametrize("damage", [overwrite_header, garble_middle_page])
def test_damaged_journal_stops_the_start_and_is_left_as_it_is(
    tmp_path: Path, sound_journal: Path, damage: Callable[[Path], None], command: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    file = data / "journal.db"
    shutil.copy(sound_journal, file)
    damage(file)
    damaged = file.read_bytes()
    environment = {"RECEIVER_DATA_DIR": str(data)}
    receiver = Receiver(command, environment, tmp_path / "receiver.log")
    try:
        assert receiver.process is not None
        assert receiver.process.wait(30) == 1
    finally:
        receiver.kill()
    text = receiver.text()
    assert str(file) in text
    assert "restore a backup, or move it away" in text
    assert "Traceback" not in text
    assert file.read_bytes() == damaged
