"""What is rejected: since when, and until when."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver.alert import NO_START
from receiver.intake import Routed
from receiver.journal.tables import rejected
from receiver.routing import UNUSABLE

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


def is_taken_up(name: str, rule: str, routed: Routed) -> bool:
    """Whether what was refused under a name is not refused any more.

    A notification by another route says nothing about it: one that names its action by the path,
    about what alerts name, and the other way round.
    """
    return (
        name in routed.route.actions or rule == UNUSABLE or "path" not in (rule, routed.route.rule)
    )
