"""A real receiver in processes of its own, spoken to over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from tests.support.waiting import wait_until

# Enough for all that are started at a time; each is an open file.
_MOST_KEPT = 50
_kept: deque[socket.socket] = deque()


def free_port() -> int:
    """Return a port nobody listens on, kept for a while for whoever does so with SO_REUSEADDR.

    Nobody else on this machine is given it before the program that it is for has started.
    """
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", 0))
    _kept.append(one)
    if len(_kept) > _MOST_KEPT:
        _kept.popleft().close()
    return int(one.getsockname()[1])


def log_lines(log: Path, message: str = "") -> list[dict[str, Any]]:
    """Return the lines of a log with this message, parsed."""
    # A reader may see the first half of a line that is being written.
    whole, _, _ = log.read_text(errors="replace").rpartition("\n")
    lines = [
        json.loads(line)
        for line in whole.splitlines()
        if line.startswith("{") and line.endswith("}")
    ]
    return [line for line in lines if message in ("", line["message"])]


class Receiver:
    """`receiver serve`, `web` or `worker` with the given environment; its log goes to a file."""

    def __init__(
        self, command: str, environment: dict[str, str], log: Path, wrapper: tuple[str, ...] = ()
    ) -> None:
        self.port = free_port()
        scheme = "https" if "RECEIVER_TLS_CERT" in environment else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        # What requests needs to speak TLS: `verify`, and maybe `cert`.
        self.tls: dict[str, Any] = {}
        self.log = log
        self.command = command
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "TMPDIR": tempfile.gettempdir(),
            "RECEIVER_BIND": f"127.0.0.1:{self.port}",
            **environment,
        }
        self._wrapper = wrapper
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it (again), on the same port and data."""
        with self.log.open("ab") as log:
            self._logged_before = log.tell()
            self.process = subprocess.Popen(
                [*self._wrapper, sys.executable, "-m", "receiver", self.command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self) -> "Receiver":
        """Return once it says that it is ready (a worker: that it has started)."""
        wait_until(self._is_ready, 60, f"{self.command} ready; log: {self.log}")
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.command} ended {self.process.returncode}: {self.text()}")
        # As a whole line, of which a reader may see the first half.
        logged = self.log.read_bytes()[self._logged_before :].rpartition(b"\n")[0]
        has_started = b"worker started" in logged
        if self.command == "worker":
            return has_started
        try:
            ready = requests.get(f"{self.url}/-/ready", timeout=2, **self.tls).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False
        return ready and (self.command == "web" or has_started)

    def post(self, body: bytes, path: str = "/webhook", **headers: str) -> requests.Response:
        """Post a notification as Alertmanager would."""
        return requests.post(
            self.url + path,
            data=body,
            headers={"Content-Type": "application/json", **headers},
            timeout=30,
            allow_redirects=False,
            **self.tls,
        )

    def text(self) -> str:
        """Return all that it has logged."""
        return self.log.read_text(errors="replace")

    def lines(self, message: str = "") -> list[dict[str, Any]]:
        """Return the log lines with this message, parsed."""
        return log_lines(self.log, message)

    def revive(self) -> None:
        """Start it again, as systemd would, if the last start found the port still in use.

        The processes of a receiver that was killed need a moment to end.
        """
        if self.process is not None and self.process.poll() is not None:
            logged = self.log.read_bytes()[self._logged_before :]
            if b"another program uses this port" in logged:
                self.start()

    def stop(self, timeout_seconds: float = 60) -> int:
        """Send SIGTERM and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_seconds)

    def children(self) -> dict[str, int]:
        """Return role -> pid of the children of `receiver serve`."""
        assert self.process is not None
        found: dict[str, int] = {}
        for pid in _children(self.process.pid):
            with suppress(FileNotFoundError, ProcessLookupError):  # It has ended meanwhile.
                # gunicorn puts its own words around the title.
                title = Path(f"/proc/{pid}/cmdline").read_text()
                # Without a role it is not yet what it is about to become.
                found |= {role: pid for role in ("web", "worker") if f"receiver {role}" in title}
        return found

    def kill(self) -> None:
        """Kill it with all its processes, by pid."""
        if self.process is None or self.process.poll() is not None:
            return
        pids = [self.process.pid, *_descendants(self.process.pid)]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(60)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in text.split()]


def _descendants(pid: int) -> list[int]:
    children = _children(pid)
    return children + [one for child in children for one in _descendants(child)]
