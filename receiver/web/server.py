"""Runs the application under gunicorn: one process of threads, keep-alive beyond Alertmanager's."""

import logging
import os
import signal
import ssl
import time
from pathlib import Path
from socket import socket
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from receiver import logs
from receiver.errors import JournalUnavailableError, ReceiverError
from receiver.journal.durability import warn_of_durability_risks
from receiver.journal.journal import Journal
from receiver.metrics.sharing import count_as
from receiver.plugins import load_actions
from receiver.processes import DRAIN_SIGNALS, RestartPauses, SharedFlag, follow_parent
from receiver.settings import Settings
from receiver.tracing import Tracing
from receiver.tracing import start as start_tracing
from receiver.web.app import Drain, create_app
from receiver.web.connections import REQUEST_THREADS, Worker
from receiver.web.environment import forget_foreign_variables
from receiver.web.processor import stay_on_one
from receiver.web.refusals import RefusalLog

_log = logging.getLogger(__name__)

# Alertmanager keeps a connection for 5 minutes: closing it earlier makes POSTs fail.
_KEEP_ALIVE_SECONDS = 330
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where gunicorn's heartbeat file never blocks

# gunicorn takes path, prefix and scheme of a request from headers of clients on loopback.
_TRUST_NO_PROXY: dict[str, Any] = {
    "forwarded_allow_ips": "",
    "forwarder_headers": "",
    "secure_scheme_headers": {},
}


class _Logger(Logger):  # type: ignore[misc]
    """gunicorn's words go where all others go; of its routine ones there is no need."""

    def setup(self, cfg: Any) -> None:
        """Leave the handlers to the receiver's own logs."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


class _Arbiter(Arbiter):  # type: ignore[misc]
    """gunicorn's master, with one worker for ever, pauses between its restarts, and our signals."""

    # SIGTTIN, SIGTTOU and SIGWINCH stay as they are: without an effect.
    SIGNALS = (*DRAIN_SIGNALS, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, app: "Server") -> None:
        super().__init__(app)
        self._pauses = RestartPauses()
        self._spawned_at = self._spawn_at = time.monotonic()

    def handle_int(self) -> None:
        """Drain, as for SIGTERM. During a drain gunicorn ends at once."""
        self.handle_term()

    handle_quit = handle_int

    def _ignore(self) -> None:
        hint = "restart the receiver to change its settings"
        _log.warning("signal ignored", extra={"hint": hint})

    handle_hup = handle_usr1 = handle_usr2 = handle_ttin = handle_ttou = handle_winch = _ignore

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Wait no longer than until a worker is to be started."""
        until_spawn = self._spawn_at - time.monotonic()
        signals: list[int] = super().wait_for_signals(
            min(timeout, until_spawn) if until_spawn > 0 else timeout
        )
        return signals

    def spawn_workers(self) -> None:
        """Start the worker, unless its pause after an end goes on."""
        if time.monotonic() >= self._spawn_at:
            super().spawn_workers()

    def spawn_worker(self) -> int | None:
        """Start a worker; try again later when the machine cannot fork now."""
        self._spawned_at = time.monotonic()
        try:
            pid: int | None = super().spawn_worker()
        except OSError as error:
            _log.error("web worker cannot be made", extra={"error": str(error)})
            self._pause()
            return None
        return pid

    def reap_workers(self) -> None:
        """Note the end of a worker. A failed boot ends all only if no worker has ever booted."""
        before = set(self.WORKERS)
        try:
            super().reap_workers()
        except HaltServer:
            if not self.app.has_started.is_set:
                raise
        if before - set(self.WORKERS):
            self._pause()

    def _pause(self) -> None:
        now = time.monotonic()
        self._spawn_at = now + self._pauses.after(now - self._spawned_at)


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured from the settings; the application is made after the fork."""

    def __init__(self, settings: Settings, listener: socket, has_started: SharedFlag) -> None:
        """Read nothing from gunicorn's own files or flags.

        `listener` belongs to this process from now on. `has_started` is set once a worker serves.
        """
        self._settings = settings
        self._listener = listener
        self.has_started = has_started
        self.drain = Drain()
        self.refusals = RefusalLog()
        self.request_seconds = settings.request_timeout.total_seconds()
        self._journal: Journal | None = None
        self._tracing: Tracing | None = None
        forget_foreign_variables()
        super().__init__()

    def run(self) -> None:
        """Serve until told to stop; raise SystemExit with gunicorn's own code when it gives up."""
        try:
            _Arbiter(self).run()
        except HaltServer as error:
            # It was told to stop at the moment when it gave up.
            raise SystemExit(error.exit_status) from error

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults."""
        settings = self._settings
        options: dict[str, Any] = {
            # gunicorn closes the descriptor that it gets.
            "bind": f"fd://{self._listener.detach()}",
            "worker_class": Worker,
            "workers": 1,
            "threads": REQUEST_THREADS,
            "keepalive": _KEEP_ALIVE_SECONDS,
            "graceful_timeout": max(1, int(settings.grace_period.total_seconds())),
            "timeout": 60,
            "control_socket_disable": True,
            "worker_tmp_dir": str(_SHARED_MEMORY) if os.access(_SHARED_MEMORY, os.W_OK) else None,
            "logger_class": _Logger,
            "worker_exit": self._close,
            "proc_name": "receiver web",
            "umask": 0o077,
            "limit_request_field_size": settings.max_header,
            # A parser that happens to be installed must not replace the one that is tested.
            "http_parser": "python",
            **_TRUST_NO_PROXY,
        }
        if settings.tls_cert:
            options |= {"certfile": str(settings.tls_cert), "keyfile": str(settings.tls_key)}
        if settings.tls_client_ca:
            # Probes have none; the webhook asks for it.
            options |= {"ca_certs": str(settings.tls_client_ca), "cert_reqs": ssl.CERT_OPTIONAL}
        for name, value in options.items():
            # Older versions have no control socket to disable.
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def _close(self, server: object, worker: object) -> None:
        """Log what was counted; leave the journal in good order, one file if it can be."""
        del server, worker
        self.refusals.log_left_out(at_end=True)
        if self._journal is not None:
            self._journal.close()
        if self._tracing is not None:
            self._tracing.close()

    def load(self) -> Flask:
        """Make the application, in the process that serves it."""
        follow_parent(os.getppid())
        count_as("web")
        try:
            # Before plugins, which may change the directory that its path is relative to.
            self._journal = Journal(self._settings.journal_url)
            warn_of_durability_risks(self._settings.journal_url)
            actions = load_actions(self._settings)
            logs.configure(self._settings.log_level, self._settings.log_format)
            self._tracing = start_tracing(self._settings, "web")
            app = create_app(
                self._settings, actions, self._journal, self.drain, self._tracing, self.refusals
            )
        except JournalUnavailableError as error:
            _log.error("journal fails the web", extra={"error": str(error)})
            raise SystemExit(1) from error  # gunicorn tries again.
        except ReceiverError as error:
            _log.critical("web cannot start", extra={"error": str(error)})
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from error
        if self._settings.web_one_processor:
            stay_on_one()
        self.has_started.set()
        _log.info("web started", extra={"bind": str(self._settings.bind)})
        return app
