"""Versions of the journal: an upgraded one equals a fresh one, and neighbours work side by side."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
import sqlalchemy as sa

from receiver.journal.journal import Journal
from receiver.journal.migrate import OURS, Migrations
from receiver.journal.tables import metadata
from tests.support.databases import Databases
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

# What a version may do to the one before: a column, a table, an index.
_NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "{number}"
down_revision = "{before}"


def upgrade():
    op.add_column("runs", sa.Column("note_{number}", sa.Text(), server_default="none"))
    op.create_table("notes_{number}", sa.Column("id", sa.Integer(), primary_key=True))
    op.create_index("ix_runs_note_{number}", "runs", ["note_{number}"])
"""


@pytest.fixture(scope="module")
def to_come(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Migrations]:
    """The migrations of programs one and two versions newer than this one."""
    found = {}
    for ahead in (1, 2):
        directory = tmp_path_factory.mktemp("newer") / "migrations"
        shutil.copytree(OURS.directory, directory, ignore=shutil.ignore_patterns("__pycache__"))
        for number in range(int(OURS.head) + 1, int(OURS.head) + 1 + ahead):
            text = _NEXT.format(number=f"{number:04}", before=f"{number - 1:04}")
            (directory / "versions" / f"{number:04}_note.py").write_text(text)
        found[ahead] = Migrations(directory, f"{int(OURS.head) + ahead:04}")
    return found


def versions_of(known: Migrations) -> list[str]:
    return sorted(path.name[:4] for path in (known.directory / "versions").glob("[0-9]*.py"))


def schema_of(journal: Journal | sa.Engine) -> dict[str, object]:
    """Return all that the database says about its tables, in an order of its own for none."""
    engine = journal.engine if isinstance(journal, Journal) else journal
    with engine.connect() as connection:
        seen = sa.inspect(connection)
        found: dict[str, object] = {}
        for table in sorted(set(seen.get_table_names()) - {"alembic_version"}):
            found[table] = {
                "columns": sorted(
                    (one["name"], str(one["type"]), one["nullable"], str(one["default"]))
                    for one in seen.get_columns(table)
                ),
                "key": seen.get_pk_constraint(table)["constrained_columns"],
                "unique": sorted(
                    (str(one["name"]), one["column_names"])
                    for one in seen.get_unique_constraints(table)
                ),
                "indexes": sorted(
                    (
                        str(one["name"]),
                        one["column_names"],
                        sorted(
                            f"{name}: {value}" for name, value in one["dialect_options"].items()
                        ),
                    )
                    for one in seen.get_indexes(table)
                ),
            }
        if engine.dialect.name == "sqlite":
            # The text holds what reflection leaves out, such as AUTOINCREMENT.
            query = "SELECT name, sql FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'"
            found["texts"] = sorted(name for name, _ in connection.exec_driver_sql(query))
        return found


def test_numbers_of_versions_have_no_gap_and_end_with_the_head() -> None:
    assert versions_of(OURS) == [f"{number:04}" for number in range(1, int(OURS.head) + 1)]


@pytest.mark.parametrize("version", versions_of(OURS))
def test_journal_upgraded_from_any_version_equals_the_tables_of_the_code(
    databases: Databases, journal_url: str, version: str
) -> None:
    Journal(journal_url, known=Migrations(OURS.directory, version)).close()
    upgraded = Journal(journal_url)
    fresh = sa.create_engine(databases.new(upgraded.dialect.name))
    if upgraded.dialect.name == "sqlite":
        Path(str(fresh.url.database)).parent.mkdir()
    metadata.create_all(fresh)
    assert schema_of(upgraded) == schema_of(fresh)
    assert "runs" in schema_of(fresh)
    upgraded.close()
    fresh.dispose()


def test_upgraded_journal_equals_a_fresh_one_and_keeps_its_rows(
    databases: Databases, journal_url: str, to_come: dict[int, Migrations]
) -> None:
    old = Journal(journal_url)
    old.check_writable()
    upgraded = Journal(journal_url, known=to_come[2])
    fresh = Journal(databases.new(old.dialect.name), known=to_come[2])
    assert schema_of(upgraded) == schema_of(fresh) != schema_of_ours(databases, old)
    with upgraded.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM probe").scalar() == 1
    for one in (old, upgraded, fresh):
        one.close()


def schema_of_ours(databases: Databases, like: Journal) -> dict[str, object]:
    ours = Journal(databases.new(like.dialect.name))
    try:
        return schema_of(ours)
    finally:
        ours.close()


@pytest.fixture
def receivers(
    databases: Databases, start_receiver: Callable[..., Receiver]
) -> Iterator[tuple[Receiver, str]]:
    url = databases.new("postgresql")
    yield start_receiver("serve", RECEIVER_DATABASE_URL=url).wait_ready(), url


def test_old_replica_works_on_while_a_newer_one_migrates_and_refuses_two_ahead(
    receivers: tuple[Receiver, str],
    start_receiver: Callable[..., Receiver],
    to_come: dict[int, Migrations],
) -> None:
    old, url = receivers
    newer = Journal(url, known=to_come[1])  # What the first pod of an update does.

    def finished() -> int:
        with newer.reading() as connection:
            query = "SELECT count(*) FROM runs WHERE outcome = 'succeeded' AND note_0002 = 'none'"
            return int(connection.exec_driver_sql(query).scalar_one())

    assert old.post(notification(alert("f1")), "/webhook/log_action").status_code == 200
    wait_until(lambda: finished() == 1, 60)
    # An old pod that is restarted in the midst of the update comes back.
    again = start_receiver("serve", RECEIVER_DATABASE_URL=url).wait_ready()
    assert again.post(notification(alert("f2")), "/webhook/log_action").status_code == 200
    wait_until(lambda: finished() == 2, 60)
    newer.close()
    Journal(url, known=to_come[2]).close()
    refused = start_receiver("serve", RECEIVER_DATABASE_URL=url)
    assert refused.process is not None
    assert refused.process.wait(30) == 1
    assert "written by a newer version of the receiver (its version is 0003" in refused.text()


def run_command(url: str, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "receiver", command],
        env={**os.environ, "RECEIVER_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", ["runs", "pause"])
def test_command_does_not_migrate_a_journal_of_an_older_version(
    databases: Databases, command: str
) -> None:
    url = databases.new("postgresql")
    journal = Journal(url)
    with journal.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    ended = run_command(url, command)
    assert ended.returncode == 1
    assert "start the receiver to bring it up to date" in ended.stderr
    with journal.reading() as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    assert found == "0000"
    journal.close()


def test_command_on_a_database_without_a_journal_makes_none(databases: Databases) -> None:
    url = databases.new("postgresql")
    assert run_command(url, "runs").returncode == 1
    engine = sa.create_engine(url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_processes_that_start_together_migrate_once(journal_url: str) -> None:
    opened: list[Journal] = []
    threads = [Thread(target=lambda: opened.append(Journal(journal_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for one in opened:
        one.close()
