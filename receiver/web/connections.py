"""The web's connections: none that is slow, silent or broken keeps others from an answer.

gunicorn gives a connection a thread from its first byte to the end of its answer. A thread that
waits costs little, so there are many of them; how many requests are worked on at a time is bounded
apart from that, see `slots`.
"""

import json
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
from weakref import WeakSet

from gunicorn.http import errors
from gunicorn.workers.gthread import TConn, ThreadWorker

from receiver.processes import DRAIN_SIGNALS, IGNORED_SIGNALS, ignore_signals
from receiver.web.refusals import Refusal

# Connections in the middle of a request. Those between two requests need no thread.
REQUEST_THREADS = 256
_LINGER_MILLISECONDS = 5
# The first byte of a TLS handshake; no method of HTTP begins with it.
_TLS_HANDSHAKE = 0x16
_TLS_ON_PLAIN_PORT = (
    "TLS was spoken to a port without TLS; use http://, or set RECEIVER_TLS_CERT and "
    "RECEIVER_TLS_KEY"
)
_PLAIN_ON_TLS_PORT = "HTTP without TLS was spoken to a port with TLS; use https://"
# What gunicorn's parser refuses: status, title and reason.
_REFUSALS: dict[type[Exception], tuple[int, str, str]] = {
    errors.LimitRequestLine: (414, "URI Too Long", "the request line is longer than 4094 bytes"),
    errors.LimitRequestHeaders: (
        431,
        "Request Header Fields Too Large",
        "a header is larger than RECEIVER_MAX_HEADER, or there are more than 100",
    ),
    errors.ExpectationFailed: (
        417,
        "Expectation Failed",
        "the header Expect holds something other than 100-continue",
    ),
    errors.InvalidRequestLine: (400, "Bad Request", "the request does not begin as HTTP/1.1 does"),
    errors.InvalidRequestMethod: (400, "Bad Request", "the request does not begin with a method"),
    errors.InvalidHTTPVersion: (400, "Bad Request", "the version of HTTP is not 1.0 or 1.1"),
    errors.UnsupportedTransferCoding: (
        400,
        "Bad Request",
        "the header Transfer-Encoding holds something other than chunked",
    ),
}
_MALFORMED = (400, "Bad Request", "a header or the framing of the body is malformed")


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
        # Connections whose request the application answers, or that are cut off already.
        self._answering: WeakSet[TConn] = WeakSet()

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
                if not self.cfg.is_ssl and _speaks_tls(conn):
                    self._refuse(conn.sock, conn.client, 400, "Bad Request", _TLS_ON_PLAIN_PORT)
                    return False
                kept = super().handle(conn)
            finally:
                del self._begun[conn]
                self._answering.discard(conn)
            is_free = self.alive and self.nr_conns <= self.cfg.threads
            if kept is not True or not is_free or not _is_more_coming(conn):
                return kept

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """Let the application answer a request."""
        self._answering.add(conn)
        return super().handle_request(req, conn)

    def murder_pending(self) -> None:
        """End what takes too long; called about once a second."""
        super().murder_pending()
        self.app.refusals.log_left_out()
        overdue = time.monotonic() - self._longest_seconds
        for conn, begun in self._begun.copy().items():
            if begun < overdue:
                if conn not in self._answering:
                    self._answering.add(conn)  # It is noted once.
                    reason = "the request was not here within RECEIVER_REQUEST_TIMEOUT"
                    self.app.refusals.note(Refusal(0, reason, _address(conn.client)))
                # Wakes the thread that waits. TLS would say goodbye first: to nobody, here.
                with suppress(OSError):
                    socket.socket.shutdown(conn.sock, socket.SHUT_RDWR)

    def handle_error(self, req: object, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what is no HTTP; the log says nothing of its content, which may be a secret."""
        if not isinstance(exc, errors.ParseException | SSLError):
            super().handle_error(req, client, addr, exc)
            return
        if isinstance(exc, SSLError):
            if exc.reason == "HTTP_REQUEST":
                self._refuse(client, addr, 400, "Bad Request", _PLAIN_ON_TLS_PORT)
            else:
                why = (exc.reason or "TLS failed").lower().replace("_", " ")
                reason = f"no connection with TLS: {why}"
                self.app.refusals.note(Refusal(0, reason, _address(addr)))
            return
        self._refuse(client, addr, *_REFUSALS.get(type(exc), _MALFORMED), type(exc).__name__)

    def _refuse(
        self,
        client: socket.socket,
        addr: Any,
        status: int,
        title: str,
        reason: str,
        error: str = "",
    ) -> None:
        """Log a refusal and send it as plain HTTP, also where TLS should be spoken."""
        self.app.refusals.note(Refusal(status, reason, _address(addr), error=error))
        problem = {"type": "about:blank", "title": title, "status": status, "detail": reason}
        body = json.dumps(problem) + "\n"
        head = (
            f"HTTP/1.1 {status} {title}\r\nConnection: close\r\n"
            f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with suppress(OSError):
            socket.socket.sendall(client, (head + body).encode())


def _speaks_tls(conn: TConn) -> bool:
    """Whether the first byte on a new connection, which is here already, begins TLS."""
    if conn.initialized:
        return False
    with suppress(OSError):
        return bool(conn.sock.recv(1, socket.MSG_PEEK) == bytes([_TLS_HANDSHAKE]))
    return False


def _address(client: Any) -> str:
    return str(client[0]) if client else ""
