"""Refused requests: each reason is logged at once, and its repetitions as a number once a minute.

Alertmanager logs what it is answered, but the operator of the receiver has only the log here. A
line holds no header but the user agent, no query and no body.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from flask import Flask, Response, request

_log = logging.getLogger(__name__)

_WINDOW_SECONDS = 60.0
# Reasons and clients that are told apart at a time. Beyond them all others are counted together.
_MOST_KINDS = 64
_OTHERS = ("others",)
_LONGEST_TEXT = 300


@dataclass(frozen=True)
class Refusal:
    """Why a request was refused, and whose it was.

    `status` is 0 where nothing could be answered. `field` is the first wrong one, and `error` says
    what is wrong with it, or with the journal.
    """

    status: int
    reason: str
    client: str = ""
    method: str = ""
    path: str = ""
    user_agent: str = ""
    field: str = ""
    error: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What repetitions have in common."""
        return self.status, self.reason, self.client, self.error

    def fields(self) -> dict[str, object]:
        """Return the fields of the log line; those that are empty are left out."""
        return {
            name: value[:_LONGEST_TEXT] if isinstance(value, str) else value
            for name, value in vars(self).items()
            if value
        }


@dataclass
class _Window:
    """A minute that begins with a logged refusal; `last` of those that were left out since."""

    ends_at: float
    last: Refusal
    left_out: int = 0


@dataclass
class RefusalLog:
    """Logs the refusals of one process; any thread may call it."""

    now: Callable[[], float] = time.monotonic
    _windows: dict[tuple[object, ...], _Window] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, refusal: Refusal) -> None:
        """Log a refusal, or count it where one like it was logged in the last minute."""
        self.log_left_out()
        with self._lock:
            is_told_apart = refusal.key in self._windows or len(self._windows) < _MOST_KINDS
            key = refusal.key if is_told_apart else _OTHERS
            window = self._windows.get(key)
            if window is not None:
                window.last, window.left_out = refusal, window.left_out + 1
                return
            self._windows[key] = _Window(self.now() + _WINDOW_SECONDS, refusal)
        _log.warning("request refused", extra=refusal.fields())

    def log_left_out(self, at_end: bool = False) -> None:
        """Log how many refusals were left out in each minute that is over; all of them at the end.

        Called about once a second.
        """
        with self._lock:
            now = self.now()
            over = [key for key, one in self._windows.items() if at_end or one.ends_at <= now]
            windows = [(key, self._windows.pop(key)) for key in over]
        for key, window in windows:
            if window.left_out:
                fields = {"reason": "several"} if key == _OTHERS else window.last.fields()
                _log.warning("more requests refused", extra={**fields, "left_out": window.left_out})


class RefusedResponse(Response):
    """A response that refuses its request; `reason`, `field` and `error` are for the log alone."""

    reason = ""
    field = ""
    error = ""


def log_refusals(app: Flask, refusals: RefusalLog) -> None:
    """Log every response of the application that refuses a request.

    A failure of the receiver itself (500) is logged with its traceback where it is handled.
    """

    @app.after_request
    def note(response: Response) -> Response:
        if response.status_code >= 400 and response.status_code != 500:
            refusal = Refusal(
                response.status_code,
                response.status,
                request.remote_addr or "",
                request.method,
                request.path,
                request.headers.get("User-Agent", ""),
            )
            if isinstance(response, RefusedResponse):
                refusal = replace(
                    refusal, reason=response.reason, field=response.field, error=response.error
                )
            refusals.note(refusal)
        return response
