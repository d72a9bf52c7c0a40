"""Versions of the journal: an upgraded one equals a fresh one, and neighbours work side by side."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest
import sqlalchemy as sa

from receiver.journal import reading
from receiver.journal.claims import claim_due_runs
from receiver.journal.journal import Journal
from receiver.journal.migrate import OURS, Migrations
from receiver.journal.outcomes import recover_from
from receiver.journal.tables import AT_ONCE, metadata
from receiver.policies import Policy, Rules
from receiver.testing import make_alert
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
            query = (
                "SELECT count(*) FROM runs WHERE outcome = 'succeeded' "
                f"AND note_{to_come[1].head} = 'none'"
            )
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
    newest = f"written by a newer version of the receiver (its version is {to_come[2].head}"
    assert newest in refused.text()


# One run in each state that a journal of version 0001 knows, with its attempts.
BEFORE: dict[str, dict[str, object]] = {
    "at once": {"state": "queued", "due_at": 0},
    "retry": {"state": "queued", "due_at": 9_000_000, "attempts": 2},
    "retried": {"state": "queued", "due_at": 0, "attempts": 1, "attempts_before": 1},
    "asked": {"state": "awaiting_approval", "due_at": 0, "approval": "required"},
    "running": {"state": "running", "due_at": 0, "attempts": 1, "owner": "w1"},
    "killed": {"state": "finished", "due_at": 0, "attempts": 1, "outcome": "failed"},
    "interrupted": {"state": "finished", "due_at": 0, "attempts": 1, "outcome": "unknown"},
}
# An episode of version 0001, whose sender was ahead: its mark is five minutes ahead of the report.
EPISODE = {
    "source": "", "fingerprint": "killed", "action": "a", "starts_at": 3_600_000_000,
    "mark_at": 305_000_000, "seen_at": 5_000_000,
}  # fmt: skip
ENDED = {"retry": "failed", "retried": "interrupted", "killed": "killed",
         "interrupted": "interrupted"}  # fmt: skip
TEXTS = ("source", "alert_name", "receiver", "external_url", "reason")


def tables_before(engine: sa.Engine) -> sa.MetaData:
    """Return the tables as the version before knows them."""
    before = sa.MetaData()
    before.reflect(engine)
    return before


def write_as_before(
    engine: sa.Engine, before: sa.MetaData, found: Mapping[str, Mapping[str, object]]
) -> None:
    """Write runs and their attempts as the version before does: with its columns alone."""
    runs, attempts = before.tables["runs"], before.tables["attempts"]
    with engine.begin() as connection:
        for name, state in found.items():
            values = {
                **dict.fromkeys(TEXTS, ""), "fingerprint": name, "action": "a", "target": name,
                "episode_action": "a", "starts_at": 1, "kind": "fired", "ordinal": 0,
                "alert": make_alert().to_json(), "created_at": 5_000_000, "received_at": 5_000_000,
                **state,
            }  # fmt: skip
            (run_id,) = connection.execute(sa.insert(runs).values(values)).inserted_primary_key
            for number in range(1, int(str(values.get("attempts", 0))) + 1):
                outcome = ENDED.get(name)
                attempt = {
                    "run_id": run_id, "number": number, "action": "a", "kind": "fired",
                    "target": name, "dry_run": False, "owner": "w1", "started_at": 6_000_000,
                    "finished_at": 7_000_000 if outcome else None, "outcome": outcome,
                }  # fmt: skip
                connection.execute(sa.insert(attempts).values(attempt))


def test_journal_of_the_first_version_keeps_its_runs_and_they_go_on(journal_url: str) -> None:
    old = Journal(journal_url, known=Migrations(OURS.directory, "0001"))
    before = tables_before(old.engine)
    write_as_before(old.engine, before, BEFORE)
    held = before.tables["holds"]
    with old.engine.begin() as connection:
        for kind in ("pause", "breaker"):
            values = {"action": "b", "kind": kind, "since": 1, "reason": kind}
            connection.execute(sa.insert(held).values(values))
        connection.execute(sa.insert(before.tables["episodes"]).values(EPISODE))
        connection.execute(sa.update(before.tables["attempts"]).values(timed_out_at=7_000_000))
    old.close()

    journal = Journal(journal_url)
    found = {row["fingerprint"]: row for row in reading.list_runs(journal)}
    assert {name: (row["state"], row["outcome"]) for name, row in found.items()} == {
        name: (values["state"], values.get("outcome")) for name, values in BEFORE.items()
    }
    assert {(row["interruptions"], row["saved_state"]) for row in found.values()} == {(0, None)}
    scheduled = {name: row["scheduled_at"] for name, row in found.items() if row["scheduled_at"]}
    assert scheduled == {
        "retry": AT_ONCE + timedelta(seconds=7),
        "asked": AT_ONCE + timedelta(seconds=5),
    }
    outcomes_kept = {
        name: reading.attempts_of(journal, found[name]["id"])[-1]["outcome"] for name in ENDED
    }
    assert outcomes_kept == ENDED
    assert [one["kind"] for one in reading.list_holds(journal)] == ["pause"]
    (episode,) = reading.list_episodes(journal)
    kept = {name: episode[name] for name in ("starts_at", "mark_at", "seen_at")}
    assert kept == {
        name: AT_ONCE + timedelta(microseconds=int(str(EPISODE[name]))) for name in kept
    }
    assert episode["ahead_starts_at"] is None
    # What the version before writes during the update.
    write_as_before(journal.engine, before, {"side by side": BEFORE["at once"]})
    rules = Rules(policies={"a": Policy(max_concurrent=9)})
    recover_from(journal, "w1", ["a"], rules, lambda: 0.0)
    claimed = claim_due_runs(journal, "w2", ["a"], 9, rules).claimed
    assert {(run.fingerprint, run.interruptions) for run in claimed} == {
        ("at once", 0), ("retry", 0), ("retried", 0), ("running", 1), ("side by side", 0),
    }  # fmt: skip
    journal.close()


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
