"""Brings a journal to the newest version at start, under a lock; never needs its data gone."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from receiver.errors import JournalUnusableError
from receiver.journal.dialects import reading

# The newest version under migrations/versions; a test holds the two together.
HEAD = "0001"
_ADVISORY_LOCK = 7246135108


def bring_up_to_date(engine: Engine, dialect: str, upgrade: bool) -> None:
    """Run the migrations that are missing; only one process at a time does.

    Raises JournalUnusableError for a journal of a newer version, or of an older one when
    `upgrade` is false.
    """
    # Alembic costs more than all else at start, and nearly always there is nothing to do.
    if _version(engine) == HEAD:
        return
    if not upgrade:
        raise JournalUnusableError(
            "the journal is of another version; start the receiver once to bring it up to date"
        )
    with _lock(engine, dialect), engine.begin() as connection:
        _run_alembic(connection)


def _version(engine: Engine) -> str | None:
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.execute(
            sa.text("SELECT version_num FROM alembic_version")
        ).scalar()
        return found


def _run_alembic(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, HEAD)
    except CommandError as error:
        raise JournalUnusableError(
            f"the journal was written by a newer version of the receiver ({error}); install that "
            "version again, or restore the backup made before the upgrade"
        ) from error


@contextmanager
def _lock(engine: Engine, dialect: str) -> Iterator[None]:
    if dialect == "postgresql":
        with engine.connect() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_lock(_ADVISORY_LOCK)))
            try:
                yield
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(_ADVISORY_LOCK)))
    else:
        with Path(f"{engine.url.database}.migrate.lock").open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield
