"""What is stored stays, whatever somebody else has set for the database."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from receiver.journal.durability import find_durability_risks, warn_of_durability_risks
from receiver.journal.journal import Journal
from receiver.journal.tables import runs
from tests.support.databases import Databases

_CURE = "set {0} = on in postgresql.conf and reload"


@pytest.fixture
def url(databases: Databases) -> str:
    return databases.new("postgresql")


@pytest.fixture
def execute(url: str) -> Iterator[Callable[[str], None]]:
    """Execute statements as the administrator of the database would."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")

    def execute(statement: str) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    yield execute
    engine.dispose()


@pytest.mark.parametrize(
    ("set_for_all", "expected"),
    [
        ("off", "on"),
        ("local", "on"),
        ("remote_write", "on"),
        ("on", "on"),
        ("remote_apply", "remote_apply"),
    ],
)
def test_transaction_that_stores_is_as_durable_as_promised_at_least(
    url: str, execute: Callable[[str], None], set_for_all: str, expected: str
) -> None:
    database = sa.make_url(url).database
    execute(f"ALTER DATABASE {database} SET synchronous_commit = {set_for_all}")
    journal = Journal(url)
    try:
        for _ in range(2):  # On a connection that was used before, too.
            with journal.writing() as connection:
                level = connection.exec_driver_sql("SHOW synchronous_commit").scalar()
                assert level == expected
    finally:
        journal.close()


def test_option_in_the_url_does_not_weaken_what_is_stored(url: str) -> None:
    asks = sa.make_url(url).update_query_dict({"options": "-csynchronous_commit=off"})
    journal = Journal(asks.render_as_string(hide_password=False))
    try:
        with journal.writing() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    finally:
        journal.close()


def test_migration_is_as_durable(url: str, execute: Callable[[str], None]) -> None:
    execute(f"ALTER DATABASE {sa.make_url(url).database} SET synchronous_commit = off")
    journal = Journal(url)
    try:
        with journal.dialect.migrating(journal.engine) as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    finally:
        journal.close()


def test_sqlite_syncs_each_commit_and_keeps_its_log(databases: Databases) -> None:
    journal = Journal(databases.new("sqlite"))
    try:
        with journal.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    finally:
        journal.close()


def test_settings_of_the_server_that_no_session_can_raise_are_named(url: str) -> None:
    # The server of these tests has fsync = off.
    (risk,) = find_durability_risks(url)
    assert risk.startswith("PostgreSQL runs with fsync = off, so a crash of the server's machine")
    assert risk.endswith(_CURE.format("fsync"))


def test_table_that_a_crash_empties_is_named(url: str, execute: Callable[[str], None]) -> None:
    Journal(url).close()
    execute(f"ALTER TABLE {runs.name} SET UNLOGGED")
    assert find_durability_risks(url)[1:] == [
        "the table runs is UNLOGGED, so a crash of the server empties it; run ALTER TABLE runs "
        "SET LOGGED"
    ]


def test_file_that_is_kept_in_memory_is_named(tmp_path: Path) -> None:
    mounts, memory = tmp_path / "mounts", tmp_path / "memory"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\n"
        f"tmpfs {memory} tmpfs rw 0 0\n"
        f"/dev/sda2 {memory}/disk ext4 rw 0 0\n"
    )
    risks = {
        place: find_durability_risks(f"sqlite:///{place}/journal.db", mounts)
        for place in (tmp_path, memory / "data", memory / "disk")
    }
    assert risks[tmp_path] == risks[memory / "disk"] == []
    (risk,) = risks[memory / "data"]
    assert risk.startswith(f"{memory / 'data'} is kept in memory (tmpfs on {memory})")


def test_start_warns_of_each_risk_and_goes_on_without_an_answer(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_durability_risks(url)
    unreachable = sa.make_url(url).set(query={}, host="127.0.0.1", port=1)
    warn_of_durability_risks(unreachable.render_as_string(hide_password=False))
    assert [record.message for record in caplog.records] == [
        "journal may lose accepted alerts",
        "durability of the journal is unknown",
    ]
