"""Journals that hold many finished runs."""

import sqlalchemy as sa

from receiver.journal.journal import Journal

TABLES = ("runs", "episodes", "attempts")


def multiply(journal: Journal, rows: int) -> None:
    """Make many of the one finished run, its episode and its attempt."""
    numbers = {
        "sqlite": "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        f"WHERE i < {rows}) SELECT i FROM n)",
        "postgresql": f"(SELECT generate_series(1, {rows}) :: bigint AS i)",
    }[journal.dialect.name]
    with journal.writing() as connection:
        for table in TABLES:
            columns = [one["name"] for one in sa.inspect(connection).get_columns(table)]
            of_row = {"id": "i + 10", "run_id": "i + 10", "fingerprint": "'g' || i"}
            # Spread over time, as they come.
            of_row |= {
                name: f"{table}.{name} - i * 1000000"
                for name in ("created_at", "started_at", "finished_at")
            }
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
