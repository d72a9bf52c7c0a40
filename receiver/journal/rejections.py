"""Rejected alerts whose startsAt cannot be read."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.alert import NO_START
from receiver.journal.tables import rejected

_CHUNK = 400


def set_missing_starts(
    connection: Connection, refused: Iterable[dict[str, Any]], now: datetime
) -> None:
    """Give rejections without a startsAt the time of their first receipt: one row, however often
    the sender repeats them."""
    missing = [values for values in refused if values["starts_at"] == NO_START]
    known: dict[tuple[str, str], datetime] = {}
    for start in range(0, len(missing), _CHUNK):
        fingerprints = [values["fingerprint"] for values in missing[start : start + _CHUNK]]
        query = sa.select(rejected.c.source, rejected.c.fingerprint, rejected.c.starts_at).where(
            rejected.c.closed_at.is_(None),
            rejected.c.name == "",
            rejected.c.fingerprint.in_(fingerprints),
        )
        for found in connection.execute(query):
            known[found.source, found.fingerprint] = found.starts_at
    for values in missing:
        values["starts_at"] = known.get((values["source"], values["fingerprint"]), now)
