"""Group commit: each request has its own answer, whoever commits for it."""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path

import pytest

from receiver.alertmanager import parse_notification
from receiver.errors import JournalDataError, JournalUnavailableError, NotificationError
from receiver.intake import Counts, Intake, intake_of
from receiver.journal.journal import Journal
from receiver.journal.writer import Writer
from receiver.policies import Rules
from receiver.routing import Catalog
from tests.support.notifications import alert, notification
from tests.support.waiting import wait_until

_SECONDS = 20.0
_CATALOG = Catalog(frozenset({"act"}))


class Ready:
    """A notification that has nothing left to prepare; it keeps what became of it."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.size = len(intake.alerts)
        self.became: Counts | None = None

    def prepare(self) -> Intake:
        return self.intake

    def recorded(self, counts: Counts) -> None:
        self.became = counts


def intake(*fingerprints: str, source: str = "") -> Ready:
    body = notification(*(alert(one) for one in fingerprints))
    return Ready(intake_of(parse_notification(body), source, "act", (), _CATALOG))


class Commits:
    """Counts commits; a commit can be held up until the test lets it go on."""

    def __init__(self) -> None:
        self.count = 0
        self.notifications = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def note(self, notifications: int) -> None:
        self.count += 1
        self.notifications += notifications
        assert self.may_go_on.wait(_SECONDS)


@pytest.fixture
def commits() -> Commits:
    return Commits()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(f"sqlite:///{tmp_path / 'journal.db'}")) as opened:
        yield opened


@pytest.fixture
def writer(journal: Journal, commits: Commits) -> Iterator[Writer]:
    one = Writer(journal, Rules(), commits.note)
    yield one
    commits.may_go_on.set()
    one.close()


Recorded = Callable[[Sequence[Ready]], list[Future[Counts]]]


@pytest.fixture
def in_threads(writer: Writer, commits: Commits) -> Iterator[Recorded]:
    """Record each in a thread of its own, all while the commit of another is under way."""
    with ThreadPoolExecutor(32) as pool:

        def record(intakes: Sequence[Ready]) -> list[Future[Counts]]:
            commits.may_go_on.clear()
            first = pool.submit(writer.record, intake("first"), _SECONDS)
            wait_until(lambda: commits.count == 1)
            rest = [pool.submit(writer.record, one, _SECONDS) for one in intakes]
            wait_until(lambda: writer.waiting_alerts == len(intakes) + 1)
            commits.may_go_on.set()
            assert first.result(_SECONDS).accepted == 1
            return rest

        yield record


def fingerprints_in(journal: Journal) -> list[str]:
    with journal.reading() as connection:
        rows = connection.exec_driver_sql("SELECT fingerprint FROM runs ORDER BY 1")
        return [row[0] for row in rows]


def test_requests_that_came_during_a_commit_share_the_next(
    in_threads: Recorded, commits: Commits, journal: Journal
) -> None:
    names = [f"{number:02}" for number in range(20)]
    counts = [one.result(_SECONDS) for one in in_threads([intake(name) for name in names])]
    assert counts == [Counts(accepted=1)] * 20
    assert (commits.count, commits.notifications) == (2, 21)
    assert fingerprints_in(journal) == [*names, "first"]


def test_poisoned_request_fails_alone(in_threads: Recorded, journal: Journal) -> None:
    # No database stores it, and the edge, which replaces it, is not in the way here.
    poisoned = intake("poisoned", source="\ud800")
    before, bad, after = in_threads([intake("before"), poisoned, intake("after")])
    assert before.result(_SECONDS) == after.result(_SECONDS) == Counts(accepted=1)
    assert isinstance(bad.exception(_SECONDS), (JournalDataError, ValueError))
    assert fingerprints_in(journal) == ["after", "before", "first"]


def test_request_that_waits_too_long_is_refused_and_never_recorded(
    writer: Writer, commits: Commits, journal: Journal
) -> None:
    commits.may_go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(writer.record, intake("first"), _SECONDS)
        wait_until(lambda: commits.count == 1)
        with pytest.raises(JournalUnavailableError, match=r"longer than 0\.01 s"):
            writer.record(intake("late"), 0.01)
        commits.may_go_on.set()
        assert first.result(_SECONDS).accepted == 1
    assert writer.record(intake("next"), _SECONDS).accepted == 1
    assert fingerprints_in(journal) == ["first", "next"]


def test_request_beyond_what_may_wait_is_refused_at_once(writer: Writer, commits: Commits) -> None:
    many = intake(*(str(number) for number in range(30_000)))
    commits.may_go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(writer.record, many, 60.0)
        wait_until(lambda: commits.count == 1, 60)
        with pytest.raises(JournalUnavailableError, match="30000 alerts wait"):
            writer.record(many, _SECONDS)
        commits.may_go_on.set()
        assert first.result(60).accepted == 30_000


def test_whole_batch_is_told_when_nothing_can_be_stored(
    writer: Writer, commits: Commits, journal: Journal, tmp_path: Path
) -> None:
    with (
        ThreadPoolExecutor(4) as pool,
        closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other,
    ):
        commits.may_go_on.clear()
        first = pool.submit(writer.record, intake("first"), _SECONDS)
        wait_until(lambda: commits.count == 1)
        others = [pool.submit(writer.record, intake(name), _SECONDS) for name in "abc"]
        wait_until(lambda: writer.waiting_alerts == 4)
        other.execute("BEGIN IMMEDIATE")
        commits.may_go_on.set()
        assert first.result(_SECONDS).accepted == 1
        assert {type(one.exception(_SECONDS)) for one in others} == {JournalUnavailableError}
        other.execute("ROLLBACK")
    assert writer.record(intake("a"), _SECONDS).accepted == 1
    assert fingerprints_in(journal) == ["a", "first"]


def test_close_waits_for_what_was_handed_over(
    writer: Writer, commits: Commits, in_threads: Recorded, journal: Journal
) -> None:
    waiting = in_threads([intake("a"), intake("b")])
    writer.close()
    assert [one.result(_SECONDS).accepted for one in waiting] == [1, 1]
    with pytest.raises(JournalUnavailableError, match="closed"):
        writer.record(intake("late"), _SECONDS)
    assert fingerprints_in(journal) == ["a", "b", "first"]


def test_request_whose_body_is_wrong_fails_alone(in_threads: Recorded, journal: Journal) -> None:
    class Wrong(Ready):
        def prepare(self) -> Intake:
            raise NotificationError("it is none")

    wrong = Wrong(intake("wrong").intake)
    before, bad, after = in_threads([intake("before"), wrong, intake("after")])
    assert before.result(_SECONDS) == after.result(_SECONDS) == Counts(accepted=1)
    assert isinstance(bad.exception(_SECONDS), NotificationError)
    assert wrong.became is None
    assert fingerprints_in(journal) == ["after", "before", "first"]


def test_leader_works_in_the_context_of_each_request(in_threads: Recorded) -> None:
    of_whom: ContextVar[str] = ContextVar("of_whom")
    seen: list[tuple[str, str, str]] = []

    class Noting(Ready):
        def __init__(self, name: str) -> None:
            super().__init__(intake(name).intake)
            self.name = name

        def prepare(self) -> Intake:
            seen.append((self.name, "prepared", of_whom.get()))
            return super().prepare()

        def recorded(self, counts: Counts) -> None:
            assert counts == Counts(accepted=1)
            seen.append((self.name, "recorded", of_whom.get()))

        @property
        def size(self) -> int:
            # The first thing that is asked, in the thread of the request.
            of_whom.set(self.name)
            return 1

        @size.setter
        def size(self, size: int) -> None:
            pass

    for one in in_threads([Noting(name) for name in "abc"]):
        one.result(_SECONDS)
    assert sorted(seen) == [(one, what, one) for one in "abc" for what in ("prepared", "recorded")]


def test_request_that_cannot_be_counted_is_recorded_as_its_neighbours_are(
    in_threads: Recorded, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    class Uncounted(Ready):
        def recorded(self, counts: Counts) -> None:
            raise OverflowError

    uncounted = Uncounted(intake("b").intake)
    found = [one.result(_SECONDS) for one in in_threads([intake("a"), uncounted, intake("c")])]
    assert found == [Counts(accepted=1)] * 3
    assert fingerprints_in(journal) == ["a", "b", "c", "first"]
    assert "could not be counted" in caplog.text
