"""What the commands that work on a journal share: opening it, who asks, and printing rows."""

import getpass
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from receiver.cli.remote import ApiDesk
from receiver.cli.terminal import safe
from receiver.desk import Desk, JournalDesk
from receiver.errors import OperationError
from receiver.journal.journal import Journal
from receiver.journal.requests import Person
from receiver.operations import Operations
from receiver.plugins import try_to_load
from receiver.processes import closed_umask
from receiver.settings import Settings

_WIDTH = 160  # Where nobody looks at a terminal.

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)


@contextmanager
def opened(settings: Settings, or_empty: bool = False) -> Iterator[Desk]:
    """Open the desk at a receiver: at its journal here, or by its API where `--url` says so.

    No journal is made where there is none. `or_empty`: work on one that is empty and forgotten
    afterwards, then. Raises OperationError otherwise: who pauses what is not there has stopped
    nothing.
    """
    url: str | None = click.get_current_context().obj
    if url is not None:
        yield ApiDesk(url, settings)
        return
    # What a person wants to see or stop must not depend on a plugin that is broken here.
    actions, _ = try_to_load(settings)
    with ExitStack() as stack:
        # SQLite makes files beside the journal.
        stack.enter_context(closed_umask())
        database, is_kept = settings.journal_url, True
        if settings.database_url is None and not (settings.data_dir / "journal.db").exists():
            if not or_empty:
                raise OperationError(
                    f"there is no journal in {settings.data_dir}; set RECEIVER_DATA_DIR or "
                    "RECEIVER_DATABASE_URL as for the receiver that you mean"
                )
            database = f"sqlite:///{stack.enter_context(TemporaryDirectory())}/journal.db"
            is_kept = False
        # Whoever looks must not be the one who migrates a journal in use.
        journal = Journal(database, upgrade=not is_kept)
        stack.callback(journal.close)
        yield JournalDesk(journal, Operations(settings, actions, journal), actions, person())


def warn_without_workers(desk: Desk) -> None:
    """Say so where nothing listens to what was asked for: it may be the wrong journal."""
    if not desk.workers():
        click.echo("no worker of this journal is running", err=True)


def person() -> Person:
    """Return who is at the terminal."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):
        who = "unknown"
    return Person(who, f"cli on {socket.gethostname()}")


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as JSON can hold it."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }


def print_json(value: Any) -> None:
    """Print JSON: strict, and ASCII, so that nothing in it acts on a terminal."""
    click.echo(json.dumps(value, indent=2))


def moment(value: datetime | None) -> str:
    """Return a time to the second, in UTC."""
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their headings; wide where nobody looks at a terminal."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(safe(cell) for cell in row))
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=_WIDTH)
    console.print(table)
