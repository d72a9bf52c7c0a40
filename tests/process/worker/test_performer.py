"""The process in which actions run: what may happen to it, and what it tells its worker."""

import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from receiver.errors import PluginError, SettingsError
from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]

PLUGIN = """
import ctypes, os, signal, threading, time
from pathlib import Path
from receiver import hookimpl

HERE = Path(__file__).parent
IS_PERFORMER = "performer" in Path("/proc/self/cmdline").read_text()

if IS_PERFORMER and (HERE / "deadly").exists():
    (HERE / "deadly").unlink()
    os.kill(os.getpid(), signal.SIGKILL)


def hold(seconds):
    calls = ctypes.PyDLL(None)  # Called this way, they keep the interpreter lock.
    # So does the first: from when the file is there nobody else goes on.
    calls.creat(os.fsencode(HERE / "holds"), 0o600)
    calls.usleep(int(seconds * 1e6))


@hookimpl
def execute(context):
    assert IS_PERFORMER
    (HERE / f"begun {context.alert.fingerprint}").touch()
    if context.alert.labels.get("how") == "holds":
        hold(1.5)
    if context.alert.labels.get("how") == "leaves a thread that holds":
        threading.Thread(target=hold, args=(60,), daemon=True).start()
    if context.alert.labels.get("how") == "works":
        time.sleep(0.5)
    if context.alert.labels.get("how") == "holds for long":
        hold(60)
    if context.alert.labels.get("how") == "waits":
        context.sleep(30)
    if context.alert.labels.get("how") == "forks":
        return os.fork() and "parent"
    return os.getpid()
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    directory.mkdir()
    (directory / "acts.py").write_text(PLUGIN)
    return directory


@pytest.fixture
def start(start_receiver: Start, plugins: Path) -> Start:
    def start(**environment: str) -> Receiver:
        more = {"PLUGIN_DIR": str(plugins), "ACTION_PLUGIN": "acts", **environment}
        return start_receiver(**more)

    return start


def performer_of(receiver: Receiver) -> int:
    pid: int = receiver.lines("worker started")[-1]["performer"]
    return pid


def ended(tmp_path: Path, number: int = 1) -> list[dict[str, Any]]:
    """Wait until so many runs have finished, and return them, the newest first."""
    journal = Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")
    look = lambda: len(reading.list_runs(journal, state="finished")) >= number  # noqa: E731
    wait_until(look, 60, f"{number} runs")
    runs = reading.list_runs(journal)
    journal.close()
    return runs


def test_signals_that_mean_its_worker_do_not_end_it(start: Start, tmp_path: Path) -> None:
    receiver = start().wait_ready()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(performer_of(receiver), number)
    assert receiver.post(notification(alert())).ok
    (run,) = ended(tmp_path)
    assert (run["outcome"], run["result"]) == ("succeeded", str(performer_of(receiver)))
    assert len(receiver.lines("worker started")) == 1


def test_performer_that_dies_while_it_loads_is_replaced(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    (plugins / "deadly").touch()
    receiver = start().wait_ready()
    assert receiver.post(notification(alert())).ok
    (run,) = ended(tmp_path)
    assert run["outcome"] == "succeeded"
    (failed,) = receiver.lines("worker cannot start")
    assert failed["error"] == "the process of the actions was ended by SIGKILL"


def test_alerts_too_large_for_the_line_reach_a_performer_that_does_not_listen_now(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    receiver = start(RECEIVER_ACTION_ACTS_MAX_CONCURRENT="16").wait_ready()
    assert receiver.post(notification(alert("first", labels={"how": "holds"}))).ok
    wait_until(lambda: (plugins / "holds").exists())
    long = {f"long_{number}": "x" * 16_000 for number in range(20)}
    for number in range(5):
        assert receiver.post(notification(alert(f"large {number}", annotations=long))).ok
    runs = ended(tmp_path, 6)
    assert {(run["outcome"], run["attempts"]) for run in runs} == {("succeeded", 1)}
    assert len(receiver.lines("worker started")) == 1


def test_fork_that_returns_as_its_parent_does_ends_there(start: Start, tmp_path: Path) -> None:
    receiver = start().wait_ready()
    for number in range(3):
        assert receiver.post(notification(alert(f"f{number}", labels={"how": "forks"}))).ok
    runs = ended(tmp_path, 3)
    assert {(run["outcome"], run["result"]) for run in runs} == {("succeeded", '"parent"')}
    assert receiver.post(notification(alert("after"))).ok
    ended(tmp_path, 4)
    assert len(receiver.lines("worker started")) == 1
    assert receiver.stop() == 0


def test_what_waits_for_the_interpreter_lock_has_its_whole_time_then(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    # Each has less time than the lock is held for.
    receiver = start(RECEIVER_ACTION_ACTS_TIMEOUT="1s").wait_ready()
    assert receiver.post(notification(alert("holds", labels={"how": "holds"}))).ok
    wait_until(lambda: (plugins / "holds").exists())
    for number in range(6):
        assert receiver.post(notification(alert(f"other {number}"))).ok
    runs = ended(tmp_path, 7)
    assert {(run["outcome"], run["attempts"]) for run in runs} == {("succeeded", 1)}
    late = receiver.lines("attempt is past its deadline")
    assert {line["fingerprint"] for line in late} <= {"holds"}
    assert len(receiver.lines("worker started")) == 1


def test_action_that_keeps_the_interpreter_lock_past_its_deadline_ends_with_its_performer(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    receiver = start(RECEIVER_ACTION_ACTS_TIMEOUT="1s", RECEIVER_ACTION_ACTS_MAX_ATTEMPTS="1")
    receiver.wait_ready()
    assert receiver.post(notification(alert("holds", labels={"how": "holds for long"}))).ok
    wait_until(lambda: (plugins / "holds").exists())
    assert receiver.post(notification(alert("other")), "/webhook/log_action").ok
    runs = {run["fingerprint"]: run for run in ended(tmp_path, 2)}
    assert (runs["holds"]["outcome"], runs["other"]["outcome"]) == ("failed", "succeeded")
    assert runs["holds"]["error"] == "the process of the actions was ended by SIGKILL"
    assert len(receiver.lines("performer hears nothing, so the worker is replaced")) == 1


def test_performer_whose_interpreter_nobody_gives_back_is_replaced(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    receiver = start(
        # Neither of them says anything about a run that did not begin.
        RECEIVER_ACTION_ACTS_MAX_ATTEMPTS="1",
        RECEIVER_ACTION_ACTS_ON_INTERRUPT="hold",
        RECEIVER_ACTION_ACTS_TIMEOUT="2s",
    ).wait_ready()  # fmt: skip
    holds = alert("holds", labels={"how": "leaves a thread that holds"})
    assert receiver.post(notification(holds)).ok
    wait_until(lambda: (plugins / "holds").exists())
    assert receiver.post(notification(alert("other"))).ok
    runs = {run["fingerprint"]: run for run in ended(tmp_path, 2)}
    assert runs["other"]["outcome"] == "succeeded"
    assert len(receiver.lines("performer hears nothing, so the worker is replaced")) == 1
    assert receiver.lines("attempt is past its deadline") == []


def test_action_that_had_begun_is_not_blamed_for_one_that_keeps_the_interpreter_lock(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    # Of more time than it needs, the lock takes more than the rest.
    receiver = start(
        RECEIVER_ACTION_ACTS_TIMEOUT="1s", RECEIVER_ACTION_ACTS_MAX_CONCURRENT="8"
    ).wait_ready()  # fmt: skip
    others = [alert(f"other {number}", labels={"how": "works"}) for number in range(4)]
    assert receiver.post(notification(*others)).ok
    wait_until(lambda: len(list(plugins.glob("begun other *"))) == 4)
    assert receiver.post(notification(alert("holds", labels={"how": "holds"}))).ok
    runs = ended(tmp_path, 5)
    assert {(run["outcome"], run["attempts"]) for run in runs} == {("succeeded", 1)}
    late = receiver.lines("attempt is past its deadline")
    assert {line["fingerprint"] for line in late} <= {"holds"}
    assert len(receiver.lines("worker started")) == 1


def test_cancel_reaches_the_action(start: Start, tmp_path: Path, plugins: Path) -> None:
    receiver = start(RECEIVER_OPERATE_TOKEN="t" * 32, RECEIVER_SUBMIT_TOKEN="s" * 32).wait_ready()
    one = notification(alert("waits", labels={"how": "waits"}))
    assert receiver.post(one, Authorization=f"Bearer {'s' * 32}").ok
    wait_until(lambda: (plugins / "begun waits").exists())
    answer = receiver.post(b"{}", "/api/v1/runs/1/cancel", Authorization=f"Bearer {'t' * 32}")
    assert answer.ok, answer.text
    (run,) = ended(tmp_path)
    assert run["outcome"] == "cancelled"


def test_each_process_says_in_its_title_what_it_is(start: Start) -> None:
    receiver = start().wait_ready()
    children = receiver.children()
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0") for pid in
              (children["web"], children["worker"], performer_of(receiver))}  # fmt: skip
    assert list(titles.values()) == [
        "gunicorn: master [receiver web]", "receiver worker", "receiver performer"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [SettingsError, PluginError])
def test_what_is_wrong_with_plugins_is_told_as_it_is(
    kind: type[SettingsError | PluginError],
) -> None:
    told = pickle.loads(pickle.dumps(kind(["one thing", "another"])))
    assert type(told) is kind
    assert (told.problems, str(told)) == (("one thing", "another"), "one thing; another")
