"""Wrappers around actions, whether executors share what is loaded or load it anew."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

WRAPPER = """
import os
from receiver import PermanentError, hookimpl

PATH = {path!r}

def tell(context, what):
    with open(PATH, "a") as file:
        file.write(f"{{context.action}} {{context.kind}}: {name} {{what}}\\n")

@hookimpl(wrapper=True)
def execute(context):
    tell(context, "before")
    try:
        result = yield
    except PermanentError as error:
        tell(context, f"saw {{error}}")
        raise
    except LookupError as error:
        tell(context, f"saw {{type(error).__name__}}")
        raise PermanentError("turned into another by {name}") from error
    tell(context, "after")
    return {{"from": "{name}", "got": result}}
"""
ACTION = """
import os, threading
from receiver import PermanentError, hookimpl

@hookimpl
def execute(context, metric_name):
    if metric_name == "permanent":
        raise PermanentError("as it is")
    if metric_name == "lookup":
        raise KeyError("odd")
    return os.getpid()
"""
# A plugin that starts a thread is loaded by each of its executors, with all wrappers.
THREAD = "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
REFUSER = """
from receiver import TemporaryError, hookimpl

@hookimpl(wrapper=True, tryfirst=True)
def execute(context):
    if context.alert.labels.get("refused"):
        raise TemporaryError("the wrapper refuses it", retry_after=3600)
    return (yield)
"""
Finish = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PLUGIN_DIR with three wrappers, and one action under two names."""
    path = tmp_path_factory.mktemp("wrapped")
    (path / "plugins").mkdir()
    for name in ("wrap_a", "wrap_b"):
        source = WRAPPER.format(path=str(path / "told"), name=name)
        (path / "plugins" / f"{name}.py").write_text(source)
    (path / "plugins" / "refuser.py").write_text(REFUSER)
    (path / "plugins" / "forked.py").write_text(ACTION)
    (path / "plugins" / "loaded_anew.py").write_text(ACTION + THREAD)
    return path


@pytest.fixture(scope="module")
def receiver(directory: Path) -> Any:
    """A running receiver with them."""
    settings = {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "PLUGIN_DIR": str(directory / "plugins"),
    }
    running = Receiver("serve", settings, directory / "receiver.log")
    yield running.wait_ready()
    running.kill()


@pytest.fixture
def finish(receiver: Receiver, directory: Path, request: pytest.FixtureRequest) -> Any:
    """Posts an alert for an action, and returns its run once an attempt has ended."""
    journal = Journal(f"sqlite:///{directory / 'data' / 'journal.db'}")
    (directory / "told").write_text("")

    def post(action: str, metric_name: str, **labels: str) -> dict[str, Any]:
        fingerprint = request.node.name
        one = alert(fingerprint, labels=labels, annotations={"metric_name": metric_name})
        assert receiver.post(notification(one), f"/webhook/{action}").status_code == 200

        def look() -> Any:
            (run,) = reading.list_runs(journal, fingerprint=fingerprint) or [None]
            attempts = reading.attempts_of(journal, run["id"]) if run else []
            ended = [one for one in attempts if one["outcome"]]
            return ended and {**reading.find_run(journal, run["id"]), "attempt": ended[0]}

        return wait_until(look, 60, f"an attempt of {action}")

    yield post
    journal.close()


def told(directory: Path, action: str) -> list[str]:
    lines = (directory / "told").read_text().splitlines()
    assert all(line.startswith(f"{action} fired: ") for line in lines)
    return [line.partition(": ")[2] for line in lines]


ACTIONS = pytest.mark.parametrize("action", ["forked", "loaded_anew"])


@ACTIONS
def test_wrappers_surround_the_action_the_last_outermost(
    finish: Finish, directory: Path, receiver: Receiver, action: str
) -> None:
    run = finish(action, "fine")
    assert run["outcome"] == "succeeded"
    result = json.loads(run["result"])
    assert (result["from"], result["got"]["from"]) == ("wrap_b", "wrap_a")
    (line,) = receiver.lines("plugin is loaded anew by each executor")
    assert line["plugin"] == "loaded_anew"
    assert told(directory, action) == [
        "wrap_b before", "wrap_a before", "wrap_a after", "wrap_b after"
    ]  # fmt: skip


@ACTIONS
def test_wrapper_sees_an_error_and_lets_it_pass(
    finish: Finish, directory: Path, action: str
) -> None:
    run = finish(action, "permanent")
    assert (run["outcome"], run["attempt"]["error"]) == ("failed", "PermanentError: as it is")
    assert told(directory, action) == [
        "wrap_b before", "wrap_a before", "wrap_a saw as it is", "wrap_b saw as it is"
    ]  # fmt: skip


@ACTIONS
def test_wrapper_turns_an_error_into_another(finish: Finish, directory: Path, action: str) -> None:
    run = finish(action, "lookup")
    assert run["outcome"] == "failed"
    assert run["attempt"]["error"] == (
        "PermanentError: turned into another by wrap_a; caused by KeyError: 'odd'"
    )
    assert told(directory, action)[2:] == [
        "wrap_a saw KeyError", "wrap_b saw turned into another by wrap_a"
    ]  # fmt: skip


@ACTIONS
def test_wrapper_that_raises_keeps_the_action_from_running(
    finish: Finish, directory: Path, action: str
) -> None:
    run = finish(action, "fine", refused="yes")
    assert run["attempt"]["error"] == "TemporaryError: the wrapper refuses it"
    assert (run["state"], run["outcome"]) == ("queued", None)
    assert told(directory, action) == []
