"""What becomes of the runs of an episode: each branch."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from receiver.episodes import (
    ESCALATED,
    WAITING,
    Cancel,
    Change,
    Create,
    EpisodeRun,
    Postpone,
    PutBack,
    effect_of,
    escalation,
    when_closed,
    when_finished,
    when_put_back,
    when_retried,
    when_settled,
)
from receiver.identity import Episode
from receiver.policies import Policy
from tests.support.notifications import T0

NONE, SECOND, MINUTE, HOUR = (timedelta(seconds=n) for n in (0, 1, 60, 3600))
NOW = T0 + HOUR
ROW = Episode("eu", "f1", "log_action", T0, T0, NOW - 2 * MINUTE, "team-a")
CLOSED = replace(ROW, closed_at=T0 + 2 * MINUTE, ends_at=T0 + MINUTE)

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
