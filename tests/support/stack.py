"""A real Prometheus and a real Alertmanager on loopback, for tests from metric to webhook.

    with Stack(directory, rules=RULES, alertmanager=ALERTMANAGER, webhook_url=url) as stack:
        stack.exporter.set("queue_depth", 97, queue="a")

Booting takes about 5 s, for Prometheus hands out its targets only that often: boot once per test
session, from the main thread. From then on a crossing arrives within about 1.2 s.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import pytest
import yaml

from tests.support.receivers import free_port
from tests.support.waiting import wait_until

T = TypeVar("T")

# Binary -> Debian package, and what the same binary is called elsewhere.
_PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "chromedriver": "chromium-driver",
}
_OTHER_NAMES = {"prometheus-alertmanager": "alertmanager"}

# No proxy from the environment: everything is on loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# Started in place of a child, becomes it. A preexec_fn would not be safe: this process has threads.
_LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def requires(*binaries: str) -> tuple[Path, ...]:
    """Return where the binaries are; when one is missing, skip the test, or fail it in CI."""
    found: list[Path] = []
    missing: list[str] = []
    for binary in binaries:
        path = shutil.which(binary) or shutil.which(_OTHER_NAMES.get(binary, binary))
        if path:
            found.append(Path(path))
        else:
            missing.append(binary)
    if missing:
        packages = sorted({_PACKAGES.get(binary, binary) for binary in missing})
        reason = f"{', '.join(missing)} not found; apt-get install {' '.join(packages)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return tuple(found)


def launched(argv: Sequence[str | Path], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a child that gets SIGTERM when the thread that called this ends, however it ends."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
    return subprocess.Popen([*launcher, *map(str, argv)], stdin=subprocess.DEVNULL, **options)


def shortened_rules(rules: str, *, pending: str = "1s", interval: str = "200ms") -> str:
    """Return the alert rules with every `for` and group `interval` replaced, all else as it was."""
    root = _composed(rules)
    for group in _items(root, "groups"):
        if _entry(group, "interval"):
            _put(group, "interval", interval)
        for rule in _items(group, "rules"):
            for name in ("for", "keep_firing_for"):
                if _entry(rule, name):
                    _put(rule, name, pending)
    return _serialized(root)


def shortened_alertmanager(
    config: str,
    *,
    group_wait: str = "0s",
    group_interval: str = "200ms",
    repeat_interval: str = "1h",
) -> str:
    """Return the configuration with the times of its routes replaced, all else as it was.

    The root route gets all three, for their defaults are minutes and hours.
    """
    times = {
        "group_wait": group_wait,
        "group_interval": group_interval,
        "repeat_interval": repeat_interval,
    }
    root = _composed(config)
    top = _entry(root, "route")
    for route in _routes(top):
        for name, text in times.items():
            if route is top or _entry(route, name):
                _put(route, name, text)
    return _serialized(root)


def pointed_at(config: str, webhook_url: str, *, credentials_file: Path | None = None) -> str:
    """Return the Alertmanager configuration with its webhooks sent to `webhook_url`.

    Each keeps the path and the query of its own URL, which can name the action and the source.
    `credentials_file`, when given, stands in for the one that an `authorization` names.
    """
    root = _composed(config)
    for receiver in _items(root, "receivers"):
        for webhook in _items(receiver, "webhook_configs"):
            url = _entry(webhook, "url")
            if isinstance(url, yaml.ScalarNode):
                parts = urlsplit(url.value)
                query = f"?{parts.query}" if parts.query else ""
                _put(webhook, "url", webhook_url.rstrip("/") + parts.path + query)
            authorization = _entry(_entry(webhook, "http_config"), "authorization")
            if credentials_file and _entry(authorization, "credentials_file"):
                _put(authorization, "credentials_file", str(credentials_file))
    return _serialized(root)


# The nodes of a document are edited rather than its values, so that every other scalar, quoted,
# folded or plain, reaches Prometheus and Alertmanager as it was written.


def _composed(text: str) -> yaml.Node:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "the document is not a mapping"
    return root


def _serialized(root: yaml.Node) -> str:
    text: str = yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True, width=4096)
    return text


def _entry(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        entries: list[tuple[yaml.Node, yaml.Node]] = node.value
        return next((value for name, value in entries if name.value == key), None)
    return None


def _items(node: yaml.Node, key: str) -> list[yaml.Node]:
    sequence = _entry(node, key)
    return list(sequence.value) if isinstance(sequence, yaml.SequenceNode) else []


def _routes(route: yaml.Node | None) -> Iterator[yaml.Node]:
    if route is not None:
        yield route
        for child in _items(route, "routes"):
            yield from _routes(child)


def _put(node: yaml.Node, key: str, text: str) -> None:
    _drop(node, key)
    tag = "tag:yaml.org,2002:str"
    node.value.append((yaml.ScalarNode(tag, key), yaml.ScalarNode(tag, text)))


def _drop(node: yaml.Node, key: str) -> None:
    node.value = [(name, value) for name, value in node.value if name.value != key]


class QuietServer(ThreadingHTTPServer):
    """A server on loopback whose clients may go away at any moment."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that went away; report anything else as the parent does."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that logs no requests: a scrape every 200 ms is no news."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class Exporter:
    """A fake exporter: the gauges that a test sets are what Prometheus scrapes next."""

    def __init__(self) -> None:
        self.scrapes = 0
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        exporter = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                body = exporter.exposition().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                exporter.scrapes += 1

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def address(self) -> str:
        """The target as Prometheus writes it."""
        return f"127.0.0.1:{self._server.server_port}"

    def set(self, metric: str, value: float, **labels: str) -> None:
        """Let the next scrape see this value."""
        with self._lock:
            self._gauges[metric, tuple(sorted(labels.items()))] = float(value)

    def remove(self, metric: str, **labels: str) -> None:
        """Take back every series of the metric that has these labels."""
        with self._lock:
            for name, pairs in list(self._gauges):
                if name == metric and labels.items() <= dict(pairs).items():
                    del self._gauges[name, pairs]

    def exposition(self) -> str:
        """Return all gauges in Prometheus' text format."""
        with self._lock:
            gauges = sorted(self._gauges.items())
        lines = []
        for (metric, pairs), value in gauges:
            labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in pairs)
            lines.append(f"{metric}{{{labels}}} {value!r}\n")
        return "".join(lines)

    def start(self) -> None:
        """Serve until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End the server; without `start` before, only free its port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class _Process:
    """One child with a log of its own, at the same place and port whenever it is started."""

    def __init__(self, name: str, argv: Sequence[str | Path], url: str, log: Path) -> None:
        self.name, self.url, self.log = name, url, log
        self._argv = argv
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the tests, and they end the stack.
            self._child = launched(self._argv, stdout=log, stderr=log, start_new_session=True)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._child is not None:
            self._child.send_signal(how)
            try:
                self._child.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
            self._child = None

    def kill(self) -> None:
        child = self._child
        if child is not None:
            child.kill()
            child.wait()

    def raise_if_ended(self) -> None:
        """Raise RuntimeError, with the end of the log, when it ended without being asked to."""
        status = None if self._child is None else self._child.poll()
        if status is not None:
            raise RuntimeError(f"{self.name} ended with status {status}:\n{self.tail()}")

    def is_ready(self) -> bool:
        """Whether it answers that it is."""
        try:
            _request(f"{self.url}/-/ready")
        except OSError:
            return False
        return True

    def tail(self, lines: int = 25) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([f"--- {self.name}: {self.log}", *text.splitlines()[-lines:]])


class Stack:
    """Prometheus, scraping `exporter`, and its Alertmanager, which posts to `webhook_url`.

    `rules` and `alertmanager` are the texts of the two files; see `shortened_rules`,
    `shortened_alertmanager` and `pointed_at`, which is applied here. Everything is ended after
    `deadline` seconds, come what may; the files in `directory` stay.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rules: str,
        alertmanager: str,
        webhook_url: str,
        credentials_file: Path | None = None,
        interval: str = "200ms",
        prometheus_flags: Sequence[str] = (),
        alertmanager_flags: Sequence[str] = (),
        deadline: float = 600,
    ) -> None:
        prometheus_binary, alertmanager_binary = requires("prometheus", "prometheus-alertmanager")
        self.directory = directory
        self._webhook_url, self._deadline = webhook_url, deadline
        self._credentials_file = credentials_file
        self._timer: threading.Timer | None = None
        prometheus_port, alertmanager_port = free_port(), free_port()
        self.prometheus_url = f"http://127.0.0.1:{prometheus_port}"
        self.alertmanager_url = f"http://127.0.0.1:{alertmanager_port}"
        self._write(rules, alertmanager)
        self.exporter = Exporter()
        self._write_prometheus(interval)
        self._processes = {
            "alertmanager": _Process(
                "alertmanager",
                [
                    alertmanager_binary,
                    f"--config.file={directory / 'alertmanager.yml'}",
                    f"--storage.path={directory / 'alertmanager'}",
                    f"--web.listen-address=127.0.0.1:{alertmanager_port}",
                    f"--web.external-url={self.alertmanager_url}",
                    "--cluster.listen-address=",
                    *alertmanager_flags,
                ],
                self.alertmanager_url,
                directory / "alertmanager.log",
            ),
            "prometheus": _Process(
                "prometheus",
                [
                    prometheus_binary,
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'prometheus'}",
                    f"--web.listen-address=127.0.0.1:{prometheus_port}",
                    f"--web.external-url={self.prometheus_url}",
                    "--web.enable-lifecycle",
                    "--rules.alert.resend-delay=1s",
                    *prometheus_flags,
                ],
                self.prometheus_url,
                directory / "prometheus.log",
            ),
        }

    def __enter__(self) -> Self:
        try:
            self.exporter.start()
            for process in self._processes.values():
                process.start()
            # Only now: what is started after its end would never be ended.
            self._timer = threading.Timer(self._deadline, self._expire)
            self._timer.daemon = True
            self._timer.start()
            self._wait_until_warm()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if error is not None:
            print(self.logs())

    def close(self) -> None:
        """End everything; a second call does nothing."""
        for process in reversed(self._processes.values()):
            process.stop()
        self.exporter.stop()
        if self._timer:
            self._timer.cancel()

    def restart(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop `prometheus` or `alertmanager`, start it on the same data, wait until it works.

        SIGTERM is a clean stop, SIGKILL a crash.
        """
        self._processes[name].stop(how)
        self._processes[name].start()
        self._wait_until_warm()

    def load(
        self,
        *,
        rules: str | None = None,
        alertmanager: str | None = None,
        webhook_url: str | None = None,
        credentials_file: Path | None = None,
    ) -> None:
        """Replace rules, configuration or both while running; much faster than another boot."""
        self._webhook_url = webhook_url or self._webhook_url
        self._credentials_file = credentials_file or self._credentials_file
        self._write(rules, alertmanager)
        for given, url in [
            (rules, self.prometheus_url),
            (alertmanager, self.alertmanager_url),
        ]:
            if given is not None:
                _request(f"{url}/-/reload", method="POST")

    def prometheus_get(self, path: str) -> Any:
        """Return `data` of Prometheus' answer: `prometheus_get("/api/v1/alerts")`."""
        return _request(self.prometheus_url + path)["data"]

    def alertmanager_get(self, path: str) -> Any:
        """Return Alertmanager's answer: `alertmanager_get("/api/v2/alerts")`."""
        return _request(self.alertmanager_url + path)

    def post_alerts(self, alerts: Sequence[Mapping[str, Any]]) -> None:
        """Give alerts straight to Alertmanager, as Prometheus would."""
        _request(f"{self.alertmanager_url}/api/v2/alerts", method="POST", data=list(alerts))

    def wait_until(self, predicate: Callable[[], T | None], timeout: float, what: str = "") -> T:
        """Do as the function `wait_until`; show the logs on a timeout, and when a process ended."""

        def checked() -> T | None:
            for process in self._processes.values():
                process.raise_if_ended()
            return predicate()

        return wait_until(checked, timeout, what, self.logs)

    def logs(self, lines: int = 25) -> str:
        """Return the last lines of both logs."""
        return "\n".join(process.tail(lines) for process in self._processes.values())

    def _write(self, rules: str | None, alertmanager: str | None) -> None:
        if rules is not None:
            (self.directory / "rules.yml").write_text(rules)
        if alertmanager is not None:
            config = pointed_at(
                alertmanager, self._webhook_url, credentials_file=self._credentials_file
            )
            (self.directory / "alertmanager.yml").write_text(config)

    def _write_prometheus(self, interval: str) -> None:
        alertmanager = urlsplit(self.alertmanager_url).netloc
        config = {
            "global": {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "evaluation_interval": interval,
            },
            "rule_files": [str(self.directory / "rules.yml")],
            "scrape_configs": [
                {"job_name": "e2e", "static_configs": [{"targets": [self.exporter.address]}]}
            ],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        }
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    def _wait_until_warm(self) -> None:
        """Return once alerts can travel: ready comes some 5 s before the first scrape."""
        for process in self._processes.values():
            self.wait_until(process.is_ready, 60, f"{process.name} is ready")
        scrapes = self.exporter.scrapes
        self.wait_until(lambda: self.exporter.scrapes > scrapes, 60, "Prometheus scrapes")
        self.wait_until(
            lambda: self.prometheus_get("/api/v1/alertmanagers")["activeAlertmanagers"],
            60,
            "Prometheus knows its Alertmanager",
        )

    def _expire(self) -> None:
        print(f"the stack was ended after its deadline of {self._deadline:g} s", file=sys.stderr)
        for process in self._processes.values():
            process.kill()


def _request(url: str, *, method: str = "GET", data: Any = None) -> Any:
    """Return the JSON of an answer, or its text; OSError when there is none or it says no."""
    body = None if data is None else json.dumps(data).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with _OPENER.open(request, timeout=10) as answer:
            text = answer.read().decode()
            kind = answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(f"{url}: {error.code}: {error.read().decode()[:500]}") from None
    return json.loads(text) if kind == "application/json" and text else text
