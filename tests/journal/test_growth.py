"""However many runs have finished: what is asked often is found by an index, on both databases."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.intake import intake_of
from receiver.journal import activity, approvals, claims, due, outcomes, reading, waits
from receiver.journal.acceptance import record
from receiver.journal.clock import correct_schedules
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.retention import Retention, RetentionWalk
from receiver.metrics.state import JournalState
from receiver.plugins import Actions
from receiver.policies import AttemptEnd, AttemptOutcome, Rules
from receiver.routing import Catalog
from tests.support.every import every
from tests.support.grown import TABLES, multiply
from tests.support.notifications import T0, alert, notification

# Enough for a planner to prefer an index wherever it has one.
_ROWS = 20_000
# A whole partial index is as small as what waits, runs or is to be looked at.
_SMALL = {
    "ix_runs_due", "ix_runs_timed", "ix_runs_running", "ix_runs_approval", "ix_runs_verify",
}  # fmt: skip
_RULES = Rules()


def accept(journal: Journal, *alerts: dict[str, Any]) -> None:
    body = parse_notification(notification(*alerts))
    record(journal, [intake_of(body, "", "a", (), Catalog(frozenset({"a"})))], _RULES)


def finish_one(journal: Journal) -> None:
    (run,) = claims.claim_due_runs(journal, "w1", ["a"], 1, _RULES).claimed
    ended = [Ended(run.id, run.attempt, AttemptEnd(AttemptOutcome.SUCCEEDED))]
    outcomes.record_ends(journal, "w1", ended, _RULES, lambda: 0.5)


def judge_anew(journal: Journal) -> None:
    with journal.writing() as connection:
        due.judge_anew(journal, connection, ["a"])


@contextmanager
def watched(journal: Journal, look: Callable[..., None]) -> Iterator[None]:
    """Let `look` see each statement just before it is executed."""
    sa.event.listen(journal.engine, "before_cursor_execute", look)
    try:
        yield
    finally:
        sa.event.remove(journal.engine, "before_cursor_execute", look)


def plans_of(journal: Journal, work: Callable[[], object]) -> dict[str, list[str]]:
    """Do something, and return each statement that was executed for it with the lines of its plan.

    Each is explained just before it is executed, in the same transaction.
    """
    found: dict[str, list[str]] = {}
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}[journal.dialect.name]

    def look(
        connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool
    ) -> None:
        del connection, context
        if statement.split()[0] in ("SELECT", "UPDATE", "DELETE", "INSERT", "WITH"):
            asking = cursor.connection.cursor()
            asking.execute(explain + statement, values[0] if many else values)
            found[statement] = [str(row[-1]) for row in asking.fetchall()]
            asking.close()

    with watched(journal, look):
        work()
    return found


def scans(line: str) -> bool:
    """Whether a line of a plan reads a large table, or an index of one, as a whole."""
    words = line.replace("(", " ").split()
    if "Seq" in words:
        return words[words.index("on") + 1] in TABLES
    if words[0] == "SCAN" and words[1] in (*TABLES, "busy"):
        return not _SMALL & {*words}
    return False


@pytest.fixture
def journal(open_journal: Callable[..., Journal]) -> Journal:
    made = open_journal(clock=lambda: T0)
    accept(made, alert("f0"))
    finish_one(made)
    multiply(made, _ROWS)
    return made


@pytest.mark.parametrize(
    "work",
    [
        lambda journal: accept(journal, alert("g7")),
        lambda journal: accept(journal, *(alert(f"new {number}") for number in range(20))),
        lambda journal: accept(journal, alert("g8", "resolved"), alert("unknown", "resolved")),
        lambda journal: (accept(journal, alert("new")), finish_one(journal)),
        lambda journal: due.seconds_until_due(journal, ["a"]),
        lambda journal: claims.owners_of_running(journal),
        lambda journal: claims.cancel_requests(journal, "w1"),
        lambda journal: claims.attempts_of(journal, "w1"),
        lambda journal: outcomes.recover_from(journal, "w1", ["a"], _RULES, lambda: 0.5),
        lambda journal: approvals.expire_approvals(journal, ["a"], _RULES),
        lambda journal: outcomes.verify_due(journal, ["a"], _RULES),
        lambda journal: reading.briefs_of(journal, [7, 8]),
        lambda journal: correct_schedules(journal),
        lambda journal: list(waits.end_waits(journal, ["a"], _RULES)),
        lambda journal: judge_anew(journal),
        lambda journal: list(JournalState(journal, Actions(), _RULES).collect()),
    ],
    ids=[
        "duplicate", "new", "resolved", "claim and outcome", "next due", "owners", "cancels",
        "attempts", "recovery", "approvals", "effects", "briefs",
        "schedules", "waits", "judged anew", "metrics",
    ],
)  # fmt: skip
@pytest.mark.parametrize("has_statistics", [True, False], ids=["analyzed", "not analyzed"])
def test_hot_statement_reads_no_large_table_as_a_whole(
    journal: Journal, work: Callable[[Journal], object], has_statistics: bool
) -> None:
    if not has_statistics and journal.dialect.name == "sqlite":  # PostgreSQL analyzes by itself.
        forget_statistics(journal)
    plans = plans_of(journal, lambda: work(journal))
    assert plans
    large = {
        one: plan
        for one, plan in plans.items()
        if any(scans(line) or is_wide(line) for line in plan)
    }
    assert large == {}


def is_wide(line: str) -> bool:
    """Whether a line of a plan uses an index in which very many rows have one value."""
    return any(name in line for name in ("ix_runs_action", "ix_runs_alert", "ix_runs_ended"))


def test_retention_reads_no_large_table_as_a_whole(journal: Journal) -> None:
    # A tenth goes: what would become empty is rightly read as a whole.
    kept = timedelta(seconds=_ROWS * 0.9)
    walk = RetentionWalk(journal, Retention(kept, kept, kept))

    def whole_pass() -> None:
        while not walk.step()[1]:
            pass

    plans = plans_of(journal, whole_pass)
    assert any("DELETE FROM runs" in one for one in plans)
    assert {one: plan for one, plan in plans.items() if any(scans(line) for line in plan)} == {}


FILTERS: list[dict[str, Any]] = [
    {},
    {"alert_name": "none"},
    {"action": "none"},
    {"fingerprint": "none"},
    {"outcome": "failed"},
    {"kind": "escalation"},
    {"state": "queued"},
    {"state": "awaiting_approval"},
    {"state": "running"},
    {"alert_name": "none", "action": "a", "source": "", "state": "finished", "kind": "fired"},
    {"action": "a", "outcome": "failed"},
    {"since": T0 + timedelta(days=1)},
    {"until": T0 - timedelta(days=90)},
]


@pytest.mark.parametrize("has_statistics", [True, False], ids=["analyzed", "not analyzed"])
def test_look_of_the_page_or_the_api_reads_no_large_table_as_a_whole(
    journal: Journal, has_statistics: bool
) -> None:
    if not has_statistics:
        forget_statistics(journal)
    with every() as each:
        for work in (
            lambda: activity.look(journal),
            lambda: reading.page_of_episodes(journal),
            lambda: reading.page_of_rejected(journal),
            lambda: reading.page_of_audit(journal),
            *(partial(reading.page_of_runs, journal, **filters) for filters in FILTERS),
        ):
            with each(str(work)):
                plans = plans_of(journal, work)
                assert plans
                large = {
                    one: plan
                    for one, plan in plans.items()
                    if any(scans(line) and not is_in_order(line) for line in plan)
                    and "WHERE" in one
                }
                assert large == {}


def is_in_order(line: str) -> bool:
    """Whether rows are read in the order of the page, until it is full."""
    return "ix_episodes_seen" in line or "ix_rejected_seen" in line


def forget_statistics(journal: Journal) -> None:
    """Let the planner know as little as in a journal that nobody has analyzed."""
    statement = {
        "sqlite": "DELETE FROM sqlite_stat1",
        "postgresql": "DELETE FROM pg_statistic WHERE starelid = 'runs'::regclass",
    }[journal.dialect.name]
    with journal.writing() as connection:
        connection.exec_driver_sql(statement)
    journal.engine.dispose()


def most_rows_of(journal: Journal, work: Callable[[], object]) -> int:
    """Do something, and return how many rows the query that found the most gave."""
    found = [0]

    def look(
        connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool
    ) -> None:
        del connection, context, many
        if statement.startswith("SELECT"):
            asking = cursor.connection.cursor()
            asking.execute(statement, values)
            found.append(len(asking.fetchall()))
            asking.close()

    with watched(journal, look):
        work()
    return max(found)


@pytest.mark.parametrize("status", ["resolved", "firing"])
def test_runs_of_earlier_episodes_are_not_read_when_an_alert_changes(
    open_journal: Callable[..., Journal], status: str
) -> None:
    made = open_journal(clock=lambda: T0)
    for number in range(50):
        accept(made, alert("flaps", starts_at=T0 - timedelta(hours=50 - number)))
    last = T0 - timedelta(hours=1)
    if status == "firing":
        accept(made, alert("flaps", "resolved", last, T0))
    assert most_rows_of(made, lambda: accept(made, alert("flaps", status, last))) == 1


def statements_of(journal: Journal, work: Callable[[], object]) -> int:
    """Do something, and return how many statements that took."""
    count = [0]

    def look(*_: object) -> None:
        count[0] += 1

    with watched(journal, look):
        work()
    return count[0]


def test_group_that_was_falsely_resolved_is_put_back_together(
    open_journal: Callable[..., Journal],
) -> None:
    made = open_journal(clock=lambda: T0)
    statements = []
    for size in (2, 150):
        names = [f"{size} {number}" for number in range(size)]
        accept(made, *(alert(name) for name in names))
        accept(made, *(alert(name, "resolved") for name in names))
        fire_again = lambda names=names: accept(made, *(alert(name) for name in names))  # noqa: E731
        statements.append(statements_of(made, fire_again))
    # All of it waits for the write lock: as many statements for many as for few.
    assert statements[1] <= statements[0] + 5
    assert len(reading.list_runs(made, state="queued", limit=200)) == 152


def test_look_at_plans_would_notice_a_scan(journal: Journal) -> None:
    def look() -> None:
        with journal.reading() as connection:
            connection.exec_driver_sql("SELECT id FROM runs WHERE external_url = 'none'").all()

    ((plan),) = plans_of(journal, look).values()
    assert any(scans(line) for line in plan)


def test_claim_reads_no_more_of_a_long_queue_than_it_takes(journal: Journal) -> None:
    accept(journal, *(alert(f"queued {number}") for number in range(2_000)))
    with journal.writing() as connection:
        connection.exec_driver_sql("ANALYZE")
    plans = plans_of(journal, lambda: claims.claim_due_runs(journal, "w1", ["a"], 4, _RULES))
    (plan,) = [plan for one, plan in plans.items() if "runs.due_at = 0" in one and "LIMIT" in one]
    assert any("ix_runs_due" in line for line in plan), plan
    # All that are queued would be read to be sorted.
    assert not any("TEMP B-TREE" in line or "Sort" in line for line in plan), plan
