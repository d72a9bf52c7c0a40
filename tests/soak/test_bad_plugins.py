"""Actions that misbehave in every way we know: none delays an acceptance or stops the others."""

import json
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
    "raises": "raise {'base': Odd, 'interrupt': KeyboardInterrupt}[annotations['what']]('odd')",
    "exits": "sys.exit(7)",
    "raises_oddly": "raise ODD_ERRORS[annotations['what']]()",
    "returns_oddly": "return ODD_RESULTS[annotations['what']]()",
    "crashes": "CRASHES[annotations['what']]()",
    "always_crashes": "os._exit(7)",
    "changes_its_process": "return CHANGES[annotations['what']]()",
    # Called through PyDLL, a function keeps the interpreter lock.
    "holds_the_lock": f"ctypes.PyDLL(None).usleep({_HELD_SECONDS * 1_000_000:.0f})",
    "leaves": "leave({'fork': fork, 'session': session, 'daemon': daemon}[annotations['what']])",
    "leaves_a_family": "leave_family(); ENDS[annotations['what']]()",
    "is_interrupted": "return leave_family_once(context)",
    "looks": "return living()",
}

_POLICY = {"BACKOFF": "10ms..20ms", "MAX_ATTEMPTS": "2", "BREAKER": "none"}

# What all of them share, so that each of them is one line.
_SHARED = """
import builtins
import ctypes
import resource
import signal
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


def leave_family():
    for start in (fork, session, daemon):
        leave(start)


def leave_family_once(context):
    alive = living()
    if context.attempt == 1:
        leave_family()
        time.sleep(600)
    return alive


def living():
    return [one for one in os.listdir(os.environ["LEFT_DIRECTORY"]) if is_living(one)]


def is_living(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def fail():
    raise ValueError("odd")


def segfault():
    # Nothing of this many a core dump is worth keeping.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


CRASHES = {
    "exit": lambda: os._exit(7),
    "segfault": segfault,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "descriptors": lambda: os.closerange(0, 1000),
}
ENDS = {
    "succeeds": lambda: None,
    "fails": fail,
    "crashes": lambda: os._exit(7),
    "hangs": threading.Event().wait,
}


def break_time():
    time.time = time.monotonic = lambda: 0.0
    time.sleep = None


def break_builtins():
    builtins.open = builtins.print = builtins.len = None


def take_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, lambda *_: os._exit(3))


def leak():
    globals()["kept"] = [open("/dev/null") for _ in range(500)]


def raise_much():
    raise ValueError("y" * (100 << 20))


def return_from_fork():
    os.fork()


def raise_in_fork():
    if not os.fork():
        raise ValueError("in the child")


def close_output():
    sys.stdout.close()
    sys.stderr.close()
    os.close(1)
    os.close(2)


def write_everywhere():
    # As a message of its executor: a pickle of something in a module that does not exist.
    for number in range(3, 100):
        try:
            os.write(number, b"\\0\\0\\0\\x0bcfoo\\nbar\\n.\\n")
        except OSError:
            pass


CHANGES = {
    "messages": write_everywhere,
    "stdout": close_output,
    "directory": lambda: os.chdir("/"),
    "umask": lambda: os.umask(0o777) and None,
    "environment": os.environ.clear,
    "signals": take_signals,
    "time": break_time,
    "descriptors": leak,
    "threads": lambda: threading.Thread(target=threading.Event().wait, daemon=True).start(),
    "ignored children": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN) and None,
    "forks": return_from_fork,
    "raises in a fork": raise_in_fork,
    "takes 300 MB": lambda: bytearray(300 << 20) and None,
    "returns 200 MB": lambda: "x" * (200 << 20),
    "raises 100 MB": raise_much,
    "modules": sys.modules.clear,
    "builtins": break_builtins,
}
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
                # However slow they are, the neighbours do not take every place that they may.
                "RECEIVER_ACTION_WITNESS_MAX_CONCURRENT": "12",
                "RECEIVER_ACTION_NEVER_RETURNS_TIMEOUT": "300ms",
                **policies,
                "RECEIVER_ACTION_LEAVES_A_FAMILY_TIMEOUT": "3s",
                "RECEIVER_ACTION_CHANGES_ITS_PROCESS_MAX_ATTEMPTS": "1",
                "RECEIVER_ACTION_IS_INTERRUPTED_MAX_ATTEMPTS": "1",
                "RECEIVER_ACTION_ALWAYS_CRASHES_BREAKER": "5 failures, 10m",
                "RECEIVER_ACTION_ALWAYS_CRASHES_MAX_ATTEMPTS": "20",
                "RECEIVER_GRACE_PERIOD": "1s",
                **self.witness.environment,
            },
            directory / "receiver.log",
        )

    def close(self) -> None:
        """End the receiver, and all that its actions left running."""
        self.receiver.kill()
        for pid in self.living():
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
        """Return the pids of what actions started and left, dead or alive."""
        return [int(file.name) for file in self._left.iterdir()]

    def living(self) -> list[int]:
        """Return the pids of what actions started and left, and what still runs."""
        return [pid for pid in self.left() if is_alive(pid)]

    @contextmanager
    def neighbours(self, within_seconds: float = 10) -> Iterator[Traffic]:
        """Send well-behaved alerts during a block; check that nothing of it reached them.

        Each is accepted in time and succeeds in its one attempt, by the worker and the fork server
        that were there before.
        """
        before = self._programs()
        with Traffic(self.receiver) as traffic:
            wait_until(lambda: len(traffic.accepted) >= 5)
            yield traffic
            ended = len(self.witness.seen("ends"))
            wait_until(lambda: len(self.witness.seen("ends")) >= ended + 5)
        traffic.check(within_seconds)
        self.wait_until_finished()
        assert self._programs() == before, "the worker or its fork server died"
        runs = [one for one in self.record.runs() if one["fingerprint"] in traffic.accepted]
        assert len(runs) == len(traffic.accepted)
        assert {(run["outcome"], run["attempts"]) for run in runs} == {("succeeded", 1)}

    def _programs(self) -> tuple[int, int]:
        return self.pid_of("worker"), self.pid_of("fork server")

    def pid_of(self, role: str) -> int:
        """Return the pid of the worker, or of its fork server."""
        if role == "fork server":
            pid: int = self.receiver.lines("worker started")[-1]["fork_server"]
            return pid
        return wait_until(lambda: self.receiver.children().get(role, 0), 60, f"a {role}")

    def wait_until_finished(self) -> None:
        """Wait until the runs of all well-behaved alerts have an outcome."""
        wait_until(
            lambda: all(one["state"] == "finished" for one in self.record.runs()),
            60,
            "the runs of the neighbours",
        )

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
    """A receiver whose worker and fork server nothing in these tests ends."""
    cage = Cage(tmp_path_factory.mktemp("cage"))
    try:
        cage.receiver.wait_ready()
        yield cage
    finally:
        cage.close()


@pytest.fixture
def cage(tmp_path: Path) -> Iterator[Cage]:
    """A receiver for one test, which ends programs of it."""
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
    with shared_cage.neighbours():
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
    with shared_cage.neighbours():
        shared_cage.post("raises_oddly", fingerprint, what=what)
        wait_until(
            lambda: "failed" in shared_cage.outcomes(shared_cage.run(fingerprint)),
            60,
            "the outcome of an attempt",
        )


@pytest.mark.parametrize("what", ["text", "mute", "endless", "lazy", "huge", "numbers"])
def test_result_that_is_odd_is_recorded_as_well_as_it_can_be(shared_cage: Cage, what: str) -> None:
    with shared_cage.neighbours():
        shared_cage.post("returns_oddly", f"returns {what}", what=what)
        run = shared_cage.finished(f"returns {what}")
    assert (run["outcome"], run["attempts"]) == ("succeeded", 1)
    assert len(run["result"]) < 50_000


@pytest.mark.parametrize("name", [f"holds {number}" for number in range(5)])
def test_held_interpreter_lock_delays_no_acceptance_by_a_second(
    shared_cage: Cage, name: str
) -> None:
    with shared_cage.neighbours(within_seconds=1):
        shared_cage.post("holds_the_lock", name)
        run = shared_cage.finished(name)
    assert (run["outcome"], run["attempts"]) == ("succeeded", 1)
    began, ended = run["started_at"], run["finished_at"]
    assert ended - began >= _HELD_SECONDS * 1e6
    # Meanwhile others were accepted and, by a worker that goes on, claimed.
    for what, at_least in (("created_at", 5), ("started_at", 5)):
        meanwhile = shared_cage.record.rows(
            f"SELECT id FROM runs WHERE action = 'witness' AND {what} BETWEEN ? AND ?", began, ended
        )
        assert len(meanwhile) >= at_least, what


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("exit", "ended with status 7"),
        ("segfault", "was ended by SIGSEGV"),
        ("kill", "was ended by SIGKILL"),
        ("descriptors", "ended with status 1"),
    ],
)
def test_crash_is_an_attempt_of_its_action_and_reaches_no_other(
    shared_cage: Cage, what: str, how: str
) -> None:
    with shared_cage.neighbours():
        shared_cage.post("crashes", f"crash {what}", what=what)
        run = shared_cage.finished(f"crash {what}")
        shared_cage.wait_for_neighbours()
    assert (run["outcome"], run["error"]) == (
        "failed", f"its process {how} before the action returned"
    )  # fmt: skip
    assert shared_cage.outcomes(run) == ["crashed", "crashed"]
    assert shared_cage.calls(run) == 2


def test_action_that_always_crashes_opens_its_breaker(shared_cage: Cage) -> None:
    with shared_cage.neighbours():
        fingerprints = [f"always {number}" for number in range(15)]
        for one in fingerprints:
            shared_cage.post("always_crashes", one)
        wait_until(
            lambda: all(shared_cage.run(one)["held_by"] == "breaker" for one in fingerprints),
            60,
            "the breaker holds all runs back",
        )
        shared_cage.wait_for_neighbours()
        query = "SELECT outcome FROM attempts WHERE action = 'always_crashes'"
        outcomes = [one["outcome"] for one in shared_cage.record.rows(query)]
    # Five open the breaker; three more were under way by then.
    assert outcomes == ["crashed"] * len(outcomes)
    assert 5 <= len(outcomes) <= 8


ENDS_OF_CHANGES = {
    "messages": ["failed"],
    "stdout": ["succeeded"],
    "directory": ["succeeded"],
    "umask": ["succeeded"],
    "environment": ["succeeded"],
    "signals": ["succeeded"],
    "time": ["succeeded"],
    "descriptors": ["succeeded"],
    "threads": ["succeeded"],
    "ignored children": ["succeeded"],
    "forks": ["succeeded"],
    "raises in a fork": ["succeeded"],
    "takes 300 MB": ["failed"],
    "returns 200 MB": ["succeeded"],
    "raises 100 MB": ["failed"],
    # Python itself is broken: whether its process can still report is left open.
    "modules": ["succeeded", "failed"],
    "builtins": ["succeeded", "failed"],
}


@pytest.mark.parametrize("what", ENDS_OF_CHANGES)
def test_change_to_its_process_reaches_no_other(shared_cage: Cage, what: str) -> None:
    with shared_cage.neighbours():
        shared_cage.post("changes_its_process", f"changes {what}", what=what)
        run = shared_cage.finished(f"changes {what}")
        # The same action finds nothing of it.
        shared_cage.post("changes_its_process", f"umask after {what}", what="umask")
        after = shared_cage.finished(f"umask after {what}")
    assert run["outcome"] in ENDS_OF_CHANGES[what]
    assert (after["outcome"], after["attempts"]) == ("succeeded", 1)


@pytest.mark.parametrize("what", ["fork", "session", "daemon"])
def test_attempt_that_succeeds_ends_with_what_it_started(shared_cage: Cage, what: str) -> None:
    before = shared_cage.left()
    with shared_cage.neighbours():
        shared_cage.post("leaves", f"leaves {what}", what=what)
        run = shared_cage.finished(f"leaves {what}")
        assert shared_cage.living() == []
    assert (run["outcome"], run["attempts"]) == ("succeeded", 1)
    assert len(shared_cage.left()) == len(before) + 1


@pytest.mark.parametrize(
    ("what", "attempt"),
    [("succeeds", "succeeded"), ("fails", "failed"), ("crashes", "crashed"), ("hangs", "killed")],
)
def test_attempt_ends_with_children_sessions_and_daemons(
    shared_cage: Cage, what: str, attempt: str
) -> None:
    before = len(shared_cage.left())
    with shared_cage.neighbours():
        shared_cage.post("leaves_a_family", f"family {what}", what=what)
        if what == "hangs":
            wait_until(lambda: len(shared_cage.living()) == 3, 60, "a child, a session, a daemon")
            shared_cage.wait_for_neighbours()
        run = shared_cage.finished(f"family {what}")
        assert shared_cage.living() == []
    attempts = shared_cage.outcomes(run)
    assert attempts == [attempt] * (1 if what == "succeeds" else 2)
    assert len(shared_cage.left()) == before + 3 * len(attempts)
    if what == "hangs":
        assert run["error"] == "killed at its deadline, after 3 s, with everything it had started"


def test_attempts_that_never_return_are_killed_and_the_worker_goes_on(shared_cage: Cage) -> None:
    fingerprints = ["hangs 1", "hangs 2", "hangs 3"]
    with shared_cage.neighbours():
        for one in fingerprints:
            shared_cage.post("never_returns", one)
        runs = [shared_cage.finished(one) for one in fingerprints]
        shared_cage.wait_for_neighbours()
    for run in runs:
        assert (run["outcome"], shared_cage.outcomes(run)) == ("failed", ["killed", "killed"])
        assert shared_cage.calls(run) == 2


def test_worker_that_runs_alone_ends_with_a_failure_when_its_fork_server_has_ended(
    tmp_path: Path,
) -> None:
    environment = {"RECEIVER_DATA_DIR": str(tmp_path / "data")}
    worker = Receiver("worker", environment, tmp_path / "worker.log")
    try:
        (started,) = worker.wait_ready().lines("worker started")
        os.kill(started["fork_server"], signal.SIGKILL)
        assert worker.process is not None
        # A service manager may start it again after failures alone.
        assert worker.process.wait(30) == 1
    finally:
        worker.kill()


@pytest.mark.parametrize("victim", ["worker", "fork server"])
def test_everything_is_dead_before_the_next_worker_makes_an_attempt(
    cage: Cage, victim: str
) -> None:
    with Traffic(cage.receiver) as traffic:
        cage.post("is_interrupted", "interrupted")
        wait_until(lambda: len(cage.living()) == 3, 60, "a child, a session, a daemon")
        os.kill(cage.pid_of(victim), signal.SIGKILL)
        cage.post("looks", "looks")
        looked = cage.finished("looks")
        run = cage.finished("interrupted")
        cage.wait_for_neighbours()
    traffic.check()
    cage.wait_until_finished()
    # Its one attempt is left after a death that the action did not cause.
    assert (run["outcome"], cage.outcomes(run)) == ("succeeded", ["interrupted", "succeeded"])
    assert json.loads(looked["result"]) == json.loads(run["result"]) == []
    assert (cage.starts("worker"), cage.starts("web")) == (2, 1)


def test_stop_ends_everything_and_the_next_start_goes_on(cage: Cage) -> None:
    cage.post("is_interrupted", "stopped")
    wait_until(lambda: len(cage.living()) == 3, 60, "a child, a session, a daemon")
    assert cage.receiver.stop() == 0
    assert cage.living() == []
    cage.receiver.start()
    run = cage.finished("stopped")
    assert (run["outcome"], cage.outcomes(run)) == ("succeeded", ["stopped", "succeeded"])
    assert json.loads(run["result"]) == []


def test_action_that_changes_the_directory_makes_no_living_worker_look_dead(
    tmp_path: Path,
) -> None:
    witness = Witness(tmp_path)
    (witness.plugins / "moves_away.py").write_text(plugin("os.chdir('/')"))
    record = Record(tmp_path / "data")
    environment = {
        "RECEIVER_DATA_DIR": "data",  # Relative, as in `make run`.
        "RECEIVER_ACTION_WITNESS_MAX_CONCURRENT": "8",
        "RECEIVER_WORKER_EXECUTORS": "4",
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
