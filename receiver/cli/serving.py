"""`receiver serve`, `receiver web` and `receiver worker`."""

import logging
import os
import signal
import sys
from types import FrameType

import click

from receiver import logs, tracing
from receiver.cli.options import settings_arguments, settings_options
from receiver.errors import JournalUnusableError, PerformerLostError, PluginError, SettingsError
from receiver.processes import end_with_parent
from receiver.settings import Settings
from receiver.supervisor import CANNOT_START, Supervisor
from receiver.web.binding import check_bind

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
    arguments = settings_arguments()
    children = {role: [sys.executable, "-m", "receiver", role, *arguments]
                for role in ("web", "worker")}  # fmt: skip
    with shared_directory():
        code = Supervisor(children, settings.grace_period).run()
    sys.exit(code)


@click.command
@settings_options
def web(settings: Settings) -> None:
    """Accept notifications and write them to the journal; a worker runs the actions."""
    from receiver.web.server import Server

    supervised = end_with_parent()
    logs.configure(settings.log_level, settings.log_format)
    check_bind(settings)
    tracing.check(settings)
    master = os.getpid()
    try:
        Server(settings).run()
    except SystemExit as end:
        # gunicorn's own code for a failed boot is for the supervisor; a user gets the usual 1.
        if end.code == CANNOT_START and not supervised and os.getpid() == master:
            sys.exit(1)
        raise


@click.command
@settings_options
def worker(settings: Settings) -> None:
    """Run the actions of what the journal holds; `receiver web` fills it."""
    from receiver.journal.journal import Journal
    from receiver.metrics.counts import WorkerCounts
    from receiver.metrics.sharing import count_as
    from receiver.worker.loop import Worker
    from receiver.worker.performer import Performer

    supervised = end_with_parent()
    logs.configure(settings.log_level, settings.log_format)
    try:
        performer = Performer(settings)
        journal = Journal(settings.journal_url)
        loaded = performer.loaded()
    except (SettingsError, PluginError, JournalUnusableError) as error:
        if not supervised:
            raise
        _log.critical("worker cannot start", extra={"error": str(error)})
        sys.exit(CANNOT_START)
    except PerformerLostError as error:
        _log.critical("worker cannot start", extra={"error": str(error)})
        sys.exit(1)  # It may have been killed, and do better next time.
    count_as("worker")
    traces = tracing.start(settings, "worker")
    counts = WorkerCounts(loaded.actions)
    if settings.worker_metrics_bind and not supervised:
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
    logging.shutdown()
    # Threads of actions that never returned must not keep the process.
    sys.stdout.flush()
    os._exit(code)
