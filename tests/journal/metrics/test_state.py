"""The gauges: what the journal holds, on every database."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from receiver.alertmanager import Alert
from receiver.errors import JournalUnavailableError
from receiver.intake import Intake, Routed
from receiver.journal import claims
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended, record_ends
from receiver.journal.requests import Person, approve, pause
from receiver.metrics.state import NOT_LOADED, JournalState
from receiver.plugins import Actions, load_actions, rules_of
from receiver.policies import AttemptEnd, AttemptOutcome, Rules
from receiver.routing import Rejection, Route
from receiver.settings import Settings, load
from receiver.testing import make_alert
from tests.support.elsewhere import Elsewhere

NOW = datetime(2026, 1, 2, 4, 0, 0, tzinfo=UTC)
PERSON = Person("ada", "test")


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(open_journal: Callable[..., Journal], clock: Clock) -> Journal:
    return open_journal(clock=clock)


@pytest.fixture
def settings() -> Settings:
    return load(
        {
            "RECEIVER_ACTIONS": "log_action,file_action",
            "FILE_ACTION_DIR": "/tmp",
            "RECEIVER_ACTION_LOG_ACTION_BREAKER": "1 failures, 10m",
            "RECEIVER_ACTION_LOG_ACTION_MAX_ATTEMPTS": "1",
            "RECEIVER_ACTION_FILE_ACTION_APPROVAL": "required",
        },
        {},
    )


@pytest.fixture
def actions(settings: Settings) -> Actions:
    return load_actions(settings)


@pytest.fixture
def rules(settings: Settings, actions: Actions) -> Rules:
    return rules_of(settings, actions)


def accept(journal: Journal, rules: Rules, action: str, fingerprint: str = "f") -> None:
    routed = Routed(_alert(fingerprint), Route((action,), (), "label"))
    record(journal, [Intake("", "am", "", (routed,))], rules)


def _alert(fingerprint: str) -> Alert:
    return make_alert(fingerprint=fingerprint, starts_at=NOW - timedelta(minutes=1))


def look(journal: Journal, actions: Actions, rules: Rules) -> Callable[..., float | None]:
    """Return a way to ask for a gauge's value, as one scrape sees it."""
    registry = CollectorRegistry()
    registry.register(JournalState(journal, actions, rules))
    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    return lambda name, **labels: found.get((f"receiver_{name}", frozenset(labels.items())))


def test_queue_is_counted_by_action_and_state_with_the_age_of_the_oldest(
    journal: Journal, actions: Actions, rules: Rules, clock: Clock
) -> None:
    accept(journal, rules, "log_action", "a")
    accept(journal, rules, "log_action", "b")
    accept(journal, rules, "file_action", "a")
    clock.now += timedelta(seconds=90)
    seen = look(journal, actions, rules)
    assert seen("unfinished_runs", action="log_action", state="queued") == 2
    assert seen("unfinished_runs", action="log_action", state="running") == 0
    assert seen("unfinished_runs", action="file_action", state="awaiting_approval") == 1
    assert seen("due_run_age_seconds", action="log_action") == 90
    assert seen("due_run_age_seconds", action="file_action") == 0


def test_running_attempt_has_an_age_and_leaves_the_queue(
    journal: Journal, actions: Actions, rules: Rules, clock: Clock
) -> None:
    accept(journal, rules, "log_action")
    assert claims.claim_due_runs(journal, "me", ["log_action"], 1, rules).claimed
    clock.now += timedelta(seconds=7)
    seen = look(journal, actions, rules)
    assert seen("unfinished_runs", action="log_action", state="running") == 1
    assert seen("running_attempt_age_seconds", action="log_action") == 7
    assert seen("due_run_age_seconds", action="log_action") == 0


def test_retry_that_is_not_due_yet_has_no_age(
    journal: Journal, actions: Actions, rules: Rules, clock: Clock
) -> None:
    accept(journal, rules, "file_action")
    approve(journal, PERSON, 1)
    (run,) = claims.claim_due_runs(journal, "me", ["file_action"], 1, rules).claimed
    end = AttemptEnd(AttemptOutcome.FAILED, retry_after=timedelta(minutes=1))
    record_ends(journal, "me", [Ended(run.id, 1, end)], rules, lambda: 1.0)
    clock.now += timedelta(seconds=59)
    assert look(journal, actions, rules)("due_run_age_seconds", action="file_action") == 0
    clock.now += timedelta(seconds=31)
    assert look(journal, actions, rules)("due_run_age_seconds", action="file_action") == 30


def test_breaker_is_open_from_the_failure_until_a_success(
    journal: Journal, actions: Actions, rules: Rules, clock: Clock
) -> None:
    for fingerprint, outcome in (("a", "failed"), ("b", "succeeded")):
        accept(journal, rules, "log_action", fingerprint)
        (run,) = claims.claim_due_runs(journal, "me", ["log_action"], 1, rules).claimed
        ended = Ended(run.id, 1, AttemptEnd(outcome))
        record_ends(journal, "me", [ended], rules, lambda: 1.0)
        is_open = look(journal, actions, rules)("breaker_open", action="log_action")
        assert is_open == (outcome == "failed")
        clock.now += timedelta(minutes=11)


@pytest.mark.parametrize(
    ("paused", "expected"), [("log_action", (1, 0)), (None, (1, 1))], ids=["one action", "all"]
)
def test_pause_shows(
    journal: Journal, actions: Actions, rules: Rules, paused: str | None, expected: tuple[int, int]
) -> None:
    pause(journal, PERSON, paused, "maintenance")
    seen = look(journal, actions, rules)
    names = ("log_action", "file_action")
    assert tuple(seen("action_paused", action=name) for name in names) == expected


def test_runs_of_an_action_that_is_not_loaded_are_counted_together(
    journal: Journal, actions: Actions, rules: Rules
) -> None:
    accept(journal, rules, "log_action")
    with journal.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET action = 'gone'")
    seen = look(journal, actions, rules)
    assert seen("unfinished_runs", action=NOT_LOADED, state="queued") == 1
    assert seen("unfinished_runs", action="gone", state="queued") is None


def test_run_that_no_loaded_action_will_take_has_an_age(
    journal: Journal, actions: Actions, rules: Rules, clock: Clock
) -> None:
    assert look(journal, actions, rules)("due_run_age_seconds", action=NOT_LOADED) == 0
    accept(journal, rules, "log_action", "a")
    clock.now += timedelta(seconds=60)
    accept(journal, rules, "log_action", "b")
    with journal.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET action = 'gone' WHERE fingerprint = 'a'")
        connection.exec_driver_sql("UPDATE runs SET action = 'lost' WHERE fingerprint = 'b'")
    clock.now += timedelta(seconds=30)
    assert look(journal, actions, rules)("due_run_age_seconds", action=NOT_LOADED) == 90


def test_worker_that_died_is_not_counted(
    journal: Journal, actions: Actions, rules: Rules, clock: Clock
) -> None:
    clock.now = datetime.now(UTC)
    elsewhere = Elsewhere()
    try:
        elsewhere.enter(journal, "log_action")
        assert look(journal, actions, rules)("workers") == 1
    finally:
        elsewhere.kill()
    clock.now += timedelta(minutes=1)
    assert look(journal, actions, rules)("workers") == 0


def test_rejected_alerts_are_counted_while_they_are_open(
    journal: Journal, actions: Actions, rules: Rules
) -> None:
    routed = Routed(_alert("f"), Route((), (Rejection("nobody", "unknown"),), "label"))
    record(journal, [Intake("", "am", "", (routed,))], rules)
    assert look(journal, actions, rules)("open_rejected_alerts") == 1


def test_size_of_the_journal_shows(journal: Journal, actions: Actions, rules: Rules) -> None:
    seen = look(journal, actions, rules)
    assert (seen("journal_size_bytes") or 0) > 10_000
    is_file = journal.dialect.name == "sqlite"
    assert (seen("journal_free_bytes") is not None) == is_file
    assert seen("journal_up") == 1


def test_journal_that_cannot_be_read_is_said_and_fails_no_scrape(
    tmp_path: Path, actions: Actions, rules: Rules
) -> None:
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    journal.close()
    (tmp_path / "journal.db").unlink()
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(JournalUnavailableError), journal.reading():
        pass
    seen = look(journal, actions, rules)
    assert seen("journal_up") == 0
    assert seen("unfinished_runs", action="log_action", state="queued") is None
