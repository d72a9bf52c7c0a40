"""Posts the call as JSON to an HTTP endpoint, which does the rest.

A 2xx answer is success; every answer else, and none, is an error that says whether trying again may
help. The endpoint can tell a second attempt from a second run by the header `Idempotency-Key`. Its
address may hold a password or a token: only scheme, host and port are ever shown.
"""

import base64
import contextlib
import email.utils
import http.client
import json
import math
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit, urlunsplit

from receiver import ActionContext, PermanentError, Setting, TemporaryError, hookimpl

# requests is imported inside the call: the web process loads plugins too, and never calls them.
if TYPE_CHECKING:
    import requests

_TEMPORARY_STATUSES = (408, 425, 429)
_READ_BYTES = 16 * 2**10
_SHOWN_CHARACTERS = 500
_WATCH_SECONDS = 0.2
_CUT_SECONDS = 0.02


@hookimpl
def settings() -> list[Setting]:
    """Declare where to post, and how long an exchange may take."""
    return [
        Setting(
            "HTTP_PLUGIN_ENDPOINT",
            "url",
            "http://localhost:8080",
            "the URL to post to; `user:password@` in it is sent as basic auth",
            secret=True,
        ),
        Setting(
            "HTTP_PLUGIN_TIMEOUT",
            "duration",
            "10s",
            "the time for one exchange, from first to last",
        ),
        Setting(
            "HTTP_PLUGIN_CA_BUNDLE",
            "path",
            None,
            "a PEM file of the authorities to trust for https instead of the public ones",
        ),
    ]


@hookimpl
def validate_config(settings: Mapping[str, Any]) -> None:
    """Refuse a timeout of nothing and a bundle that is not there."""
    bundle: Path | None = settings["HTTP_PLUGIN_CA_BUNDLE"]
    if not settings["HTTP_PLUGIN_TIMEOUT"]:
        raise ValueError("HTTP_PLUGIN_TIMEOUT: 0s leaves no time to post; write 10s")
    if bundle is not None and not bundle.is_file():
        raise ValueError(f"HTTP_PLUGIN_CA_BUNDLE: {bundle} is not a file; name a PEM file")


@hookimpl
def execute(
    context: ActionContext, metric_name: str, value: float, threshold: str, duration: timedelta
) -> dict[str, Any]:
    """Post the call once; return the status and the first part of the answer."""
    body = {
        "metric_name": metric_name,
        "value": _as_json_value(value),
        "threshold": threshold,
        "duration_seconds": duration.total_seconds(),
        "action": context.action,
        "kind": context.kind,
        "run_id": context.run_id,
        "attempt": context.attempt,
        "idempotency_key": context.idempotency_key,
        "source": context.source,
        "receiver": context.receiver,
        "alert": {
            "labels": dict(context.alert.labels),
            "annotations": dict(context.alert.annotations),
            "starts_at": context.alert.starts_at.isoformat(),
            "fingerprint": context.alert.fingerprint,
            "generator_url": context.alert.generator_url,
        },
    }
    endpoint = _Endpoint.parse(context.settings["HTTP_PLUGIN_ENDPOINT"])
    limit: timedelta = context.settings["HTTP_PLUGIN_TIMEOUT"]
    seconds = min(limit.total_seconds(), context.remaining_seconds())
    context.raise_if_cancelled()
    with _Watch(context, endpoint, seconds) as watch:
        answer = _post(context, endpoint, json.dumps(body, allow_nan=False).encode(), watch)
    problem = answer.problem(endpoint)
    if problem is not None:
        raise problem
    return {"status": answer.status, "answer": answer.shown}


@hookimpl
def describe(
    context: ActionContext, metric_name: str, value: float, threshold: str, duration: timedelta
) -> str:
    """Say what would be posted, and to which host; the alert's texts quoted and cut."""
    endpoint = _Endpoint.parse(context.settings["HTTP_PLUGIN_ENDPOINT"])
    crossed = f", threshold {threshold!r:.100}" if threshold else ""
    return (
        f"would POST to {endpoint.shown} that {metric_name!r:.200} is {value:g}{crossed}, "
        f"for {duration.total_seconds():g}s"
    )


def _as_json_value(value: float) -> float | str:
    """Return the number, as text where JSON has no number for it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


@dataclass(frozen=True)
class _Endpoint:
    """Where to post: the URL without its credentials, these as a header, and what may be shown."""

    url: str = field(repr=False)
    authorization: str | None = field(repr=False)
    shown: str

    @classmethod
    def parse(cls, url: str) -> Self:
        parts = urlsplit(url)
        credentials, _, host = parts.netloc.rpartition("@")
        authorization = None
        if credentials:
            user, _, password = credentials.partition(":")
            pair = f"{unquote(user)}:{unquote(password)}".encode()
            authorization = f"Basic {base64.b64encode(pair).decode()}"
        bare = parts._replace(netloc=host, fragment="")
        return cls(urlunsplit(bare), authorization, f"{parts.scheme}://{host}")


@dataclass(frozen=True)
class _Answer:
    """What the endpoint said: its status, the first part of its body, and when to come again."""

    status: int
    shown: str
    retry_after: str

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def problem(self, endpoint: _Endpoint) -> PermanentError | TemporaryError | None:
        """Return the error that the answer stands for, None when it is a success."""
        if self.is_success:
            return None
        said = f"{endpoint.shown} answered {self.status}" + (
            f": {self.shown}" if self.shown else ""
        )
        if 300 <= self.status < 400:
            return PermanentError(
                f"{said}; no redirect is followed: set HTTP_PLUGIN_ENDPOINT to where it leads"
            )
        if self.status in _TEMPORARY_STATUSES or self.status >= 500:
            return TemporaryError(said, **_parse_retry_after(self.retry_after))
        return PermanentError(f"{said}; look at HTTP_PLUGIN_ENDPOINT and at the log there")


def _parse_retry_after(text: str) -> dict[str, Any]:
    """Return when to try again: seconds, or a date as in RFC 9110; nothing for anything else."""
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return {"retry_after": timedelta(seconds=int(text))}
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return {"retry_at": moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)}
    except (ValueError, OverflowError):
        return {}


class _Watch:
    """Cuts the connections of one exchange when its time is up, or its run is cancelled.

    A socket's own timeout starts anew with every byte, so that an endpoint which drips could hold
    an attempt for as long as it likes. Only the look-up of a name is out of reach: the resolver
    has limits of its own.
    """

    def __init__(self, context: ActionContext, endpoint: _Endpoint, seconds: float) -> None:
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


def _post(context: ActionContext, endpoint: _Endpoint, body: bytes, watch: _Watch) -> _Answer:
    """Post once, follow nothing, and read no more of the answer than may be shown."""
    import requests

    headers = {
        "Content-Type": "application/json",
        "User-Agent": "alert-receiver",
        "Idempotency-Key": context.idempotency_key,
        # A compressed answer of a few bytes could unfold to gigabytes.
        "Accept-Encoding": "identity",
    }
    if endpoint.authorization:
        headers["Authorization"] = endpoint.authorization
    bundle = context.settings["HTTP_PLUGIN_CA_BUNDLE"]
    try:
        with (
            _session(watch) as session,
            session.post(
                endpoint.url,
                data=body,
                headers=headers,
                # Half of it for connecting: a name can stand for two addresses, the first dead.
                timeout=(watch.seconds / 2, watch.seconds),
                verify=True if bundle is None else str(bundle),
                allow_redirects=False,
                stream=True,
            ) as response,
        ):
            answer = _read(response)
            if answer.is_success:
                watch.raise_if_cut()
            return answer
    except requests.exceptions.InvalidURL:
        unusable, reason = True, "it is no URL that can be called; look at HTTP_PLUGIN_ENDPOINT"
    except OSError as error:
        unusable, reason = False, _reason(error)
    # Raised out here, with no cause: the messages of those quote the URL, its path and query.
    watch.raise_if_cut()
    message = f"{endpoint.shown} gave no answer: {reason}"
    raise PermanentError(message) if unusable else TemporaryError(message)


def _session(watch: _Watch) -> "requests.Session":
    """Return a session whose connections are watched, and that takes nothing from outside.

    A new one for each call: sessions are not safe for threads. Neither proxies nor a `.netrc` of
    the environment apply: the call would go, or credentials be sent, where no setting says.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class WatchedConnection(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watch.add(self.sock)

    class WatchedTLSConnection(HTTPSConnection):
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


def _read(response: "requests.Response") -> _Answer:
    """Return the answer; an answer that breaks off still says no, but does not say yes."""
    first = b""
    try:
        for part in response.iter_content(1024):
            first += part
            if len(first) >= _READ_BYTES:
                break
    except OSError:
        if 200 <= response.status_code < 300:
            raise
    return _Answer(
        response.status_code,
        _visible(first.decode(errors="replace").strip()[:_SHOWN_CHARACTERS]),
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
