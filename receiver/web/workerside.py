"""The metrics of a `receiver worker` that runs without a web process beside it."""

import logging
import ssl
import sys
import threading
from dataclasses import replace
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from flask import Flask
from prometheus_client import CollectorRegistry

from receiver.declarations import Address
from receiver.errors import SettingsError
from receiver.settings import Settings
from receiver.web import problems
from receiver.web.auth import Access, Scope
from receiver.web.binding import has_credentials_for
from receiver.web.metrics import create_metrics
from receiver.web.refusals import Refusal, RefusalLog, log_refusals

_log = logging.getLogger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    refusals = RefusalLog()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log in a line what broke a connection; the others are served."""
        del request
        _log.info(
            "connection for metrics broke",
            extra={"client": client_address, "error": repr(sys.exception())},
        )


class _Handler(WSGIRequestHandler):
    server: _Server
    timeout = 10  # Who connects and says nothing keeps no thread for long.

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log no requests, as the web process does not."""
        del format, args

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no HTTP; neither the log nor the answer quotes it."""
        del message, explain
        reason = "the request is not HTTP/1.1; use https:// only where RECEIVER_TLS_CERT is set"
        self.server.refusals.note(Refusal(code, reason, self.client_address[0]))
        super().send_error(code)


def _describe_wrong_path(method: str, path: str) -> str:
    del method, path
    return "a worker has nothing but /metrics at this address"


def check_metrics_bind(settings: Settings) -> None:
    """Raise SettingsError for an address where anybody could read what is nobody's business."""
    address = settings.worker_metrics_bind
    is_guarded = settings.metrics_open or has_credentials_for(settings, "read")
    if address and not (address.is_loopback or is_guarded or settings.auth == "none"):
        raise SettingsError(
            [
                f"RECEIVER_WORKER_METRICS_BIND: {address} can be reached by others; set "
                "RECEIVER_READ_TOKEN, or RECEIVER_METRICS_OPEN=true if all may read the metrics"
            ]
        )


def listen(settings: Settings, address: Address, counts: CollectorRegistry) -> None:
    """Show `/metrics` at this address for as long as the process lives; raises SettingsError."""
    check_metrics_bind(settings)
    app = Flask(__name__, static_folder=None)
    problems.register(app, _describe_wrong_path)
    metrics = create_metrics(counts)
    if not settings.metrics_open:
        Access(replace(settings, bind=address)).guard(metrics, Scope.READ)
    app.register_blueprint(metrics)
    try:
        server = make_server(address.host, address.port, app, _Server, _Handler)
    except OSError as error:
        raise SettingsError(
            [f"RECEIVER_WORKER_METRICS_BIND: {address}: {error.strerror}"]
        ) from error
    if settings.tls_cert is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        server.socket = context.wrap_socket(
            # The handshake is made by the thread of the connection.
            server.socket, server_side=True, do_handshake_on_connect=False,
        )  # fmt: skip
    log_refusals(app, server.refusals)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
