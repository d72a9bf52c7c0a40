"""`receiver serve`, `receiver web` and `receiver worker`."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING

import click

from receiver import logs, tracing
from receiver.captured_output import captured_output, release_output
from receiver.cli.options import settings_options
from receiver.data_directory import prepare_data_directory
from receiver.errors import JournalUnusableError, PluginError, ReceiverError, SettingsError
from receiver.processes import (
    AT_ONCE_SIGNALS,
    DRAIN_SIGNALS,
    SharedFlag,
    become_subreaper,
    close_umask,
    end_descendants,
    ignore_operator_signals,
    restore_umask,
    spare_present_children,
)
from receiver.settings import Settings
from receiver.supervisor import CANNOT_START, Program, Supervisor
from receiver.web.binding import check_bind
from receiver.web.environment import without_foreign_variables
from receiver.web.listener import open_listener

if TYPE_CHECKING:
    from receiver.web.server import Server
    from receiver.worker.executors import ExecutorPool

_log = logging.getLogger(__name__)


@click.command
@settings_options
def serve(settings: Settings) -> None:
    """Accept notifications and run actions: `receiver web` and `receiver worker` as one.

    Stops on SIGTERM: accepts no more, lets running attempts finish, and ends.
    """
    from receiver.metrics.sharing import shared_directory

    with _begun(settings, has_supervisor=True):
        listener = _listen(settings)
        _prepare_data_directory(settings)
        with shared_directory():
            code = _supervise(settings, listener)
    sys.exit(code)


def _supervise(settings: Settings, listener: socket) -> int:
    programs = (
        Program("web", partial(_web, settings, listener)),
        Program("worker", partial(_supervised_worker, settings, listener), is_cleared=True),
    )
    supervisor = Supervisor(programs, settings.grace_period, partial(_open_once, settings))
    # From then on new connections are refused, and do not wait for an answer.
    supervisor.on_stop = listener.close
    return supervisor.run(partial(_prepare, supervisor))


@contextmanager
def _begun(settings: Settings, *, has_supervisor: bool = False) -> Iterator[None]:
    """Set up what every process of the receiver has: logs, signals and the mode of new files.

    A supervisor logs itself what the others print.
    """
    ignore_operator_signals(has_terminal=True)
    close_umask()
    logs.keep_output()
    logs.configure(settings.log_level, settings.log_format)
    try:
        with nullcontext() if has_supervisor else captured_output():
            spare_present_children()
            yield
    except ReceiverError as error:
        is_debugging = click.get_current_context().find_root().params["debug"]
        if settings.log_format == "text" or is_debugging:
            raise
        problems = getattr(error, "problems", (str(error),))
        _log.critical("receiver cannot start", extra={"problems": problems})
        sys.exit(1)


def _listen(settings: Settings) -> socket:
    """Bind the port, before a file is opened or a process is forked."""
    check_bind(settings)
    tracing.check(settings)
    return open_listener(settings.bind)


def _prepare_data_directory(settings: Settings) -> None:
    if settings.database_url is None:
        prepare_data_directory(settings.data_dir)


def _prepare(supervisor: Supervisor) -> None:
    """Import the modules that the children need, so that they share them; count the restarts."""
    import receiver.worker.worker  # noqa: F401
    from receiver.metrics.counts import SupervisorCounts
    from receiver.metrics.sharing import count_as

    _import_server()
    count_as("supervisor")
    supervisor.on_restart = SupervisorCounts(("web", "worker")).restarted


def _open_once(settings: Settings) -> None:
    """Make or migrate the journal."""
    from receiver.journal.journal import Journal

    with suppress(ReceiverError):  # The web process and the worker report it.
        Journal(settings.journal_url).close()


@click.command
@settings_options
def web(settings: Settings) -> None:
    """Accept notifications and write them to the journal; a worker runs the actions."""
    with _begun(settings):
        listener = _listen(settings)
        _prepare_data_directory(settings)
        master = os.getpid()
        try:
            _web(settings, listener, SharedFlag())
        except SystemExit as end:
            # gunicorn's own code for a failed boot is for a supervisor; a user gets the usual 1.
            if end.code == CANNOT_START and os.getpid() == master:
                sys.exit(1)
            raise


def _import_server() -> "type[Server]":
    """Import the server; no variable of the environment changes it."""
    with without_foreign_variables():
        from receiver.web.server import Server
    return Server


def _web(settings: Settings, listener: socket, has_started: SharedFlag) -> None:
    _import_server()(settings, listener, has_started).run()


@click.command
@settings_options
def worker(settings: Settings) -> None:
    """Run the actions of what the journal holds; `receiver web` fills it."""
    with _begun(settings):
        _prepare_data_directory(settings)
        become_subreaper()
        _worker(settings, SharedFlag(), is_supervised=False)


def _supervised_worker(settings: Settings, listener: socket, has_started: SharedFlag) -> None:
    # A port that is bound here would stay bound when the web process has ended.
    listener.close()
    _worker(settings, has_started, is_supervised=True)


def _worker(settings: Settings, has_started: SharedFlag, *, is_supervised: bool) -> None:
    from receiver.worker.executors import ExecutorPool

    # The processes of actions are forked here. Their files have the modes that a user expects.
    restore_umask()
    try:
        with ExecutorPool(settings) as pool:
            close_umask()
            code = _work(settings, pool, has_started, is_supervised)
    except ReceiverError as error:
        if not is_supervised:
            raise
        _log.critical("worker cannot start", extra={"error": str(error)})
        # Another cause may be gone the next time.
        lasts = isinstance(error, SettingsError | PluginError | JournalUnusableError)
        sys.exit(CANNOT_START if lasts else 1)
    logging.shutdown()
    sys.stdout.flush()
    end_descendants()
    release_output()
    # Threads that wait for processes of actions must not keep this one.
    os._exit(code)


def _work(
    settings: Settings, pool: "ExecutorPool", has_started: SharedFlag, is_supervised: bool
) -> int:
    from receiver.journal.durability import warn_of_durability_risks
    from receiver.journal.journal import Journal
    from receiver.metrics.counts import WorkerCounts
    from receiver.metrics.sharing import count_as
    from receiver.worker.worker import Worker

    journal = Journal(settings.journal_url)
    if not is_supervised:  # Else the web process warns.
        warn_of_durability_risks(settings.journal_url)
    loaded = pool.loaded()
    count_as("worker")
    traces = tracing.start(settings, "worker")
    counts = WorkerCounts(loaded.actions)
    if settings.worker_metrics_bind and not is_supervised:
        # Flask with it, which no other worker needs.
        from receiver.web.workerside import listen

        listen(settings, settings.worker_metrics_bind, counts.registry)
    one = Worker(journal, pool, loaded, settings, counts, traces)
    has_started.set()
    is_stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        del frame
        if is_stopping and signum in AT_ONCE_SIGNALS:
            end_descendants()
            release_output()
            os._exit(1)
        is_stopping = True
        one.stop()

    for number in DRAIN_SIGNALS:
        signal.signal(number, stop)
    code = one.run()
    traces.close()
    return code
