"""What a running worker owes to guardrails: dry runs, approvals that expire, changed limits."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

# Whatever acts leaves a line.
PLUGIN = """
import os
from receiver import hookimpl


def act(what):
    with open(os.environ["ACTED"], "a") as file:
        file.write(what + "\\n")


@hookimpl
def execute():
    act("execute")


@hookimpl
def resolved():
    act("resolved")


@hookimpl
def describe(metric_name):
    return f"would mend {metric_name}"
"""
HOUR = timedelta(hours=1)


class Site:
    """A receiver with one action that leaves traces, and its journal."""

    def __init__(self, start: Callable[..., Receiver], directory: Path) -> None:
        (directory / "plugins").mkdir()
        (directory / "plugins" / "mend.py").write_text(PLUGIN)
        self._start = start
        self._acted = directory / "acted"
        self._environment = {
            "PLUGIN_DIR": str(directory / "plugins"),
            "RECEIVER_ACTIONS": "mend, log_action",
            "ACTED": str(self._acted),
        }
        self._url = f"sqlite:///{directory / 'data' / 'journal.db'}"

    def serve(self, **environment: str) -> Receiver:
        return self._start("serve", **self._environment, **environment).wait_ready()

    def acted(self) -> list[str]:
        return self._acted.read_text().split() if self._acted.exists() else []

    def runs(self, **values: object) -> list[dict[str, Any]]:
        journal = Journal(self._url)
        try:
            return reading.list_runs(journal, **values)  # type: ignore[arg-type]
        finally:
            journal.close()

    def wait_for(self, **values: object) -> dict[str, Any]:
        found = wait_until(lambda: self.runs(**values), what=f"{values}")
        assert found is not None
        return found[0]


@pytest.fixture
def site(start_receiver: Callable[..., Receiver], tmp_path: Path) -> Site:
    return Site(start_receiver, tmp_path)


def test_dry_run_calls_nothing_that_acts_nor_does_what_follows(site: Site) -> None:
    serving = site.serve(
        RECEIVER_ACTION_MEND_RESOLVED_AFTER="0s",
        RECEIVER_ACTION_MEND_APPROVAL="required",
    )
    shadow = {"annotations": {"action_dry_run": "true", "metric_name": "disk"}}
    serving.post(notification(alert("dry", **shadow)), "/webhook/mend")
    run = site.wait_for(fingerprint="dry", state="finished")
    assert (run["outcome"], run["dry_run"]) == ("succeeded", True)
    assert run["result"] == '{"dry_run": "would mend disk"}'
    serving.post(notification(alert("dry", "resolved", **shadow)), "/webhook/mend")
    # What comes after it has been done: so would have been what was owed to the first.
    serving.post(notification(alert("after")), "/webhook/log_action")
    site.wait_for(fingerprint="after", state="finished")
    assert [one["kind"] for one in site.runs(fingerprint="dry")] == ["fired"]
    assert site.acted() == []


def test_worker_skips_and_escalates_what_nobody_approved_in_time(site: Site) -> None:
    serving = site.serve(
        RECEIVER_ACTION_MEND_APPROVAL="required",
        RECEIVER_ACTION_MEND_APPROVAL_TIMEOUT="1s",
        RECEIVER_ACTION_MEND_ESCALATE_TO="log_action",
    )
    serving.post(notification(alert()), "/webhook/mend")
    run = site.wait_for(action="mend", state="finished")
    assert (run["outcome"], run["held_by"]) == ("skipped", "approval")
    assert site.wait_for(action="log_action", state="finished")["kind"] == "escalation"
    assert site.acted() == []


def test_worker_that_starts_looks_at_once_at_what_limits_of_old_delayed(site: Site) -> None:
    first = site.serve(
        RECEIVER_ACTION_MEND_OVERALL_RATE_LIMIT="1/1h", RECEIVER_ACTION_MEND_BREAKER="none"
    )
    first.post(notification(alert("f1"), alert("f2")), "/webhook/mend")
    delayed = site.wait_for(held_by="overall_rate_limit")
    assert delayed["due_at"] - delayed["created_at"] > HOUR / 2
    first.stop()
    site.serve()
    assert site.wait_for(id=delayed["id"], state="finished")["outcome"] == "succeeded"
    assert site.acted() == ["execute", "execute"]
