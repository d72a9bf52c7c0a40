"""The processes that work on a journal, as anyone who looks once can see them."""

import fcntl
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.journal.journal import Journal
from receiver.journal.tables import instances

# A heartbeat that has not moved for so long is that of a process that died, or lost the journal;
# for proof the setting RECEIVER_LEASE counts.
LEASE = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that is running, as far as one look can tell, and the actions that it has loaded."""

    id: str
    actions: frozenset[str]


def lock_directory(journal: Journal) -> Path | None:
    """Return where each process of this machine holds a lock on a file; None on PostgreSQL."""
    directory = journal.shared_directory
    return directory / "instances" if directory else None


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock on a process's file: it is dead."""
    try:
        with path.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def living_workers(journal: Journal, connection: Connection) -> list[Worker]:
    """Return the workers that seem to be running; proof is the business of `worker.leases`."""
    directory = lock_directory(journal)
    since = journal.now(connection) - LEASE
    table = instances
    query = sa.select(table.c.id, table.c.actions, table.c.beaten_at).where(
        table.c.role == "worker"
    )
    return [
        Worker(found.id, frozenset(json.loads(found.actions)))
        for found in connection.execute(query.order_by(table.c.started_at))
        if (not is_free(directory / found.id) if directory else found.beaten_at > since)
    ]
