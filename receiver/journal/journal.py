"""The journal: the one way to the database, opened once per process and shared by its threads."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.errors import (
    JournalDataError,
    JournalError,
    JournalUnavailableError,
    JournalUnusableError,
)
from receiver.journal import migrate
from receiver.journal.dialects import check_url, dialect_of, reading
from receiver.journal.migrate import Migrations
from receiver.journal.tables import probe

# A pool has eight connections: however much is read, notifications can be written.
_READERS = 4
_READER_WAIT_SECONDS = 5.0


class Journal:
    """An open journal.

    `clock` gives the time to record, in a transaction; None: the dialect's shared clock. Every
    failure comes as one of the errors under JournalError. `wrote` is called after every write
    transaction, with the seconds that it took and whether it failed.
    """

    wrote: Callable[[float, bool], None] | None = None
    # Since when waits were found to lie ahead, on the monotonic clock; see receiver.journal.clock.
    ahead_since: float | None = None

    def __init__(
        self,
        url: str,
        clock: Callable[[], datetime] | None = None,
        upgrade: bool = True,
        known: Migrations = migrate.OURS,
    ) -> None:
        """Open the journal, bring it to the newest version, and check that it can be read."""
        parsed = check_url(url)
        if parsed.drivername == "sqlite" and parsed.database:
            # An action may change the working directory under us.
            parsed = parsed.set(database=str(Path(parsed.database).absolute()))
        self.dialect = dialect_of(parsed)
        self.shared_directory = self.dialect.shared_directory(parsed)
        self.shown_url = parsed.render_as_string(hide_password=True)
        self._clock = clock
        self._readers = threading.BoundedSemaphore(_READERS)
        self.engine = self.dialect.create_engine(parsed)
        try:
            with self._translated():
                self.dialect.check(self.engine)
                migrate.bring_up_to_date(self.engine, self.dialect, upgrade, known)
        except JournalError:
            self.engine.dispose()
            raise

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def now(self, connection: Connection) -> datetime:
        """Return the time by the clock that all processes on this journal share."""
        return self._clock() if self._clock else self.dialect.now(connection)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One write transaction: durable when the block has ended, nothing of it if it raises."""
        started = time.perf_counter()
        failed = True
        try:
            with self._translated(), self.engine.begin() as connection:
                yield connection
            failed = False
        finally:
            if self.wrote is not None:
                self.wrote(time.perf_counter() - started, failed)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent look, which waits for no write; few at a time, as there are connections.

        A thread opens no second one inside it.
        """
        if not self._readers.acquire(timeout=_READER_WAIT_SECONDS):
            raise JournalUnavailableError("the journal is busy: others are reading")
        try:
            with self._translated(), reading(self.engine) as connection:
                yield connection
        finally:
            self._readers.release()

    def check_writable(self) -> None:
        """Raise JournalUnavailableError unless a write would succeed now."""
        with self.writing() as connection:
            insert = self.dialect.insert(probe).values(id=1, written_at=self.now(connection))
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["id"], set_={"written_at": insert.excluded.written_at}
                )
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            cause = str(error.orig).strip().partition("\n")[0]
            if self.dialect.is_unusable(error):
                raise JournalUnusableError(
                    f"the journal {self.shown_url} cannot be used: {cause}; it was left as it "
                    "is: restore a backup, or move it away to begin a new one"
                ) from error
            if self.dialect.is_data_error(error):
                raise JournalDataError(f"the journal refuses the data: {cause}") from error
            if self.dialect.is_connection_spoilt(error, self.engine.url.database):
                self.engine.dispose()
            raise JournalUnavailableError(f"the journal cannot store now: {cause}") from error
        except sa.exc.TimeoutError as error:
            raise JournalUnavailableError(f"the journal is busy: {error}") from error
