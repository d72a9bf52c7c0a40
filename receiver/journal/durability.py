"""What makes a journal lose what it has stored, although no session of the receiver can change it.

What a session can change is raised where it begins: `synchronous_commit` and SQLite's `synchronous`
in `receiver.journal.dialects`.
"""

import logging
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from receiver.journal.dialects import check_url, dialect_of, reading
from receiver.journal.tables import metadata

# Where files are gone once the machine restarts.
_IN_MEMORY = ("tmpfs", "ramfs")
_SETTINGS = {
    "fsync": "a crash of the server's machine can lose or damage the journal",
    "full_page_writes": "a crash of the server's machine can damage the journal",
}
_log = logging.getLogger(__name__)


def find_durability_risks(url: str, mounts: Path = Path("/proc/self/mounts")) -> list[str]:
    """Return every reason why a journal may lose what it has stored, each with its cure.

    Only a journal on PostgreSQL is connected to. Raises SQLAlchemy's DBAPIError if it cannot be.
    """
    parsed = check_url(url)
    if parsed.drivername == "sqlite":
        return _risks_of_file(Path(str(parsed.database)), mounts)
    return _risks_of_server(parsed)


def warn_of_durability_risks(url: str) -> None:
    """Log each risk."""
    try:
        risks = find_durability_risks(url)
    except sa.exc.DBAPIError as error:
        _log.warning("durability of the journal is unknown", extra={"error": str(error.orig)})
        return
    for risk in risks:
        _log.warning("journal may lose accepted alerts", extra={"reason": risk})


def _risks_of_file(file: Path, mounts: Path) -> list[str]:
    place = file.parent.resolve()
    above = {str(one) for one in (place, *place.parents)}
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:  # Only Linux has it.
        return []
    # The deepest mount point holds the file, and of two on one point the later.
    found = [(point, kind) for _, point, kind, *_ in lines if point in above]
    point, kind = max(reversed(found), key=lambda one: len(one[0]), default=("", ""))
    if kind not in _IN_MEMORY:
        return []
    return [
        f"{place} is kept in memory ({kind} on {point}), so a restart of the machine loses the "
        "journal; set RECEIVER_DATA_DIR to a directory on a disk"
    ]


def _risks_of_server(url: URL) -> list[str]:
    dialect = dialect_of(url)
    engine = dialect.create_engine(url)
    try:
        with reading(engine) as connection:
            return _weak_settings(connection) + _unlogged_tables(connection)
    finally:
        engine.dispose()


def _weak_settings(connection: Connection) -> list[str]:
    query = sa.text("SELECT name FROM pg_settings WHERE setting = 'off' AND name = ANY (:names)")
    return [
        f"PostgreSQL runs with {name} = off, so {_SETTINGS[name]}; set {name} = on in "
        "postgresql.conf and reload"
        for name in sorted(connection.execute(query, {"names": [*_SETTINGS]}).scalars())
    ]


def _unlogged_tables(connection: Connection) -> list[str]:
    query = sa.text(
        "SELECT relname FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r' "
        "AND pg_table_is_visible(oid) AND relname = ANY (:names)"
    )
    return [
        f"the table {name} is UNLOGGED, so a crash of the server empties it; run ALTER TABLE "
        f"{name} SET LOGGED"
        for name in sorted(connection.execute(query, {"names": [*metadata.tables]}).scalars())
    ]
