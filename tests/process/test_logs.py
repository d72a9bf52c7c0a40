"""Logs: every line of a run says whose it is, whatever the plugin logs with."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from receiver import logs
from tests.support.notifications import alert, notification
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
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    threading.excepthook = hook
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
