"""`/-/healthy` and `/-/ready`: for probes, without credentials."""

import threading
import time
from collections.abc import Callable

from flask import Blueprint, Response

from receiver.errors import JournalError
from receiver.journal.journal import Journal
from receiver.web.problems import unavailable

HEALTHY = "/-/healthy"
READY = "/-/ready"
_KEPT_SECONDS = 1.0
# A probe gives up after a few seconds.
_WAIT_SECONDS = 3.0


def create_health(journal: Journal, is_draining: Callable[[], bool]) -> Blueprint:
    """Return the blueprint. Readiness writes to the journal, at most once a second."""
    health = Blueprint("health", __name__)
    lock = threading.Lock()
    checked_at = float("-inf")
    failure: JournalError | None = None

    @health.get(HEALTHY)
    def healthy() -> Response:
        return Response("healthy\n", mimetype="text/plain")

    @health.get(READY)
    def ready() -> Response:
        nonlocal checked_at, failure
        if is_draining():
            return unavailable("not ready: the receiver is stopping")
        if not lock.acquire(timeout=_WAIT_SECONDS):
            return unavailable("not ready: the journal does not answer")
        try:
            if time.monotonic() - checked_at > _KEPT_SECONDS:
                try:
                    journal.check_writable()
                    failure = None
                except JournalError as error:
                    failure = error
                checked_at = time.monotonic()
            if failure is not None:
                return unavailable(f"not ready: {failure}")
        finally:
            lock.release()
        return Response("ready\n", mimetype="text/plain")

    return health
