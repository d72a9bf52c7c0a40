"""A steady stream of well-behaved alerts beside whatever else is done to a receiver."""

import itertools
import threading
import time
from types import TracebackType

import requests

from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver

# Of all streams together: each alert is a new one.
_numbers = itertools.count(1)
ANNOTATIONS = {"metric_name": "m", "value": "1", "threshold": "> 0", "for": "1m"}


class Traffic:
    """Posts one alert after another to the witness, from a thread, while its block lasts."""

    def __init__(self, receiver: Receiver, pause_seconds: float = 0.03) -> None:
        self.accepted: list[str] = []
        self.seconds: list[float] = []
        self.problems: list[str] = []
        self._url = f"{receiver.url}/webhook/witness"
        self._pause_seconds = pause_seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Traffic":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End after the answer that is awaited."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        with requests.Session() as session:
            while not self._ending.wait(self._pause_seconds):
                fingerprint = f"traffic {next(_numbers)}"
                body = notification(alert(fingerprint, annotations=ANNOTATIONS))
                began = time.monotonic()
                try:
                    answer = session.post(
                        self._url, body, headers={"Content-Type": "application/json"}, timeout=30
                    )
                except requests.RequestException as error:
                    self.problems.append(f"{fingerprint}: {error!r}")
                    continue
                self.seconds.append(time.monotonic() - began)
                if answer.ok and answer.json()["accepted"] == 1:
                    self.accepted.append(fingerprint)
                else:
                    self.problems.append(f"{fingerprint}: {answer.status_code} {answer.text}")

    def check(self, within_seconds: float = 10) -> None:
        """Check that every alert was accepted, each within the time Alertmanager has at least."""
        assert self.problems == []
        assert max(self.seconds) < within_seconds
