"""Brings a journal to the newest version at start, under a lock; never needs its data gone.

Each version leaves the journal usable by the one before (docs/migrations.md says how), so that
during an update old and new processes work side by side: a process takes a journal of its own
version or of the next, and refuses any other.
"""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection, Engine

from receiver.errors import JournalUnusableError
from receiver.journal.dialects import Dialect, reading


@dataclass(frozen=True)
class Migrations:
    """The versions that a program knows: a directory for alembic, and the newest of them."""

    directory: Path
    head: str


# The newest is written here, too: to look for it would cost each start; a test compares.
OURS = Migrations(Path(__file__).parent / "migrations", "0004")


def bring_up_to_date(
    engine: Engine, dialect: Dialect, upgrade: bool, known: Migrations = OURS
) -> None:
    """Run the migrations that are missing; only one process at a time does.

    Raises JournalUnusableError for a journal that is more than one version ahead, or behind when
    `upgrade` is false.
    """
    # Alembic costs more than all else at start, and nearly always there is nothing to do.
    with reading(engine) as connection:
        version = _version(connection)
    if _is_usable(version, known):
        return
    if not upgrade:
        raise JournalUnusableError(
            "the journal is not of this version yet; start the receiver to bring it up to date"
        )
    with dialect.migrating(engine) as connection:
        # Another process may have been faster, and know more versions.
        if not _is_usable(_version(connection), known):
            _run_alembic(connection, known)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _is_usable(version: str | None, known: Migrations) -> bool:
    """Whether a journal can be used as it is; raise JournalUnusableError if it never can."""
    if version is None or not version.isdecimal():
        return False
    ahead = int(version) - int(known.head)
    if ahead > 1:
        raise JournalUnusableError(
            f"the journal was written by a newer version of the receiver (its version is "
            f"{version}, this program's is {known.head}); install that version again, or restore "
            "the backup made before the upgrade"
        )
    return ahead >= 0


def _run_alembic(connection: Connection, known: Migrations) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(known.directory))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, known.head)
    except CommandError as error:
        raise JournalUnusableError(
            f"the journal cannot be brought to version {known.head} ({error}); was it written by "
            "a newer version of the receiver? Install that again, or restore a backup"
        ) from error
