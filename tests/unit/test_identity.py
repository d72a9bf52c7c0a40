"""What counts as a new episode, each branch, whatever the clocks say."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.alertmanager import parse_notification
from receiver.identity import (
    FAR_AHEAD,
    SEEN_RESOLUTION,
    Decision,
    Episode,
    decide_firing,
    decide_resolved,
    is_ahead,
    needs_identity,
)
from tests.support.fuzz import examples
from tests.support.notifications import SEQUENCES, T0, sequence

US = timedelta(microseconds=1)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
NONE = timedelta(0)
NOW = T0 + HOUR
ROW = Episode("eu", "f1", "log_action", T0, T0, NOW - 2 * MINUTE, "team-a")
# Nothing shows that the clock of its sender is right.
LATE = replace(ROW, ahead_starts_at=T0)
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


def begun(starts_at: datetime, now: datetime = NOW, peer_at: datetime | None = None) -> Episode:
    """Return the row of an episode that begins now."""
    is_clock_right = now - 5 * MINUTE <= starts_at <= now + MINUTE
    return Episode(
        "eu", "f1", "log_action", starts_at, min(starts_at, now), now, "team-b",
        ahead_starts_at=peer_at or (None if is_clock_right else starts_at),
    )  # fmt: skip


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
    [(-HOUR, False), (NONE, False), (FAR_AHEAD, False), (FAR_AHEAD + US, True), (HOUR, True)],
    ids=str,
)
def test_starts_at_is_ahead_beyond_five_minutes(ahead: timedelta, expected: bool) -> None:
    assert timedelta(minutes=5) == FAR_AHEAD
    assert is_ahead(NOW + ahead, NOW) is expected
    assert firing(None, NOW + ahead).is_ahead is expected


@pytest.mark.parametrize("row", [None, ROW, CLOSED], ids=["none", "open", "closed"])
@pytest.mark.parametrize("ahead", [SECOND, MINUTE, FAR_AHEAD], ids=str)
def test_watermark_never_passes_the_clock_of_the_journal(
    row: Episode | None, ahead: timedelta
) -> None:
    decision = firing(row, NOW + ahead)

    assert decision.kind == "new"
    assert decision.row == begun(NOW + ahead)
    assert decision.row.mark_at == NOW


def test_starts_at_from_the_future_is_no_new_episode_where_its_run_exists() -> None:
    row = begun(NOW + HOUR)
    later = NOW + 2 * HOUR

    assert firing(row, later).kind == "new"
    assert firing(row, later, has_run=True) == Decision("seen", "the same episode", row, True)


YEAR = timedelta(days=365)
# Episodes that a sender began whose clock is ahead, and which were reported until `NOW`.
AHEAD = {error: begun(NOW + error) for error in (2 * SECOND, 90 * SECOND, HOUR, YEAR)}
RIGHT = begun(NOW)


def closed(row: Episode, after: timedelta = NONE) -> Episode:
    return replace(row, closed_at=NOW + after, ends_at=NOW + after)


@pytest.mark.parametrize(
    ("row", "starts_at", "after", "kind"),
    [
        # The sender again: its startsAt is the row's own, also when its time has come.
        *[(row, row.starts_at, MINUTE, "seen") for row in AHEAD.values()],
        *[(row, row.starts_at, 2 * YEAR, "seen") for row in AHEAD.values()],
        *[(closed(row), row.starts_at, MINUTE, "put back") for row in AHEAD.values()],
        # Its clock was corrected, or the other peer's is right: what began before the report.
        *[(row, NOW, MINUTE, "seen") for row in AHEAD.values()],
        *[(row, NOW - HOUR, MINUTE, "seen") for row in AHEAD.values()],
        *[(closed(row), NOW, MINUTE, "put back") for row in AHEAD.values()],
        # A peer that noticed a little later; after the end, the alert fires anew.
        *[(row, NOW + 2 * SECOND, MINUTE, "seen") for row in AHEAD.values()],
        *[(closed(row), NOW + SECOND, MINUTE, "new") for row in AHEAD.values()],
        (closed(AHEAD[HOUR], 2 * SECOND), NOW + SECOND, MINUTE, "put back"),
        (closed(AHEAD[HOUR], 2 * SECOND), NOW + 2 * SECOND, MINUTE, "new"),
        (AHEAD[HOUR], NOW + FAR_AHEAD, HOUR, "seen"),
        (AHEAD[HOUR], NOW + FAR_AHEAD + US, HOUR, "new"),
        (AHEAD[2 * SECOND], NOW + 2 * SECOND + US, MINUTE, "new"),
        # The same sender with the next episode.
        *[(row, row.starts_at + MINUTE, MINUTE, "new") for row in AHEAD.values()],
        *[(closed(row), row.starts_at + MINUTE, MINUTE, "new") for row in AHEAD.values()],
        # Its startsAt moves back by a little, while it lies in the future and after.
        (AHEAD[HOUR], NOW + HOUR - SECOND, MINUTE, "seen"),
        (closed(AHEAD[HOUR]), NOW + HOUR - SECOND, MINUTE, "put back"),
        (AHEAD[HOUR], NOW + HOUR - FAR_AHEAD - US, MINUTE, "new"),
        # A right sender began it, and its peer is ahead: once, and while it is open.
        (RIGHT, NOW + HOUR, MINUTE, "seen"),
        (RIGHT, NOW + YEAR, MINUTE, "seen"),
        (closed(RIGHT), NOW + HOUR, MINUTE, "new"),
        (begun(NOW, peer_at=NOW + HOUR), NOW + HOUR, MINUTE, "seen"),
        (begun(NOW, peer_at=NOW + HOUR), NOW + HOUR, 2 * HOUR, "seen"),
        (closed(begun(NOW, peer_at=NOW + HOUR)), NOW + HOUR, MINUTE, "put back"),
        (begun(NOW, peer_at=NOW + HOUR), NOW + HOUR + MINUTE, MINUTE, "new"),
        # Nothing shows that the clock of a sender is right whose first report came late.
        (replace(begun(NOW - HOUR, NOW)), NOW + HOUR, MINUTE, "new"),
        # What is not far ahead may as well be the next episode.
        (RIGHT, NOW + MINUTE + FAR_AHEAD, MINUTE, "new"),
        (RIGHT, NOW + 90 * SECOND, MINUTE, "new"),
    ],
    ids=str,
)
def test_clock_that_is_ahead_neither_hides_an_episode_nor_makes_two_of_one(
    row: Episode, starts_at: datetime, after: timedelta, kind: str
) -> None:
    assert firing(row, starts_at, now=NOW + after).kind == kind


def test_each_report_raises_the_watermark_to_the_starts_at_of_the_row() -> None:
    row = AHEAD[HOUR]
    for minutes in (4, 8, 12, 16):
        reported = firing(row, row.starts_at, now=NOW + minutes * MINUTE).row
        assert reported is not None
        row = reported
    # Four minutes after the latest report the clock of the sender is corrected.
    starts_at = NOW + 20 * MINUTE
    assert firing(row, starts_at, now=starts_at).kind == "seen"
    # It is raised no further: what begins later is new.
    late = firing(row, row.starts_at, now=NOW + 2 * HOUR).row
    assert late is not None
    starts_at = row.starts_at + US
    assert firing(late, starts_at, now=NOW + 2 * HOUR).kind == "new"


def test_each_report_is_written_while_the_starts_at_of_the_row_lies_ahead() -> None:
    row = AHEAD[90 * SECOND]

    for seconds in (1, 30, 90):
        assert firing(row, row.starts_at, now=NOW + seconds * SECOND).row is not None
    seen = replace(row, seen_at=NOW + 90 * SECOND)
    assert firing(seen, row.starts_at, now=NOW + 91 * SECOND).row is None


def test_starts_at_of_a_peer_that_is_ahead_is_kept_beside_the_rows_own() -> None:
    decision = firing(RIGHT, NOW + HOUR, now=NOW + SECOND)

    expected = begun(NOW, peer_at=NOW + HOUR)
    assert decision.row == replace(expected, seen_at=NOW + SECOND)


@pytest.mark.parametrize(
    ("starts_at", "kind"),
    [
        pytest.param(NOW, "new", id="alert of today"),
        pytest.param(NOW - HOUR, "new", id="alert of an hour ago"),
        pytest.param(NOW + YEAR, "seen", id="the same alert"),
        pytest.param(NOW + YEAR - SECOND, "seen", id="the same alert, moved back"),
    ],
)
@pytest.mark.parametrize("is_open", [True, False])
def test_watermark_that_a_wrong_clock_of_the_journal_left_hides_no_alert_of_today(
    starts_at: datetime, kind: str, is_open: bool
) -> None:
    # The journal and the sender were a year ahead, as on one machine that resumed.
    row = begun(NOW + YEAR, now=NOW + YEAR)
    row = row if is_open else replace(row, closed_at=NOW + YEAR)

    decision = firing(row, starts_at)

    assert decision.kind == (kind if is_open or kind == "new" else "put back")


@pytest.mark.parametrize("starts_at", [T0, T0 - SECOND, T0 - 50 * MINUTE], ids=str)
def test_clock_of_the_journal_that_is_set_back_makes_no_episode_new(starts_at: datetime) -> None:
    now = T0 - HOUR
    assert firing(ROW, starts_at, now=now).kind == "seen"
    assert firing(CLOSED, starts_at, now=now).kind == "put back"


def test_clock_of_the_journal_that_is_set_back_hides_no_episode() -> None:
    row = begun(NOW)

    assert firing(row, NOW + MINUTE, now=NOW - HOUR).kind == "new"


@pytest.mark.parametrize("row", [None, LATE, CLOSED], ids=["no row", "open", "closed"])
@pytest.mark.parametrize("has_run", [False, True], ids=["run unknown", "run exists"])
def test_clock_that_is_ahead_is_told_whatever_is_decided(
    row: Episode | None, has_run: bool
) -> None:
    decision = firing(row, NOW + HOUR, has_run=has_run)

    assert decision.is_ahead
    kinds = {None: "seen", LATE: "seen", CLOSED: "put back"} if has_run else {}
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


def test_starts_at_that_comes_into_reach_is_still_the_same_episode() -> None:
    starts_at = NOW + HOUR
    row = firing(None, starts_at).row
    later = starts_at + MINUTE

    assert not is_ahead(starts_at, later)
    assert not needs_identity(row, starts_at, later)
    assert firing(row, starts_at, now=later).kind == "seen"


@pytest.mark.parametrize(
    ("row", "starts_at", "expected"),
    [
        pytest.param(None, NOW, False, id="no row, past"),
        pytest.param(None, NOW + FAR_AHEAD, False, id="no row, a little ahead"),
        pytest.param(None, NOW + FAR_AHEAD + US, True, id="no row, ahead"),
        pytest.param(ROW, T0, False, id="same"),
        pytest.param(ROW, T0 - HOUR, False, id="earlier"),
        pytest.param(ROW, T0 + US, True, id="later"),
        pytest.param(CLOSED, T0 + US, True, id="closed, later"),
        pytest.param(ROW, NOW + HOUR, False, id="a peer that is ahead"),
        pytest.param(CLOSED, NOW + HOUR, True, id="closed, ahead"),
        pytest.param(begun(NOW + HOUR), NOW, False, id="at the watermark"),
        pytest.param(begun(NOW + HOUR), NOW + HOUR, False, id="the alert that is ahead"),
        pytest.param(begun(NOW + HOUR), NOW + 30 * MINUTE, True, id="between them"),
    ],
)
def test_identity_is_asked_for_only_where_an_episode_would_be_new(
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


@pytest.mark.parametrize(
    ("row", "ends_at", "kind"),
    [
        # A right peer, or the sender once corrected, tells the end before the row's startsAt.
        *[(row, NOW + SECOND, "closed") for row in AHEAD.values()],
        *[(row, row.starts_at + SECOND, "closed") for row in AHEAD.values()],
        *[(row, None, "closed") for row in AHEAD.values()],
        # What ended before the report that began the episode was the one before.
        *[(row, NOW, "seen") for row in AHEAD.values()],
        *[(row, NOW - MINUTE, "seen") for row in AHEAD.values()],
        # Later reports are none of the beginning.
        (replace(AHEAD[HOUR], seen_at=NOW + 9 * MINUTE), NOW + 8 * MINUTE, "closed"),
        # The clock of the journal was ahead, too.
        (begun(NOW + YEAR, now=NOW + YEAR), NOW + SECOND, "closed"),
        (begun(NOW + YEAR, now=NOW + YEAR), NOW + YEAR + SECOND, "closed"),
        (begun(NOW + YEAR, now=NOW + YEAR), NOW + YEAR, "seen"),
    ],
    ids=str,
)
def test_resolved_closes_what_a_clock_that_is_ahead_began(
    row: Episode, ends_at: datetime | None, kind: str
) -> None:
    assert decide_resolved(row, ends_at, NOW + 10 * MINUTE).kind == kind


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
            asks = needs_identity(self.row, instant, self.now, self.tolerance)
            has_run = asks and instant in self.accepted
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
def test_mark_never_passes_the_clock_by_more_than_a_minute(
    steps: list[tuple[str, int, int]], tolerance: timedelta
) -> None:
    conversation = Conversation(tolerance)
    for step in steps:
        conversation.play(*step)
        if conversation.row is not None:
            assert conversation.row.mark_at <= conversation.now + MINUTE


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
    row=st.sampled_from([None, ROW, CLOSED, begun(NOW + HOUR)]),
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
