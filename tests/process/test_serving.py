"""The programs themselves: starting, refusing to start, waking, stopping, being killed."""

import json
import os
import signal
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from receiver.journal import reading
from receiver.journal import requests as requests_of_people
from receiver.journal.journal import Journal
from receiver.journal.requests import Person
from tests.support.notifications import T0, alert, notification
from tests.support.processes import children_of, descendants_of, is_alive, title_of
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]

SLOW = """
import time
from receiver import hookimpl
@hookimpl
def execute(context):
    context.log.info("slow action begins")
    is_to_be_killed = context.alert.labels.get("fate") == "killed" and context.attempt == 1
    time.sleep(600 if is_to_be_killed else 1.5)
    return "slept"
"""


OBEDIENT = """
import time
from datetime import UTC, datetime
from receiver import hookimpl
@hookimpl
def execute(context):
    left = context.remaining_seconds(), (context.deadline - datetime.now(UTC)).total_seconds()
    context.log.info("obedient action begins", extra={"seconds_left": left})
    while True:
        time.sleep(0.02)
        context.raise_if_cancelled()
"""


FLAKY = """
from receiver import TemporaryError, hookimpl
@hookimpl
def execute(context):
    if context.attempt == 1:
        raise TemporaryError("not yet", retry_after=5)
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    directory.mkdir()
    (directory / "slow.py").write_text(SLOW)
    (directory / "obedient.py").write_text(OBEDIENT)
    (directory / "flaky.py").write_text(FLAKY)
    return directory


def journal_of(tmp_path: Path) -> Journal:
    return Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")


def only_run(tmp_path: Path) -> reading.Row:
    """Return the one run that the journal holds."""
    journal = journal_of(tmp_path)
    (run,) = reading.list_runs(journal)
    journal.close()
    return run


def wait_of(receiver: Receiver, tmp_path: Path, fingerprint: str) -> float:
    """Post an alert; return the seconds from its acceptance to the start of its run."""
    receiver.post(notification(alert(fingerprint)), "/webhook/log_action")
    journal = journal_of(tmp_path)
    finished = wait_until(
        lambda: reading.list_runs(journal, state="finished", fingerprint=fingerprint)
    )
    journal.close()
    waited: float = (finished[0]["started_at"] - finished[0]["created_at"]).total_seconds()
    return waited


def test_worker_is_woken_by_a_commit(start_receiver: Start, tmp_path: Path) -> None:
    receiver = start_receiver().wait_ready()
    waits = []
    for number in range(15):
        waits.append(wait_of(receiver, tmp_path, str(number)))
        # Until it has noted this one, it would find the next by itself.
        wait_until(lambda: len(receiver.lines("attempt ended")) == len(waits))
    # The fallback looks once a second: the median of fifteen would be half a second.
    assert statistics.median(waits) < 0.25


def test_what_the_web_accepted_alone_is_run_by_a_worker_that_comes_later(
    start_receiver: Start, tmp_path: Path
) -> None:
    web = start_receiver("web").wait_ready()
    assert web.post(notification(alert()), "/webhook/log_action").json()["accepted"] == 1
    journal = journal_of(tmp_path)
    assert [run["state"] for run in reading.list_runs(journal)] == ["queued"]
    worker = start_receiver("worker").wait_ready()
    wait_until(lambda: reading.list_runs(journal, outcome="succeeded"))
    journal.close()
    assert worker.stop() == 0
    assert web.stop() == 0


def test_sigterm_lets_a_running_attempt_finish_and_ends_with_0(
    start_receiver: Start, tmp_path: Path, plugins: Path
) -> None:
    receiver = start_receiver(PLUGIN_DIR=str(plugins)).wait_ready()
    receiver.post(notification(alert()), "/webhook/slow")
    wait_until(lambda: receiver.lines("slow action begins"))
    assert receiver.stop() == 0
    run = only_run(tmp_path)
    assert (run["outcome"], run["attempts"], run["result"]) == ("succeeded", 1, '"slept"')


def test_attempt_whose_deadline_passes_in_a_drain_is_killed_then(
    start_receiver: Start, tmp_path: Path, plugins: Path
) -> None:
    (plugins / "late.py").write_text(
        SLOW.replace("1.5", "60").replace("slow action", "late action")
    )
    receiver = start_receiver(PLUGIN_DIR=str(plugins), RECEIVER_ACTION_LATE_TIMEOUT="3s")
    receiver.wait_ready()
    receiver.post(notification(alert()), "/webhook/late")
    wait_until(lambda: receiver.lines("late action begins"))
    assert receiver.stop() == 0
    run = only_run(tmp_path)
    assert receiver.lines("attempt is past its deadline and is killed")
    assert (run["state"], run["attempts"]) == ("queued", 1)
    assert run["error"] == "killed at its deadline, after 3 s, with everything it had started"


def test_person_can_cancel_what_a_drain_waits_for(
    start_receiver: Start, tmp_path: Path, plugins: Path
) -> None:
    receiver = start_receiver(PLUGIN_DIR=str(plugins), RECEIVER_GRACE_PERIOD="2m").wait_ready()
    receiver.post(notification(alert()), "/webhook/obedient")
    wait_until(lambda: receiver.lines("obedient action begins"))
    assert receiver.process is not None
    receiver.process.send_signal(signal.SIGTERM)
    wait_until(lambda: receiver.lines("worker drains"))
    journal = journal_of(tmp_path)
    requests_of_people.cancel(journal, Person("ann", "a test"), only_run(tmp_path)["id"], "enough")
    journal.close()
    assert receiver.process.wait(60) == 0
    run = only_run(tmp_path)
    assert (run["outcome"], run["reason"]) == ("cancelled", "cancelled by ann: enough")


def test_kept_connection_is_answered_503_while_draining(
    start_receiver: Start, plugins: Path
) -> None:
    receiver = start_receiver("web").wait_ready()
    headers = {"Content-Type": "application/json"}

    def post(session: requests.Session) -> requests.Response:
        return session.post(receiver.url + "/webhook", notification(), headers=headers, timeout=30)

    # Each is closed with the answer it gets while the process learns of the signal.
    kept = deque(requests.Session() for _ in range(30))
    assert all(post(session).ok for session in kept)
    assert receiver.process is not None
    receiver.process.send_signal(signal.SIGTERM)
    # The first: after a second of draining a connection on which nothing comes is closed.
    while (answer := post(kept[0])).status_code != 503:
        assert answer.ok
        if answer.headers.get("Connection") == "close":
            kept.popleft()
        kept.rotate()
    assert answer.headers["Retry-After"]
    assert receiver.process.wait(20) == 0


def _accepts(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/-/ready", timeout=2).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        return False


@pytest.mark.parametrize("role", ["web", "worker"])
def test_killed_child_is_started_again(start_receiver: Start, tmp_path: Path, role: str) -> None:
    receiver = start_receiver().wait_ready()
    first = receiver.children()[role]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: receiver.children().get(role, first) != first, 60, "another child")
    wait_until(lambda: len(receiver.lines(f"{role} started")) == 2, 60)
    wait_until(lambda: _accepts(receiver.port), 60)
    receiver.post(notification(alert()), "/webhook/log_action")
    journal = journal_of(tmp_path)
    wait_until(lambda: reading.list_runs(journal, outcome="succeeded"))
    journal.close()


def kill_worker_until_pause(receiver: Receiver, pauses: Sequence[float]) -> None:
    """Kill each worker as soon as it is made; check the pauses between them."""
    killed = {0}
    last_kill = time.monotonic()
    for pause in (0, *pauses):
        pid = wait_until(lambda: {receiver.children().get("worker", 0)} - killed, 60).pop()
        assert time.monotonic() - last_kill >= pause
        last_kill = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)


def test_web_goes_on_while_the_worker_keeps_dying_and_everything_shows_that_none_runs(
    start_receiver: Start, tmp_path: Path
) -> None:
    receiver = start_receiver().wait_ready()
    web = receiver.children()["web"]
    pauses = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    kill_worker_until_pause(receiver, pauses)
    # The pause is longer than `/metrics` keeps what it has read of the journal.
    (last,) = wait_until(lambda: [one for one in restarts(receiver) if one["pause_seconds"] == 6.4])
    assert (last["role"], last["status"], last["times"]) == ("worker", -signal.SIGKILL, 7)
    assert last["reason"] == "was ended by SIGKILL"
    assert receiver.post(notification(alert()), "/webhook/log_action").json()["accepted"] == 1
    assert requests.get(f"{receiver.url}/-/ready", timeout=10).status_code == 200
    assert "No worker is running." in requests.get(receiver.url, timeout=10).text
    assert requests.get(f"{receiver.url}/api/v1/workers", timeout=10).json() == {"workers": []}
    metrics = f"{receiver.url}/metrics"
    counted = 'receiver_process_restarts_total{role="worker"} 6.0'
    wait_until(lambda: "receiver_workers 0.0" in requests.get(metrics, timeout=10).text, 5)
    assert counted in requests.get(metrics, timeout=10).text
    assert [one["pause_seconds"] for one in restarts(receiver)] == [*pauses, 6.4]
    journal = journal_of(tmp_path)
    wait_until(lambda: reading.list_runs(journal, outcome="succeeded"))
    journal.close()
    assert receiver.children()["web"] == web
    assert receiver.stop() == 0


def restarts(receiver: Receiver) -> list[dict[str, Any]]:
    return receiver.lines("process ended and is started again")


@pytest.mark.parametrize("role", ["web", "worker"])
def test_process_that_has_started_once_is_started_again_until_its_fault_is_gone(
    start_receiver: Start, plugins: Path, role: str
) -> None:
    receiver = start_receiver(PLUGIN_DIR=str(plugins)).wait_ready()
    (plugins / "slow.py").write_text("import no_such_module")
    os.kill(receiver.children()[role], signal.SIGKILL)
    reported = wait_until(
        lambda: lines if len(lines := receiver.lines(f"{role} cannot start")) > 1 else None
    )
    assert "no_such_module" in reported[-1]["error"]
    (plugins / "slow.py").write_text(SLOW)
    wait_until(lambda: len(receiver.lines(f"{role} started")) == 2)
    wait_until(lambda: _accepts(receiver.port))
    assert receiver.stop() == 0


def test_web_alone_starts_its_worker_again_until_the_fault_is_gone(
    start_receiver: Start, plugins: Path
) -> None:
    receiver = start_receiver("web", PLUGIN_DIR=str(plugins)).wait_ready()
    (plugins / "slow.py").write_text("import no_such_module")
    assert receiver.process is not None
    # Besides the process that logs what is printed.
    (pid,) = [pid for pid in children_of(receiver.process.pid) if "receiver web" in title_of(pid)]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(receiver.lines("web cannot start")) == 3)
    (plugins / "slow.py").write_text(SLOW)
    wait_until(lambda: _accepts(receiver.port))
    assert receiver.stop() == 0


UMASK = """
import os
from receiver import hookimpl
@hookimpl
def execute():
    umask = os.umask(0)
    os.umask(umask)
    return oct(umask)
"""


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_files_are_closed_to_others_and_actions_keep_the_umask_of_the_start(
    start_receiver: Start, tmp_path: Path, plugins: Path, command: str
) -> None:
    (plugins / "umask.py").write_text(UMASK)
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    before = os.umask(0o022)
    try:
        receiver = start_receiver(command, PLUGIN_DIR=str(plugins))
        poster = receiver
        if command == "worker":
            poster = start_receiver("web", PLUGIN_DIR=str(plugins))
    finally:
        os.umask(before)
    receiver.wait_ready()
    poster.wait_ready()
    poster.post(notification(alert()), "/webhook/umask")
    journal = journal_of(tmp_path)
    (run,) = wait_until(lambda: reading.list_runs(journal, state="finished"))
    journal.close()
    assert run["result"] == '"0o22"'
    files = [file for file in (tmp_path / "data").rglob("*") if not file.is_dir()]
    assert {"journal.db", "journal.db-wal", "wake"} <= {file.name for file in files}
    assert not [file for file in files if file.stat().st_mode & 0o077]


DAEMON = """
import os, subprocess, time
from receiver import hookimpl
@hookimpl
def execute(context):
    # An orphan in a session of its own, as a program makes that becomes a daemon.
    subprocess.run(["sh", "-c", "setsid sleep 600 & echo $! > " + os.environ["DAEMON_PID"]])
    context.log.info("daemon runs")
    time.sleep(600 if context.attempt == 1 else 0)
"""


def start_daemon(receiver: Receiver, tmp_path: Path) -> int:
    """Return the pid of a daemon that an action has started."""
    wait_until(lambda: receiver.lines("daemon runs"))
    return int((tmp_path / "daemon.pid").read_text())


def test_daemon_of_an_action_is_gone_before_the_next_worker_starts(
    start_receiver: Start, tmp_path: Path, plugins: Path
) -> None:
    (plugins / "daemon.py").write_text(DAEMON)
    receiver = start_receiver(
        PLUGIN_DIR=str(plugins),
        DAEMON_PID=str(tmp_path / "daemon.pid"),
        RECEIVER_ACTION_DAEMON_BACKOFF="1h..1h",
    ).wait_ready()
    receiver.post(notification(alert()), "/webhook/daemon")
    daemon = start_daemon(receiver, tmp_path)
    assert is_alive(daemon)
    worker, web = receiver.children()["worker"], receiver.children()["web"]
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: receiver.children().get("worker", worker) != worker, 60)
    assert not Path(f"/proc/{daemon}").exists()
    assert receiver.children()["web"] == web


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_daemon_of_an_action_ends_with_the_receiver(
    start_receiver: Start, tmp_path: Path, plugins: Path, command: str
) -> None:
    (plugins / "daemon.py").write_text(DAEMON)
    receiver = start_receiver(
        command,
        PLUGIN_DIR=str(plugins),
        DAEMON_PID=str(tmp_path / "daemon.pid"),
        RECEIVER_GRACE_PERIOD="1s",
    ).wait_ready()
    poster = receiver
    if command == "worker":
        poster = start_receiver("web", PLUGIN_DIR=str(plugins)).wait_ready()
    poster.post(notification(alert()), "/webhook/daemon")
    daemon = start_daemon(receiver, tmp_path)
    assert is_alive(daemon)
    receiver.stop()
    assert not is_alive(daemon)


@pytest.mark.parametrize("command", ["serve", "web"])
def test_port_in_use_ends_the_start_at_once_with_one_line(
    start_receiver: Start, tmp_path: Path, command: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        receiver = start_receiver(command, RECEIVER_BIND=address)
        assert receiver.process is not None
        assert receiver.process.wait(30) == 1
    (line,) = receiver.text().splitlines()
    assert json.loads(line)["message"] == "receiver cannot start"
    for part in (address, "--bind", "BIND=", "another program uses this port"):
        assert part in line
    assert not (tmp_path / "data").exists()


def test_new_connections_are_refused_in_a_drain(start_receiver: Start) -> None:
    receiver = start_receiver(RECEIVER_REQUEST_TIMEOUT="5s").wait_ready()
    with socket.create_connection(("127.0.0.1", receiver.port)) as slow:
        slow.sendall(b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        # Connections are accepted in turn, so the slow one is under way.
        assert requests.get(f"{receiver.url}/-/healthy", timeout=10).ok
        assert receiver.process is not None
        receiver.process.send_signal(signal.SIGTERM)

        def is_refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", receiver.port), timeout=2).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(is_refused, 3)
        # The request that is under way still keeps the web process.
        assert "web" in receiver.children()
    assert receiver.process.wait(60) == 0


def test_receiver_that_was_killed_leaves_its_port_to_the_next_one_at_once(
    start_receiver: Start,
) -> None:
    receiver = start_receiver().wait_ready()
    assert receiver.process is not None
    receiver.process.kill()
    receiver.process.wait(60)
    receiver.start()
    receiver.wait_ready()
    assert receiver.stop() == 0


def test_connection_waits_while_no_web_process_runs(start_receiver: Start) -> None:
    receiver = start_receiver().wait_ready()
    web = receiver.children()["web"]
    for pid in (*descendants_of(web), web):
        os.kill(pid, signal.SIGKILL)
    assert receiver.post(notification(alert())).ok


def test_port_belongs_to_the_web_process_and_its_parents_alone(start_receiver: Start) -> None:
    receiver = start_receiver().wait_ready()
    assert receiver.process is not None
    worker = receiver.children()["worker"]
    listening = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()
        if line.split()[1].endswith(f":{receiver.port:04X}") and line.split()[3] == "0A"
    }
    assert listening
    for pid in (worker, *descendants_of(worker)):
        links = [file.readlink() for file in Path(f"/proc/{pid}/fd").iterdir()]
        assert not {f"socket:[{inode}]" for inode in listening} & {str(link) for link in links}


def start_without_fork(
    start_receiver: Start, directory: Path, number: int, *command: str
) -> Receiver:
    """Start a receiver whose fork of this number fails."""
    (directory / "sitecustomize.py").write_text(
        "import os\n"
        "fork, calls = os.fork, []\n"
        "def limited():\n"
        "    calls.append(None)\n"
        f"    if len(calls) == {number}:\n"
        "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return fork()\n"
        "os.fork = limited\n"
    )
    return start_receiver(*command, PYTHONPATH=str(directory)).wait_ready()


def test_child_for_which_there_is_no_process_is_made_later(
    start_receiver: Start, tmp_path: Path
) -> None:
    # The first is for the journal, the second for the web.
    receiver = start_without_fork(start_receiver, tmp_path, 2)
    (failed,) = receiver.lines("process cannot be made, and is tried again")
    assert failed["role"] == "web"
    assert "Resource temporarily unavailable" in failed["error"]
    assert receiver.post(notification(alert())).ok
    assert receiver.stop() == 0


def test_web_starts_without_a_process_for_what_is_printed(
    start_receiver: Start, tmp_path: Path
) -> None:
    receiver = start_without_fork(start_receiver, tmp_path, 1, "web")
    (failed,) = receiver.lines("printed output is not logged")
    assert "Resource temporarily unavailable" in failed["error"]
    assert receiver.post(notification(alert())).ok
    assert receiver.stop() == 0


@pytest.mark.parametrize("delay_seconds", [0.05, 0.15, 0.3, 0.5, 0.8])
def test_signal_while_it_starts_ends_it_in_good_order(
    start_receiver: Start, delay_seconds: float
) -> None:
    receiver = start_receiver()
    made = wait_until(lambda: shared_directory_of(receiver), 60, "the first that it makes")
    time.sleep(delay_seconds)
    assert receiver.stop() == 0
    assert "Traceback" not in receiver.text()
    assert not made.exists()


def shared_directory_of(receiver: Receiver) -> Path | None:
    """Return where its processes count, once that has its name: other receivers have others."""
    assert receiver.process is not None
    for file in Path(f"/proc/{receiver.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # It was closed meanwhile.
            if file.readlink().name.startswith("alert-receiver-metrics-"):
                return file.readlink()
    return None


def test_children_end_with_a_killed_supervisor(start_receiver: Start) -> None:
    receiver = start_receiver().wait_ready()
    children = receiver.children().values()
    assert receiver.process is not None
    receiver.process.kill()
    receiver.process.wait(60)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 60)
    wait_until(lambda: not _accepts(receiver.port))


def test_interrupted_run_is_attempted_again_with_the_same_key(
    start_receiver: Start, tmp_path: Path, plugins: Path
) -> None:
    receiver = start_receiver(PLUGIN_DIR=str(plugins)).wait_ready()
    receiver.post(notification(alert(labels={"fate": "killed"})), "/webhook/slow")
    wait_until(lambda: receiver.lines("slow action begins"))
    os.kill(receiver.children()["worker"], signal.SIGKILL)
    journal = journal_of(tmp_path)
    (run,) = wait_until(lambda: reading.list_runs(journal, outcome="succeeded"), 60)
    outcomes = [one["outcome"] for one in reading.attempts_of(journal, run["id"])]
    journal.close()
    assert outcomes == ["interrupted", "succeeded"]


def test_restart_runs_nothing_again(start_receiver: Start, tmp_path: Path) -> None:
    receiver = start_receiver().wait_ready()
    receiver.post(notification(alert()), "/webhook/log_action")
    journal = journal_of(tmp_path)
    wait_until(lambda: reading.list_runs(journal, outcome="succeeded"))
    assert receiver.stop() == 0
    receiver.start()
    receiver.wait_ready()
    assert receiver.post(notification(alert()), "/webhook/log_action").json()["duplicate"] == 1
    later = notification(alert(starts_at=T0.replace(hour=5)))
    assert receiver.post(later, "/webhook/log_action").json()["accepted"] == 1
    wait_until(lambda: len(reading.list_runs(journal, outcome="succeeded")) == 2)
    assert all(run["attempts"] == 1 for run in reading.list_runs(journal))
    journal.close()


@pytest.mark.parametrize("how", ["in order", "killed"])
def test_retry_keeps_its_time_across_a_restart(
    start_receiver: Start, tmp_path: Path, plugins: Path, how: str
) -> None:
    receiver = start_receiver(PLUGIN_DIR=str(plugins)).wait_ready()
    receiver.post(notification(alert()), "/webhook/flaky")
    journal = journal_of(tmp_path)
    (waits,) = wait_until(lambda: [
        run for run in reading.list_runs(journal, state="queued") if run["attempts"] == 1
    ])  # fmt: skip
    if how == "killed":
        receiver.kill()
    else:
        receiver.stop()
    receiver.start()
    wait_until(lambda: reading.list_runs(journal, outcome="succeeded"))
    first, second = reading.attempts_of(journal, waits["id"])
    journal.close()
    assert waits["due_at"] - first["finished_at"] >= timedelta(seconds=4.9)
    assert second["started_at"] >= waits["due_at"]


def test_action_knows_its_deadline_and_ends_by_itself_when_it_has_passed(
    start_receiver: Start, tmp_path: Path, plugins: Path
) -> None:
    receiver = start_receiver(
        PLUGIN_DIR=str(plugins),
        RECEIVER_ACTION_OBEDIENT_TIMEOUT="4s",
        RECEIVER_ACTION_OBEDIENT_MAX_ATTEMPTS="1",
    ).wait_ready()
    receiver.post(notification(alert()), "/webhook/obedient")
    journal = journal_of(tmp_path)
    (run,) = wait_until(lambda: reading.list_runs(journal, state="finished"))
    journal.close()
    (begins,) = receiver.lines("obedient action begins")
    assert all(0 < left <= 4 for left in begins["seconds_left"])
    said = "DeadlineExceededError: the deadline of this attempt has passed"
    assert (run["outcome"], run["error"]) == ("failed", said)
    assert run["finished_at"] - run["started_at"] >= timedelta(seconds=4)


@pytest.mark.parametrize("command", ["serve", "web"])
def test_address_that_others_reach_is_refused_without_credentials(
    start_receiver: Start, command: str
) -> None:
    receiver = start_receiver(command, RECEIVER_BIND="0.0.0.0:0")
    assert receiver.process is not None
    assert receiver.process.wait(60) == 1
    assert "RECEIVER_SUBMIT_TOKEN" in receiver.text()
    assert "Traceback" not in receiver.text()


def test_all_wrong_settings_are_named_at_once(start_receiver: Start) -> None:
    receiver = start_receiver(
        RECEIVER_MAX_BODY="1 elephant", RECEIVER_DATADIR="/x", RECEIVER_WEB_THREADS="0"
    )
    assert receiver.process is not None
    assert receiver.process.wait(60) == 1
    text = receiver.text()
    assert 'RECEIVER_MAX_BODY: "1 elephant" is not a size; write bytes or 10MiB' in text
    assert "RECEIVER_DATADIR: is not a setting (did you mean RECEIVER_DATA_DIR?)" in text
    assert "RECEIVER_WEB_THREADS" in text


def test_broken_plugin_ends_the_start_with_its_name_and_cause(
    start_receiver: Start, plugins: Path
) -> None:
    (plugins / "broken.py").write_text("import no_such_module")
    receiver = start_receiver(PLUGIN_DIR=str(plugins))
    assert receiver.process is not None
    assert receiver.process.wait(60) == 1
    assert "broken.py" in receiver.text()
    assert "no_such_module" in receiver.text()


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_file_in_the_place_of_the_wake_up_pipe_ends_the_start_with_its_cure(
    start_receiver: Start, tmp_path: Path, command: str
) -> None:
    in_the_way = tmp_path / "data" / "wake"
    in_the_way.parent.mkdir()
    in_the_way.write_text("mine")
    receiver = start_receiver(command)
    assert receiver.process is not None
    assert receiver.process.wait(60) == 1
    assert f"{in_the_way} is not a named pipe; move it away" in receiver.text()
    assert "Traceback" not in receiver.text()
    assert in_the_way.read_text() == "mine"


def test_nothing_is_left_running_after_sigterm(start_receiver: Start) -> None:
    receiver = start_receiver().wait_ready()
    children = receiver.children().values()
    began = time.monotonic()
    assert receiver.stop() == 0
    assert time.monotonic() - began < 15
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize("name", ["journal.db.migrate.lock", "wake"])
def test_link_that_another_user_planted_is_not_followed(
    start_receiver: Start, tmp_path: Path, command: str, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).symlink_to(victim)
    receiver = start_receiver(command)
    assert receiver.process is not None
    assert receiver.process.wait(60) == 1
    assert str(tmp_path / "data" / name) in receiver.text()
    assert victim.read_text() == "keep"


def test_web_writes_into_no_file_that_was_planted_as_its_pipe(
    start_receiver: Start, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    receiver = start_receiver("web").wait_ready()
    # Before the start it is refused. The web opens the pipe at its first notification.
    (tmp_path / "data" / "wake").symlink_to(victim)
    assert receiver.post(notification(alert()), "/webhook/log_action").json()["accepted"] == 1
    assert receiver.stop() == 0
    assert victim.read_text() == "keep"
