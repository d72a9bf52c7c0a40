"""The web's connections: none that is slow, silent or broken keeps others from an answer.

gunicorn gives a connection a thread from its first byte to the end of its answer. A thread that
waits costs little, so there are many of them; how many requests are worked on at a time is bounded
apart from that, see `slots`.
"""

import json
import logging
import select
import signal
import socket
import time
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ
from ssl import SSLError, SSLSocket
from types import FrameType
from typing import Any

from gunicorn.http import errors
from gunicorn.workers.gthread import TConn, ThreadWorker

from receiver.processes import DRAIN_SIGNALS, IGNORED_SIGNALS, ignore_signals

_log = logging.getLogger(__name__)

# Connections in the middle of a request. Those between two requests need no thread.
REQUEST_THREADS = 256
_LINGER_MILLISECONDS = 5
_TITLES = {
    errors.LimitRequestLine: (414, "URI Too Long"),
    errors.LimitRequestHeaders: (431, "Request Header Fields Too Large"),
    errors.ExpectationFailed: (417, "Expectation Failed"),
}


def _is_more_coming(conn: TConn) -> bool:
    """Wait a moment for the next request on a connection; return whether it is here."""
    if conn.parser.unreader.buf.getvalue():
        return True
    if isinstance(conn.sock, SSLSocket) and conn.sock.pending():
        return True
    waiting = select.poll()
    waiting.register(conn.sock, select.POLLIN)
    return bool(waiting.poll(_LINGER_MILLISECONDS))


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker that answers 503 once told to stop, and waits for nobody too long."""

    sockets: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun: dict[TConn, float] = {}

    @property
    def _longest_seconds(self) -> float:
        seconds: float = self.app.request_seconds
        return seconds

    def init_signals(self) -> None:
        """Handle signals as docs/operations.md says; none has gunicorn's effect for a moment."""
        blocked = (*DRAIN_SIGNALS, *IGNORED_SIGNALS)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            super().init_signals()
            ignore_signals(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept no more; in a drain, refuse new connections instead of letting them wait.

        Those that wait already are accepted, so that each gets its 503.
        """
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:
                waiting = select.poll()
                waiting.register(listener, select.POLLIN)
                while waiting.poll(0):
                    self.accept(listener)
                listener.close()
            self.sockets = []

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; end at once if that has begun. gunicorn sends it for SIGINT and SIGQUIT."""
        if self.app.drain.has_begun():
            super().handle_quit(sig, frame)
        self.handle_exit(sig, frame)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, then let gunicorn finish what is under way."""
        self.app.drain.begin()
        super().handle_exit(sig, frame)

    def enqueue_req(self, conn: TConn) -> None:
        """Give a connection a thread, a new one as soon as its first byte is here."""
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + self._longest_seconds
        self.pending_conns.append(conn)
        readable = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, EVENT_READ, readable)

    def handle(self, conn: TConn) -> Any:
        """Serve what comes on a connection; of many requests in a row, all in this one thread.

        gunicorn hands a connection from its main thread to another and back for each request,
        which costs more than Flask does. While every connection can have a thread, wait a moment.
        """
        while True:
            self._begun[conn] = time.monotonic()
            try:
                kept = super().handle(conn)
            finally:
                del self._begun[conn]
            is_free = self.alive and self.nr_conns <= self.cfg.threads
            if kept is not True or not is_free or not _is_more_coming(conn):
                return kept

    def murder_pending(self) -> None:
        """End what takes too long; called about once a second."""
        super().murder_pending()
        overdue = time.monotonic() - self._longest_seconds
        for conn, begun in self._begun.copy().items():
            if begun < overdue:
                # Wakes the thread that waits. TLS would say goodbye first: to nobody, here.
                with suppress(OSError):
                    socket.socket.shutdown(conn.sock, socket.SHUT_RDWR)

    def handle_error(self, req: object, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what is no HTTP; the log says nothing of its content, which may be a secret."""
        if not isinstance(exc, errors.ParseException | SSLError):
            super().handle_error(req, client, addr, exc)
            return
        reason = exc.reason if isinstance(exc, SSLError) else type(exc).__name__
        _log.warning("request refused", extra={"client": addr[0] if addr else "", "error": reason})
        if isinstance(exc, SSLError):
            return
        status, title = _TITLES.get(type(exc), (400, "Bad Request"))
        body = json.dumps({"type": "about:blank", "title": title, "status": status}) + "\n"
        head = (
            f"HTTP/1.1 {status} {title}\r\nConnection: close\r\n"
            f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with suppress(OSError):
            client.sendall((head + body).encode())
