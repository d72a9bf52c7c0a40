"""Filters find all that match, however few rows one look may examine."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.cli.looking import newest_runs
from receiver.errors import CursorError
from receiver.intake import intake_of
from receiver.journal import activity, claims, outcomes, reading
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.run_search import RunFilters, find_run_ids
from receiver.journal.tables import runs
from receiver.policies import AttemptEnd, AttemptOutcome, Rules
from receiver.routing import Catalog
from tests.support.every import every
from tests.support.grown import multiply
from tests.support.notifications import T0, alert, notification

_ROWS = 600
_VARIED = {
    "alert_name": "'Alert' || (i - i / 7 * 7)",
    "action": "CASE WHEN i - i / 5 * 5 = 0 THEN 'b' ELSE 'a' END",
    "outcome": "CASE WHEN i - i / 11 * 11 = 0 THEN 'failed' ELSE runs.outcome END",
    "kind": "CASE WHEN i - i / 13 * 13 = 0 THEN 'repeat' ELSE runs.kind END",
    "source": "CASE WHEN i - i / 17 * 17 = 0 THEN 'east' ELSE runs.source END",
    "fingerprint": "'g' || (i - i / 50 * 50)",
    "starts_at": "runs.starts_at - i",
    "state": "CASE WHEN i - i / 19 * 19 = 0 THEN 'queued' ELSE 'finished' END",
}
_HOUR = timedelta(hours=1)


_HALF = {"since": T0 - 20 * _HOUR, "until": T0 - 4 * _HOUR}
_FILTERS: list[dict[str, Any]] = [
    {},
    {"action": "b"},
    {"action": "nothing"},
    {"alert_name": "Alert3"},
    {"state": "queued"},
    {"state": "running"},
    {"state": "finished"},
    {"outcome": "failed"},
    {"outcome": "succeeded"},
    {"kind": "repeat"},
    {"kind": "fired"},
    {"source": "east"},
    {"source": "", "fingerprint": "g7"},
    {"fingerprint": "g7"},
    {"fingerprint": "unknown"},
    {"action": "b", "outcome": "failed"},
    {"alert_name": "Alert1", "state": "queued"},
    {"source": "east", "kind": "fired", "outcome": "succeeded"},
    {"fingerprint": "g7", "kind": "repeat"},
    {"id": 77, "action": "a"},
]
_TIMES: list[dict[str, Any]] = [
    {},
    {"since": _HALF["since"]},
    {"until": _HALF["until"]},
    _HALF,
    {"since": T0 + _HOUR},
    {"until": T0 - 100 * _HOUR},
]


@pytest.fixture
def journal(open_journal: Callable[..., Journal]) -> Journal:
    """Runs of one day, of many kinds."""
    made = open_journal(clock=lambda: T0)
    body = parse_notification(notification(alert()))
    record(made, [intake_of(body, "", "a", (), Catalog(frozenset({"a"})))], Rules())
    (run,) = claims.claim_due_runs(made, "w1", ["a"], 1, Rules()).claimed
    ended = [Ended(run.id, run.attempt, AttemptEnd(AttemptOutcome.SUCCEEDED))]
    outcomes.record_ends(made, "w1", ended, Rules(), lambda: 0.5)
    multiply(made, _ROWS, 24 * _HOUR / _ROWS, _VARIED)
    with made.writing() as connection:
        # It is the newest, and has the lowest id.
        connection.execute(sa.delete(runs).where(runs.c.id == run.id))
    return made


def every_page(
    journal: Journal, filters: RunFilters, limit: int, most: int
) -> tuple[list[int], int]:
    """Return all ids of all pages, and how many pages there are."""
    ids: list[int] = []
    pages, before = 0, None
    with journal.reading() as connection:
        while True:
            found = find_run_ids(connection, filters, limit, before, most)
            assert len(found.ids) <= limit
            ids += found.ids
            pages += 1
            if found.next is None:
                return ids, pages
            before = found.next


def test_pages_together_hold_all_that_match_and_nothing_else(journal: Journal) -> None:
    with journal.reading() as connection:
        rows = connection.execute(sa.select(runs).order_by(runs.c.id.desc())).all()
    with every() as each:
        for equal in _FILTERS:
            for times in _TIMES:
                expected = [
                    row.id
                    for row in rows
                    if all(getattr(row, name) == value for name, value in equal.items())
                    and times.get("since", row.created_at) <= row.created_at
                    and ("until" not in times or row.created_at < times["until"])
                ]
                for limit, most in ((7, 20), (1000, 50), (5, 10_000)):
                    with each(f"{equal} {times} {limit} {most}"):
                        filters = RunFilters(equal, **times)
                        assert every_page(journal, filters, limit, most)[0] == expected


def test_page_that_is_not_full_has_a_cursor_while_there_is_more_to_examine(
    journal: Journal,
) -> None:
    filters = RunFilters({"source": "nothing"})
    assert every_page(journal, filters, 50, 100) == ([], _ROWS // 100 + 1)
    # What an index answers is found at once.
    for equal in ({"alert_name": "x"}, {"action": "x"}, {"fingerprint": "x"}, {"kind": "resolved"},
                  {"outcome": "unknown"}, {"state": "running"}):  # fmt: skip
        assert every_page(journal, RunFilters(equal), 50, 100) == ([], 1)


def test_cursor_of_something_else_is_refused(journal: Journal) -> None:
    for cursor in ("1.2", "x", "-1"):
        with pytest.raises(CursorError):
            reading.page_of_runs(journal, cursor=cursor)


def test_counts_of_the_last_day_are_those_of_the_runs(journal: Journal) -> None:
    expected: dict[tuple[str, int, str], int] = {}
    for run in reading.list_runs(journal, limit=_ROWS + 1, state="finished"):
        ago = (T0 - run["finished_at"]) // _HOUR
        if ago < activity.HOURS:
            key = (run["action"], activity.HOURS - 1 - ago, run["outcome"])
            expected[key] = expected.get(key, 0) + 1
    ended = activity.look(journal).ended
    assert expected == {
        (action, hour, outcome): number
        for action, hours in ended.items()
        for hour, ends in hours.items()
        for outcome, number in ends.items()
    }


class Pages:
    """A desk whose pages are not full, as those of a rare kind of runs are not."""

    def page_of_runs(self, limit: int, cursor: str = "", **equal: object) -> reading.Page:
        """Return one run on every second page."""
        assert equal == {"kind": "repeat"}
        number = int(cursor or 0)
        rows = [{"id": number}] if number % 2 else []
        return reading.Page(rows[:limit], str(number + 1) if number < 9 else None)


@pytest.mark.parametrize(("limit", "expected"), [(2, [1, 3]), (50, [1, 3, 5, 7, 9])])
def test_command_looks_further_until_it_has_enough(limit: int, expected: list[int]) -> None:
    rows = newest_runs(Pages(), limit, {"kind": "repeat"})
    assert [row["id"] for row in rows] == expected
