"""How an attempt's ending is put into words that every database stores."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from receiver import TemporaryError, hookimpl
from receiver.calls import call_of
from receiver.context import Cancellation
from receiver.journal.due import ClaimedRun
from receiver.plugins import Actions, Plugin
from receiver.policies import AttemptEnd, Policy
from receiver.testing import make_alert
from receiver.worker.execution import describe_error, execute_attempt

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EAST = timezone(timedelta(hours=5))
ALERT = make_alert(annotations={"summary": "x" * 1_000_000})
RUN = ClaimedRun(
    id=1, source="", fingerprint="f", action="odd", starts_at=NOW, kind="fired", ordinal=0,
    target="f", alert_name="QueueTooLong", alert=ALERT.to_json(), receiver="r",
    external_url="http://alertmanager:9093", traceparent=None, received_at=NOW, created_at=NOW,
    due_at=NOW, held_since=None, call=call_of(ALERT, NOW).to_json(), attempt=1, attempts_before=0,
    approval=None, is_dry_run=False, was_counted=True, saved_state=None, running_since=NOW,
    interruptions=0,
)  # fmt: skip


class Odd:
    """An action that does what it is made for."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    @hookimpl
    def execute(self) -> object:
        return self.act()

    @hookimpl
    def describe(self, context: Any) -> str:
        return f"would say {context.alert.annotations['summary']}"


saved: list[str] = []


def perform(act: Callable[[], object], run: ClaimedRun = RUN) -> AttemptEnd:
    actions = Actions()
    hooks = ("execute", "describe")
    actions.register(Plugin("odd", "a test", "loaded", hooks=hooks, implementation=Odd(act)))
    deadline = time.monotonic() + 60
    return execute_attempt(run, Policy(), actions, deadline, Cancellation(), saved.append)


class SilentError(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class MuteError(Exception):
    """An exception that ends whoever asks for its text."""

    def __str__(self) -> str:
        raise SystemExit(7)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(ValueError("no"), "ValueError: no", id="with a text"),
        pytest.param(ValueError(), "ValueError", id="without a text"),
        pytest.param(RuntimeError("a\ud800b\0c"), "RuntimeError: a\ufffdb\ufffdc", id="odd text"),
        pytest.param(
            SilentError(),
            "SilentError: <SilentError whose text cannot be had: RuntimeError>",
            id="cannot be shown",
        ),
        pytest.param(
            MuteError(),
            "MuteError: <MuteError whose text cannot be had: SystemExit>",
            id="ends whoever looks",
        ),
    ],
)
def test_error_is_told_as_every_database_stores_it(error: Exception, expected: str) -> None:
    assert describe_error(error) == expected


def test_chain_of_causes_is_told_and_bounded() -> None:
    try:
        try:
            raise OSError("disk")
        except OSError as cause:
            raise ValueError("x" * 5000) from cause
    except ValueError as error:
        text = describe_error(error)
    assert len(text) == 2000
    assert text.startswith("ValueError: xxx")


def test_cause_is_named_after_what_it_caused() -> None:
    error = ValueError("outer")
    error.__cause__ = OSError("inner")
    assert describe_error(error) == "ValueError: outer; caused by OSError: inner"


def test_dry_run_says_only_the_beginning_of_a_long_text() -> None:
    end = perform(lambda: None, replace(RUN, is_dry_run=True))
    said = json.loads(end.result or "")["dry_run"]
    assert said.startswith("would say xxx")
    assert len(said) == 2000


class SetLaterError(TemporaryError):
    """An error with its times set to anything, after it was made or instead."""

    def __init__(self, **times: object) -> None:
        vars(self).update(times)


@pytest.mark.parametrize(
    ("error", "at", "after"),
    [
        pytest.param(SetLaterError(), None, None, id="neither"),
        pytest.param(SetLaterError(retry_after=30), None, timedelta(seconds=30), id="a number"),
        pytest.param(SetLaterError(retry_after="30"), None, timedelta(seconds=30), id="a header"),
        pytest.param(SetLaterError(retry_at=NOW.replace(tzinfo=None)), None, None, id="no zone"),
        pytest.param(SetLaterError(retry_at="tomorrow"), None, None, id="no moment"),
        pytest.param(SetLaterError(retry_after=[30]), None, None, id="no pause"),
        pytest.param(SetLaterError(retry_after=float("nan")), None, None, id="no number"),
        pytest.param(SetLaterError(retry_at=NOW.astimezone(EAST)), NOW, None, id="zone"),
        pytest.param(
            TemporaryError(retry_after="Fri, 02 Jan 2026 03:04:05 GMT"), NOW, None, id="a date"
        ),
        pytest.param(TemporaryError(retry_after="soon"), None, None, id="no date"),
        pytest.param(TemporaryError(retry_after="soon", retry_at=NOW), NOW, None, id="both"),
    ],
)
def test_time_that_an_error_names_is_one_or_is_left_aside(
    error: TemporaryError, at: datetime | None, after: timedelta | None
) -> None:
    def act() -> None:
        raise error

    end = perform(act)
    assert (end.outcome, end.retry_at, end.retry_after) == ("failed", at, after)
    assert end.retry_at is None or end.retry_at.tzinfo is UTC


class Closed(dict[str, str]):
    """What an author hands back after its source is gone."""

    def items(self) -> Any:
        raise ConnectionError("closed")


def test_result_that_cannot_be_read_is_a_success_all_the_same() -> None:
    end = perform(lambda: {"answer": Closed(a="b"), "number": 7})
    assert end.outcome == "succeeded"
    assert json.loads(end.result or "") == {
        "answer": "<Closed that cannot be read: ConnectionError>", "number": 7
    }  # fmt: skip


class Moment(datetime):
    """A class of moments that only a plugin has."""


class Pause(timedelta):
    """A class of pauses that only a plugin has."""


def test_times_are_told_in_classes_that_every_process_knows() -> None:
    def act() -> None:
        raise TemporaryError(retry_at=Moment(2026, 1, 2, 3, 4, 5, 6, UTC), retry_after=Pause(0, 7))

    end = perform(act)
    assert (type(end.retry_at), type(end.retry_after)) == (datetime, timedelta)
    assert end.retry_at == NOW.replace(microsecond=6)
    assert end.retry_after == timedelta(seconds=7)


class MuteMapping(dict[str, str]):
    """A result that ends whoever reads it."""

    def items(self) -> Any:
        raise SystemExit(7)


def test_result_that_ends_whoever_reads_it_ends_nobody() -> None:
    end = perform(lambda: MuteMapping(a="b"))
    assert end.outcome == "succeeded"
    assert json.loads(end.result or "") == "<MuteMapping that cannot be read: SystemExit>"


def test_error_whose_time_ends_whoever_looks_is_a_failure_without_a_time() -> None:
    class MuteTimeError(TemporaryError):
        @property
        def retry_after(self) -> Any:
            raise SystemExit(7)

    def fails() -> None:
        raise MuteTimeError.__new__(MuteTimeError)

    end = perform(fails)
    assert (end.outcome, end.retry_at, end.retry_after) == ("failed", None, None)
