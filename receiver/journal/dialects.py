"""All that differs between SQLite and PostgreSQL, in one place."""

import fcntl
import importlib.util
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url

from receiver.data_directory import open_regular_file
from receiver.errors import JournalUnusableError
from receiver.journal.tables import episodes

# How long a write waits for another process that is writing (SQLite) or holds the rows.
_LOCK_WAIT_SECONDS = 2
# From one try to the next, shorter at first.
_LOCK_STEPS_SECONDS = (0.0001, 0.001)
# Reading so much takes a fraction of a second; more would be felt at every start.
_CHECKED_BYTES = 128 * 2**20
_MIGRATION_LOCK, _CLAIM_LOCK = 7246135108, 7246135109
_READ = "journal_reads_only"
Key = tuple[str, str, str]


class Dialect(Protocol):
    """What the journal asks of a database."""

    name: str

    def create_engine(self, url: URL) -> Engine:
        """Return an engine whose every transaction is as durable as the journal promises."""

    def shared_directory(self, url: URL) -> Path | None:
        """Return where all processes on this journal meet; None: they may be on many machines."""

    def check(self, engine: Engine) -> None:
        """Raise JournalUnusableError when the database is seen to be damaged."""

    def migrating(self, engine: Engine) -> AbstractContextManager[Connection]:
        """One transaction that only one process at a time is in, and that may take long."""

    def insert(self, table: sa.Table) -> Any:
        """Return an INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""

    def now(self, connection: Connection) -> datetime:
        """Return the time by the clock that all processes on this journal share."""

    def lock_episodes(self, connection: Connection, keys: Collection[Key]) -> None:
        """Make sure that nobody else changes these rows before the transaction ends."""

    def for_update(self, query: sa.Select[Any], skip_locked: bool = False) -> sa.Select[Any]:
        """Return the query, locking the rows that it finds."""

    def lock_claims(self, connection: Connection) -> None:
        """Make sure that nobody else claims runs before the transaction ends."""

    def size(self, connection: Connection) -> tuple[int, int | None]:
        """Return the bytes that the journal takes, and those that its disk has left, if known."""

    def is_data_error(self, error: sa.exc.DBAPIError) -> bool:
        """Whether the statement's own data is to blame: the same will fail again."""

    def is_unusable(self, error: sa.exc.DBAPIError) -> bool:
        """Whether the database is damaged or no database at all."""

    def is_connection_spoilt(self, error: sa.exc.DBAPIError, database: str | None) -> bool:
        """Whether only a new connection can find that the cause has gone."""


class SQLite:
    """One file on a local disk; every write transaction holds the only write lock."""

    name = "sqlite"

    def create_engine(self, url: URL) -> Engine:
        """Open the file: WAL, synchronous=FULL, every write begun as BEGIN IMMEDIATE."""
        if url.database is None or url.database == ":memory:":
            raise JournalUnusableError("the journal cannot be kept in memory; name a file")
        directory = Path(url.database).parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise JournalUnusableError(
                f"{directory} cannot be created: {error.strerror}; set RECEIVER_DATA_DIR"
            ) from error
        engine = sa.create_engine(
            url,
            hide_parameters=True,  # Alerts do not belong into error texts, and so into logs.
            connect_args={"timeout": _LOCK_WAIT_SECONDS, "check_same_thread": False},
        )
        event.listen(engine, "connect", self._set_up)
        event.listen(engine, "begin", self._begin)
        return engine

    def shared_directory(self, url: URL) -> Path | None:
        """Return the directory of the file."""
        return Path(str(url.database)).parent

    @staticmethod
    def _set_up(connection: sqlite3.Connection, record: object) -> None:
        del record
        connection.isolation_level = None  # The transactions are begun below, not by the driver.
        cursor = connection.cursor()
        # Two that open a new journal at once: SQLite refuses one of them without any waiting.
        _insist(cursor, "PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.close()

    @staticmethod
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get(_READ):
            connection.exec_driver_sql("BEGIN")
            return
        # SQLite's own waiting sleeps a millisecond at least, then longer and longer, and so loses
        # to whoever asks again at once: short steps share the lock fairly between web and worker.
        cursor = connection.connection.cursor()
        try:
            cursor.execute("PRAGMA busy_timeout=0")
            _insist(cursor, "BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise sa.exc.OperationalError("BEGIN IMMEDIATE", None, error) from error
        finally:
            cursor.execute(f"PRAGMA busy_timeout={_LOCK_WAIT_SECONDS * 1000}")
            cursor.close()

    def check(self, engine: Engine) -> None:
        """Read all pages of a small file, and so find damage before it spreads."""
        file = Path(str(engine.url.database))
        if not file.exists() or file.stat().st_size > _CHECKED_BYTES:
            return
        with reading(engine) as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found != "ok":
            raise JournalUnusableError(
                f"the journal {file} is damaged: {found}; it was left as it is: restore a "
                "backup, or move it away to begin a new one"
            )

    @contextmanager
    def migrating(self, engine: Engine) -> Iterator[Connection]:
        """Hold a lock on a file beside the journal's: to wait for it has no limit."""
        lock = Path(f"{engine.url.database}.migrate.lock")
        try:
            descriptor = open_regular_file(lock, os.O_RDWR | os.O_CREAT)
        except PermissionError as error:
            raise JournalUnusableError(f"{lock}: {error.strerror}; move it away") from error
        with os.fdopen(descriptor, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            with engine.begin() as connection:
                yield connection

    def insert(self, table: sa.Table) -> Any:
        """Return SQLite's own INSERT."""
        return sqlite.insert(table)

    def now(self, connection: Connection) -> datetime:
        """Return this machine's time: all processes are on it."""
        del connection
        return datetime.now(UTC)

    def lock_episodes(self, connection: Connection, keys: Collection[Key]) -> None:
        """Do nothing: the write lock covers all rows."""

    def for_update(self, query: sa.Select[Any], skip_locked: bool = False) -> sa.Select[Any]:
        """Return the query as it is: the write lock covers all rows."""
        del skip_locked
        return query

    def lock_claims(self, connection: Connection) -> None:
        """Do nothing: the write lock covers all."""

    def size(self, connection: Connection) -> tuple[int, int | None]:
        """Return the size of the file with its log, and what its disk has left."""
        file = str(connection.engine.url.database)
        found = [Path(one) for one in (file, f"{file}-wal")]
        disk = os.statvfs(Path(file).parent)
        size = sum(one.stat().st_size for one in found if one.exists())
        return size, disk.f_bavail * disk.f_frsize

    def is_data_error(self, error: sa.exc.DBAPIError) -> bool:
        """Whether SQLite refuses the data, not the moment."""
        return isinstance(error, sa.exc.DataError | sa.exc.IntegrityError | sa.exc.InterfaceError)

    def is_unusable(self, error: sa.exc.DBAPIError) -> bool:
        """Whether the file is damaged or no database."""
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

    def is_connection_spoilt(self, error: sa.exc.DBAPIError, database: str | None) -> bool:
        """Whether a file that was opened read-only may be written by now: open it again."""
        is_read_only = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY
        return is_read_only and os.access(str(database), os.W_OK)


def _insist(cursor: Any, statement: str) -> None:
    """Execute a statement, again and again while another process is in the way."""
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    step, longest = _LOCK_STEPS_SECONDS
    while True:
        try:
            cursor.execute(statement)
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(step)
            step = min(step * 1.5, longest)
        else:
            return


# Connections of one process at rest, and as many more for a moment.
_POOL = 4
_CONNECTING = {
    "application_name": "alert-receiver",
    "connect_timeout": _LOCK_WAIT_SECONDS,
    # The transactions are begun below, not by the driver.
    "autocommit": True,
    # A pooler in transaction mode gives each transaction another session: it must need nothing
    # of an earlier one, neither prepared statements nor settings.
    "prepare_threshold": None,
    # A server whose machine is gone says nothing: these find it out, in well under ten seconds.
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
# One message to the server, as BEGIN alone would be. A process that is frozen in the midst of a
# transaction must not keep its locks from all others.
_LIMITS = (
    f"SET LOCAL lock_timeout = {_LOCK_WAIT_SECONDS * 1000}; "
    "SET LOCAL statement_timeout = 6000; "
    "SET LOCAL idle_in_transaction_session_timeout = 5000"
)
_BEGIN = f"BEGIN ISOLATION LEVEL READ COMMITTED; {_LIMITS}"
# A server, a database or a role may have set less. What is stronger stays.
_DURABLE = "SET LOCAL synchronous_commit = on"
_BEGIN_READ = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_LIMITS}"


def ignore_notification(notification: object) -> None:
    """Do nothing: what a connection of the pool is told is not meant for it."""
    del notification


class PostgreSQL:
    """A server that many processes on many machines share; its clock is the one that counts."""

    name = "postgresql"

    def create_engine(self, url: URL) -> Engine:
        """Connect lazily; nothing is waited for longer than the webhook may take."""
        engine = sa.create_engine(
            url,
            hide_parameters=True,
            pool_pre_ping=True,
            pool_size=_POOL,
            max_overflow=_POOL,
            pool_timeout=_LOCK_WAIT_SECONDS,
            connect_args=_CONNECTING,
        )
        event.listen(engine, "connect", self._set_up)
        event.listen(engine, "begin", self._begin)
        return engine

    def shared_directory(self, url: URL) -> Path | None:
        """Return None: they meet in the database alone."""
        del url
        return None

    @staticmethod
    def _set_up(connection: Any, record: Any) -> None:
        (level,) = connection.execute("SHOW synchronous_commit").fetchone()
        record.info["begin"] = _BEGIN if level == "remote_apply" else f"{_BEGIN}; {_DURABLE}"
        # Behind a pooler, notifications that are another's may come: psycopg would hoard them.
        connection.add_notify_handler(ignore_notification)

    @staticmethod
    def _begin(connection: Connection) -> None:
        is_read = connection.get_execution_options().get(_READ)
        connection.exec_driver_sql(_BEGIN_READ if is_read else connection.info["begin"])

    def check(self, engine: Engine) -> None:
        """Do nothing: the server looks after its files."""

    @contextmanager
    def migrating(self, engine: Engine) -> Iterator[Connection]:
        """Take a lock, however long another migration takes; those of tables wait no longer."""
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; "
                "SET LOCAL idle_in_transaction_session_timeout = 0"
            )
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_WAIT_SECONDS * 1000}")
            yield connection

    def insert(self, table: sa.Table) -> Any:
        """Return PostgreSQL's own INSERT."""
        return postgresql.insert(table)

    def now(self, connection: Connection) -> datetime:
        """Return the server's time."""
        found: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        return found.astimezone(UTC)

    def lock_episodes(self, connection: Connection, keys: Collection[Key]) -> None:
        """Create the rows that do not exist, in key order: two writers meet here, and one waits.

        An empty row holds the place of one that another transaction may be about to create.
        """
        if keys:
            places = [
                {"source": source, "fingerprint": fingerprint, "action": action}
                for source, fingerprint, action in sorted(keys)
            ]
            connection.execute(self.insert(episodes).on_conflict_do_nothing(), places)

    def for_update(self, query: sa.Select[Any], skip_locked: bool = False) -> sa.Select[Any]:
        """Return the query with FOR UPDATE of the table it selects from first."""
        return query.with_for_update(skip_locked=skip_locked, of=query.columns_clause_froms[0])

    def lock_claims(self, connection: Connection) -> None:
        """Take the one claim lock: limits and targets are counted by one claimer at a time."""
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CLAIM_LOCK)))

    def size(self, connection: Connection) -> tuple[int, int | None]:
        """Return the size of the database; its disk is out of sight."""
        query = sa.select(sa.func.pg_database_size(sa.func.current_database()))
        return connection.execute(query).scalar_one(), None

    def is_data_error(self, error: sa.exc.DBAPIError) -> bool:
        """Whether PostgreSQL refuses the data (SQLSTATE class 22, 23 or 54)."""
        state = getattr(error.orig, "sqlstate", None) or ""
        return isinstance(error, sa.exc.DataError | sa.exc.IntegrityError) or state[:2] in (
            "22", "23", "54",
        )  # fmt: skip

    def is_unusable(self, error: sa.exc.DBAPIError) -> bool:
        """Whether the database cannot be what the URL says (class 28, 3D)."""
        state = getattr(error.orig, "sqlstate", None) or ""
        return state[:2] in ("28", "3D")

    def is_connection_spoilt(self, error: sa.exc.DBAPIError, database: str | None) -> bool:
        """Whether the connection was lost: SQLAlchemy sees to that itself."""
        del error, database
        return False


DIALECTS: dict[str, Callable[[], Dialect]] = {"sqlite": SQLite, "postgresql": PostgreSQL}


def dialect_of(url: URL) -> Dialect:
    """Return the dialect of a database URL; raise JournalUnusableError for any other."""
    if url.drivername == "sqlite":
        return SQLite()
    if url.drivername == "postgresql+psycopg":
        if importlib.util.find_spec("psycopg") is None:
            raise JournalUnusableError(
                "PostgreSQL needs its driver: pip install 'alert-receiver[postgres]'"
            )
        return PostgreSQL()
    raise JournalUnusableError(
        f"RECEIVER_DATABASE_URL: {url.drivername} is not a journal; write "
        "postgresql+psycopg://user:password@host/name, or leave it out for SQLite"
    )


def check_url(url: str) -> URL:
    """Return the parsed URL of a journal; raise JournalUnusableError for what can be none."""
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        # The text is not shown: it may hold a password.
        raise JournalUnusableError(
            "RECEIVER_DATABASE_URL: is not a URL; write "
            "postgresql+psycopg://user:password@host/name"
        ) from None
    dialect_of(parsed)
    return parsed


def shown_url(url: str) -> str:
    """Return a journal's URL without its password."""
    return check_url(url).render_as_string(hide_password=True)


def reading(engine: Engine) -> Connection:
    """Return a connection for reading only, which never waits for a writer."""
    return engine.connect().execution_options(**{_READ: True})
