"""What is old goes, table by table; what stays is examined once, and delays nobody."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.intake import intake_of
from receiver.journal import claims, outcomes, requests
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.requests import Person
from receiver.journal.retention import Retention, RetentionWalk, delete_all_old
from receiver.journal.tables import attempts, audit, episodes, rejected, routes, runs
from receiver.policies import AttemptEnd, AttemptOutcome, Policy, Rules
from receiver.routing import Catalog
from tests.support.clock import Clock
from tests.support.grown import put_finished
from tests.support.notifications import T0, alert, notification

DAY = timedelta(days=1)
KEPT = Retention(runs=30 * DAY, episodes=400 * DAY, audit=90 * DAY)
CATALOG = Catalog(frozenset({"a"}))
TABLES = (runs, attempts, episodes, rejected, routes, audit)


def accept(
    journal: Journal, *alerts: dict[str, Any], by: Rules | None = None, to: str = "a"
) -> None:
    body = parse_notification(notification(*alerts))
    record(journal, [intake_of(body, "", to, (), CATALOG)], by or Rules())


def finish(journal: Journal, by: Rules | None = None) -> None:
    by = by or Rules()
    (run,) = claims.claim_due_runs(journal, "w1", ["a"], 1, by).claimed
    ended = [Ended(run.id, run.attempt, AttemptEnd(AttemptOutcome.SUCCEEDED))]
    outcomes.record_ends(journal, "w1", ended, by, lambda: 0.5)


def sizes(journal: Journal) -> dict[str, int]:
    with journal.reading() as connection:
        return {
            table.name: connection.execute(
                sa.select(sa.func.count()).select_from(table)
            ).scalar_one()
            for table in TABLES
        }


def test_run_goes_after_its_retention_and_its_episode_after_another(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, alert("f"))
    finish(journal)
    accept(journal, alert("f", "resolved"))
    clock.now += 29 * DAY
    assert delete_all_old(journal, KEPT) == 0
    clock.now += 2 * DAY
    assert delete_all_old(journal, KEPT) == 3 - 1  # The run, and the route.
    assert sizes(journal) == dict.fromkeys(sizes(journal), 0) | {"episodes": 1}
    clock.now += 368 * DAY
    assert delete_all_old(journal, KEPT) == 0
    clock.now += 2 * DAY
    assert delete_all_old(journal, KEPT) == 1
    assert set(sizes(journal).values()) == {0}


def test_run_of_an_alert_that_is_reported_stays_and_goes_once_it_is_not(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, alert("f"))
    finish(journal)
    clock.now += 60 * DAY
    accept(journal, alert("f"))
    assert delete_all_old(journal, KEPT) == 0
    clock.now += 31 * DAY
    assert delete_all_old(journal, KEPT) == 1
    # What is sent again is known still.
    accept(journal, alert("f"))
    assert sizes(journal)["runs"] == 0


def test_run_whose_effect_nobody_verified_goes_too(journal: Journal, clock: Clock) -> None:
    by = Rules(policies={"a": Policy(verify_after=timedelta(hours=1))})
    accept(journal, alert("f"), by=by)
    finish(journal, by)
    clock.now += 31 * DAY
    assert delete_all_old(journal, KEPT) == 1


def test_run_that_has_not_finished_stays_with_its_episode(journal: Journal, clock: Clock) -> None:
    accept(journal, alert("f"))
    clock.now += 500 * DAY
    assert delete_all_old(journal, KEPT) == 0
    assert sizes(journal)["runs"] == sizes(journal)["episodes"] == 1


def test_rejected_alert_audit_and_route_have_a_retention(journal: Journal, clock: Clock) -> None:
    accept(journal, alert("f"), to="unknown")
    accept(journal, alert("f", "resolved"))
    requests.pause(journal, Person("ann", "test"), "a")
    clock.now += 31 * DAY
    assert delete_all_old(journal, KEPT) == 2
    assert sizes(journal) == dict.fromkeys(sizes(journal), 0) | {"audit": 1}
    clock.now += 60 * DAY
    assert delete_all_old(journal, KEPT) == 1


def test_route_that_sends_resolved_alerts_stays(journal: Journal, clock: Clock) -> None:
    for _ in range(5):
        accept(journal, alert("f", "resolved"))
        clock.now += 20 * DAY
        assert delete_all_old(journal, KEPT) == 0
    assert sizes(journal)["routes"] == 1


# As 300,000 that stay beside 60,000 that go: all examined once, in this many looks.
_STAY, _GO, _EXAMINED, _DELETED = 3_000, 600, 100, 40


@pytest.fixture
def walk(journal: Journal, clock: Clock) -> RetentionWalk:
    """A walk over many that stay; those that go lie behind them, in two parts."""
    old = clock.now - 60 * DAY
    put_finished(journal, "first", _GO // 2, old - DAY)
    put_finished(journal, "stay", _STAY, old, open_seen_at=clock.now)
    put_finished(journal, "last", _GO // 2, old + DAY)
    return RetentionWalk(journal, KEPT, _EXAMINED, _DELETED)


def whole_pass(walk: RetentionWalk) -> tuple[int, int]:
    """Return how many rows a pass deleted, and how many steps it took."""
    deleted, steps, is_over = 0, 0, False
    while not is_over:
        number, is_over = walk.step()
        deleted, steps = deleted + number, steps + 1
        assert number <= _DELETED
    return deleted, steps


def test_what_stays_is_examined_once_in_a_pass(journal: Journal, walk: RetentionWalk) -> None:
    deleted, steps = whole_pass(walk)
    assert deleted == _GO
    assert sizes(journal)["runs"] == sizes(journal)["attempts"] == _STAY
    # Each step examines so many, or deletes so many; and one for the end of each table.
    assert steps <= _STAY / _EXAMINED + _GO / _DELETED + 10


def test_what_stayed_is_not_examined_again_until_the_walk_is_rewound(
    journal: Journal, clock: Clock, walk: RetentionWalk
) -> None:
    whole_pass(walk)
    assert whole_pass(walk) == (0, 5)
    with journal.writing() as connection:
        connection.execute(sa.update(episodes).values(closed_at=clock.now))
    assert whole_pass(walk) == (0, 5)
    walk.rewind()
    assert whole_pass(walk)[0] == _STAY


def test_walk_goes_on_with_what_became_old_since(
    journal: Journal, clock: Clock, walk: RetentionWalk
) -> None:
    whole_pass(walk)
    put_finished(journal, "new", 50, clock.now)
    clock.now += 31 * DAY
    # Those that stayed are behind it.
    assert whole_pass(walk)[0] == 50


def test_rows_that_ended_at_one_moment_are_all_examined(journal: Journal, clock: Clock) -> None:
    put_finished(journal, "stay", 250, clock.now - 60 * DAY, open_seen_at=clock.now)
    put_finished(journal, "go", 250, clock.now - 60 * DAY)
    assert whole_pass(RetentionWalk(journal, KEPT, _EXAMINED, _DELETED))[0] == 250


def test_look_for_what_is_old_waits_for_no_writer(
    open_journal: Callable[..., Journal],
) -> None:
    journal, other = open_journal(clock=lambda: T0), open_journal(clock=lambda: T0)
    with other.writing() as connection:
        connection.exec_driver_sql("DELETE FROM probe")
        assert delete_all_old(journal, KEPT) == 0
