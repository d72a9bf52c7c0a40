"""One exchange with the endpoint: bounded in time and size, following nothing."""

import contextlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ProtocolError

from action_plugins.http_plugin.options import (
    ENDPOINT,
    EXPECTED,
    TOKEN_FILE,
    Endpoint,
    Options,
)
from receiver import ActionContext, PermanentError, TemporaryError

_TEMPORARY_STATUSES = (408, 425, 429)
_READ_BYTES = 16 * 2**10
_SHOWN_CHARACTERS = 500
_SHORTEST_SECRET = 4
_HIDDEN = "(hidden)"
_LONGEST_TOKEN = 16 * 2**10
_WATCH_SECONDS = 0.2
_CUT_SECONDS = 0.02


def send(context: ActionContext, options: Options, body: bytes | None) -> dict[str, Any]:
    """Make one request; return the status and the first part of the answer, or raise."""
    headers = _headers(context, options, body)
    seconds = min(options.seconds, context.remaining_seconds())
    context.raise_if_cancelled()
    with _Watch(context, options.endpoint, seconds) as watch:
        answer = _exchange(options, headers, body, watch)
    problem = answer.problem(options.endpoint)
    if problem is not None:
        raise problem
    return {"status": answer.status, "answer": answer.shown}


@dataclass(frozen=True)
class _Answer:
    """What the endpoint said: its status, the first part of its body, and when to come again."""

    status: int
    is_success: bool
    shown: str
    retry_after: str

    def problem(self, endpoint: Endpoint) -> PermanentError | TemporaryError | None:
        """Return the error that the answer stands for, None when it is a success."""
        if self.is_success:
            return None
        said = f"{endpoint.shown} answered {self.status}" + (
            f": {self.shown}" if self.shown else ""
        )
        if 300 <= self.status < 400:
            return PermanentError(
                f"{said}; no redirect is followed: set {ENDPOINT} to where it leads"
            )
        if self.status in _TEMPORARY_STATUSES or self.status >= 500:
            return TemporaryError(said, retry_after=self.retry_after)
        if 200 <= self.status < 300:
            return PermanentError(f"{said}, which {EXPECTED} does not have; look at the log there")
        return PermanentError(f"{said}; look at {ENDPOINT} and at the log there")


class _Watch:
    """Cuts the connections of one exchange when its time is up, or its run is cancelled.

    A socket's own timeout starts anew with every byte, so that an endpoint which drips could hold
    an attempt for as long as it likes. Only the look-up of a name is out of reach: the resolver
    has limits of its own.
    """

    def __init__(self, context: ActionContext, endpoint: Endpoint, seconds: float) -> None:
        self.seconds = seconds
        self._context = context
        self._endpoint = endpoint
        self._ends = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._is_done = threading.Event()
        self._has_cut = False
        self._thread = threading.Thread(target=self._run, name="http_plugin watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_done.set()
        self._thread.join()

    def add(self, connected: socket.socket | None) -> None:
        """Watch one more connection."""
        if connected is not None:
            self._sockets.append(connected)

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a connection to one of a name's addresses; trying all of them is in time, too."""
        problem = OSError("the name stands for no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM
        ):
            try:
                connection = socket.socket(family, kind, protocol)
            except OSError as error:  # Such as IPv6 where the system has none.
                problem = error
                continue
            connection.settimeout(max(self._left() / 2, _CUT_SECONDS))
            self.add(connection)
            try:
                connection.connect(address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if not self._has_cut:  # A connect that is cut short passes for one that was made.
                    return connection
            except OSError as error:
                problem = error
            connection.close()
            if self._has_cut:
                break
        # As its own: urllib3 takes a broken pipe here for one that broke while it was sending.
        raise ProtocolError("no address could be connected to") from problem

    def raise_if_cut(self) -> None:
        """Raise what the cut stands for: a cancel or the attempt's end, else an endless answer."""
        if self._has_cut:
            self._context.raise_if_cancelled()
            raise TemporaryError(
                f"{self._endpoint.shown} gave no whole answer in {self.seconds:g}s"
            )

    def _run(self) -> None:
        while not self._is_done.wait(min(_WATCH_SECONDS, max(_CUT_SECONDS, self._left()))):
            if self._left() <= 0 or self._context.is_cancelled:
                self._has_cut = True
                for one in tuple(self._sockets):
                    # Not the socket's own method: TLS would forget its state under the reader.
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(one, socket.SHUT_RDWR)

    def _left(self) -> float:
        return self._ends - time.monotonic()


def _headers(
    context: ActionContext, options: Options, body: bytes | None
) -> dict[str, str | bytes]:
    """Return the headers of one request; the operator's own come before the general ones."""
    headers: dict[str, str | bytes] = {"User-Agent": "alert-receiver"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    own = {name.lower() for name in options.headers}
    headers = {name: one for name, one in headers.items() if name.lower() not in own}
    headers |= options.headers
    headers["Idempotency-Key"] = context.idempotency_key
    # A compressed answer of a few bytes could unfold to gigabytes.
    headers["Accept-Encoding"] = "identity"
    if options.endpoint.authorization:
        headers["Authorization"] = options.endpoint.authorization
    if options.token_file is not None:
        headers["Authorization"] = f"Bearer {_token(options)}"
    return headers


def _token(options: Options) -> str:
    """Return the token as it is now: what renews it writes the file anew."""
    assert options.token_file is not None
    try:
        with options.token_file.open(encoding="ascii", errors="replace") as file:
            token = file.read(_LONGEST_TOKEN).strip()
    except OSError as error:
        raise TemporaryError(f"{TOKEN_FILE}: cannot be read: {error.strerror}") from None
    if not re.fullmatch(r"[!-~]+", token):
        raise TemporaryError(f"{TOKEN_FILE}: holds no token of printable ASCII without spaces")
    return token


def _exchange(
    options: Options, headers: dict[str, str | bytes], body: bytes | None, watch: _Watch
) -> _Answer:
    """Send once, follow nothing, and read no more of the answer than may be shown."""
    certificate: Any = None
    if options.certificate is not None:
        certificate = str(options.certificate)
        if options.key is not None:
            certificate = (certificate, str(options.key))
    try:
        with (
            _session(watch) as session,
            session.request(
                options.method,
                options.endpoint.url,
                data=body,
                headers=headers,
                timeout=watch.seconds,
                verify=True if options.bundle is None else str(options.bundle),
                cert=certificate,
                allow_redirects=False,
                stream=True,
            ) as response,
        ):
            answer = _read(response, options, _secrets(options, headers))
            if answer.is_success:
                watch.raise_if_cut()
            return answer
    except requests.exceptions.InvalidURL:
        unusable, reason = True, f"it is no URL that can be called; look at {ENDPOINT}"
    except OSError as error:
        unusable, reason = False, _reason(error)
    # Raised out here, with no cause: the messages of those quote the URL, its path and query.
    watch.raise_if_cut()
    message = f"{options.endpoint.shown} gave no answer: {reason}"
    raise PermanentError(message) if unusable else TemporaryError(message)


def _session(watch: _Watch) -> requests.Session:
    """Return a session whose connections are watched, and that takes nothing from outside.

    A new one for each call: sessions are not safe for threads. Neither proxies nor a `.netrc` of
    the environment apply: the call would go, or credentials be sent, where no setting says.
    """

    class WatchedConnection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return watch.connect(self._dns_host, self.port or 80)

        def connect(self) -> None:
            super().connect()
            watch.add(self.sock)

    class WatchedTLSConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return watch.connect(self._dns_host, self.port or 443)

        def connect(self) -> None:
            super().connect()
            watch.add(self.sock)

    class WatchedAdapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **more: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **more)
            is_tls = pool.scheme == "https"
            pool.ConnectionCls = WatchedTLSConnection if is_tls else WatchedConnection
            return pool

    session = requests.Session()
    session.trust_env = False
    session.mount("http://", WatchedAdapter())
    session.mount("https://", WatchedAdapter())
    return session


def _secrets(options: Options, headers: Mapping[str, str | bytes]) -> list[str]:
    """Return what an answer may quote of the request and nobody may see, longest first."""
    parts = urlsplit(options.endpoint.url)
    texts = {parts.path, unquote(parts.path), parts.query, unquote(parts.query)}
    texts |= {value for _, value in parse_qsl(parts.query)}
    for value in (headers.get("Authorization", ""), *options.headers.values()):
        texts |= {str(value), str(value).rpartition(" ")[2]}
    return sorted((one for one in texts if len(one) >= _SHORTEST_SECRET), key=len, reverse=True)


def _read(response: requests.Response, options: Options, secrets: Sequence[str]) -> _Answer:
    """Return the answer; an answer that breaks off still says no, but does not say yes."""
    is_success = options.expects(response.status_code)
    first = b""
    try:
        for part in response.iter_content(1024):
            first += part
            if len(first) >= _READ_BYTES:
                break
    except OSError:
        if is_success:
            raise
    text = first.decode(errors="replace").strip()
    for one in secrets:  # Before the cut, which could leave a part of one.
        text = text.replace(one, _HIDDEN)
    return _Answer(
        response.status_code,
        is_success,
        _visible(text[:_SHOWN_CHARACTERS]),
        response.headers.get("Retry-After", ""),
    )


def _visible(text: str) -> str:
    """Return the text in one line, what cannot be printed written as an escape."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _reason(error: OSError) -> str:
    """Return what the system said below requests' own messages, which quote the URL."""
    reason = ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError | http.client.HTTPException):
            reason = getattr(cause, "strerror", None) or type(cause).__name__
        cause = cause.__cause__ or cause.__context__
    return _visible(reason)
