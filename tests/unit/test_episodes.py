"""What counts as a new episode, and what becomes of the runs of an old one: each branch."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.alertmanager import parse_notification
from receiver.episodes import (
    ESCALATED,
    MARK_AHEAD,
    SEEN_RESOLUTION,
    WAITING,
    Cancel,
    Change,
    Create,
    Decision,
    Episode,
    EpisodeRun,
    Postpone,
    PutBack,
    decide_firing,
    decide_resolved,
    effect_of,
    escalation,
    is_ahead,
    needs_identity,
    when_closed,
    when_finished,
    when_put_back,
    when_retried,
    when_settled,
)
from receiver.policies import Policy
from tests.support.fuzz import examples
from tests.support.notifications import SEQUENCES, T0, sequence

US = timedelta(microseconds=1)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
NONE = timedelta(0)
NOW = T0 + HOUR
ROW = Episode("eu", "f1", "log_action", T0, T0, NOW - 2 * MINUTE, "team-a")
CLOSED = replace(ROW, closed_at=T0 + 2 * MINUTE, ends_at=T0 + MINUTE)


def firing(
    row: Episode | None,
    starts_at: datetime,
    now: datetime = NOW,
    tolerance: timedelta = NONE,
    has_run: bool = False,
) -> Decision:
    return decide_firing(
        row, "eu", "f1", "log_action", starts_at, "team-b", now, tolerance, has_run
    )


def begun(starts_at: datetime, mark_at: datetime | None = None, now: datetime = NOW) -> Episode:
    """Return the row of an episode that begins now."""
    return Episode("eu", "f1", "log_action", starts_at, mark_at or starts_at, now, "team-b")


def test_first_firing_begins_an_episode() -> None:
    assert firing(None, T0) == Decision("new", "the first episode of this alert", begun(T0))


def test_first_firing_whose_run_exists_is_no_new_episode_and_gets_a_row() -> None:
    # Its row was deleted, or it lies so far ahead that only the run's identity knows it.
    assert firing(None, T0, has_run=True) == Decision(
        "seen", "a run of this very startsAt exists", begun(T0)
    )


@pytest.mark.parametrize("row", [ROW, CLOSED], ids=["open", "closed"])
@pytest.mark.parametrize("later", [US, SECOND, HOUR], ids=str)
def test_later_starts_at_begins_a_new_episode_resolved_or_not(
    row: Episode, later: timedelta
) -> None:
    assert firing(row, T0 + later) == Decision(
        "new", "its startsAt is later than the latest accepted", begun(T0 + later)
    )


@pytest.mark.parametrize("earlier", [NONE, US, SECOND, HOUR, timedelta(days=9000)], ids=str)
def test_starts_at_that_is_not_later_is_the_same_episode(earlier: timedelta) -> None:
    assert firing(ROW, T0 - earlier) == Decision(
        "seen", "the same episode", replace(ROW, seen_at=NOW, receiver="team-b")
    )


@pytest.mark.parametrize("earlier", [NONE, US, HOUR], ids=str)
def test_closed_episode_that_fires_again_is_put_back_as_it_was(earlier: timedelta) -> None:
    row = replace(CLOSED, round=2)

    assert firing(row, T0 - earlier) == Decision(
        "put back",
        "the same episode fires again: the resolved was false",
        replace(ROW, seen_at=NOW, receiver="team-b", round=2),
    )


def test_new_episode_starts_its_rounds_anew() -> None:
    decision = firing(replace(ROW, round=3), T0 + SECOND)

    assert decision.row is not None
    assert decision.row.round == 0


@pytest.mark.parametrize(
    ("age", "is_written"),
    [
        (NONE, False),
        (US, False),
        (SEEN_RESOLUTION - US, False),
        (SEEN_RESOLUTION, True),
        (HOUR, True),
        # The clock was set back: seen_at must not stand in the future.
        (-US, True),
        (-HOUR, True),
    ],
    ids=str,
)
def test_seen_is_written_once_a_minute(age: timedelta, is_written: bool) -> None:
    decision = firing(replace(ROW, seen_at=NOW - age), T0)

    assert decision.kind == "seen"
    assert (decision.row is not None) == is_written


@pytest.mark.parametrize(
    ("later", "kind"),
    [(NONE, "seen"), (SECOND, "seen"), (5 * SECOND, "seen"), (5 * SECOND + US, "new")],
    ids=str,
)
def test_tolerance_continues_an_open_episode(later: timedelta, kind: str) -> None:
    assert firing(ROW, T0 + later, tolerance=5 * SECOND).kind == kind


@pytest.mark.parametrize(
    ("later", "kind"), [(NONE, "put back"), (US, "new"), (SECOND, "new")], ids=str
)
def test_tolerance_ends_with_the_resolved(later: timedelta, kind: str) -> None:
    assert firing(CLOSED, T0 + later, tolerance=5 * SECOND).kind == kind


def test_tolerated_starts_at_moves_the_mark_but_not_the_episode() -> None:
    row = replace(ROW, seen_at=NOW)

    decision = firing(row, T0 + SECOND, tolerance=5 * SECOND)

    assert decision.row == replace(row, mark_at=T0 + SECOND, receiver="team-b")


def test_tolerated_starts_at_stays_the_same_episode_once_closed() -> None:
    tolerated = firing(ROW, T0 + SECOND, tolerance=5 * SECOND).row
    assert tolerated is not None
    closed = decide_resolved(tolerated, T0 + MINUTE, NOW).row

    assert firing(closed, T0 + SECOND, tolerance=5 * SECOND).kind == "put back"
    assert firing(closed, T0, tolerance=5 * SECOND).kind == "put back"


def test_earlier_starts_at_does_not_move_the_mark_back() -> None:
    decision = firing(ROW, T0 - HOUR, tolerance=2 * HOUR)

    assert decision.row is not None
    assert decision.row.mark_at == T0


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [(-HOUR, False), (NONE, False), (MARK_AHEAD, False), (MARK_AHEAD + US, True), (HOUR, True)],
    ids=str,
)
def test_starts_at_is_ahead_beyond_five_minutes(ahead: timedelta, expected: bool) -> None:
    assert timedelta(minutes=5) == MARK_AHEAD
    assert is_ahead(NOW + ahead, NOW) is expected
    assert firing(None, NOW + ahead).is_ahead is expected


@pytest.mark.parametrize("row", [None, ROW, CLOSED], ids=["none", "open", "closed"])
@pytest.mark.parametrize("ahead", [MINUTE, MARK_AHEAD, HOUR, timedelta(days=365000)], ids=str)
def test_mark_follows_a_clock_that_is_ahead_by_five_minutes_at_most(
    row: Episode | None, ahead: timedelta
) -> None:
    decision = firing(row, NOW + ahead)

    mark_at = NOW + min(ahead, MARK_AHEAD)
    assert decision.kind == "new"
    assert decision.row == begun(NOW + ahead, mark_at)


def test_starts_at_from_the_future_is_the_same_episode_where_its_run_exists() -> None:
    ahead = NOW + HOUR
    row = replace(begun(ahead, NOW + MARK_AHEAD), seen_at=NOW - HOUR)

    decision = firing(row, ahead, has_run=True)

    assert decision == Decision("seen", "the same episode", replace(row, seen_at=NOW), True)
    assert firing(row, ahead, has_run=False).kind == "new"


@pytest.mark.parametrize("row", [None, ROW, CLOSED], ids=["no row", "open", "closed"])
@pytest.mark.parametrize("has_run", [False, True], ids=["run unknown", "run exists"])
def test_clock_that_is_ahead_is_told_whatever_is_decided(
    row: Episode | None, has_run: bool
) -> None:
    decision = firing(row, NOW + HOUR, has_run=has_run)

    assert decision.is_ahead
    kinds = {None: "seen", ROW: "seen", CLOSED: "put back"} if has_run else {}
    assert decision.kind == kinds.get(row, "new")


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(
            [("firing", 0, 7200), ("firing", 0, 3600), ("firing", 7200 - 240, 7200)],
            id="two startsAt ahead, the later one first",
        ),
        pytest.param(
            [("firing", 0, 7200), ("firing", 3600, 3600), ("firing", 3600 - 240, 7200)],
            id="one peer is ahead, the other tells of a new episode between",
        ),
    ],
)
def test_later_starts_at_is_known_again_after_an_earlier_one(
    steps: list[tuple[str, int, int]],
) -> None:
    conversation = Conversation(NONE)

    for step in steps:
        conversation.play(*step)

    assert [one.kind for one in conversation.decisions] == ["new", "new", "seen"]


def test_row_does_not_stay_deaf_after_a_clock_that_was_ahead() -> None:
    row = begun(NOW + HOUR, NOW + MARK_AHEAD)

    assert firing(row, NOW + MARK_AHEAD + US, now=NOW + 6 * MINUTE).kind == "new"


def test_starts_at_that_comes_into_reach_is_still_the_same_episode() -> None:
    starts_at = NOW + HOUR
    row = firing(None, starts_at).row
    later = starts_at + MINUTE

    assert not is_ahead(starts_at, later)
    assert needs_identity(row, starts_at, later)
    assert firing(row, starts_at, now=later, has_run=True).kind == "seen"


@pytest.mark.parametrize(
    ("row", "starts_at", "expected"),
    [
        pytest.param(None, NOW, False, id="no row, past"),
        pytest.param(None, NOW + MARK_AHEAD, False, id="no row, as far as the mark can follow"),
        pytest.param(None, NOW + MARK_AHEAD + US, True, id="no row, ahead"),
        pytest.param(ROW, T0, False, id="same"),
        pytest.param(ROW, T0 - HOUR, False, id="earlier"),
        pytest.param(ROW, NOW + HOUR, True, id="ahead"),
        pytest.param(CLOSED, NOW + HOUR, True, id="closed, ahead"),
        pytest.param(begun(NOW + HOUR, T0), T0, False, id="at a mark that lagged"),
        pytest.param(begun(NOW, T0), T0 + US, True, id="between a mark that lagged and its alert"),
        pytest.param(begun(NOW, T0), NOW, True, id="the alert whose mark lagged"),
    ],
)
def test_identity_is_asked_for_only_where_the_mark_could_not_follow(
    row: Episode | None, starts_at: datetime, expected: bool
) -> None:
    assert needs_identity(row, starts_at, NOW) is expected


@pytest.mark.parametrize(
    ("ends_at", "expected"),
    [
        pytest.param(T0 + US, replace(ROW, closed_at=NOW, ends_at=T0 + US), id="just after"),
        pytest.param(T0 + MINUTE, replace(ROW, closed_at=NOW, ends_at=T0 + MINUTE), id="after"),
        pytest.param(NOW + HOUR, replace(ROW, closed_at=NOW, ends_at=NOW + HOUR), id="in future"),
        pytest.param(None, replace(ROW, closed_at=NOW, ends_at=NOW), id="not told: now"),
        pytest.param(T0, None, id="at its beginning"),
        pytest.param(T0 - MINUTE, None, id="before it began"),
    ],
)
def test_resolved_closes_an_episode_that_began_before_it(
    ends_at: datetime | None, expected: Episode | None
) -> None:
    decision = decide_resolved(ROW, ends_at, NOW)

    if expected is None:
        assert decision == Decision("seen", "it ended before the latest episode began")
    else:
        assert decision == Decision("closed", "the alert resolved", expected)


@pytest.mark.parametrize("ends_at", [None, T0, T0 + MINUTE, NOW], ids=str)
def test_second_resolved_changes_nothing(ends_at: datetime | None) -> None:
    assert decide_resolved(CLOSED, ends_at, NOW) == Decision(
        "seen", "the episode was closed already", None
    )


def test_resolved_of_an_old_episode_does_not_close_the_new_one() -> None:
    row = firing(ROW, T0 + 10 * MINUTE).row
    assert row is not None

    assert decide_resolved(row, T0 + 5 * MINUTE, NOW).kind == "seen"


@pytest.mark.parametrize("folder", SEQUENCES)
def test_recorded_conversation_has_its_number_of_episodes(folder: str) -> None:
    rows: dict[str, Episode] = {}
    begun_episodes = 0
    for now, body in sequence(folder):
        for one in parse_notification(body).alerts:
            row = rows.get(one.fingerprint)
            if not one.is_resolved:
                decision = decide_firing(
                    row, "", one.fingerprint, "log_action", one.starts_at, "r", now
                )
                begun_episodes += decision.kind == "new"
            elif row is not None:
                decision = decide_resolved(row, one.ends_at, now)
            else:
                continue
            if decision.row is not None:
                rows[one.fingerprint] = decision.row

    assert begun_episodes == SEQUENCES[folder]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["firing", "resolved"]),
        # Seconds that pass, and where startsAt or endsAt lies relative to T0.
        st.sampled_from([0, 1, 30, 61, 240, 301, 3600]),
        st.sampled_from([-3600, -1, 0, 1, 2, 5, 60, 299, 300, 301, 600, 3600, 4000, 7200]),
    ),
    max_size=25,
)
TOLERANCES = st.sampled_from([NONE, SECOND, 5 * MINUTE, 2 * HOUR])


class Conversation:
    """Plays a conversation about one row, and tells `has_run` the truth."""

    def __init__(self, tolerance: timedelta) -> None:
        self.tolerance = tolerance
        self.now = T0
        self.row: Episode | None = None
        self.accepted: set[datetime] = set()
        self.decisions: list[Decision] = []

    def play(self, kind: str, seconds: int, offset: int) -> Decision | None:
        """Let time pass, then deliver one alert; return what was decided, if anything was."""
        self.now += seconds * SECOND
        instant = T0 + offset * SECOND
        if kind == "firing":
            has_run = needs_identity(self.row, instant, self.now) and instant in self.accepted
            decision = firing(self.row, instant, self.now, self.tolerance, has_run)
        elif self.row is None:
            return None
        else:
            decision = decide_resolved(self.row, instant, self.now)
        if decision.kind == "new":
            self.accepted.add(instant)
        self.row = decision.row or self.row
        self.decisions.append(decision)
        return decision


@examples(300)
@given(STEPS, TOLERANCES)
def test_mark_never_exceeds_now_by_more_than_five_minutes_and_never_goes_back(
    steps: list[tuple[str, int, int]], tolerance: timedelta
) -> None:
    conversation = Conversation(tolerance)
    mark_at = T0 - timedelta(days=1)
    for step in steps:
        conversation.play(*step)
        if conversation.row is not None:
            assert mark_at <= conversation.row.mark_at <= conversation.now + MARK_AHEAD
            mark_at = conversation.row.mark_at


@examples(300)
@given(STEPS, TOLERANCES)
def test_starts_at_that_was_accepted_is_never_new_again(
    steps: list[tuple[str, int, int]], tolerance: timedelta
) -> None:
    conversation = Conversation(tolerance)
    for kind, seconds, offset in steps:
        accepted = T0 + offset * SECOND in conversation.accepted
        decision = conversation.play(kind, seconds, offset)
        if kind == "firing" and accepted:
            assert decision is not None
            assert decision.kind != "new"


@examples(200)
@given(STEPS, TOLERANCES, st.sampled_from([300, 301, 600, 7200]))
def test_starts_at_of_a_clock_that_is_ahead_is_never_new_again(
    steps: list[tuple[str, int, int]], tolerance: timedelta, offset: int
) -> None:
    conversation = Conversation(tolerance)
    for kind, seconds, ends in steps:
        conversation.play(kind, seconds, offset if kind == "firing" else ends)

    assert [one.kind for one in conversation.decisions].count("new") <= 1


@examples(300)
@given(STEPS, TOLERANCES)
def test_decision_is_consistent_with_the_row_it_writes(
    steps: list[tuple[str, int, int]], tolerance: timedelta
) -> None:
    conversation = Conversation(tolerance)
    for step in steps:
        before = conversation.row
        decision = conversation.play(*step)
        if decision is None:
            continue
        assert decision.reason
        if decision.kind == "new":
            assert decision.row is not None
            assert decision.row.is_open
            assert decision.row.seen_at == conversation.now
        elif decision.kind == "closed":
            assert before is not None and before.is_open
            assert decision.row is not None and not decision.row.is_open
        elif decision.kind == "put back":
            assert before is not None and not before.is_open
            assert decision.row is not None and decision.row.is_open
            assert decision.row.starts_at == before.starts_at
        else:
            assert decision.kind == "seen"


@given(
    row=st.sampled_from([None, ROW, CLOSED, begun(NOW + HOUR, NOW + MARK_AHEAD)]),
    offset=st.sampled_from([-1, 0, 1, 3599, 3600, 3900, 3901, 7200, 9000]),
    hours=st.sampled_from([-12, -3.5, 0, 2, 5.75, 14]),
    tolerance=TOLERANCES,
    has_run=st.booleans(),
)
def test_decision_does_not_depend_on_the_offset_that_a_time_is_written_with(
    row: Episode | None, offset: int, hours: float, tolerance: timedelta, has_run: bool
) -> None:
    zone = timezone(timedelta(hours=hours))

    def moved(one: Episode | None) -> Episode | None:
        if one is None:
            return None
        instants = {
            name: value.astimezone(zone)
            for name in ("starts_at", "mark_at", "seen_at", "closed_at", "ends_at")
            if (value := getattr(one, name)) is not None
        }
        return replace(one, **instants)

    at = T0 + offset * SECOND
    there = at.astimezone(zone)

    assert firing(row, at, NOW, tolerance, has_run) == firing(
        moved(row), there, NOW.astimezone(zone), tolerance, has_run
    )
    assert needs_identity(row, at, NOW) == needs_identity(moved(row), there, NOW)
    if row is not None:
        shifted = moved(row)
        assert shifted is not None
        assert decide_resolved(row, at, NOW) == decide_resolved(shifted, there, NOW)


FIRED = EpisodeRun(1, "fired", 0, "queued", None, 0, None, False)
SUCCEEDED = replace(FIRED, state="finished", outcome="succeeded", attempts=1)
REPEAT = EpisodeRun(2, "repeat", 1, "queued", None, 0, None, False)
RESOLVED = EpisodeRun(3, "resolved", 0, "queued", None, 0, None, False)
ESCALATION = EpisodeRun(4, "escalation", 0, "queued", None, 0, None, False)
BY_RESOLVED = {"state": "finished", "outcome": "cancelled", "cancelled_by": "resolved"}
DONE_RESOLVED = replace(RESOLVED, state="finished", outcome="succeeded", attempts=1, started_at=NOW)
AFTER = 5 * MINUTE
NOT_STARTED = "the alert resolved before the run started"
WAS_RETRYING = "the alert resolved while the run waited for a retry"
FOLLOW_UP = Create(1, "resolved", 0, "the alert resolved after the action succeeded", NOW + AFTER)


def of(run: EpisodeRun, **changes: Any) -> EpisodeRun:
    return replace(run, **changes)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param([], [], id="no runs"),
        pytest.param([FIRED], [Cancel(1, "resolved", NOT_STARTED)], id="not started"),
        pytest.param(
            [of(FIRED, attempts=2)], [Cancel(1, "resolved", WAS_RETRYING)], id="waits for a retry"
        ),
        pytest.param(
            [of(FIRED, state="awaiting_approval")],
            [Cancel(1, "resolved", NOT_STARTED)],
            id="waits for approval",
        ),
        pytest.param([of(FIRED, state="running", attempts=1)], [], id="runs"),
        pytest.param([of(FIRED, state="finished", outcome="failed")], [], id="failed"),
        pytest.param([SUCCEEDED], [FOLLOW_UP], id="succeeded"),
        pytest.param(
            [SUCCEEDED, REPEAT, ESCALATION],
            [Cancel(2, "resolved", NOT_STARTED), Cancel(4, "resolved", NOT_STARTED), FOLLOW_UP],
            id="all that waits",
        ),
        pytest.param([SUCCEEDED, RESOLVED], [], id="its resolved run waits already"),
        pytest.param([of(FIRED, **BY_RESOLVED)], [], id="cancelled before"),
    ],
)
def test_end_of_an_episode_cancels_what_waits_and_owes_a_resolved_run(
    runs: Sequence[EpisodeRun], expected: list[Change]
) -> None:
    assert when_closed(runs, CLOSED, AFTER, NOW) == expected


def test_what_waits_is_queued_or_awaits_approval() -> None:
    assert WAITING == ("queued", "awaiting_approval")


def test_end_of_an_episode_owes_nothing_where_the_action_has_no_resolved_hook() -> None:
    assert when_closed([SUCCEEDED, REPEAT], CLOSED, None, NOW) == [
        Cancel(2, "resolved", NOT_STARTED)
    ]


@pytest.mark.parametrize(
    ("row", "runs", "resolved_after", "expected"),
    [
        pytest.param(CLOSED, [SUCCEEDED], AFTER, FOLLOW_UP, id="closed and succeeded"),
        pytest.param(
            CLOSED, [SUCCEEDED], NONE, replace(FOLLOW_UP, due_at=NOW), id="due without a pause"
        ),
        pytest.param(ROW, [SUCCEEDED], AFTER, None, id="still fires"),
        pytest.param(CLOSED, [SUCCEEDED], None, None, id="no resolved hook"),
        pytest.param(CLOSED, [], AFTER, None, id="no runs"),
        pytest.param(CLOSED, [FIRED], AFTER, None, id="has not succeeded yet"),
        pytest.param(
            CLOSED, [of(FIRED, state="finished", outcome="failed")], AFTER, None, id="failed"
        ),
        pytest.param(
            CLOSED, [of(REPEAT, state="finished", outcome="succeeded")], AFTER, None,
            id="only a repeat succeeded",
        ),
        pytest.param(
            replace(CLOSED, round=1), [SUCCEEDED], AFTER, None, id="an older round succeeded"
        ),
        pytest.param(
            replace(CLOSED, round=1),
            [SUCCEEDED, of(RESOLVED, state="finished"), of(SUCCEEDED, id=5, ordinal=1)],
            AFTER,
            replace(FOLLOW_UP, like=5, ordinal=1),
            id="the run of this round succeeded",
        ),
        pytest.param(CLOSED, [SUCCEEDED, RESOLVED], AFTER, None, id="waits already"),
        pytest.param(
            CLOSED, [SUCCEEDED, of(RESOLVED, state="finished", outcome="succeeded")], AFTER, None,
            id="ran already",
        ),
        pytest.param(
            CLOSED,
            [SUCCEEDED, of(RESOLVED, state="finished", outcome="cancelled",
                           cancelled_by="person")],
            AFTER, None, id="a person cancelled it",
        ),
        pytest.param(
            CLOSED,
            [SUCCEEDED, of(RESOLVED, state="finished", outcome="cancelled",
                           cancelled_by="fired again")],
            AFTER, PutBack(3, "the alert resolved again", NOW + AFTER), id="resolved again",
        ),
    ],
)  # fmt: skip
def test_resolved_run_is_owed_once_closed_and_succeeded(
    row: Episode,
    runs: Sequence[EpisodeRun],
    resolved_after: timedelta | None,
    expected: Change | None,
) -> None:
    assert when_settled(runs, row, resolved_after, NOW) == expected


FALSE_RESOLVED = "the alert fires again: the resolved was false"
ANEW = "the alert fires again after its resolved run"


@pytest.mark.parametrize(
    ("runs", "round_", "expected"),
    [
        pytest.param([], 0, [], id="no runs"),
        pytest.param([SUCCEEDED], 0, [], id="ran"),
        pytest.param([of(FIRED, **BY_RESOLVED)], 0, [PutBack(1, FALSE_RESOLVED)], id="cancelled"),
        pytest.param(
            [SUCCEEDED, of(REPEAT, **BY_RESOLVED), of(ESCALATION, **BY_RESOLVED)], 0,
            [PutBack(2, FALSE_RESOLVED), PutBack(4, FALSE_RESOLVED)], id="several cancelled",
        ),
        pytest.param(
            [of(FIRED, state="finished", outcome="cancelled", cancelled_by="person")], 0, [],
            id="a person cancelled it",
        ),
        pytest.param(
            [of(REPEAT, state="finished", outcome="cancelled", cancelled_by="new episode")], 0, [],
            id="a newer episode cancelled it",
        ),
        pytest.param(
            [SUCCEEDED, RESOLVED], 0, [Cancel(3, "fired again", "the alert fires again")],
            id="resolved run waits",
        ),
        pytest.param(
            [SUCCEEDED, of(RESOLVED, **BY_RESOLVED)], 0, [], id="resolved run never began",
        ),
        pytest.param(
            [SUCCEEDED, of(RESOLVED, attempts=2)], 0,
            [Cancel(3, "fired again", "the alert fires again")],
            id="resolved run was claimed, and never began",
        ),
        pytest.param(
            [SUCCEEDED, of(RESOLVED, attempts=1, retried_at=NOW)], 1,
            [Cancel(3, "fired again", "the alert fires again"), Create(3, "fired", 1, ANEW)],
            id="resolved run had begun, and a person retried it",
        ),
        pytest.param(
            [SUCCEEDED, of(RESOLVED, retried_at=NOW)], 0,
            [Cancel(3, "fired again", "the alert fires again")],
            id="resolved run never claimed, which a person retried",
        ),
        pytest.param(
            [SUCCEEDED, of(RESOLVED, attempts=1, started_at=NOW)], 1,
            [Cancel(3, "fired again", "the alert fires again"), Create(3, "fired", 1, ANEW)],
            id="resolved run waits for a retry",
        ),
        pytest.param(
            [SUCCEEDED, of(RESOLVED, state="running", attempts=1, started_at=NOW)], 1,
            [Create(3, "fired", 1, ANEW)], id="resolved run under way",
        ),
        pytest.param(
            [SUCCEEDED, of(DONE_RESOLVED)], 1,
            [Create(3, "fired", 1, ANEW)], id="resolved run done",
        ),
        pytest.param(
            [SUCCEEDED, of(REPEAT, **BY_RESOLVED),
             of(DONE_RESOLVED, outcome="failed", attempts=3)], 1,
            [PutBack(2, FALSE_RESOLVED), Create(3, "fired", 1, ANEW)],
            id="resolved run failed",
        ),
    ],
)  # fmt: skip
def test_episode_that_fires_again_gets_back_exactly_what_a_resolved_took(
    runs: Sequence[EpisodeRun], round_: int, expected: list[Change]
) -> None:
    assert when_put_back(runs, ROW) == (replace(ROW, round=round_), expected)


def test_resolved_run_of_an_older_round_no_longer_counts() -> None:
    row = replace(ROW, round=1)
    old = DONE_RESOLVED

    assert when_put_back([SUCCEEDED, old], row) == (row, [])
    assert when_put_back([SUCCEEDED, old, of(old, id=9, ordinal=1)], row) == (
        replace(row, round=2),
        [Create(9, "fired", 2, ANEW)],
    )


def test_false_resolved_leaves_the_runs_as_they_were() -> None:
    runs = [of(FIRED, attempts=1), REPEAT]
    cancelled = [change.run_id for change in when_closed(runs, CLOSED, AFTER, NOW)
                 if isinstance(change, Cancel)]  # fmt: skip
    after = [of(run, **BY_RESOLVED) if run.id in cancelled else run for run in runs]

    row, changes = when_put_back(after, ROW)

    assert row == ROW
    assert changes == [PutBack(run.id, FALSE_RESOLVED) for run in runs]


DAILY = Policy(repeat_after=HOUR, max_repeats=2)


def repeat(like: int, ordinal: int, cancelled_by: str | None = None) -> Create:
    reason = f"the alert still fires; repeat {ordinal} of at most 2"
    return Create(like, "repeat", ordinal, reason, NOW + HOUR, cancelled_by=cancelled_by)


DONE_REPEAT = of(REPEAT, state="finished", outcome="succeeded", attempts=1)


@pytest.mark.parametrize(
    ("run", "others", "row", "policy", "expected"),
    [
        pytest.param(SUCCEEDED, [], ROW, Policy(), [], id="no repeat asked for"),
        pytest.param(SUCCEEDED, [], ROW, DAILY, [repeat(1, 1)], id="first repeat"),
        pytest.param(DONE_REPEAT, [SUCCEEDED], ROW, DAILY, [repeat(2, 2)], id="second repeat"),
        pytest.param(
            of(DONE_REPEAT, id=8, ordinal=2), [SUCCEEDED, DONE_REPEAT], ROW, DAILY, [],
            id="no repeats left",
        ),
        pytest.param(
            SUCCEEDED, [], ROW, replace(DAILY, max_repeats=1),
            [replace(repeat(1, 1), reason="the alert still fires; repeat 1 of at most 1")],
            id="the only repeat",
        ),
        pytest.param(
            of(SUCCEEDED, id=9, ordinal=1), [SUCCEEDED, REPEAT], replace(ROW, round=1), DAILY,
            [Postpone(REPEAT.id, NOW + HOUR)],
            id="a repeat waits already, and waits on from this success",
        ),
        pytest.param(
            of(SUCCEEDED, outcome="failed"), [], ROW, DAILY, [], id="a failure is not repeated"
        ),
        pytest.param(
            of(SUCCEEDED, outcome="cancelled"), [], ROW, DAILY, [], id="cancelled: not repeated"
        ),
        pytest.param(SUCCEEDED, [], None, DAILY, [], id="a newer episode began"),
        pytest.param(
            of(RESOLVED, state="finished", outcome="succeeded", attempts=1), [SUCCEEDED], ROW,
            DAILY, [], id="a resolved run brings no repeat",
        ),
        pytest.param(
            of(ESCALATION, state="finished", outcome="succeeded", attempts=1), [SUCCEEDED], ROW,
            DAILY, [], id="an escalation brings no repeat",
        ),
        pytest.param(
            SUCCEEDED, [], CLOSED, DAILY, [repeat(1, 1, cancelled_by="resolved"), FOLLOW_UP],
            id="closed meanwhile: the repeat is born cancelled",
        ),
        pytest.param(SUCCEEDED, [], CLOSED, Policy(), [FOLLOW_UP], id="closed: resolved run owed"),
        pytest.param(
            SUCCEEDED, [RESOLVED], CLOSED, Policy(), [], id="closed: resolved run waits already"
        ),
    ],
)  # fmt: skip
def test_success_brings_the_repeat_and_the_resolved_run(
    run: EpisodeRun,
    others: list[EpisodeRun],
    row: Episode | None,
    policy: Policy,
    expected: list[Change],
) -> None:
    assert when_finished(run, [*others, run], row, policy, AFTER, NOW) == expected


def test_repeat_that_was_born_cancelled_is_put_back_when_the_alert_fires_again() -> None:
    (born, _) = when_finished(SUCCEEDED, [SUCCEEDED], CLOSED, DAILY, AFTER, NOW)
    assert isinstance(born, Create)
    cancelled = of(REPEAT, ordinal=born.ordinal, **BY_RESOLVED)

    assert when_put_back([SUCCEEDED, cancelled], ROW) == (ROW, [PutBack(2, FALSE_RESOLVED)])


ESCALATING = Policy(escalate_to="page_someone")


@pytest.mark.parametrize("ending", ESCALATED)
@pytest.mark.parametrize("kind", ["fired", "repeat", "resolved", "escalation"])
def test_bad_ending_is_escalated_whatever_the_kind(kind: str, ending: str) -> None:
    run = of(FIRED, kind=kind, state="finished", outcome=ending, attempts=3)

    assert escalation(run, ending, ESCALATING) == [
        Create(1, "escalation", 0, f"escalated: run 1 ended {ending}", action="page_someone")
    ]


@pytest.mark.parametrize("ending", ["succeeded", "cancelled", "effective", "unverified", ""])
def test_good_ending_is_not_escalated(ending: str) -> None:
    assert escalation(SUCCEEDED, ending, ESCALATING) == []


@pytest.mark.parametrize("ending", ESCALATED)
def test_nothing_is_escalated_where_no_action_is_named(ending: str) -> None:
    assert escalation(SUCCEEDED, ending, Policy()) == []


@pytest.mark.parametrize("row", [ROW, CLOSED, None], ids=["open", "closed", "not the latest"])
@pytest.mark.parametrize("outcome", ["failed", "unknown"])
def test_failed_run_is_escalated_even_when_its_episode_is_over(
    row: Episode | None, outcome: str
) -> None:
    run = of(FIRED, state="finished", outcome=outcome, attempts=3)

    assert when_finished(run, [run], row, ESCALATING, AFTER, NOW) == [
        Create(1, "escalation", 0, f"escalated: run 1 ended {outcome}", action="page_someone")
    ]


def test_successful_run_is_not_escalated() -> None:
    assert when_finished(SUCCEEDED, [SUCCEEDED], ROW, ESCALATING, AFTER, NOW) == []


@pytest.mark.parametrize(
    ("row", "finished_at", "route_resolves", "expected"),
    [
        pytest.param(CLOSED, T0 + MINUTE, True, ("effective", MINUTE), id="resolved after it"),
        pytest.param(CLOSED, T0 + MINUTE, False, ("effective", MINUTE), id="its first resolved"),
        pytest.param(CLOSED, T0 + 3 * MINUTE, True, ("effective", NONE), id="resolved before"),
        pytest.param(ROW, T0 + MINUTE, True, ("ineffective", None), id="still fires"),
        pytest.param(ROW, T0 + MINUTE, False, ("unverified", None), id="route never resolves"),
        pytest.param(None, T0 + MINUTE, True, ("unverified", None), id="a newer episode began"),
        pytest.param(None, T0 + MINUTE, False, ("unverified", None), id="newer, never resolves"),
    ],
)
def test_effect_says_whether_the_alert_resolved(
    row: Episode | None,
    finished_at: datetime,
    route_resolves: bool,
    expected: tuple[str, timedelta | None],
) -> None:
    assert effect_of(row, finished_at, route_resolves) == expected


@pytest.mark.parametrize(
    ("kind", "row", "by"),
    [
        pytest.param("fired", ROW, None, id="while its alert fires"),
        pytest.param("repeat", ROW, None, id="a repeat while its alert fires"),
        pytest.param("fired", replace(ROW, closed_at=NOW), "resolved", id="resolved meanwhile"),
        pytest.param("resolved", replace(ROW, closed_at=NOW), None, id="what follows a resolved"),
        pytest.param("resolved", ROW, "fired again", id="fired again meanwhile"),
        pytest.param("fired", None, None, id="what is owed to an older episode"),
        pytest.param("escalation", None, None, id="an escalation of an older episode"),
        pytest.param("repeat", None, "new episode", id="a repeat of an older episode"),
        pytest.param("resolved", None, "new episode", id="the end of an older episode"),
    ],
)
def test_failed_attempt_is_tried_again_unless_its_episode_went_on(
    kind: str, row: Episode | None, by: str | None
) -> None:
    found = when_retried(kind, row, NOW)
    assert (found[0] if found else None) == by


@pytest.mark.parametrize(
    ("closed_at", "retried_at", "is_cancelled"),
    [
        pytest.param(T0, NOW, False, id="asked for after it closed"),
        pytest.param(NOW, T0, True, id="asked for before it closed"),
        pytest.param(NOW + timedelta(days=365), NOW, False, id="closed by a clock that was ahead"),
    ],
)
def test_retry_that_a_person_asked_for_after_the_end_of_the_episode_is_tried_again(
    closed_at: datetime, retried_at: datetime, is_cancelled: bool
) -> None:
    found = when_retried("fired", replace(ROW, closed_at=closed_at), NOW, retried_at)

    assert (found is not None) == is_cancelled
