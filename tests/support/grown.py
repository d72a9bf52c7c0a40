"""Journals that hold many finished runs."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.journal.journal import Journal
from receiver.journal.tables import AT_ONCE, attempts, episodes, runs
from tests.support.notifications import alert, notification

TABLES = ("runs", "episodes", "attempts")
_SECOND = timedelta(seconds=1)
(_FINISHED,) = parse_notification(notification(alert())).alerts
# What a site with many kinds of alerts has; one run of fifty failed.
VARIED = {
    "alert_name": "'Alert' || (i - i / 500 * 500)",
    "outcome": "CASE WHEN i - i / 50 * 50 = 0 THEN 'failed' ELSE runs.outcome END",
}


def multiply(
    journal: Journal,
    rows: int,
    apart: timedelta = _SECOND,
    varied: Mapping[str, str] | None = None,
) -> None:
    """Make many of the one finished run, its episode and its attempt.

    Each is so much older than the one before. `varied` names columns of the runs and their values,
    in SQL, where `i` counts from 1.
    """
    numbers = {
        "sqlite": "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        f"WHERE i < {rows}) SELECT i FROM n)",
        "postgresql": f"(SELECT generate_series(1, {rows}) :: bigint AS i)",
    }[journal.dialect.name]
    with journal.writing() as connection:
        for table in TABLES:
            columns = [one["name"] for one in sa.inspect(connection).get_columns(table)]
            of_row = {
                "id": f"{rows + 10} - i",
                "run_id": f"{rows + 10} - i",
                "fingerprint": "'g' || i",
            }
            # Spread over time, as they come.
            of_row |= {
                name: f"{table}.{name} - i * {apart // timedelta(microseconds=1)}"
                for name in ("created_at", "started_at", "finished_at", "seen_at")
            }
            of_row |= varied or {} if table == "runs" else {}
            values = [of_row.get(name, f"{table}.{name}") for name in columns]
            connection.exec_driver_sql(
                f"INSERT INTO {table} ({', '.join(columns)}) "
                f"SELECT {', '.join(values)} FROM {table}, {numbers} AS numbers"
            )
        if journal.dialect.name == "postgresql":
            # Beyond what was copied, where new ones are numbered.
            for table in ("runs", "episodes"):
                connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {rows + 100})"
                )
    with journal.writing() as connection:
        connection.exec_driver_sql("ANALYZE")


def put_finished(
    journal: Journal, kind: str, number: int, at: datetime, open_seen_at: datetime | None = None
) -> None:
    """Put finished runs, each with its attempt and its episode, into a journal.

    The episodes ended with their runs, or are open and were seen at another time.
    """
    names = [f"{kind} {one}" for one in range(number)]
    identity: dict[str, Any] = {"source": "", "action": "witness", "starts_at": at}
    with journal.writing() as connection:
        connection.execute(
            sa.insert(episodes),
            [
                {
                    **identity,
                    "fingerprint": name,
                    "mark_at": at,
                    "seen_at": open_seen_at or at,
                    "closed_at": None if open_seen_at else at,
                }
                for name in names
            ],
        )
        connection.execute(
            sa.insert(runs),
            [
                {
                    **identity,
                    "fingerprint": name,
                    "kind": "fired",
                    "ordinal": 0,
                    "episode_action": "witness",
                    "target": name,
                    "alert_name": _FINISHED.name,
                    "alert": _FINISHED.to_json(),
                    "receiver": "",
                    "external_url": "",
                    "created_at": at,
                    "received_at": at,
                    "state": "finished",
                    "outcome": "succeeded",
                    "reason": "the action succeeded",
                    "due_at": AT_ONCE,
                    "attempts": 1,
                    "started_at": at,
                    "finished_at": at,
                }
                for name in names
            ],
        )
        found = connection.execute(sa.select(runs.c.id).where(runs.c.fingerprint.like(kind + " %")))
        connection.execute(
            sa.insert(attempts),
            [
                {
                    "run_id": run_id,
                    "number": 1,
                    "action": "witness",
                    "kind": "fired",
                    "target": "",
                    "dry_run": False,
                    "owner": "worker-gone-1-00000000",
                    "started_at": at,
                    "finished_at": at,
                    "outcome": "succeeded",
                }
                for run_id in found.scalars()
            ],
        )
