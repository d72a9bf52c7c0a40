"""http_plugin and exec_plugin in a running receiver: what of their runs is kept in the journal."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

PROGRAM = """#!/bin/sh
echo "$RECEIVER_ALERTNAME on $RECEIVER_LABEL_host"
case "$RECEIVER_LABEL_host" in
    daemon) /usr/bin/setsid /bin/sh -c 'echo $$ > {0}/daemon; exec sleep 300' &
        while [ ! -s {0}/daemon ]; do sleep 0.05; done ;;
    slow) echo $$ > {0}/slow; exec sleep 300 ;;
    later) exit 75 ;;
    never) exit 77 ;;
esac
"""
Run = dict[str, Any]


@pytest.fixture
def post(
    start_receiver: Callable[..., Receiver], endpoint: Any, tmp_path: Path
) -> Iterator[Callable[..., Run]]:
    """Posts an alert of a host for an action; returns its run and first attempt once that ended."""
    program = tmp_path / "program"
    program.write_text(PROGRAM.format(tmp_path))
    program.chmod(0o755)
    receiver = start_receiver(
        EXEC_PLUGIN_COMMAND=str(program),
        RECEIVER_ACTION_EXEC_PLUGIN_TIMEOUT="4s",
        HTTP_PLUGIN_ENDPOINT=endpoint.url,
        HTTP_PLUGIN_BODY='{"host": "{{ labels.host }}"}',
    ).wait_ready()
    journal = Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")

    def post_it(action: str, host: str) -> Run:
        one = alert(host, labels={"host": host})
        assert receiver.post(notification(one), f"/webhook/{action}").status_code == 200

        def look() -> Any:
            (run,) = reading.list_runs(journal, fingerprint=host, action=action) or [None]
            attempts = reading.attempts_of(journal, run["id"]) if run else []
            ended = [one for one in attempts if one["outcome"]]
            return ended and {**reading.find_run(journal, run["id"]), "attempt": ended[0]}

        return wait_until(look, 60, f"an attempt of {action} for {host}")

    yield post_it
    journal.close()


def is_alive(pid_file: Path) -> bool:
    """Whether the process that wrote its id there is there and no zombie."""
    try:
        stat = Path(f"/proc/{int(pid_file.read_text())}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_answer_is_kept_and_retry_after_is_the_next_attempt(
    post: Callable[..., Run], endpoint: Any
) -> None:
    endpoint.answer = endpoint.reply(201, b'{"ticket": 7}')
    run = post("http_plugin", "web")
    assert json.loads(run["result"]) == {"status": 201, "answer": '{"ticket": 7}'}
    assert json.loads(endpoint.requests[0].body) == {"host": "web"}

    endpoint.answer = endpoint.reply(429, b"slow down", Retry_After="1800")
    run = post("http_plugin", "mail")
    assert (run["state"], run["outcome"]) == ("queued", None)
    assert run["attempt"]["error"].endswith("answered 429: slow down")
    assert run["due_at"] - run["attempt"]["finished_at"] == timedelta(minutes=30)


def test_output_and_status_of_a_program_are_kept_and_nothing_of_it_is_left(
    post: Callable[..., Run], tmp_path: Path
) -> None:
    run = post("exec_plugin", "web")
    assert json.loads(run["result"]) == {"status": 0, "output": "Test on web"}
    assert run["outcome"] == "succeeded"

    run = post("exec_plugin", "never")
    assert run["outcome"] == "failed"
    assert "ended with status 77 (EX_NOPERM): Test on never" in run["attempt"]["error"]

    run = post("exec_plugin", "later")
    assert run["outcome"] is None
    assert "ended with status 75: Test on later" in run["attempt"]["error"]

    # What left the group, the process of the attempt takes along.
    assert post("exec_plugin", "daemon")["outcome"] == "succeeded"
    wait_until(lambda: not is_alive(tmp_path / "daemon"))

    run = post("exec_plugin", "slow")
    assert "deadline" in run["attempt"]["error"]
    assert (tmp_path / "slow").exists()
    wait_until(lambda: not is_alive(tmp_path / "slow"))
