"""log_action through the receiver's own logging, in a process of its own."""

import io
import json
import logging
import math
import subprocess
import sys
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any

import pytest
from pythonjsonlogger.json import JsonFormatter

from action_plugins import log_action
from receiver.testing import make_alert, make_context, run_action

HOSTILE = 'a\r\n{"level": "ERROR"}\x00{x}%s%(name)s\x1b[31m\u2028'


class MergingAdapter(logging.LoggerAdapter[logging.Logger]):
    """Adds the run's fields to those of the line, as the worker does."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs


def logged(**call: Any) -> tuple[list[str], Any]:
    """Return the lines of one call, formatted as JSON, and its result."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("log_action", logging.INFO)
    logger.addHandler(handler)
    run_fields = {"run_id": 7, "action": "log_action"}
    context = make_context(
        call.pop("alert", None) or make_alert(labels={"queue": "mail"}),
        log=MergingAdapter(logger, run_fields),
    )
    result = run_action(log_action, context=context, **call)
    return stream.getvalue().splitlines(), result


def test_it_logs_one_warning_with_all_values_as_fields() -> None:
    (line,), result = logged(value=93.5, duration=timedelta(minutes=2))
    assert json.loads(line) == {
        "levelname": "WARNING",
        "message": "threshold action executed",
        "run_id": 7,
        "action": "log_action",
        "metric_name": "queue_depth",
        "value": 93.5,
        "threshold": "> 80",
        "duration_seconds": 120.0,
        "alert_labels": {"alertname": "QueueTooLong", "queue": "mail"},
    }
    assert result == "logged at level warning"


@pytest.mark.parametrize(
    ("value", "shown"), [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf")]
)
def test_a_value_that_json_has_no_number_for_is_logged_as_text(value: float, shown: str) -> None:
    (line,), _ = logged(value=value)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(line, parse_constant=refuse)["value"] == shown


def test_annotations_are_not_logged() -> None:
    (line,), _ = logged(alert=make_alert(annotations={"summary": "s3cret"}))
    assert "s3cret" not in line


def test_hostile_alert_text_neither_breaks_the_line_nor_changes_its_message() -> None:
    alert = make_alert(HOSTILE, labels={HOSTILE: HOSTILE, "message": "x", "levelname": "y"})
    (line,), _ = logged(alert=alert, metric_name=HOSTILE, threshold=HOSTILE)
    fields = json.loads(line)
    assert (fields["levelname"], fields["message"]) == ("WARNING", "threshold action executed")
    assert fields["metric_name"] == fields["threshold"] == HOSTILE
    assert fields["alert_labels"][HOSTILE] == HOSTILE


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
@pytest.mark.parametrize("style", ["json", "text"])
def test_the_line_is_visible_at_log_level(level: str, style: str) -> None:
    program = (
        "import sys\n"
        "from receiver import logs\n"
        "from receiver.testing import run_action\n"
        "from action_plugins import log_action\n"
        "logs.configure(*sys.argv[1:])\n"
        "run_action(log_action)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, level, style], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("threshold action executed") == 1
    assert done.stderr == ""


def test_describe_says_in_one_line_what_would_be_logged() -> None:
    assert run_action(log_action, hook="describe") == (
        "would log at level warning that 'queue_depth' is 90, threshold '> 80'"
    )
    sentence = run_action(log_action, hook="describe", metric_name=HOSTILE * 100, threshold="")
    assert sentence.isprintable()
    assert len(sentence) < 300
