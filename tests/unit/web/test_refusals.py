"""How often refusals are logged: each reason at once, repetitions as a number."""

from dataclasses import replace
from typing import Any

import pytest

from receiver.web.refusals import Refusal, RefusalLog

WRONG = Refusal(400, "the body is not JSON", "10.0.0.1", "POST", "/webhook", "Alertmanager/0.28.0")


class Clock:
    """A clock that the test moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock) -> RefusalLog:
    return RefusalLog(clock)


Lines = list[tuple[str, dict[str, Any]]]
FIELDS = (*vars(WRONG), "left_out")


def logged(caplog: pytest.LogCaptureFixture) -> Lines:
    """Return what was logged since the last call: message and fields."""
    found = [
        (record.message, {name: vars(record)[name] for name in FIELDS if name in vars(record)})
        for record in caplog.records
    ]
    caplog.clear()
    return found


def test_refusal_is_logged_at_once_at_warning_with_what_is_known_of_it(
    refusals: RefusalLog, caplog: pytest.LogCaptureFixture
) -> None:
    refusals.note(WRONG)

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert logged(caplog) == [
        (
            "request refused",
            {
                "status": 400,
                "reason": "the body is not JSON",
                "client": "10.0.0.1",
                "method": "POST",
                "path": "/webhook",
                "user_agent": "Alertmanager/0.28.0",
            },
        )
    ]


def test_repetitions_within_a_minute_become_one_line_with_their_number(
    refusals: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        refusals.note(WRONG)
    assert [message for message, _ in logged(caplog)] == ["request refused"]

    clock.seconds = 59.9
    refusals.log_left_out()
    assert logged(caplog) == []

    clock.seconds = 60.0
    refusals.log_left_out()
    ((message, fields),) = logged(caplog)
    assert (message, fields["left_out"], fields["path"]) == (
        "more requests refused", 99, "/webhook",
    )  # fmt: skip

    clock.seconds = 600.0
    refusals.log_left_out()
    assert logged(caplog) == []


def test_next_refusal_after_a_minute_is_logged_at_once_again(
    refusals: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for clock.seconds in (0.0, 10.0, 61.0):
        refusals.note(WRONG)

    assert [(message, fields.get("left_out")) for message, fields in logged(caplog)] == [
        ("request refused", None), ("more requests refused", 1), ("request refused", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        replace(WRONG, status=401),
        replace(WRONG, reason="the body is not a notification"),
        replace(WRONG, client="10.0.0.2"),
        replace(WRONG, error="database is locked"),
    ],
)
def test_another_reason_is_logged_beside_a_flood(
    refusals: RefusalLog, other: Refusal, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        refusals.note(WRONG)
    logged(caplog)

    refusals.note(other)

    assert [message for message, _ in logged(caplog)] == ["request refused"]


def test_same_reason_on_another_path_is_a_repetition(
    refusals: RefusalLog, caplog: pytest.LogCaptureFixture
) -> None:
    refusals.note(WRONG)
    refusals.note(replace(WRONG, path="/webhook/x", user_agent="curl"))

    assert len(logged(caplog)) == 1


def test_end_of_the_process_logs_what_was_left_out(
    refusals: RefusalLog, caplog: pytest.LogCaptureFixture
) -> None:
    refusals.note(WRONG)
    refusals.note(WRONG)
    logged(caplog)

    refusals.log_left_out(at_end=True)

    ((_, fields),) = logged(caplog)
    assert fields["left_out"] == 1


def test_ever_new_reasons_make_a_bounded_number_of_lines_and_are_counted(
    refusals: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10_000):
        refusals.note(replace(WRONG, reason=f"no action is called {number}"))
    assert len(logged(caplog)) == 65

    clock.seconds = 60.0
    refusals.log_left_out()
    assert logged(caplog) == [("more requests refused", {"reason": "several", "left_out": 9935})]


def test_long_texts_of_a_client_are_cut(
    refusals: RefusalLog, caplog: pytest.LogCaptureFixture
) -> None:
    refusals.note(replace(WRONG, path="/" + "x" * 5000, user_agent="y" * 5000))

    ((_, fields),) = logged(caplog)
    assert max(len(str(value)) for value in fields.values()) == 300
