"""Who works on the journal, and proof that somebody does no more.

On one machine every process holds a lock on a file of its own for as long as it lives, and only a
free lock proves death. On PostgreSQL a heartbeat counter that was seen not to move for the lease
time, on the observer's own monotonic clock, does.
"""

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.journal.instances import LEASE, is_free, lock_directory
from receiver.journal.journal import Journal
from receiver.journal.tables import instances, runs

# However long the lease is: who looks only once expects beats about so often.
_BEAT_SECONDS = 3.0


@dataclass(slots=True)
class _Watched:
    """Another process's heartbeat: how long it has been seen not to move, up to `looked_at`."""

    counter: int
    looked_at: float
    still_seconds: float = 0.0


class Instance:
    """This process, as the journal and other processes know it."""

    def __init__(
        self, journal: Journal, role: str, actions: Iterable[str], lease: timedelta = LEASE
    ) -> None:
        """Enter the process into the journal, and take the lock that shows that it lives."""
        self.id = f"{role}-{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._journal = journal
        self._role = role
        self._actions = json.dumps(sorted(actions))
        self._files = lock_directory(journal)
        self.lock = self._files / self.id if self._files else None
        self._held = _make(self.lock) if self.lock else None
        self._lease_seconds = lease.total_seconds()
        self._beat_seconds = min(self._lease_seconds / 5, _BEAT_SECONDS)
        self._watched: dict[str, _Watched] = {}
        with journal.writing() as connection:
            self._enter(connection)
        self._beaten = time.monotonic()

    def _enter(self, connection: Connection) -> None:
        now = self._journal.now(connection)
        connection.execute(
            sa.insert(instances).values(
                id=self.id,
                role=self._role,
                host=socket.gethostname(),
                pid=os.getpid(),
                version=version("alert-receiver"),
                actions=self._actions,
                started_at=now,
                # Anywhere: who comes back after its burial is not taken for what it was before.
                heartbeat=secrets.randbits(31),
                beaten_at=now,
            )
        )

    def beat(self) -> bool:
        """Move the heartbeat counter on, where others watch it, if it is time to.

        Return whether this process was taken for living until now. If not, what it had claimed is
        another's, and it enters the journal anew.
        """
        if not self._is_beat_due():
            return True
        began, was_in_time = time.monotonic(), not self.has_lost_lease()
        with self._journal.writing() as connection:
            was_known = self._move_on(connection)
        self._beaten = began
        return was_known and was_in_time

    def beat_in(self, connection: Connection) -> bool:
        """Beat in a transaction that claims, if it is time to: who was frozen claims as living."""
        if not self._is_beat_due():
            return True
        # Before all other locks, as everyone who takes it.
        self._journal.dialect.lock_claims(connection)
        return self._move_on(connection) and not self.has_lost_lease()

    def _move_on(self, connection: Connection) -> bool:
        beat = (
            sa.update(instances)
            .where(instances.c.id == self.id)
            .values(heartbeat=instances.c.heartbeat + 1, beaten_at=self._journal.now(connection))
        )
        if connection.execute(beat).rowcount:
            return True
        self._enter(connection)
        return False

    def _is_beat_due(self) -> bool:
        return self._files is None and time.monotonic() - self._beaten >= self._beat_seconds

    def has_lost_lease(self) -> bool:
        """Whether others may have taken this process for dead by now."""
        return self._files is None and time.monotonic() - self._beaten > self._lease_seconds

    def is_dead(self, other: str) -> bool:
        """Whether another process is proven dead; look often, for only what is seen counts."""
        if other == self.id:
            return False
        if self._files is not None:
            return is_free(self._files / other)
        with self._journal.reading() as connection:
            query = sa.select(instances.c.heartbeat).where(instances.c.id == other)
            counter = connection.execute(query).scalar()
        if counter is None:
            self._watched.pop(other, None)
            return True
        now = time.monotonic()
        watched = self._watched.get(other)
        if watched is None or watched.counter != counter:
            self._watched[other] = _Watched(counter, now)
            return False
        # While the journal could not be reached, or this process was frozen, nobody was seen, and
        # the other had no way to beat either: such a time counts as one look.
        watched.still_seconds += min(now - watched.looked_at, self._lease_seconds / 3)
        watched.looked_at = now
        return watched.still_seconds > self._lease_seconds

    def is_still_dead(self, connection: Connection, other: str) -> bool:
        """Whether another that was found dead did not come back; under the claim lock."""
        if self._files is not None:
            return True
        query = sa.select(instances.c.heartbeat).where(instances.c.id == other)
        counter = connection.execute(query).scalar()
        watched = self._watched.get(other)
        return counter is None or (watched is not None and counter == watched.counter)

    def bury_dead(self) -> None:
        """Forget the processes that are proven dead and own nothing any more."""
        with self._journal.reading() as connection:
            known = connection.execute(sa.select(instances.c.id)).scalars().all()
        for other in known:
            if self.is_dead(other):
                self._bury(other)
        self._watched = {one: seen for one, seen in self._watched.items() if one in known}

    def _bury(self, other: str) -> None:
        """Forget another, unless it has come back this moment."""
        with self._journal.writing() as connection:
            # Nobody claims meanwhile: what a process owns was claimed under its heartbeat.
            self._journal.dialect.lock_claims(connection)
            owns = sa.exists().where(
                runs.c.state == sa.literal_column("'running'"), runs.c.owner == other
            )
            if not self.is_still_dead(connection, other):
                return
            connection.execute(sa.delete(instances).where(instances.c.id == other, ~owns))
        if self._files is not None:
            (self._files / other).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave: the journal forgets this process, and its lock is given up."""
        with self._journal.writing() as connection:
            connection.execute(sa.delete(instances).where(instances.c.id == self.id))
        if self._files is not None:
            (self._files / self.id).unlink(missing_ok=True)
        if self._held is not None:
            self._held.close()


def _make(path: Path) -> TextIO:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    return _hold(path.open("w"), 0)


def hold_with(path: Path) -> TextIO:
    """Hold an instance's lock together with the process that made it: it is free after both."""
    return _hold(path.open("r+"), 1)


def _hold(file: TextIO, byte: int) -> TextIO:
    # A POSIX lock: a child that a plugin leaves behind does not inherit it.
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    return file
