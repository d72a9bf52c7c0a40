"""exec_plugin with real programs: small ones in Python and shell, written by each test."""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from action_plugins import exec_plugin
from receiver import DeadlineExceededError, PermanentError, RunCancelledError, TemporaryError
from receiver.context import Cancellation
from receiver.errors import PluginError, SettingsError
from receiver.plugins import load_actions
from receiver.settings import load
from receiver.testing import make_alert, make_context, run_action
from tests.support.waiting import wait_until

HOSTILE = "$(touch /tmp/x) `id` ; rm -rf / | & > ' \" \\ \r\n{0} %s \x1b[31m"
Program = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Writes an executable program; the first line says what runs it."""

    def write(body: str, interpreter: str = "/bin/sh", name: str = "program") -> str:
        path = tmp_path / name
        path.write_text(f"#!{interpreter}\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


def run(command: str, environment: str = "", **call: Any) -> Any:
    settings = {"EXEC_PLUGIN_COMMAND": command, "EXEC_PLUGIN_ENVIRONMENT": environment}
    return run_action(exec_plugin, environment=settings, **call)


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# What it gets


SHOW = """
import json, os, sys
print(json.dumps([sys.argv[1:], dict(os.environ), json.load(sys.stdin), os.getcwd()]))
"""


@pytest.fixture
def show(program: Program, tmp_path: Path) -> Callable[..., tuple[Any, ...]]:
    """Runs a program that tells what it got: arguments, variables, standard input, directory."""
    told = tmp_path / "told"
    command = program(SHOW.replace("print(", f"open({str(told)!r}, 'w').write("), sys.executable)

    def run_it(arguments: str = "", **more: Any) -> tuple[Any, ...]:
        assert run(f"{command} {arguments}", **more)["status"] == 0
        found = json.loads(told.read_text())
        # Python adds it by itself where there is no locale.
        found[1].pop("LC_CTYPE", None)
        return tuple(found)

    return run_it


def test_program_gets_the_whole_call_on_its_standard_input(show: Any) -> None:
    alert = make_alert(labels={"x": HOSTILE}, annotations={"summary": "ö" * 100_000})
    _, _, call, directory = show(
        context=make_context(alert, action="exec_plugin", attempt=2), metric_name="m", value=93.5
    )
    assert call["metric_name"] == "m"
    assert (call["value"], call["duration_seconds"], call["attempt"]) == (93.5, 300.0, 2)
    assert call["alert"]["labels"] == {"alertname": "QueueTooLong", "x": HOSTILE}
    assert call["alert"]["annotations"] == {"summary": "ö" * 100_000}
    assert directory == "/"


def test_program_gets_the_call_as_variables_and_no_other(
    show: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECEIVER_SUBMIT_TOKEN", "s3cret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    context = make_context(make_alert(labels={"queue": HOSTILE}), source="eu", run_id=7)
    _, variables, _, _ = show(context=context, threshold=HOSTILE)
    assert variables == {
        "RECEIVER_METRIC_NAME": "queue_depth",
        "RECEIVER_VALUE": "90.0",
        "RECEIVER_THRESHOLD": HOSTILE,
        "RECEIVER_DURATION_SECONDS": "300.0",
        "RECEIVER_ACTION": "an_action",
        "RECEIVER_KIND": "fired",
        "RECEIVER_RUN_ID": "7",
        "RECEIVER_ATTEMPT": "1",
        "RECEIVER_IDEMPOTENCY_KEY": context.idempotency_key,
        "RECEIVER_SOURCE": "eu",
        "RECEIVER_RECEIVER": "alert-receiver",
        "RECEIVER_STARTS_AT": "2026-01-02T03:04:05+00:00",
        "RECEIVER_FINGERPRINT": context.alert.fingerprint,
        "RECEIVER_GENERATOR_URL": context.alert.generator_url,
        "RECEIVER_ALERTNAME": "QueueTooLong",
        "RECEIVER_DEADLINE": context.deadline.isoformat(),
        "RECEIVER_LABEL_alertname": "QueueTooLong",
        "RECEIVER_LABEL_queue": HOSTILE,
    }


def test_variables_that_the_operator_names_are_handed_on(
    show: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("KUBECONFIG", "/etc/kube")
    monkeypatch.delenv("NOT_THERE", raising=False)
    variables = show(environment="HOME, NOT_THERE")[1]
    assert variables["HOME"] == "/somewhere"
    assert not {"NOT_THERE", "KUBECONFIG", "PATH"} & variables.keys()


def test_what_no_variable_can_hold_is_bounded_or_left_out(show: Any) -> None:
    labels = {f"l{number}": "x" for number in range(1000)}
    labels = {"long": "é" * 100_000, "nul": "a\0b", "half": "a\ud800b", "no=name": "x", **labels}
    variables = show(context=make_context(make_alert(labels=labels)), value=math.nan)[1]
    assert len(variables["RECEIVER_LABEL_long"].encode()) == exec_plugin.LONGEST_VARIABLE
    assert variables["RECEIVER_LABEL_nul"] == "a\ufffdb"
    assert variables["RECEIVER_LABEL_half"] == "a?b"
    assert not [name for name in variables if "=" in name]
    assert sum(name.startswith("RECEIVER_LABEL_") for name in variables) == 64
    assert variables["RECEIVER_VALUE"] == "NaN"


def test_arguments_are_split_once_and_no_shell_sees_them(show: Any) -> None:
    arguments = show("""--flag 'two words' "$HOME" *.py ';' `id` a\\ b ''""")[0]
    assert arguments == ["--flag", "two words", "$HOME", "*.py", ";", "`id`", "a b", ""]


def test_nothing_of_an_alert_is_an_argument(show: Any) -> None:
    context = make_context(make_alert(HOSTILE, labels={"x": HOSTILE}), source=HOSTILE)
    assert show("--fixed", context=context, metric_name=HOSTILE, threshold=HOSTILE)[0] == [
        "--fixed"
    ]


# How it ends


def test_success_keeps_what_was_written_on_both_streams(program: Program) -> None:
    command = program("echo one; echo two >&2; printf '\\033[31m\\377three'")
    assert run(command) == {"status": 0, "output": "one\ntwo\n\\x1b[31m\ufffdthree"}


def test_of_long_output_the_end_is_kept(program: Program) -> None:
    command = program("yes 0123456789 | head -c 3000000; echo; echo the end")
    result = run(command)
    assert result["output"].startswith("[2995")
    assert result["output"].endswith("the end")
    assert len(result["output"]) < exec_plugin.KEPT_BYTES + 50


@pytest.mark.parametrize("status", [1, 2, 75, 126, 127, 255])
def test_other_status_is_temporary_and_tells_the_end_of_the_output(
    program: Program, status: int
) -> None:
    command = program(f"yes | head -c 9000; echo no route >&2; exit {status}")
    with pytest.raises(TemporaryError, match=f"program ended with status {status}: ") as caught:
        run(command)
    assert str(caught.value).endswith("no route")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(("status", "name"), exec_plugin.PERMANENT_STATUSES.items())
def test_status_that_says_so_is_permanent(program: Program, status: int, name: str) -> None:
    with pytest.raises(PermanentError, match=rf"ended with status {status} \({name}\): bad"):
        run(program(f"echo bad; exit {status}"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN + 1])
def test_program_that_a_signal_ends_is_temporary(program: Program, number: int) -> None:
    with pytest.raises(TemporaryError, match="was ended by a signal: "):
        run(program(f"kill -{int(number)} $$"))


def test_program_that_reads_nothing_may_succeed(program: Program) -> None:
    alert = make_alert(annotations={"summary": "x" * 10**6})
    assert run(program("exec <&-; echo fine"), context=make_context(alert))["output"] == "fine"


def test_program_that_closes_its_streams_is_waited_for(program: Program, tmp_path: Path) -> None:
    command = program(f"exec <&- >&- 2>&-; sleep 0.3; touch {tmp_path}/done")
    assert run(command) == {"status": 0, "output": ""}
    assert (tmp_path / "done").exists()


def test_program_that_vanished_since_the_start_is_permanent(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = program("exit 0")
    actions = load_actions(load({"EXEC_PLUGIN_COMMAND": command}, {}))
    Path(command).unlink()
    with pytest.raises(PermanentError, match="cannot be run: No such file or directory"):
        execute_loaded(actions)


def test_program_that_is_no_program_is_permanent(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(b"\x7fnothing")
    file.chmod(0o755)
    with pytest.raises(PermanentError, match="cannot be run: Exec format error"):
        run(str(file))


def execute_loaded(actions: Any) -> Any:
    context = make_context(settings=actions.plugins["exec_plugin"].values)
    arguments = {"metric_name": "m", "value": 1.0, "threshold": "", "duration": timedelta(0)}
    return actions.call("exec_plugin", "execute", {"context": context, **arguments})


# When it is stopped


TREE = """
echo $$ > {0}/leader.new; mv {0}/leader.new {0}/leader
trap '' TERM INT HUP
sleep 300 &
echo $! > {0}/child.new; mv {0}/child.new {0}/child
wait; sleep 300
"""


def pids(directory: Path) -> list[int]:
    """Return the program's process and that of its child, once both are there."""
    files = [directory / "leader", directory / "child"]
    wait_until(lambda: all(one.exists() for one in files))
    return [int(one.read_text()) for one in files]


def test_group_is_killed_at_the_deadline(program: Program, tmp_path: Path) -> None:
    command = program(TREE.format(tmp_path))
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        run(command, context=make_context(remaining_seconds=3))
    assert time.monotonic() - began < 20
    for pid in pids(tmp_path):
        wait_until(lambda pid=pid: not is_alive(pid))


def test_group_is_killed_on_a_cancel(program: Program, tmp_path: Path) -> None:
    command = program(TREE.format(tmp_path))
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(run, command, context=make_context(cancellation=cancellation))
        started = pids(tmp_path)
        assert all(map(is_alive, started))
        cancellation.cancel("an operator said so")
        with pytest.raises(RunCancelledError, match="an operator said so"):
            future.result(15)
    for pid in started:
        wait_until(lambda pid=pid: not is_alive(pid))


def test_what_it_left_running_is_killed_when_it_has_ended(program: Program, tmp_path: Path) -> None:
    command = program(f"sleep 300 & echo $! > {tmp_path}/child; echo done")
    began = time.monotonic()
    assert run(command)["output"] == "done"
    assert time.monotonic() - began < 10
    pid = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_alive(pid))


def test_daemon_that_got_away_and_writes_for_ever_holds_nobody(
    program: Program, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    command = program(
        f"setsid sh -c 'echo $$ > {pid}; exec yes' &\n"
        f"while [ ! -s {pid} ]; do sleep 0.05; done; sleep 0.3"
    )
    began = time.monotonic()
    assert run(command)["status"] == 0
    assert time.monotonic() - began < 10
    wait_until(lambda: not is_alive(int(pid.read_text())), what="nobody reads, so it has ended")


def test_group_is_its_own(program: Program) -> None:
    output = run(program("ps -o pgid= -p $$ 2>/dev/null || cut -d' ' -f5 /proc/$$/stat"))["output"]
    assert int(output) != os.getpgid(0)


@pytest.mark.parametrize("stop", ["deadline", "cancel"])
def test_nothing_is_started_once_it_is_time_to_stop(
    program: Program, tmp_path: Path, stop: str
) -> None:
    cancellation = Cancellation()
    if stop == "cancel":
        cancellation.cancel("too late")
    context = make_context(
        remaining_seconds=0 if stop == "deadline" else 60, cancellation=cancellation
    )
    with pytest.raises(RunCancelledError):
        run(program(f"touch {tmp_path}/started"), context=context)
    assert not (tmp_path / "started").exists()


def test_many_threads_may_run_it_at_once_and_no_file_stays_open(program: Program) -> None:
    command = program("cat")
    run(command)
    before = len(os.listdir("/proc/self/fd"))
    barrier = threading.Barrier(8)

    def call(number: int) -> str:
        barrier.wait(10)
        result = run(command, context=make_context(idempotency_key=f"run-{number}"))
        return json.loads(result["output"])["idempotency_key"]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(call, range(8))) == [f"run-{number}" for number in range(8)]
    assert len(os.listdir("/proc/self/fd")) == before


# Settings


def test_without_a_command_it_is_off() -> None:
    plugin = load_actions(load({}, {})).plugins["exec_plugin"]
    assert plugin.state == "not configured"
    assert "EXEC_PLUGIN_COMMAND: is not set" in plugin.reason


def test_without_a_command_it_stops_the_start_when_it_is_named() -> None:
    with pytest.raises(PluginError, match="EXEC_PLUGIN_COMMAND: is not set"):
        load_actions(load({"ACTION_PLUGIN": "exec_plugin"}, {}))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        pytest.param("restart now", "'restart' is not a full path", id="by PATH"),
        pytest.param("./restart", "'./restart' is not a full path", id="relative"),
        pytest.param("''", "'' is not a full path", id="empty"),
        pytest.param("# comment", "'#' is not a full path", id="comment"),
        pytest.param("/bin/sh 'open", "no closing quotation; close what you opened", id="open"),
        pytest.param("/no/such/program -x", "/no/such/program is not a program", id="missing"),
        pytest.param("/etc/passwd", "/etc/passwd is not a program that", id="not executable"),
        pytest.param("/etc", "/etc is not a program that this user may run", id="directory"),
    ],
)
def test_command_that_cannot_be_run_stops_the_start(command: str, why: str) -> None:
    with pytest.raises(ValueError, match="EXEC_PLUGIN_COMMAND: ") as caught:
        run(command)
    assert why in str(caught.value)


@pytest.mark.parametrize("name", ["1ST", "A=B", "é", "RECEIVER_SUBMIT_TOKEN"])
def test_name_that_cannot_be_handed_on_stops_the_start(name: str) -> None:
    with pytest.raises((ValueError, SettingsError), match="EXEC_PLUGIN_ENVIRONMENT: "):
        run("/bin/sh", environment=name)


def test_describe_says_what_would_be_run_and_runs_nothing(program: Program, tmp_path: Path) -> None:
    command = program(f"touch {tmp_path}/started")
    said = run(f"{command} --token s3cret", hook="describe", metric_name=HOSTILE * 100)
    assert said.startswith(f"would run {command} with 2 arguments, saying that ")
    assert said.endswith(" is 90")
    assert said.isprintable()
    assert "s3cret" not in said
    assert not (tmp_path / "started").exists()
