"""Actions that misbehave in every way we know: none delays an acceptance or stops the others."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.notifications import alert, notification
from tests.support.processes import is_alive, send
from tests.support.receivers import Receiver
from tests.support.traffic import ANNOTATIONS, Traffic
from tests.support.waiting import wait_until
from tests.support.witness import PLUGIN, Record, Witness

_HELD_SECONDS = 1.2
_BODIES = {
    "never_returns": "threading.Event().wait()",
    # Not before the worker has seen that it is late.
    "returns_late": "wait_for(os.environ['MAY_RETURN'])",
    "raises": "raise {'base': Odd, 'interrupt': KeyboardInterrupt}[annotations['what']]('odd')",
    "exits": "sys.exit(7)",
    "raises_oddly": "raise ODD_ERRORS[annotations['what']]()",
    "returns_oddly": "return ODD_RESULTS[annotations['what']]()",
    "kills_its_process": "os._exit(7)",
    # Nothing of this many a core dump is worth keeping.
    "segfaults": "resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); ctypes.string_at(0)",
    # Called through PyDLL, a function keeps the interpreter lock.
    "holds_the_lock": f"ctypes.PyDLL(None).usleep({_HELD_SECONDS * 1_000_000:.0f})",
    "forks": "leave(fork)",
    "starts_a_session": "leave(session)",
    "leaves_a_family": "leave(fork); leave(session); leave(daemon); threading.Event().wait()",
}

# Quick to the end; the breaker opens all the same when attempts never return.
_POLICY = {"BACKOFF": "10ms..20ms", "MAX_ATTEMPTS": "2", "BREAKER": "5 failures, 500ms"}

# What all of them share, so that each of them is one line.
_SHARED = """
import ctypes
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta

from receiver import TemporaryError


class Odd(BaseException):
    pass


class ForgetsItsParent(TemporaryError):
    def __init__(self):
        pass


class SetsTimesLater(TemporaryError):
    def __init__(self, **times):
        vars(self).update(times)


class Lazy(Mapping):
    def __getitem__(self, name):
        raise ConnectionError("closed")

    def __iter__(self):
        return iter(["answer"])

    def __len__(self):
        return 1


class Mute(Exception):
    def __str__(self):
        raise ValueError("no")

    __repr__ = __str__


def endless():
    found = []
    found.append(found)
    return found


ODD_ERRORS = {
    "text": lambda: ValueError("\\x00 \\ud800"),
    "mute": Mute,
    "no parent": ForgetsItsParent,
    "header": lambda: TemporaryError("busy", retry_after="0"),
    "date": lambda: TemporaryError("busy", retry_after="Fri, 31 Dec 1999 23:59:59 GMT"),
    "number": lambda: SetsTimesLater(retry_after=0),
    "no zone": lambda: SetsTimesLater(retry_at=datetime(1999, 12, 31)),
    "no time": lambda: SetsTimesLater(retry_at="tomorrow", retry_after=[]),
    "for ever": lambda: TemporaryError("busy", retry_after=timedelta.max),
}
ODD_RESULTS = {
    "text": lambda: "\\x00 \\ud800",
    "mute": Mute,
    "endless": endless,
    "lazy": Lazy,
    "huge": lambda: "x" * 10_000_000,
    "numbers": lambda: {1: float("nan"), (2, 3): 10**5000},
}


def wait_for(file):
    while not os.path.exists(file):
        time.sleep(0.05)


def sleep_and_end():
    time.sleep(600)
    os._exit(0)


def fork():
    return os.fork() or sleep_and_end()


def session():
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


def daemon():
    # A grandchild in a session of its own, whose parent has ended.
    told, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        child = fork()
        os.write(tell, str(child).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    return int(os.read(told, 20))


def leave(start):
    file = os.path.join(os.environ["LEFT_DIRECTORY"], str(start()))
    os.close(os.open(file, os.O_CREAT))
"""


def plugin(body: str) -> str:
    """Return the source of an action that does this between its two lines of witness."""
    sleeps = "    time.sleep("
    kept, _, rest = PLUGIN.partition(sleeps)
    end = rest.partition("\n")[2]
    read = "    annotations = context.alert.annotations\n"
    before, mark, hook = kept.partition("@hookimpl")
    return f"{before}{_SHARED}\n\n{mark}{hook}{read}    {body}\n{end}"


class Cage:
    """A receiver with all the misbehaving actions, and a well-behaved one beside them."""

    def __init__(self, directory: Path) -> None:
        self.witness = Witness(directory)
        for name, body in _BODIES.items():
            (self.witness.plugins / f"{name}.py").write_text(plugin(body))
        self.record = Record(directory / "data")
        self.may_return = directory / "may_return"
        self._left = directory / "left"
        self._left.mkdir()
        policies = {
            f"RECEIVER_ACTION_{name.upper()}_{key}": value
            for name in _BODIES
            for key, value in _POLICY.items()
        }
        self.receiver = Receiver(
            "serve",
            {
                "RECEIVER_DATA_DIR": str(directory / "data"),
                "LEFT_DIRECTORY": str(self._left),
                "MAY_RETURN": str(self.may_return),
                # However slow they are, the neighbours do not take every place that they may.
                "RECEIVER_ACTION_WITNESS_MAX_CONCURRENT": "12",
                "RECEIVER_ACTION_NEVER_RETURNS_TIMEOUT": "300ms",
                "RECEIVER_ACTION_RETURNS_LATE_TIMEOUT": "300ms",
                "RECEIVER_ACTION_LEAVES_A_FAMILY_TIMEOUT": "5s",
                **policies,
                **self.witness.environment,
            },
            directory / "receiver.log",
        )

    def close(self) -> None:
        """End the receiver, and all that its actions left running."""
        self.receiver.kill()
        for pid in self.left():
            send(pid, signal.SIGKILL)

    def post(self, action: str, fingerprint: str, **annotations: str) -> None:
        """Let an action run for a new alert."""
        one = alert(fingerprint, annotations={**ANNOTATIONS, **annotations})
        answer = self.receiver.post(notification(one), f"/webhook/{action}")
        assert answer.json()["accepted"] == 1

    def run(self, fingerprint: str) -> dict[str, Any]:
        """Return the one run of an alert."""
        (run,) = self.record.rows("SELECT * FROM runs WHERE fingerprint = ?", fingerprint)
        return run

    def finished(self, fingerprint: str) -> dict[str, Any]:
        """Wait for the outcome of the run of an alert; return the run."""
        wait_until(
            lambda: self.run(fingerprint)["state"] == "finished",
            60,
            f"the outcome of {fingerprint}; log: {self.receiver.log}",
        )
        return self.run(fingerprint)

    def outcomes(self, run: dict[str, Any]) -> list[str]:
        """Return how each attempt of a run ended."""
        return [one["outcome"] for one in self.record.attempts(run["id"])]

    def calls(self, run: dict[str, Any]) -> int:
        """Return how often the action was called for a run."""
        return sum(one.run_id == run["id"] for one in self.witness.seen("begins"))

    def starts(self, role: str) -> int:
        """Return how often a program has started."""
        return len(self.receiver.lines(f"{role} started"))

    def left(self) -> list[int]:
        """Return the pids of what actions left running, dead or alive."""
        return [int(file.name) for file in self._left.iterdir()]

    @contextmanager
    def neighbours(
        self, attempts: int = 1, within_seconds: float = 10, same_worker: bool = False
    ) -> Iterator[Traffic]:
        """Send well-behaved alerts during a block; check that nothing of it reached them.

        Each is accepted in time and ends well, after so many attempts at most; and, where that is
        asked for, by the worker that was there before.
        """
        worker = self._worker()
        with Traffic(self.receiver) as traffic:
            wait_until(lambda: len(traffic.accepted) >= 5)
            yield traffic
            before = len(self.witness.seen("ends"))
            wait_until(lambda: len(self.witness.seen("ends")) >= before + 5)
        traffic.check(within_seconds)
        wait_until(lambda: not self._unfinished(), 60, "the runs of the neighbours")
        assert self._worker() == worker or not same_worker, "the worker died"
        runs = [one for one in self.record.runs() if one["fingerprint"] in traffic.accepted]
        assert len(runs) == len(traffic.accepted)
        assert {run["outcome"] for run in runs} == {"succeeded"}
        assert max(run["attempts"] for run in runs) <= attempts

    def _worker(self) -> int:
        return wait_until(lambda: self.receiver.children().get("worker", 0), 60, "a worker")

    def _unfinished(self) -> list[dict[str, Any]]:
        return [one for one in self.record.runs() if one["state"] != "finished"]

    def wait_for_neighbours(self, runs: int = 5) -> None:
        """Wait until so many more of the neighbours' runs have finished."""
        before = len(self.record.rows("SELECT id FROM runs WHERE outcome = 'succeeded'"))
        wait_until(
            lambda: (
                len(self.record.rows("SELECT id FROM runs WHERE outcome = 'succeeded'"))
                >= before + runs
            ),
            60,
            "the neighbours go on",
        )


@pytest.fixture(scope="module")
def shared_cage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cage]:
    """A receiver whose worker nothing in these tests may end."""
    cage = Cage(tmp_path_factory.mktemp("cage"))
    try:
        cage.receiver.wait_ready()
        yield cage
    finally:
        cage.close()


@pytest.fixture
def cage(tmp_path: Path) -> Iterator[Cage]:
    """A receiver for one test, which may end its worker."""
    cage = Cage(tmp_path)
    try:
        cage.receiver.wait_ready()
        yield cage
    finally:
        cage.close()


@pytest.mark.parametrize(
    ("action", "what", "error"),
    [
        ("raises", "base", "Odd: odd"),
        ("raises", "interrupt", "KeyboardInterrupt: odd"),
        ("exits", "", "SystemExit: 7"),
    ],
    ids=["BaseException", "KeyboardInterrupt", "SystemExit"],
)
def test_exception_that_ends_programs_ends_only_the_attempt(
    shared_cage: Cage, action: str, what: str, error: str
) -> None:
    with shared_cage.neighbours(same_worker=True):
        shared_cage.post(action, f"{action} {what}", what=what)
        run = shared_cage.finished(f"{action} {what}")
    assert (run["outcome"], run["error"]) == ("failed", error)
    assert shared_cage.outcomes(run) == ["failed", "failed"]


@pytest.mark.parametrize(
    "what",
    ["text", "mute", "no parent", "header", "date", "number", "no zone", "no time", "for ever"],
)
def test_exception_that_is_odd_ends_only_the_attempt(shared_cage: Cage, what: str) -> None:
    fingerprint = f"raises {what}"
    with shared_cage.neighbours(same_worker=True):
        shared_cage.post("raises_oddly", fingerprint, what=what)
        wait_until(
            lambda: "failed" in shared_cage.outcomes(shared_cage.run(fingerprint)),
            60,
            "the outcome of an attempt",
        )


@pytest.mark.parametrize("what", ["text", "mute", "endless", "lazy", "huge", "numbers"])
def test_result_that_is_odd_is_recorded_as_well_as_it_can_be(shared_cage: Cage, what: str) -> None:
    with shared_cage.neighbours(same_worker=True):
        shared_cage.post("returns_oddly", f"returns {what}", what=what)
        run = shared_cage.finished(f"returns {what}")
    assert (run["outcome"], run["attempts"]) == ("succeeded", 1)
    assert len(run["result"]) < 50_000


def timed_out(cage: Cage, fingerprint: str) -> list[object]:
    """Return when the attempts of an alert's run were seen to be past their deadline."""
    attempts = cage.record.attempts(cage.run(fingerprint)["id"])
    return [one["timed_out_at"] for one in attempts if one["timed_out_at"] is not None]


def test_success_after_the_deadline_is_kept_and_not_run_again(shared_cage: Cage) -> None:
    with shared_cage.neighbours(same_worker=True):
        shared_cage.post("returns_late", "late")
        wait_until(lambda: timed_out(shared_cage, "late"), what="the deadline passed")
        shared_cage.may_return.touch()
        run = shared_cage.finished("late")
    (attempt,) = shared_cage.record.attempts(run["id"])
    assert attempt["timed_out_at"] is not None
    assert (run["outcome"], attempt["outcome"]) == ("succeeded", "succeeded")
    assert shared_cage.calls(run) == 1


@pytest.mark.parametrize("name", [f"holds {number}" for number in range(5)])
def test_held_interpreter_lock_delays_no_acceptance_by_a_second(
    shared_cage: Cage, name: str
) -> None:
    with shared_cage.neighbours(within_seconds=1, same_worker=True):
        shared_cage.post("holds_the_lock", name)
        run = shared_cage.finished(name)
    assert (run["outcome"], run["attempts"]) == ("succeeded", 1)
    began, ended = run["started_at"], run["finished_at"]
    assert ended - began >= _HELD_SECONDS * 1e6
    # Meanwhile others were accepted and, by a worker that goes on, claimed.
    for what, at_least in (("created_at", 5), ("started_at", 1)):
        meanwhile = shared_cage.record.rows(
            f"SELECT id FROM runs WHERE action = 'witness' AND {what} BETWEEN ? AND ?", began, ended
        )
        assert len(meanwhile) >= at_least, what


def test_segmentation_fault_in_a_process_of_its_own_ends_only_that(shared_cage: Cage) -> None:
    with shared_cage.neighbours(same_worker=True):
        shared_cage.post("segfaults", "segfault")
        run = shared_cage.finished("segfault")
    assert run["outcome"] == "failed"
    assert "SIGSEGV" in run["error"]
    assert shared_cage.outcomes(run) == ["killed", "killed"]


def test_isolated_action_is_killed_at_its_deadline_with_children_and_grandchildren(
    shared_cage: Cage,
) -> None:
    with shared_cage.neighbours(same_worker=True):
        shared_cage.post("leaves_a_family", "family")
        wait_until(lambda: len(shared_cage.left()) == 3, 60, "a child, a session, a daemon")
        assert all(is_alive(pid) for pid in shared_cage.left())
        shared_cage.wait_for_neighbours()
        run = shared_cage.finished("family")
    assert run["outcome"] == "failed"
    assert shared_cage.outcomes(run) == ["killed", "killed"]
    assert len(shared_cage.left()) == 6
    wait_until(lambda: not any(is_alive(pid) for pid in shared_cage.left()), 60, "all dead")


def test_action_that_kills_its_process_is_attempted_no_more_than_max_attempts(cage: Cage) -> None:
    with cage.neighbours(attempts=3):  # A death may interrupt them, too.
        cage.post("kills_its_process", "deadly")
        run = cage.finished("deadly")
        cage.wait_for_neighbours()
    assert run["outcome"] == "failed"
    assert cage.outcomes(run) == ["interrupted", "interrupted"]
    assert run["error"] == "the process of the actions ended with status 7"
    assert cage.calls(run) == 2
    assert (cage.starts("worker"), cage.starts("web")) == (3, 1)


def test_worker_is_replaced_after_three_attempts_that_never_return(cage: Cage) -> None:
    fingerprints = ["hangs 1", "hangs 2", "hangs 3"]
    with cage.neighbours():
        for one in fingerprints:
            cage.post("never_returns", one)
        wait_until(lambda: len(cage.witness.seen("begins")) >= 3)
        cage.wait_for_neighbours()
        runs = [cage.finished(one) for one in fingerprints]
    for run in runs:
        assert (run["outcome"], cage.outcomes(run)) == ("failed", ["interrupted", "interrupted"])
        assert cage.calls(run) == 2
    assert (cage.starts("worker"), cage.starts("web")) == (3, 1)
    replaced = cage.receiver.lines("attempts never return, so the worker is replaced")
    assert [one["attempts"] for one in replaced] == [3, 3]


def test_worker_that_runs_alone_and_must_be_replaced_ends_with_a_failure(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    (witness.plugins / "hangs.py").write_text(plugin("threading.Event().wait()"))
    environment = {
        "RECEIVER_DATA_DIR": str(tmp_path / "data"),
        "RECEIVER_ACTION_HANGS_TIMEOUT": "300ms",
        "RECEIVER_ACTION_HANGS_MAX_ABANDONED": "1",
        **witness.environment,
    }
    programs = [Receiver(one, environment, tmp_path / one) for one in ("web", "worker")]
    try:
        web, worker = (one.wait_ready() for one in programs)
        assert web.post(notification(alert()), "/webhook/hangs").ok
        assert worker.process is not None
        # Whoever starts it again may do so after failures alone.
        assert worker.process.wait(30) == 1
    finally:
        for one in programs:
            one.kill()


@pytest.mark.parametrize("victim", ["worker", "performer"])
@pytest.mark.parametrize("action", ["forks", "starts_a_session"])
def test_child_that_an_action_leaves_behind_does_not_pass_for_the_worker(
    cage: Cage, action: str, victim: str
) -> None:
    with cage.neighbours(attempts=2):
        cage.post(action, "leaves")
        assert cage.finished("leaves")["outcome"] == "succeeded"
        (child,) = cage.left()
        cage.wait_for_neighbours()
        # It is sure to run still when it is killed; again, it is quick.
        cage.post("witness", "interrupted", seconds="600 0.03")
        wait_until(lambda: cage.calls(cage.run("interrupted")) == 1)
        (started,) = cage.receiver.lines("worker started")
        pids = {**cage.receiver.children(), "performer": started["performer"]}
        os.kill(pids[victim], signal.SIGKILL)
        run = cage.finished("interrupted")
        assert (run["outcome"], cage.outcomes(run)) == ("succeeded", ["interrupted", "succeeded"])
    # Neither must it hold up an end in good order, nor the next start.
    assert cage.receiver.stop() == 0
    cage.receiver.start()
    wait_until(lambda: cage.starts("worker") == 3, 60, "the next worker")
    cage.receiver.wait_ready()
    cage.post("witness", "after")
    assert cage.finished("after")["outcome"] == "succeeded"
    assert not is_alive(child)  # It ended with the worker that was killed.


def test_action_that_changes_the_directory_makes_no_living_worker_look_dead(
    tmp_path: Path,
) -> None:
    witness = Witness(tmp_path)
    (witness.plugins / "moves_away.py").write_text(plugin("os.chdir('/')"))
    record = Record(tmp_path / "data")
    environment = {
        "RECEIVER_DATA_DIR": "data",  # Relative, as in `make run`.
        "RECEIVER_ACTION_WITNESS_MAX_CONCURRENT": "8",
        "RECEIVER_WORKER_THREADS": "4",
        **witness.environment,
    }
    programs: list[Receiver] = []

    def start(command: str) -> Receiver:
        log = tmp_path / f"{len(programs)}.log"
        programs.append(Receiver(command, environment, log, ("env", "-C", str(tmp_path))))
        return programs[-1].wait_ready()

    try:
        web = start("web")
        start("worker")
        one = alert("moves", annotations=ANNOTATIONS)
        assert web.post(notification(one), "/webhook/moves_away").ok
        wait_until(lambda: witness.seen("ends"))
        start("worker")  # As at a reload, when the old worker still works.
        slow = {**ANNOTATIONS, "seconds": "3"}
        eight = [alert(f"slow {number}", annotations=slow) for number in range(8)]
        assert web.post(notification(*eight), "/webhook/witness").json()["accepted"] == 8
        wait_until(lambda: len(record.runs()) == 8 and record.unfinished() == 0, 60, "all runs")
    finally:
        for program in programs:
            program.kill()
    owners = {one["owner"] for run in record.runs() for one in record.attempts(run["id"])}
    assert len(owners) == 2
    assert {(run["outcome"], run["attempts"]) for run in record.runs()} == {("succeeded", 1)}
    assert len(witness.seen("begins")) == 1 + 8
