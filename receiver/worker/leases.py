"""Who works on the journal, and proof that somebody does no more.

On one machine every process holds a lock on a file of its own for as long as it lives, and only a
free lock proves death. On PostgreSQL a heartbeat counter that has not moved for the lease time, on
the observer's own monotonic clock, does.
"""

import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import sqlalchemy as sa

from receiver.journal.instances import LEASE, is_free, lock_directory
from receiver.journal.journal import Journal
from receiver.journal.tables import instances

_log = logging.getLogger(__name__)


class Instance:
    """This process, as the journal and other processes know it."""

    def __init__(self, journal: Journal, role: str, actions: Iterable[str]) -> None:
        """Enter the process into the journal, and take the lock that shows that it lives."""
        self.id = f"{role}-{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._journal = journal
        self._files = lock_directory(journal)
        self._lock = _hold(self._files / self.id) if self._files else None
        self._seen: dict[str, tuple[int, float]] = {}
        self._beaten = time.monotonic()
        with journal.writing() as connection:
            now = journal.now(connection)
            connection.execute(
                sa.insert(instances).values(
                    id=self.id,
                    role=role,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    version=version("alert-receiver"),
                    actions=json.dumps(sorted(actions)),
                    started_at=now,
                    beaten_at=now,
                )
            )

    def beat(self) -> None:
        """Move the heartbeat counter on, where others watch it."""
        if self._files is not None or time.monotonic() - self._beaten < LEASE.total_seconds() / 5:
            return
        with self._journal.writing() as connection:
            connection.execute(
                sa.update(instances)
                .where(instances.c.id == self.id)
                .values(
                    heartbeat=instances.c.heartbeat + 1, beaten_at=self._journal.now(connection)
                )
            )
        self._beaten = time.monotonic()

    def is_dead(self, other: str) -> bool:
        """Whether another process is proven dead."""
        if other == self.id:
            return False
        if self._files is not None:
            return is_free(self._files / other)
        with self._journal.reading() as connection:
            query = sa.select(instances.c.heartbeat).where(instances.c.id == other)
            counter = connection.execute(query).scalar()
        if counter is None:
            return True
        now = time.monotonic()
        seen, since = self._seen.get(other, (-1, now))
        if seen != counter:
            self._seen[other] = (counter, now)
            return False
        return now - since > LEASE.total_seconds()

    def bury_dead(self) -> None:
        """Forget the processes that are proven dead and own nothing any more."""
        with self._journal.reading() as connection:
            known = [one for (one,) in connection.execute(sa.select(instances.c.id))]
        for other in known:
            if self.is_dead(other):
                self._forget(other)

    def close(self) -> None:
        """Leave: the journal forgets this process, and its lock is given up."""
        self._forget(self.id)
        if self._lock is not None:
            self._lock.close()

    def _forget(self, instance: str) -> None:
        with self._journal.writing() as connection:
            connection.execute(sa.delete(instances).where(instances.c.id == instance))
        if self._files is not None:
            (self._files / instance).unlink(missing_ok=True)


def _hold(path: Path) -> TextIO:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    file = path.open("w")
    # A POSIX lock: a child that a plugin leaves behind does not inherit it.
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file
