"""Where the time of one 1-alert notification goes: stage by stage, in one process, without HTTP.

HTTP figures swing with the machine; these swing less, so changes are judged by them.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from json import loads
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from flask import Flask

from receiver import logs
from receiver.alertmanager import Notification, parse_notification
from receiver.intake import Counts, Intake, intake_of
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.writer import Work
from receiver.metrics.counts import WebCounts
from receiver.metrics.sharing import count_as, shared_directory
from receiver.plugins import Actions, catalog_of, catalogs_of, load_actions, rules_of
from receiver.settings import Settings, load
from receiver.web.app import create_app
from receiver.web.bodies import LargeBodies
from receiver.web.webhook import create_webhook
from tests.benchmarks import flask_routes
from tests.benchmarks.load import body_template

SAMPLES = 1000
# They fill the caches, and are not counted.
_FIRST = 10
_GROUP = 16
_ACTION = "log_action"
_MEMORY = "/dev/shm"
_TOKEN = "breakdown"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


@dataclass(frozen=True)
class Timing:
    """What a stage costs for one notification: elapsed, and on the processor, all threads."""

    stage: str
    us: float
    cpu_us: float


@dataclass(frozen=True)
class _Stage:
    """`run` is timed; its argument, new for every call, is made before. It serves `notifications`
    of them."""

    name: str
    prepare: Callable[[], Any]
    run: Callable[[Any], object]
    notifications: int = 1


class _Bench:
    """What the stages need: settings, actions, a journal on disk, and ever new notifications."""

    def __init__(self, directory: Path) -> None:
        self.settings: Settings = load(
            {
                "RECEIVER_DATA_DIR": str(directory),
                "RECEIVER_SUBMIT_TOKEN": _TOKEN,
                "RECEIVER_ACTIONS": _ACTION,
                "ACTION_PLUGIN": _ACTION,
            },
            {},
        )
        self.actions: Actions = load_actions(self.settings)
        self.rules = rules_of(self.settings, self.actions)
        self.catalog = catalog_of(self.actions)
        self.journal = Journal(self.settings.journal_url)
        self._memory = tempfile.TemporaryDirectory(prefix="alert-receiver-bench-", dir=_MEMORY)
        self._memory_journal = Journal(f"sqlite:///{self._memory.name}/journal.db")
        self._template = body_template()
        self._numbers = count(1)

    def body(self) -> bytes:
        """Return a notification unlike all before."""
        number = next(self._numbers)
        instant = f"2026-01-02T03:04:05.{number % 1_000_000:06}Z"
        return self._template.replace("\1", f"{number:012x}").replace("\2", instant).encode()

    def notification(self) -> Notification:
        """Return a parsed one."""
        return parse_notification(self.body())

    def routed(self, notification: Notification) -> Intake:
        """Route it as the webhook does."""
        return intake_of(notification, "", "", self.settings.action_plugin, self.catalog)

    def intake(self) -> Intake:
        """Return a routed one."""
        return self.routed(self.notification())

    def record(self, batch: list[Intake]) -> object:
        """Commit a group."""
        return record(self.journal, batch, self.rules)

    def record_in_memory(self, batch: list[Intake]) -> object:
        """Commit a group where no disk sways the figures."""
        return record(self._memory_journal, batch, self.rules)

    def webhook_alone(self) -> Flask:
        """Return the webhook, with a journal that stores nothing and takes no time."""
        app = Flask(__name__, static_folder=None)
        app.register_blueprint(
            create_webhook(
                self.settings,
                catalogs_of(self.settings, self.actions),
                lambda asked: asked,
                _record_nothing,
                LargeBodies(self.settings.max_body),
                lambda: False,
                lambda *told: None,
                lambda alerts: None,
            )
        )
        return app

    def close(self) -> None:
        """Close both journals, and remove the one in memory."""
        self.journal.close()
        self._memory_journal.close()
        self._memory.cleanup()


def measure(directory: Path, samples: int = SAMPLES) -> list[Timing]:
    """Return the timings of all stages, in the order in which a request passes them.

    Each is the median of so many samples; the journal is made in the directory.
    """
    bench = _Bench(directory)
    # As under `receiver serve`: counting writes into files that another process adds up.
    with shared_directory():
        count_as("web")
        whole = create_app(bench.settings, bench.actions, bench.journal)
        try:
            with _logging_to(directory / "log"):
                return [_time(stage, samples) for stage in _stages(bench, whole)]
        finally:
            whole.extensions["journal_writer"].close()
            bench.close()


def _stages(bench: _Bench, whole: Flask) -> list[_Stage]:
    def one() -> list[Intake]:
        return [bench.intake()]

    def group() -> list[Intake]:
        return [bench.intake() for _ in range(_GROUP)]

    def environ() -> dict[str, Any]:
        return _environ(bench.body())

    webhook = bench.webhook_alone()
    return [
        _Stage("json.loads", bench.body, loads),
        _Stage("parse_notification, with it", bench.body, parse_notification),
        _Stage("intake_of", bench.notification, bench.routed),
        _Stage("alert to_json", lambda: bench.notification().alerts[0], lambda one: one.to_json()),
        _Stage("record, a group of 1", one, bench.record),
        _Stage(f"record, a group of {_GROUP}", group, bench.record, _GROUP),
        _Stage("record, a group of 1, in memory", one, bench.record_in_memory),
        _Stage(f"record, a group of {_GROUP}, in memory", group, bench.record_in_memory, _GROUP),
        _Stage("log line", lambda: None, _log_line(webhook, environ())),
        _Stage("metrics", lambda: None, _count(WebCounts())),
        _Stage("WSGI: bare route", environ, _caller(flask_routes.bare)),
        _Stage("WSGI: webhook, no journal", environ, _caller(webhook)),
        _Stage("WSGI: everything", environ, _caller(whole)),
    ]


def _time(stage: _Stage, samples: int) -> Timing:
    elapsed, on_cpu = [], []
    for _ in range(samples + _FIRST):
        argument = stage.prepare()
        # One call at a time: most are then over before another process gets the processor.
        cpu_began, began = time.process_time(), time.perf_counter()
        stage.run(argument)
        elapsed.append(time.perf_counter() - began)
        on_cpu.append(time.process_time() - cpu_began)
    scale = 1e6 / stage.notifications
    return Timing(
        stage.name,
        statistics.median(elapsed[_FIRST:]) * scale,
        statistics.median(on_cpu[_FIRST:]) * scale,
    )


def _record_nothing(work: Work) -> Counts:
    counts = Counts(accepted=len(work.prepare().alerts))
    work.recorded(counts)
    return counts


def _environ(body: bytes) -> dict[str, Any]:
    """Return what gunicorn would hand to the application."""
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/webhook",
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_HOST": "127.0.0.1:8080",
        "HTTP_AUTHORIZATION": f"Bearer {_TOKEN}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def _caller(app: Flask) -> Callable[[dict[str, Any]], object]:
    """Return what calls the application as a server does, and insists on 200."""

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[..., Any]:
        if not status.startswith("200"):
            raise AssertionError(status)
        return print  # WSGI wants a function to write with; nobody calls it.

    def call(environ: dict[str, Any]) -> object:
        answer = app(environ, start_response)
        body = b"".join(answer)
        answer.close()  # type: ignore[attr-defined]
        return body

    return call


def _log_line(webhook: Flask, environ: dict[str, Any]) -> Callable[[None], object]:
    """Return what writes the line that the webhook writes for a notification."""
    logger = logging.getLogger("receiver.web.webhook")
    handler = BufferingHandler(capacity=2)
    logger.addHandler(handler)
    _caller(webhook)(environ)
    logger.removeHandler(handler)
    (one,) = handler.buffer
    fields = {name: value for name, value in vars(one).items() if name not in _STANDARD}
    return lambda _: logger.info(one.msg, extra=fields)


def _count(counts: WebCounts) -> Callable[[None], object]:
    """Return what counts all that there is to count of a notification."""
    became = Counts(accepted=1)

    def count(_: None) -> None:
        counts.journal.wrote(0.001, False)
        counts.committed(1)
        counts.recorded(became, 0, 0.002)
        counts.answered(200)
        counts.refused(200)

    return count


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Log as the receiver does, into a file; as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with file.open("w", encoding="utf-8") as stream, redirect_stdout(stream):
        logs.configure("info", "json")
        try:
            yield
        finally:
            root.handlers[:], root.level = handlers, level
            logging.captureWarnings(False)


def table(timings: list[Timing]) -> str:
    """Return the lines to print."""
    lines = ["stage, 1 notification of 1 alert          us    of it CPU"]
    lines += [f"{one.stage:34} {one.us:9.1f} {one.cpu_us:12.1f}" for one in timings]
    cpu = {one.stage: one.cpu_us for one in timings}
    # Under load: the log line is in the webhook's, and gunicorn's work comes on top.
    request = cpu["WSGI: webhook, no journal"] + cpu[f"record, a group of {_GROUP}, in memory"]
    share = (cpu["log line"] + cpu["metrics"]) / (request + cpu["metrics"])
    lines.append(f"log line and metrics: at most {share:.0%} of a notification's processor time")
    return "\n".join(lines)


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"default: {SAMPLES}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alert-receiver-bench-") as directory:
        print(table(measure(Path(directory), options.samples)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
