"""Logs: every line names its run, and is one that collectors take, whatever a plugin writes."""

import ast
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import receiver as package
from receiver import log_bounds, logs
from tests.support.every import every
from tests.support.fuzz import HOSTILE
from tests.support.log_lines import assert_collectable
from tests.support.notifications import alert, notification
from tests.support.processes import children_of, descendants_of, is_alive, title_of
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

PLUGIN = """
import logging
import threading
import warnings

from receiver import hookimpl


@hookimpl
def execute(context):
    logging.getLogger("a.library").warning("plain line")
    logging.warning("line with %s", "arguments", extra={"queue": "orders", "action": "mine"})
    context.log.warning("line by context", extra={"queue": "orders"})
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger(__name__).exception("line with a traceback")
"""
LINES = ("plain line", "line with arguments", "line by context", "line with a traceback")


def write(directory: Path, text: str) -> str:
    directory.mkdir()
    (directory / "talker.py").write_text(text)
    return str(directory)


def test_every_line_that_a_plugin_logs_carries_the_fields_of_its_run(
    start_receiver: Callable[..., Receiver], tmp_path: Path
) -> None:
    receiver = start_receiver(PLUGIN_DIR=write(tmp_path / "plugins", PLUGIN)).wait_ready()
    fingerprints = ["first", "second", "third"]
    alerts = [alert(one, labels={"action_plugin": "talker"}) for one in fingerprints]
    assert receiver.post(notification(*alerts)).json()["accepted"] == 3

    wait_until(lambda: len(receiver.lines("attempt ended")) == 3, 60)
    numbers = {one["fingerprint"]: one["run_id"] for one in receiver.lines("attempt ended")}
    for message in LINES:
        found = receiver.lines(message)
        assert sorted(one["fingerprint"] for one in found) == sorted(fingerprints), message
        for one in found:
            assert one["run_id"] == numbers[one["fingerprint"]]
            assert (one["action"], one["attempt"], one["kind"]) == ("talker", 1, "fired")
    assert {one["action_"] for one in receiver.lines("line with arguments")} == {"mine"}
    assert all("ZeroDivisionError" in one["exc_info"] for one in receiver.lines(LINES[3]))


def test_lines_for_people_carry_them_too(
    start_receiver: Callable[..., Receiver], tmp_path: Path
) -> None:
    receiver = start_receiver(
        PLUGIN_DIR=write(tmp_path / "plugins", PLUGIN), RECEIVER_LOG_FORMAT="text"
    ).wait_ready()
    receiver.post(notification(alert("first", labels={"action_plugin": "talker"})))
    wait_until(lambda: "attempt ended" in receiver.text(), 60)
    (line,) = [one for one in receiver.text().splitlines() if "plain line" in one]
    assert "run_id=1 action=talker" in line
    assert "fingerprint=first" in line


@pytest.fixture
def as_before() -> Iterator[None]:
    """Leave logging as it was."""
    root, hooks = logging.getLogger(), (threading.excepthook, sys.excepthook, sys.unraisablehook)
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    threading.excepthook, sys.excepthook, sys.unraisablehook = hooks
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("as_before")
def test_fields_are_those_of_the_thread_and_end_with_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", "json")
    both_run = threading.Barrier(2)

    def run(number: int) -> None:
        with logs.fields_of_run({"run_id": number}):
            both_run.wait(30)
            logging.getLogger("x").info("meanwhile", extra={"number": number})
        logging.getLogger("x").info("afterwards", extra={"number": number})

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    lines: list[dict[str, Any]] = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    meanwhile = [one for one in lines if one["message"] == "meanwhile"]
    assert len(meanwhile) == 2
    assert all(one["run_id"] == one["number"] for one in meanwhile)
    assert not [one for one in lines if one["message"] == "afterwards" and "run_id" in one]


@pytest.mark.usefixtures("as_before")
def test_fields_of_a_plugin_take_no_place_of_what_a_line_says_of_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", "json")
    own = {"time": "noon", "level": "high", "logger": "mine"}
    logging.getLogger("x").warning("said", extra=own)
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["logger"]) == ("WARNING", "x")
    assert line["time"].startswith("20")
    assert {name: line[f"{name}_"] for name in own} == own

    logging.getLogger("x").warning(own)
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["logger"]) == ("WARNING", "x")
    assert {name: line[f"{name}_"] for name in own} == own


@pytest.mark.usefixtures("as_before")
def test_thread_that_dies_leaves_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["message"] == "thread ended by an exception"
    assert "ZeroDivisionError" in json.loads(line)["exc_info"]


@pytest.mark.usefixtures("as_before")
def test_library_that_would_quote_a_url_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "json")
    answer = b"HTTP/1.1 200 OK\r\nno header\r\nConnection: close\r\n\r\n"

    def serve() -> None:
        with server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        assert requests.get(f"http://127.0.0.1:{port}/hooks/s3cret", timeout=30).status_code == 200
        thread.join()
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("style", ["json", "text"])
def test_hostile_field_stays_on_its_line(capsys: pytest.CaptureFixture[str], style: str) -> None:
    logs.configure("info", style)
    with logs.fields_of_run({"fingerprint": 'x\n{"level": "ERROR"}\x1b[31m'}):
        logging.getLogger("x").info("said")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "\x1b" not in out


@pytest.mark.usefixtures("as_before")
def test_hostile_exception_is_indented_under_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    hostile = "bad\x1b[31m\r\n12:00:00.000 error   forged\u2028forged\x85"
    try:
        raise ValueError(hostile) from KeyError(hostile)
    except ValueError as error:
        logging.getLogger("x").warning("said", extra={"a\nforged": 1}, exc_info=error)
    first, *traceback = capsys.readouterr().out.splitlines()
    assert "warning said" in first
    assert all(one.startswith("    ") and one.isprintable() for one in [*traceback])
    assert "ValueError" in "".join(traceback)
    assert any("error   forged" in one for one in traceback)


NOISY = """
import ctypes
import logging
import os
import subprocess
import sys
import threading
import warnings

from receiver import hookimpl

log = logging.getLogger(__name__)


class Fails:
    def __del__(self):
        raise ValueError("in a destructor")

    def __str__(self):
        raise ValueError("in __str__")


def make_noise():
    print("printed \\x1b[31m \\udfff", "half ", end="")
    print("an error", file=sys.stderr)
    os.write(2, b"thread '<unnamed>' panicked at src/lib.rs:1:1:\\nlast words\\xff\\n")
    ctypes.CDLL(None).puts(b"by the C library")
    ctypes.CDLL(None).fflush(None)
    subprocess.run(["echo", "by a program"])
    warnings.warn("a warning\\nof two lines")
    log.warning("a number: %d", "none")
    log.warning("%s and %s", "one")
    log.warning(Fails())
    log.warning("cannot be read: %s", Fails())
    handler = logging.StreamHandler()
    logging.getLogger("noisy.own").addHandler(handler)
    logging.getLogger("noisy.own").warning("a number: %d", "none")
    logging.getLogger("noisy.own").removeHandler(handler)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()


make_noise()


@hookimpl
def execute(context):
    make_noise()
    labels = dict(context.alert.labels)
    context.log.warning("labels as fields", extra=labels)
    log.warning({**labels, "time": "noon", "run_id": 7})
    log.warning("labels as a field", extra={"labels": labels, "time": "noon", "run_id": 7})
    log.warning("x" * 1_000_000)
    deep = []
    for _ in range(10_000):
        deep = [deep]
    log.warning("nested", extra={"deep": deep, "wide": {str(n): n for n in range(10_000)}})
    log.warning("many", extra={f"field_{n}": "x" * 10_000 for n in range(1_000)})
    log.warning("numbers", extra={"large": 10**300, "larger": 10**10_000, "nan": float("nan")})
    try:
        raise ValueError("y" * 1_000_000)
    except ValueError:
        log.exception("long traceback")
"""
OWN_NAMES = ("time", "level", "logger", "message", "run_id", "action", "exc_info", "name", "args")


def noise(receiver: Receiver) -> set[str]:
    return {str(line["text"]) for line in receiver.lines("process printed")}


@pytest.mark.parametrize("style", ["json", "text"])
def test_noise_of_a_plugin_becomes_lines_of_the_log(
    start_receiver: Callable[..., Receiver], tmp_path: Path, style: str
) -> None:
    receiver = start_receiver(
        PLUGIN_DIR=write(tmp_path / "plugins", NOISY), RECEIVER_LOG_FORMAT=style
    ).wait_ready()
    labels = {**dict.fromkeys(OWN_NAMES, "forged"), **HOSTILE, "huge": "\u00e4" * 1_000_000}
    labels |= {text[:1_000]: text for text in HOSTILE.values() if text}
    one = alert("first", labels={**labels, "action_plugin": "talker"})
    assert receiver.post(notification(one)).json()["accepted"] == 1
    wait_until(lambda: "attempt ended" in receiver.text(), 60)
    assert receiver.stop() == 0

    assert_collectable(receiver.text(), style)
    assert "Logging error" not in "".join(
        line for line in receiver.text().splitlines() if "printed" not in line
    )
    if style == "text":
        return
    # Web, fork server, and the executor that loads the plugin anew, because it started a thread.
    printed = [line["text"] for line in receiver.lines("process printed")]
    for text in ("an error", "last words\ufffd", "by a program", "by the C library"):
        assert printed.count(text) >= 2, text
    assert "by a program" in {line["text"] for line in receiver.lines("action printed")}
    assert [line["outcome"] for line in receiver.lines("attempt ended")] == ["succeeded"]

    of_run = [line for line in receiver.lines("a number: %d") if line.get("run_id") == 1]
    assert [line["logger"] for line in of_run] == ["receiver_plugins.talker", "noisy.own"]
    wrong = of_run[0]
    assert (wrong["level"], wrong["fingerprint"]) == ("WARNING", "first")
    assert wrong["log_arguments"] == ["none"]
    assert "TypeError" in wrong["log_error"]
    fields = receiver.lines("labels as fields")[-1]
    assert (fields["run_id"], fields["run_id_"], fields["name_"]) == (1, "forged", "forged")
    (long,) = [line for line in receiver.lines() if line["message"].startswith("xxxx")]
    assert re.search(r"x… \(cut: \d{6} characters more\)$", long["message"])
    (traceback,) = [line["exc_info"] for line in receiver.lines("long traceback")]
    assert traceback.startswith("Traceback")
    assert re.search(r"… \(cut: \d{6} characters\) …y+$", traceback)
    assert receiver.lines("nested")[-1]["wide"]["…"] == "(cut: 9900 items more)"
    many = receiver.lines("many")[-1]
    assert (many["run_id"], many["fields_cut"] > 900) == (1, True)


@pytest.mark.parametrize("command", ["web", "worker"])
def test_halves_of_a_receiver_log_what_is_printed(
    start_receiver: Callable[..., Receiver], tmp_path: Path, command: str
) -> None:
    plugins = write(tmp_path / "plugins", NOISY)
    receiver = start_receiver(command, PLUGIN_DIR=plugins).wait_ready()
    wait_until(lambda: {"an error", "by a program"} <= noise(receiver), 30)
    assert receiver.stop() == 0
    assert_collectable(receiver.text())


CONFIGURES = """
import logging
import logging.config

from receiver import hookimpl

logging.config.dictConfig({"version": 1, "root": {"level": "ERROR", "handlers": []}})
logging.disable(logging.CRITICAL)
logging.basicConfig(format="mine: %(message)s", force=True)


@hookimpl
def execute(context):
    context.log.warning("still logged")
"""


def test_plugin_that_configures_logging_silences_nothing(
    start_receiver: Callable[..., Receiver], tmp_path: Path
) -> None:
    plugins = write(tmp_path / "plugins", CONFIGURES)
    receiver = start_receiver(PLUGIN_DIR=plugins).wait_ready()
    assert len(receiver.lines("web started")) == 1
    receiver.post(notification(alert("first", labels={"action_plugin": "talker"})))
    wait_until(lambda: receiver.lines("attempt ended"), 60)
    assert receiver.lines("still logged")[0]["run_id"] == 1
    assert receiver.stop() == 0
    assert_collectable(receiver.text())


def test_last_words_of_a_crash_are_lines_of_the_log(
    start_receiver: Callable[..., Receiver],
) -> None:
    receiver = start_receiver().wait_ready()
    children = receiver.children()
    (gunicorn_worker,) = children_of(children["web"])
    for number, pid in enumerate((gunicorn_worker, children["worker"]), 1):
        os.kill(pid, signal.SIGSEGV)
        fatal = "Fatal Python error: Segmentation fault"
        printed = receiver.lines
        wait_until(
            lambda: [one["text"] for one in printed("process printed")].count(fatal) == number,  # noqa: B023
            30,
        )
    receiver.wait_ready()
    assert receiver.stop() == 0
    assert_collectable(receiver.text())


def loggers_of_output(receiver: Receiver) -> list[int]:
    assert receiver.process is not None
    below = descendants_of(receiver.process.pid)
    return [pid for pid in below if title_of(pid) == "receiver output"]


def test_supervisor_needs_no_process_for_what_is_printed(
    start_receiver: Callable[..., Receiver], tmp_path: Path
) -> None:
    receiver = start_receiver(PLUGIN_DIR=write(tmp_path / "plugins", NOISY)).wait_ready()
    wait_until(lambda: {"an error", "by a program"} <= noise(receiver), 30)
    assert loggers_of_output(receiver) == []
    assert receiver.process is not None
    # What they print leads to it; no other process can read it.
    pipes = {os.readlink(f"/proc/{pid}/fd/1") for pid in receiver.children().values()}
    for pid in descendants_of(receiver.process.pid):
        ends = [file for file in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(file) in pipes]
        assert {file.name for file in ends} <= {"1"}, title_of(pid)


@pytest.mark.parametrize("command", ["web", "worker"])
def test_process_that_logs_output_ends_with_a_receiver_that_is_killed(
    start_receiver: Callable[..., Receiver], command: str
) -> None:
    receiver = start_receiver(command).wait_ready()
    assert receiver.process is not None
    (pid,) = loggers_of_output(receiver)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    os.kill(receiver.process.pid, signal.SIGKILL)
    receiver.process.wait(30)
    wait_until(lambda: not is_alive(pid), 30)


@pytest.mark.parametrize("command", ["serve", "web", "worker"])
def test_start_that_is_refused_is_one_line_of_the_log(
    start_receiver: Callable[..., Receiver], tmp_path: Path, command: str
) -> None:
    (tmp_path / "data").write_text("")
    receiver = start_receiver(command)
    assert receiver.process is not None
    assert receiver.process.wait(30) == 1
    assert_collectable(receiver.text())
    (line,) = receiver.lines()
    assert (line["level"], line["message"]) == ("CRITICAL", "receiver cannot start")
    assert "is a file" in line["problems"][0]


ENDS = {
    "an exception": "raise ValueError('a' * 100_000 + '\\x1b')",
    "an exit": "raise SystemExit(1)",
    "a destructor": """
class Fails:
    def __del__(self):
        raise ValueError("in a destructor")
Fails()
""",
    "a thread": "import threading; threading.Thread(target=lambda: 1 / 0).start()",
    "a warning": "import warnings; warnings.warn('two\\nlines')",
    "a wrong call": "log.error('%d', 'x')",
}


@pytest.mark.parametrize("style", ["json", "text"])
def test_whatever_ends_a_process_is_in_the_log(style: str) -> None:
    begin = f"import logging; from receiver import logs; logs.configure('info', {style!r})\n"
    begin += "log = logging.getLogger('x'); log.info('begun')\n"
    with every() as each:
        for name, program in ENDS.items():
            with each(name):
                done = subprocess.run(
                    [sys.executable, "-c", begin + program], capture_output=True, check=False
                )
                assert done.stderr == b""
                assert_collectable(done.stdout.decode(), style)
                lines = re.findall(r"^\S", done.stdout.decode(), re.MULTILINE)
                assert len(lines) == (1 if name == "an exit" else 2)


# Python's logging refuses these names itself.
STANDARD = {*logging.makeLogRecord({}).__dict__, "message", "asctime"}
LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")


def log_calls() -> dict[str, tuple[str, list[str]]]:
    """Return place -> message and names of fields, for every log call of the receiver.

    The names are those of all fields of the file, because some are put together elsewhere.
    """
    calls: dict[str, tuple[str, list[str]]] = {}
    root = Path(package.__file__).parent
    for file in sorted([*root.rglob("*.py"), *(root.parent / "action_plugins").rglob("*.py")]):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        keys = [key for node in nodes if isinstance(node, ast.Dict) for key in node.keys]
        names = {key.value for key in keys if isinstance(key, ast.Constant)}
        for node in nodes:
            if isinstance(node, ast.Call) and is_log_call(node.func):
                texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                message = str(texts[0]) if texts else "computed"
                calls[f"{file.name}:{node.lineno}"] = (message, sorted(map(str, names)))
    return calls


def is_log_call(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in LEVELS
        and ast.unparse(function.value).endswith(("log", "_output"))
    )


def test_documents_state_the_bounds_of_the_code() -> None:
    text = (Path(package.__file__).parents[1] / "docs" / "metrics.md").read_text()
    rows = [
        f"| a line, with its line feed | {log_bounds.MAX_LINE_BYTES // 1024} KiB |",
        f"| the value of a field | {log_bounds.MAX_FIELD_BYTES // 1024} KiB |",
        f"| the name of a field or key | {log_bounds.MAX_NAME_BYTES} bytes |",
        f"| fields of a line | {log_bounds.MAX_FIELDS}; `fields_cut` counts the others |",
        f"| items of a list or mapping inside a field | {log_bounds.MAX_ITEMS} |",
        f"| levels of nesting inside a field | {log_bounds.MAX_DEPTH} |",
    ]
    assert [row for row in rows if row not in text] == []


class Object:
    """Has a text that is hostile, and is equal to nothing."""

    def __str__(self) -> str:
        return "\x1b[31m\n{}\udfff" * 1_000

    def __eq__(self, other: object) -> bool:
        raise ValueError

    def __hash__(self) -> int:
        return id(self)


def hostile_values() -> dict[str, Any]:
    """Return name -> a value that a field may get."""
    circle: dict[Any, Any] = {}
    circle["circle"] = circle
    surrogates = "\ud83d" * 20_000
    return {
        **HOSTILE,
        "megabyte": "\U0001f4a5" * 250_000,
        "quotes": "\"'" * 10_000,
        "backslashes": "\\" * 20_000,
        "surrogates": surrogates,
        "bytes": bytes(range(256)) * 100,
        "circle": circle,
        "keys": {1: 1, "1": 2, None: 3, surrogates: 4, Object(): 5, "x" * 10_000: 6},
        "wide": {text: [text] * 50 for text in HOSTILE.values()},
        "items": [Object()] * 1_000,
        "object": Object(),
        "error": ValueError("\x1b" * 20_000),
        "integer": 2**63,
        "infinite": float("inf"),
    }


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("style", ["json", "text"])
def test_every_log_call_is_collectable_with_hostile_values(
    capsys: pytest.CaptureFixture[str], style: str
) -> None:
    logs.configure("debug", style)
    log = logging.getLogger("receiver.x")
    calls = log_calls()
    assert len(calls) > 50
    values = hostile_values()
    with every() as each:
        for place, (message, names) in calls.items():
            with each(place):
                turns = itertools.islice(itertools.cycle(values.values()), len(place), None)
                fields = dict(zip(names, turns, strict=False))
                for name in STANDARD.intersection(fields):
                    del fields[name]
                log.warning(message, extra=fields)
                assert_collectable(capsys.readouterr().out, style)
        for name, value in values.items():
            with each(name):
                with logs.fields_of_run({"run_id": 1, "fingerprint": value}):
                    log.warning("message", extra={"field": value, "run_id": value, "level": value})
                assert_collectable(capsys.readouterr().out, style)
