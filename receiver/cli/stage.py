"""What `receiver demo` plays on: a receiver, and a Prometheus and an Alertmanager if there are any.

Everything listens on loopback only, keeps its files in one directory, and ends with this process.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import requests

from receiver.errors import ReceiverError
from receiver.migration.translation import alertmanager, as_yaml
from receiver.rules import Level, Threshold, rules_of
from receiver.settings import table

METRIC, SOFT, HARD = "queue_depth", 80, 95
THRESHOLD = Threshold(
    "QueueTooLong",
    ">",
    metric=METRIC,
    soft=Level(SOFT, "log_action", "warning", "1s"),
    hard=Level(HARD, "file_action", "critical", "1s"),
    hard_requires_soft=True,
)
_INTERVAL = "200ms"
_READY_SECONDS = 30
# Becomes the program; the kernel ends it with the process that asked for it.
_LAUNCHER = """
import os, sys
from receiver.processes import follow_parent
follow_parent(int(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_prometheus() -> tuple[str, str] | None:
    """Return Prometheus and Alertmanager, None unless both are installed."""
    prometheus = shutil.which("prometheus")
    # Debian's name first: elsewhere it has none in front.
    manager = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    return (prometheus, manager) if prometheus and manager else None


class Gauge:
    """A metric for Prometheus to scrape; `value` is what it reads next."""

    def __init__(self) -> None:
        self.value, self.scrapes = 0.0, 0
        gauge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f'{METRIC}{{queue="orders"}} {gauge.value}\n'.encode()
                with suppress(ConnectionError):  # Prometheus gave this scrape up.
                    self.send_response(200)
                    self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                    gauge.scrapes += 1

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing: a scrape is no news."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


class Stage:
    """Starts all that is needed in `directory`, and ends it; see `receiver demo`."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.gauge = directory, Gauge()
        self.log = directory / "receiver.log"
        ports = _free_ports(3)
        self.url, self._prometheus, self._manager = (f"127.0.0.1:{port}" for port in ports)
        self._children: list[subprocess.Popen[bytes]] = []

    def start_receiver(self) -> None:
        """Start `receiver serve`, and return once it accepts and acts."""
        environment = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith("RECEIVER_")
            and name not in {one.name for one in table().values()}
        }
        environment |= {
            "RECEIVER_BIND": self.url,
            "RECEIVER_DATA_DIR": str(self.directory / "data"),
            "FILE_ACTION_DIR": str(self.directory / "files"),
        }
        self._start("receiver", [sys.executable, "-m", "receiver", "serve"], environment)
        self._wait(lambda: _answers(self.url) and "worker started" in self.log.read_text())

    def start_prometheus(self, programs: tuple[str, str], webhook: str) -> None:
        """Start both, and return once an alert can travel from the gauge to the `webhook`."""
        prometheus, manager = programs
        self._write("rules.yml", {"groups": [{"name": "demo", "rules": rules_of(THRESHOLD)}]})
        routes = alertmanager(webhook)
        routes["route"] |= {
            "group_by": [], "group_wait": "0s", "group_interval": "1s", "repeat_interval": "3s",
        }  # fmt: skip
        routes["receivers"][1]["webhook_configs"][0].pop("http_config")
        self._write("alertmanager.yml", routes)
        self._write("prometheus.yml", self._prometheus_config())
        self._start(
            "alertmanager",
            [
                manager, f"--config.file={self.directory / 'alertmanager.yml'}",
                f"--storage.path={self.directory / 'alertmanager'}",
                f"--web.listen-address={self._manager}", "--cluster.listen-address=",
            ],
        )  # fmt: skip
        self._start(
            "prometheus",
            [
                prometheus, f"--config.file={self.directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={self.directory / 'prometheus'}",
                f"--web.listen-address={self._prometheus}", "--rules.alert.resend-delay=1s",
            ],
        )  # fmt: skip
        self._wait(lambda: _answers(self._prometheus) and _answers(self._manager))
        # Ready comes some seconds before the first scrape.
        self._wait(lambda: self.gauge.scrapes > 2)

    def post(self, body: bytes) -> None:
        """Post a notification as Alertmanager would."""
        headers = {"Content-Type": "application/json"}
        with requests.Session() as session:
            session.trust_env = False
            url = f"http://{self.url}/webhook"
            session.post(url, data=body, headers=headers, timeout=10).raise_for_status()

    def close(self) -> None:
        """End everything that was started; a second call does nothing."""
        for child in reversed(self._children):
            child.terminate()
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(15)
            child.kill()
            child.wait()
        self._children.clear()
        self.gauge.close()

    def _prometheus_config(self) -> dict[str, object]:
        return {
            "global": {"scrape_interval": _INTERVAL, "scrape_timeout": _INTERVAL,
                       "evaluation_interval": _INTERVAL},
            "rule_files": [str(self.directory / "rules.yml")],
            "scrape_configs": [
                {"job_name": "demo", "static_configs": [{"targets": [self.gauge.address]}]}
            ],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [self._manager]}]}]
            },
        }  # fmt: skip

    def _write(self, name: str, document: object) -> None:
        (self.directory / name).write_text(as_yaml(document), encoding="utf-8")

    def _start(
        self, name: str, command: Sequence[str], environment: dict[str, str] | None = None
    ) -> None:
        launched = [sys.executable, "-c", _LAUNCHER, str(os.getpid()), *command]
        with (self.directory / f"{name}.log").open("ab") as log:
            self._children.append(
                subprocess.Popen(  # noqa: S603 - programs of ours and of the PATH
                    launched, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,  # Ctrl-C is for this process, which ends them.
                )
            )  # fmt: skip

    def _wait(self, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not is_there():
            ended = [child for child in self._children if child.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise ReceiverError(f"the demo cannot start:\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        logs = sorted(self.directory.glob("*.log"))
        return "\n".join(
            f"{log.name}: {line}"
            for log in logs
            for line in log.read_text(errors="replace").splitlines()[-3:]
        )


def _answers(address: str) -> bool:
    try:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(f"http://{address}/-/ready", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
