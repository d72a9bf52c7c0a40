"""LISTEN and NOTIFY: how a commit on PostgreSQL wakes the workers of all replicas at once.

A pooler in transaction mode takes LISTEN and passes nothing on, without a word: so whoever listens
calls itself first, over another connection. What hears nothing looks by itself each second, and
tries again later: the server may only have been slow.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from receiver.journal.dialects import ignore_notification

_log = logging.getLogger(__name__)

_CHANNEL = "alert_receiver"
_TRIAL_SECONDS = 1.0
_PAUSE_SECONDS = 1.0
_RETRIAL_SECONDS = 300.0


def _call(engine: Engine, text: str = "") -> None:
    """Notify all who listen; `text` is trusted."""
    with engine.begin() as connection:
        # Apart from the transaction that accepts: those that notify commit one after the other in
        # the whole server, and would do so with their syncs. This one syncs nothing.
        connection.exec_driver_sql(
            f"SET LOCAL synchronous_commit = off; NOTIFY {_CHANNEL}, '{text}'"
        )


class Caller:
    """Notifies from a thread of its own: no answer waits for it, and no failure of it matters."""

    def __init__(self, engine: Engine) -> None:
        """Start nothing before the first call."""
        self._engine = engine
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def call(self) -> None:
        """Notify soon; calls that come close together may become one."""
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="caller", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Call no more."""
        self._is_closed = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._wanted.wait() and not self._is_closed:
            self._wanted.clear()
            with suppress(sa.exc.SQLAlchemyError):  # Then workers look by themselves.
                _call(self._engine)


class Listener:
    """Hears the calls, over a connection of its own; comes back by itself after it was lost."""

    def __init__(self, engine: Engine, after_gap: Callable[[], None]) -> None:
        """Listen from now on, if the server can be reached now.

        `after_gap` is called when calls may have been missed.
        """
        self._engine = engine
        self._after_gap = after_gap
        self._connection: Any = None
        self._has_warned = False
        self._try_at = float("-inf")
        self.listen()

    def listen(self) -> int | None:
        """Return what to wait for with `select`; None while nothing can be heard."""
        if self._connection is None and time.monotonic() >= self._try_at:
            self._try_at = time.monotonic() + _PAUSE_SECONDS
            with suppress(sa.exc.SQLAlchemyError, _driver_error()):
                self._open()
        return None if self._connection is None else int(self._connection.fileno())

    def hear(self) -> None:
        """Take in what has come; call it when there is something to read."""
        try:
            for _ in self._connection.notifies(timeout=0):
                pass
        except _driver_error():
            self.close()

    def close(self) -> None:
        """Listen no more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> None:
        fresh = self._engine.raw_connection()
        self._connection = fresh.driver_connection
        fresh.detach()
        try:
            self._connection.remove_notify_handler(ignore_notification)
            self._connection.execute(f"LISTEN {_CHANNEL}")
            if self._hears_itself():
                return
            self._connection.execute("UNLISTEN *")
        except BaseException:
            self.close()
            raise
        self.close()
        self._try_at = time.monotonic() + _RETRIAL_SECONDS
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "notifications do not arrive, so due runs are looked for each second",
                extra={"cure": "let RECEIVER_DATABASE_URL lead past the pooler, or to one in "
                               "session mode"},
            )  # fmt: skip

    def _hears_itself(self) -> bool:
        self._after_gap()
        text = secrets.token_hex(8)
        _call(self._engine, text)
        deadline = time.monotonic() + _TRIAL_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            for heard in self._connection.notifies(timeout=left, stop_after=1):
                if heard.payload == text:
                    return True
        return False


def _driver_error() -> type[Exception]:
    """Return the driver's own error; it is there where PostgreSQL is."""
    from psycopg import Error

    return Error
