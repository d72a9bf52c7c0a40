"""A job elsewhere is started once, and polled across attempts, crashes and restarts.

The action is the example of action_plugins/README.md, against a service on loopback.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from receiver.journal import reading
from receiver.journal.journal import Journal
from receiver.processes import descendants
from tests.support.documents import blocks
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]
(EXAMPLE,) = [
    block
    for block in blocks("action_plugins/README.md", "python")
    if block.startswith("# run_job.py\n")
]


class Service:
    """A service that runs one job for each idempotency key, until it is told to end it."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.looks = 0
        self.status = "running"
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                service.keys.append(self.headers["Idempotency-Key"])
                self.answer({"id": len(set(service.keys))})

            def do_GET(self) -> None:
                service.looks += 1
                self.answer({"status": service.status})

            def answer(self, body: object) -> None:
                text = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments: object) -> None:
                del arguments

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jobs"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    one = Service()
    yield one
    one.close()


@pytest.fixture
def start(start_receiver: Start, tmp_path: Path, service: Service) -> Start:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "run_job.py").write_text(EXAMPLE.replace("=30)", "=1)"))

    def start(**environment: str) -> Receiver:
        return start_receiver(
            PLUGIN_DIR=str(tmp_path / "plugins"), ACTION_PLUGIN="run_job", JOBS_URL=service.url,
            **{"RECEIVER_ACTION_RUN_JOB_MAX_ATTEMPTS": "1", **environment},
        )  # fmt: skip

    return start


def only_run(tmp_path: Path) -> dict[str, Any]:
    journal = Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")
    (run,) = reading.list_runs(journal)
    journal.close()
    return dict(run)


def wait_for_looks(service: Service, more: int) -> None:
    before = service.looks
    wait_until(lambda: service.looks >= before + more, 60, f"{more} more looks at the job")


def finish(service: Service, tmp_path: Path, status: str = "succeeded") -> dict[str, Any]:
    """Let the job end; return the run once it has finished."""
    service.status = status
    wait_until(lambda: only_run(tmp_path)["state"] == "finished", 60, "the run has finished")
    return only_run(tmp_path)


def test_job_is_started_once_and_polled_across_crashes_and_restarts(
    start: Start, tmp_path: Path, service: Service
) -> None:
    receiver = start().wait_ready()
    assert receiver.post(notification(alert())).ok
    wait_for_looks(service, 2)

    os.kill(receiver.children()["worker"], signal.SIGKILL)
    wait_for_looks(service, 2)
    receiver.kill()
    receiver.start()
    wait_for_looks(service, 2)
    assert receiver.stop() == 0
    receiver.start()
    wait_for_looks(service, 2)

    run = finish(service, tmp_path)
    assert run["outcome"] == "succeeded"
    assert json.loads(run["result"]) == {"job": 1}
    assert len(service.keys) == 1


def test_run_that_waits_for_its_job_keeps_no_executor_busy(
    start: Start, tmp_path: Path, service: Service
) -> None:
    receiver = start(RECEIVER_WORKER_EXECUTORS="1").wait_ready()
    assert receiver.post(notification(alert())).ok
    wait_for_looks(service, 1)
    wait_until(lambda: only_run(tmp_path)["state"] == "queued", 60, "the run waits")
    assert receiver.post(notification(alert("other")), "/webhook/log_action").ok
    wait_until(lambda: receiver.lines("threshold action executed"), 60, "another action runs")


def test_job_that_fails_fails_its_run(start: Start, tmp_path: Path, service: Service) -> None:
    receiver = start().wait_ready()
    assert receiver.post(notification(alert())).ok
    wait_for_looks(service, 2)
    run = finish(service, tmp_path, "failed")
    assert (run["outcome"], run["error"]) == (
        "failed", "PermanentError: job 1 ended as failed; look at its log"
    )  # fmt: skip


def test_job_that_never_ends_fails_its_run_after_max_duration(
    start: Start, tmp_path: Path, service: Service
) -> None:
    receiver = start(RECEIVER_ACTION_RUN_JOB_MAX_DURATION="3s").wait_ready()
    assert receiver.post(notification(alert())).ok
    wait_until(lambda: only_run(tmp_path)["state"] == "finished", 60, "the run has finished")
    run = only_run(tmp_path)
    assert run["outcome"] == "failed"
    assert "max_duration" in run["reason"]
    assert len(service.keys) == 1
    assert service.looks >= 2


def test_crash_of_the_executor_after_the_state_was_saved_starts_no_second_job(
    start: Start, tmp_path: Path, service: Service
) -> None:
    plugin = tmp_path / "plugins" / "run_job.py"
    crash = "        context.save(state)\n        import os; os.kill(os.getpid(), 9)\n"
    plugin.write_text(plugin.read_text().replace("        context.save(state)\n", crash))
    receiver = start(
        RECEIVER_ACTION_RUN_JOB_BACKOFF="10ms..20ms", RECEIVER_ACTION_RUN_JOB_MAX_ATTEMPTS="2"
    ).wait_ready()
    assert receiver.post(notification(alert())).ok
    wait_for_looks(service, 2)
    assert finish(service, tmp_path)["outcome"] == "succeeded"
    assert len(service.keys) == 1
    assert len(descendants(receiver.children()["worker"])) >= 1
