"""A stand-in for alertmanager-command-responder: the design without the journal.

For every alert of a notification it starts the program, with the alert's labels as variables, and
waits for it in a thread. It checks nothing, stores nothing, and forgets all when it ends.
`python command_responder.py HOST:PORT PROGRAM AT_ONCE bare|minded`: minded, it also keeps what the
program writes and ends it at a deadline, as the original does.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MINDED: dict[str, Any] = {"capture_output": True, "timeout": 60}


class Programs:
    """Runs the program, so many at a time."""

    def __init__(self, program: str, at_once: int, is_minded: bool) -> None:
        """Run nothing yet."""
        self._program = program
        self._how = MINDED if is_minded else {}
        self._threads = ThreadPoolExecutor(at_once)
        self._lock = threading.Lock()
        self._succeeded, self._last_at = 0, 0.0

    def start(self, labels: Mapping[str, str]) -> None:
        """Run it once; it waits for its turn."""
        self._threads.submit(self._run, labels)

    def _run(self, labels: Mapping[str, str]) -> None:
        variables = {f"LABEL_{name}": text for name, text in labels.items()}
        subprocess.run([self._program], env=variables, check=True, **self._how)
        with self._lock:
            self._succeeded, self._last_at = self._succeeded + 1, time.time()

    def finished(self) -> tuple[int, float]:
        """Return how many have succeeded, and when the last of them did."""
        with self._lock:
            return self._succeeded, self._last_at


class Handler(BaseHTTPRequestHandler):
    """Takes notifications, and says how many programs have ended."""

    protocol_version = "HTTP/1.1"
    programs: Programs

    def do_POST(self) -> None:
        """Hand every alert on, and answer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for alert in body["alerts"]:
            self.programs.start(alert["labels"])
        self._answer(None)

    def do_GET(self) -> None:
        """Answer what has ended."""
        self._answer(self.programs.finished())

    def _answer(self, what: object) -> None:
        text = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Log no requests."""


if __name__ == "__main__":
    address, program, at_once, how = sys.argv[1:]
    host, _, port = address.rpartition(":")
    Handler.programs = Programs(program, int(at_once), how == "minded")
    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
