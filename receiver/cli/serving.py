"""`receiver serve`, `receiver web` and `receiver worker`."""

import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import click

from receiver import logs, tracing
from receiver.cli.options import settings_options
from receiver.errors import JournalUnusableError, PluginError, ReceiverError, SettingsError
from receiver.settings import Settings
from receiver.supervisor import CANNOT_START, Supervisor
from receiver.web.binding import check_bind

if TYPE_CHECKING:
    from receiver.worker.performer import Performer

_log = logging.getLogger(__name__)


@click.command
@settings_options
def serve(settings: Settings) -> None:
    """Accept notifications and run actions: `receiver web` and `receiver worker` as one.

    Stops on SIGTERM: accepts no more, lets running attempts finish, and ends.
    """
    from receiver.metrics.sharing import shared_directory

    logs.configure(settings.log_level, settings.log_format)
    check_bind(settings)
    tracing.check(settings)
    with shared_directory():
        programs = {
            "web": partial(_web, settings),
            "worker": partial(_worker, settings, is_supervised=True),
        }
        supervisor = Supervisor(programs, settings.grace_period, partial(_open_once, settings))
        code = supervisor.run(_import_programs)
    sys.exit(code)


def _import_programs() -> None:
    """Import what the children need, so that they share it."""
    import receiver.web.server
    import receiver.worker.loop  # noqa: F401


def _open_once(settings: Settings) -> None:
    """Make or migrate the journal."""
    from receiver.journal.journal import Journal

    with suppress(ReceiverError):  # Those who cannot do without it say so.
        Journal(settings.journal_url).close()


@click.command
@settings_options
def web(settings: Settings) -> None:
    """Accept notifications and write them to the journal; a worker runs the actions."""
    logs.configure(settings.log_level, settings.log_format)
    check_bind(settings)
    tracing.check(settings)
    master = os.getpid()
    try:
        _web(settings)
    except SystemExit as end:
        # gunicorn's own code for a failed boot is for a supervisor; a user gets the usual 1.
        if end.code == CANNOT_START and os.getpid() == master:
            sys.exit(1)
        raise


def _web(settings: Settings) -> None:
    from receiver.web.server import Server

    Server(settings).run()


@click.command
@settings_options
def worker(settings: Settings) -> None:
    """Run the actions of what the journal holds; `receiver web` fills it."""
    logs.configure(settings.log_level, settings.log_format)
    _worker(settings, is_supervised=False)


def _worker(settings: Settings, *, is_supervised: bool) -> None:
    from receiver.worker.performer import Performer

    try:
        with Performer(settings) as performer:
            code = _work(settings, performer, is_supervised)
    except ReceiverError as error:
        if not is_supervised:
            raise
        _log.critical("worker cannot start", extra={"error": str(error)})
        # Of anything else it may be free the next time.
        lasts = isinstance(error, SettingsError | PluginError | JournalUnusableError)
        sys.exit(CANNOT_START if lasts else 1)
    logging.shutdown()
    # Threads that wait for processes of actions must not keep this one.
    sys.stdout.flush()
    os._exit(code)


def _work(settings: Settings, performer: "Performer", is_supervised: bool) -> int:
    from receiver.journal.journal import Journal
    from receiver.metrics.counts import WorkerCounts
    from receiver.metrics.sharing import count_as
    from receiver.worker.loop import Worker

    journal = Journal(settings.journal_url)
    loaded = performer.loaded()
    count_as("worker")
    traces = tracing.start(settings, "worker")
    counts = WorkerCounts(loaded.actions)
    if settings.worker_metrics_bind and not is_supervised:
        # Flask with it, which else no worker needs.
        from receiver.web.workerside import listen

        listen(settings, settings.worker_metrics_bind, counts.registry)
    one = Worker(journal, performer, loaded, settings, counts, traces)

    def stop(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        one.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    code = one.run()
    traces.close()
    return code
