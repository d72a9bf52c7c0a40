"""Executors: each attempt has a process, and what it does to the process harms nothing else."""

import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from textwrap import dedent, indent

import pytest

from receiver.errors import PluginError, SettingsError
from receiver.processes import descendants
from tests.support.notifications import alert, notification
from tests.support.processes import is_alive
from tests.support.receivers import Receiver
from tests.support.runs import ended
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]

PLUGIN = """
import ctypes, os, resource, signal, subprocess, sys, threading, time
from pathlib import Path
from receiver import hookimpl

HERE = Path(__file__).parent
if (HERE / "deadly").exists():
    (HERE / "deadly").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
if (HERE / "sets handlers").exists():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
if (HERE / "starts a process").exists():
    HELPER = subprocess.Popen(["sleep", "600"])
if (HERE / "starts a thread").exists():
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def segfault():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def leave_daemon():
    subprocess.run(["sh", "-c", "setsid sleep 600 & echo $! >" + str(HERE / "daemon")], check=True)


def change_everything():
    os.chdir("/")
    os.umask(0o077)
    os.environ["CHANGED"] = "yes"
    signal.signal(signal.SIGUSR1, lambda *_: None)
    time.sleep = None
    globals()["kept"] = open("/dev/null")
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def print_much():
    print("printed", "\\x1b[31m{not json")
    print("an error", file=sys.stderr)
    os.write(1, b"written\\n")
    subprocess.run(["echo", "by a program"], check=True)


KEPT = []
WAYS = {
    "": lambda: None,
    "segfaults": segfault,
    "exits": lambda: os._exit(7),
    "closes everything": lambda: os.closerange(0, 1000),
    "kills itself": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "holds the lock": lambda: ctypes.PyDLL(None).usleep(600_000_000),
    "ignores its deadline": lambda: time.sleep(600),
    "leaves a daemon": leave_daemon,
    "changes everything": change_everything,
    "prints": print_much,
    "closes its output": lambda: (sys.stdout.close(), os.close(1), os.close(2)),
    "takes 300 MB": lambda: bytearray(300 << 20) and None,
    "returns 200 MB": lambda: "x" * (200 << 20),
    "closes its streams": lambda: (sys.stdout.close(), sys.stderr.close()),
    "leads its output away": lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 1),
    "keeps 70 MB": lambda: KEPT.append(bytearray(70 << 20)),
    "prints half a line": lambda: sys.stdout.write("half a line"),
    "returns a fork": lambda: os.fork() and "parent",
}


def raise_much():
    raise ValueError("y" * (100 << 20))


def raise_in_fork():
    if not os.fork():
        raise ValueError("in the child")
    time.sleep(0.2)
    return "parent"


def list_descriptors():
    program = "ls -l /proc/$$/fd; :"
    listed = subprocess.run(["sh", "-c", program], close_fds=False, stdout=subprocess.PIPE)
    return [line.split(" -> ")[1] for line in listed.stdout.decode().splitlines() if "->" in line]


WAYS["lists descriptors"] = list_descriptors
WAYS["raises 100 MB"] = raise_much
WAYS["raises in a fork"] = raise_in_fork


@hookimpl
def execute(context):
    (HERE / f"begun {context.alert.fingerprint}").touch()
    if context.alert.labels.get("how") == "waits":
        context.sleep(60)
    if context.alert.labels.get("how") == "sleeps backwards":
        context.sleep(-1)
        context.sleep(float("nan"))
        return "slept"
    if context.alert.labels.get("how") == "stores what is no text":
        context._store({"a": 1})
    if context.alert.labels.get("how") == "uses its helper":
        return HELPER.poll() is None
    returned = WAYS[context.alert.labels.get("how", "")]()
    return os.getpid() if returned is None else returned
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
        more = {
            "PLUGIN_DIR": str(plugins),
            "ACTION_PLUGIN": "acts",
            "RECEIVER_ACTION_ACTS_MAX_ATTEMPTS": "1",
            "RECEIVER_ACTION_ACTS_BREAKER": "none",
            "RECEIVER_ACTION_ACTS_MAX_CONCURRENT": "8",
            **environment,
        }
        return start_receiver(**more)

    return start


def fork_server_of(receiver: Receiver) -> int:
    pid: int = receiver.lines("worker started")[-1]["fork_server"]
    return pid


def fire(receiver: Receiver, how: str, fingerprint: str = "") -> None:
    """Let the action do something for a new alert."""
    labels = {"how": how} if how else {}
    assert receiver.post(notification(alert(fingerprint or how or "f", labels=labels))).ok


ENDS = {
    "segfaults": ("failed", "its process was ended by SIGSEGV before the action returned"),
    "exits": ("failed", "its process ended with status 7 before the action returned"),
    "closes everything": ("failed", "its process ended with status 1 before the action returned"),
    "kills itself": ("failed", "its process was ended by SIGKILL before the action returned"),
    "holds the lock": (
        "failed", "killed at its deadline, after 3 s, with everything it had started"
    ),
    "ignores its deadline": (
        "failed", "killed at its deadline, after 3 s, with everything it had started"
    ),
    "takes 300 MB": ("failed", "MemoryError"),
    "closes its output": ("succeeded", None),
    "changes everything": ("succeeded", None),
    "returns 200 MB": ("succeeded", None),
    "raises 100 MB": ("failed", "ValueError: yyy"),
    "returns a fork": ("succeeded", None),
    "raises in a fork": ("succeeded", None),
    "sleeps backwards": ("succeeded", None),
    "stores what is no text": ("failed", "ValueError: a state is JSON of at most 4096 bytes"),
}  # fmt: skip


def test_each_attempt_alone_bears_what_it_does_to_its_process(start: Start, tmp_path: Path) -> None:
    receiver = start(RECEIVER_ACTION_ACTS_TIMEOUT="3s").wait_ready()
    for how in ENDS:
        fire(receiver, how)
        fire(receiver, "", f"beside {how}")

    found = {run["fingerprint"]: run for run in ended(tmp_path, *ENDS)}
    beside = ended(tmp_path, *(f"beside {how}" for how in ENDS))

    ends = {how: (run["outcome"], (run["error"] or "")[:200]) for how, run in found.items()}
    assert {how: end[0] for how, end in ends.items()} == {how: end[0] for how, end in ENDS.items()}
    for how, (_, error) in ENDS.items():
        assert ends[how][1].startswith(error or ""), how
    assert {(run["outcome"], run["attempts"]) for run in beside} == {("succeeded", 1)}
    assert found["returns a fork"]["result"] == found["raises in a fork"]["result"] == '"parent"'
    assert len(found["returns 200 MB"]["result"]) < 20_000
    assert len(receiver.lines("worker started")) == 1
    assert receiver.stop() == 0


def test_executor_is_used_again_unless_an_attempt_left_something_behind(
    start: Start, tmp_path: Path
) -> None:
    receiver = start(RECEIVER_WORKER_EXECUTORS="1").wait_ready()
    order = ["first", "second", "changes everything", "third", "fourth"]
    for fingerprint in order:
        fire(receiver, fingerprint if fingerprint in ENDS else "", fingerprint)
        ended(tmp_path, fingerprint)

    pids = [run["result"] for run in ended(tmp_path, *order)]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert pids[3] == pids[4]
    (line,) = receiver.lines(
        "attempt left something behind, so its executor is not used again"
    )  # fmt: skip
    assert line["left"] == [
        "threads", "open descriptors", "another directory", "another umask",
        "another environment", "other signal handlers", "changed functions of time",
    ]  # fmt: skip


def test_idle_executor_that_has_ended_uses_up_no_attempt(start: Start, tmp_path: Path) -> None:
    receiver = start().wait_ready()
    fire(receiver, "", "first")
    (first,) = ended(tmp_path, "first")
    # The worker is not told of the end before it has handed out the next attempt.
    os.kill(fork_server_of(receiver), signal.SIGSTOP)
    os.kill(int(first["result"]), signal.SIGKILL)
    fire(receiver, "", "second")
    wait_until(lambda: receiver.lines("idle executor has ended"), 30, "the worker has noticed")
    os.kill(fork_server_of(receiver), signal.SIGCONT)
    (second,) = ended(tmp_path, "second")
    assert (second["outcome"], second["attempts"]) == ("succeeded", 1)
    assert second["result"] != first["result"]


def test_programs_inherit_no_descriptor_of_the_receiver(start: Start, tmp_path: Path) -> None:
    receiver = start().wait_ready()
    fire(receiver, "lists descriptors")
    (run,) = ended(tmp_path, "lists descriptors")
    # Standard output leads to the action here, standard error to the log.
    (nothing, *pipes) = json.loads(run["result"])
    assert nothing == "/dev/null"
    assert [one.partition(":")[0] for one in pipes] == ["pipe", "pipe"]


@pytest.mark.parametrize("how", ["closes its streams", "leads its output away"])
def test_attempt_that_breaks_its_output_breaks_no_other(
    start: Start, tmp_path: Path, how: str
) -> None:
    receiver = start(RECEIVER_WORKER_EXECUTORS="1").wait_ready()
    fire(receiver, how)
    ended(tmp_path, how)
    fire(receiver, "prints")
    (run,) = ended(tmp_path, "prints")
    assert run["outcome"] == "succeeded"
    wait_until(lambda: len(receiver.lines("action printed")) == 4, 30, "four lines")


def test_executor_that_is_nearly_full_is_not_used_again(start: Start, tmp_path: Path) -> None:
    receiver = start(RECEIVER_WORKER_EXECUTORS="1").wait_ready()
    for number in range(7):
        fire(receiver, "keeps 70 MB", f"f{number}")
        (run,) = ended(tmp_path, f"f{number}")
        assert run["outcome"] == "succeeded", run["error"]


def test_line_without_an_end_belongs_to_the_attempt_that_wrote_it(
    start: Start, tmp_path: Path
) -> None:
    receiver = start(RECEIVER_WORKER_EXECUTORS="1").wait_ready()
    for fingerprint in ("one", "two"):
        fire(receiver, "prints half a line", fingerprint)
        ended(tmp_path, fingerprint)
    wait_until(lambda: len(receiver.lines("action printed")) == 2, 30, "two lines")
    lines = receiver.lines("action printed")
    assert [(one["text"], one["fingerprint"]) for one in lines] == [
        ("half a line", "one"), ("half a line", "two")
    ]  # fmt: skip


def test_attempt_is_killed_at_its_deadline_while_the_journal_is_locked(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    receiver = start(RECEIVER_ACTION_ACTS_TIMEOUT="1s").wait_ready()
    fire(receiver, "ignores its deadline")
    wait_until(lambda: (plugins / "begun ignores its deadline").exists())
    file = tmp_path / "data" / "journal.db"
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        message = "attempt is past its deadline and is killed"
        wait_until(lambda: receiver.lines(message), 30, "the attempt is killed")
        wait_until(lambda: not descendants(fork_server_of(receiver)), 30, "its executor is gone")
        lock.execute("ROLLBACK")
    (run,) = ended(tmp_path, "ignores its deadline")
    assert run["outcome"] == "failed"


def test_handlers_that_a_plugin_sets_while_loading_do_not_end_the_fork_server(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    (plugins / "sets handlers").touch()
    receiver = start().wait_ready()
    os.kill(fork_server_of(receiver), signal.SIGTERM)
    fire(receiver, "")
    (run,) = ended(tmp_path, "f")
    assert run["outcome"] == "succeeded"
    assert len(receiver.lines("worker started")) == 1


def test_process_that_a_plugin_starts_while_loading_is_there_for_each_attempt(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    (plugins / "starts a process").touch()
    receiver = start(RECEIVER_WORKER_EXECUTORS="1").wait_ready()
    (line,) = receiver.lines("plugin is loaded anew by each executor")
    assert line["reason"] == "it starts processes while it is loaded"
    for fingerprint in ("one", "two", "three"):
        fire(receiver, "uses its helper", fingerprint)
        (run,) = ended(tmp_path, fingerprint)
        assert (run["outcome"], run["result"]) == ("succeeded", "true")


def test_program_that_a_shell_started_before_the_receiver_survives_a_worker(
    plugins: Path, tmp_path: Path
) -> None:
    helper = tmp_path / "helper"
    shell = ("sh", "-c", f'sleep 600 & echo $! >{helper}; exec "$@"', "sh")
    receiver = Receiver("serve", {"RECEIVER_DATA_DIR": str(tmp_path / "data")},
                        tmp_path / "receiver.log", shell)  # fmt: skip
    try:
        receiver.wait_ready()
        os.kill(receiver.children()["worker"], signal.SIGKILL)
        wait_until(lambda: len(receiver.lines("worker started")) == 2, 60, "another worker")
        assert is_alive(int(helper.read_text()))
        assert receiver.stop() == 0
        assert is_alive(int(helper.read_text()))
    finally:
        receiver.kill()
        os.kill(int(helper.read_text()), signal.SIGKILL)


POOL = """
import resource, sys, time
from receiver.settings import load
from receiver.worker.executors import ExecutorPool
settings = load({"RECEIVER_DATA_DIR": sys.argv[1]}, {})
with ExecutorPool(settings) as pool:
    pool.loaded()
"""


def run_with_pool(tmp_path: Path, script: str) -> str:
    """Run a script with a pool of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", POOL + indent(dedent(script), "    "), str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_executor_that_is_being_killed_gets_no_other_attempt(tmp_path: Path) -> None:
    script = """
    killed = pool.take("log_action")
    pool.kill(killed, "it is late")
    pool.release(killed, ())  # Its attempt had ended a moment before.
    print(pool.take("log_action") is killed)
    """
    assert run_with_pool(tmp_path, script) == "False"


def test_executor_that_cannot_be_started_for_want_of_descriptors_is_an_error_that_passes(
    tmp_path: Path,
) -> None:
    script = """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, limits[1]))
    try:
        pool.take("log_action")
    except OSError as error:
        print(error.strerror)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    print(pool.take("log_action").action)
    """
    assert run_with_pool(tmp_path, script) == "Too many open files\nlog_action"


def test_executor_of_another_action_makes_room(start: Start, tmp_path: Path, plugins: Path) -> None:
    (plugins / "other.py").write_text(PLUGIN)
    receiver = start(RECEIVER_WORKER_EXECUTORS="1").wait_ready()
    titles = []
    for action in ("acts", "other", "acts"):
        name = f"{action} {len(titles)}"
        assert receiver.post(notification(alert(name)), f"/webhook/{action}").ok
        (run,) = ended(tmp_path, name)
        titles.append(Path(f"/proc/{run['result']}/cmdline").read_text().rstrip("\0"))
    assert titles == [f"receiver executor {one}" for one in ("acts", "other", "acts")]
    wait_until(lambda: len(descendants(fork_server_of(receiver))) == 1, 30, "one executor is left")


def test_attempt_ends_with_everything_that_it_started(start: Start, tmp_path: Path) -> None:
    receiver = start().wait_ready()
    fire(receiver, "leaves a daemon")
    (run,) = ended(tmp_path, "leaves a daemon")
    assert run["outcome"] == "succeeded"
    daemon = int((tmp_path / "plugins" / "daemon").read_text())
    assert not is_alive(daemon)
    (line,) = receiver.lines(
        "attempt left something behind, so its executor is not used again"
    )  # fmt: skip
    assert line["left"] == ["1 running processes"]


def test_output_of_an_action_lands_in_the_log_as_json(start: Start, tmp_path: Path) -> None:
    receiver = start().wait_ready()
    fire(receiver, "prints")
    ended(tmp_path, "prints")
    wait_until(lambda: len(receiver.lines("action printed")) == 4, 30, "four lines")
    lines = receiver.lines("action printed")
    assert [line["text"] for line in lines] == [
        "printed \x1b[31m{not json", "an error", "written", "by a program"
    ]  # fmt: skip
    assert {(line["fingerprint"], line["action"], line["run_id"]) for line in lines} == {
        ("prints", "acts", 1)
    }
    for line in receiver.text().splitlines():
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_stop_programs_end_no_attempt(
    start: Start, tmp_path: Path, plugins: Path, number: signal.Signals
) -> None:
    receiver = start(RECEIVER_ACTION_ACTS_TIMEOUT="5s").wait_ready()
    fire(receiver, "waits")
    wait_until(lambda: (plugins / "begun waits").exists())
    pids = descendants(fork_server_of(receiver))
    assert len(pids) == 1
    for pid in (*pids, fork_server_of(receiver)):
        os.kill(pid, number)
    fire(receiver, "")
    (run,) = ended(tmp_path, "f")
    assert run["outcome"] == "succeeded"
    assert descendants(fork_server_of(receiver)) >= pids
    assert len(receiver.lines("worker started")) == 1


def test_worker_whose_fork_server_has_ended_is_replaced(start: Start, tmp_path: Path) -> None:
    receiver = start().wait_ready()
    os.kill(fork_server_of(receiver), signal.SIGKILL)
    wait_until(lambda: len(receiver.lines("worker started")) == 2, 60, "another worker")
    fire(receiver, "")
    (run,) = ended(tmp_path, "f")
    assert run["outcome"] == "succeeded"
    (line,) = receiver.lines("fork server has ended, so the worker is replaced")
    assert line["error"] == "the process that forks executors was ended by SIGKILL"


def test_worker_whose_fork_server_ends_while_it_loads_is_replaced(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    (plugins / "deadly").touch()  # The web process imports plugins too, and may be first.
    receiver = start().wait_ready()
    fire(receiver, "")
    (run,) = ended(tmp_path, "f")
    assert run["outcome"] == "succeeded"


def test_worker_that_is_stopped_while_plugins_load_leaves_no_traceback(tmp_path: Path) -> None:
    plugin = """
        import time
        from pathlib import Path
        from receiver import hookimpl

        here = Path(__file__).parent
        (here / "loading").touch()
        while not (here / "go on").exists():
            time.sleep(0.01)

        @hookimpl
        def execute(): pass
    """
    (tmp_path / "slow.py").write_text(dedent(plugin))
    worker = subprocess.Popen(
        [sys.executable, "-m", "receiver", "worker"],
        env={"PLUGIN_DIR": str(tmp_path), "RECEIVER_DATA_DIR": str(tmp_path / "data")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_until((tmp_path / "loading").exists)
    worker.terminate()
    assert worker.wait(60) == -signal.SIGTERM
    (tmp_path / "go on").touch()
    # The fork server holds the output open until it has ended.
    assert worker.communicate(timeout=60) == ("", None)


def test_plugin_that_starts_threads_while_loading_is_loaded_anew_by_each_executor(
    start: Start, tmp_path: Path, plugins: Path
) -> None:
    (plugins / "starts a thread").touch()
    (plugins / "quiet.py").write_text(PLUGIN.replace("starts a thread", "no such file"))
    receiver = start().wait_ready()
    (line,) = receiver.lines("plugin is loaded anew by each executor")
    assert (line["plugin"], line["reason"]) == ("acts", "it starts threads while it is loaded")
    threads = len(list(Path(f"/proc/{fork_server_of(receiver)}/task").iterdir()))
    assert threads == 1
    for action in ("acts", "quiet"):
        assert receiver.post(notification(alert(action)), f"/webhook/{action}").ok
    assert {run["outcome"] for run in ended(tmp_path, "acts", "quiet")} == {"succeeded"}


def test_large_alerts_reach_their_executors(start: Start, tmp_path: Path) -> None:
    receiver = start().wait_ready()
    long = {f"long_{number}": "x" * 100_000 for number in range(20)}
    for number in range(5):
        assert receiver.post(notification(alert(f"large {number}", annotations=long))).ok
    runs = ended(tmp_path, *(f"large {number}" for number in range(5)))
    assert {(run["outcome"], run["attempts"]) for run in runs} == {("succeeded", 1)}


def test_cancel_reaches_the_action(start: Start, tmp_path: Path, plugins: Path) -> None:
    receiver = start(RECEIVER_OPERATE_TOKEN="t" * 32, RECEIVER_SUBMIT_TOKEN="s" * 32).wait_ready()
    one = notification(alert("waits", labels={"how": "waits"}))
    assert receiver.post(one, Authorization=f"Bearer {'s' * 32}").ok
    wait_until(lambda: (plugins / "begun waits").exists())
    answer = receiver.post(b"{}", "/api/v1/runs/1/cancel", Authorization=f"Bearer {'t' * 32}")
    assert answer.ok, answer.text
    (run,) = ended(tmp_path, "waits")
    assert run["outcome"] == "cancelled"


def test_each_process_has_its_role_in_its_title(start: Start) -> None:
    receiver = start().wait_ready()
    children = receiver.children()
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0") for pid in
              (children["web"], children["worker"], fork_server_of(receiver))}  # fmt: skip
    assert list(titles.values()) == [
        "gunicorn: master [receiver web]", "receiver worker", "receiver fork server"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [SettingsError, PluginError])
def test_problems_of_plugins_survive_the_way_between_processes(
    kind: type[SettingsError | PluginError],
) -> None:
    sent = pickle.loads(pickle.dumps(kind(["one thing", "another"])))
    assert type(sent) is kind
    assert (sent.problems, str(sent)) == (("one thing", "another"), "one thing; another")
