"""From a metric that crosses its threshold to the action that has run once: all of it real."""

import json
import signal
from typing import Any

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.waiting import wait_until
from tests.support.whole import Whole


def runs_of(whole: Whole, alert_name: str, **values: Any) -> list[dict[str, Any]]:
    journal = Journal(whole.journal_url)
    found = reading.list_runs(journal, alert_name=alert_name, **values)
    journal.close()
    return found


def succeeded(whole: Whole, alert_name: str) -> list[dict[str, Any]]:
    return runs_of(whole, alert_name, outcome="succeeded")


def posts(whole: Whole, alert_name: str) -> int:
    group = f'{{alertname="{alert_name}"}}'
    lines = whole.receiver.lines("notification recorded")
    return sum(line["group"].endswith(group) for line in lines)


def test_soft_then_hard_threshold_run_their_actions_once_with_the_right_arguments(
    whole: Whole,
) -> None:
    metric = {"queue": "orders", "instance": "one"}
    whole.stack.exporter.set("heartbeat_timestamp_seconds", 1, service="billing")
    whole.stack.exporter.set("queue_depth", 90, **metric)
    (soft,) = whole.stack.wait_until(
        lambda: succeeded(whole, "QueueTooLong"), 60, "the soft action"
    )
    call = json.loads(soft["call"])
    assert soft["action"] == "log_action"
    assert (call["metric_name"], call["value"], call["threshold"]) == ("queue_depth", 90, "> 80")
    assert runs_of(whole, "QueueFarTooLong") == []

    whole.stack.exporter.set("queue_depth", 97, **metric)
    (hard,) = whole.stack.wait_until(
        lambda: succeeded(whole, "QueueFarTooLong"), 60, "the hard one"
    )
    call = json.loads(hard["call"])
    assert hard["action"] == "file_action"
    assert (call["metric_name"], call["value"], call["threshold"]) == ("queue_depth", 97, "> 95")
    (file,) = whole.files.iterdir()
    assert file.name.startswith("metric_queue_depth_")
    assert file.stat().st_size == 1024 * 1024

    # Alertmanager, killed, has forgotten what it sent, and sends again; the receiver remembers.
    for restart in (None, whole.restart_receiver):
        if restart:
            restart()
        before = {name: posts(whole, name) for name in ("QueueTooLong", "QueueFarTooLong")}
        whole.stack.exporter.set("queue_depth", 98, **metric)
        whole.stack.restart("alertmanager", signal.SIGKILL)
        # Of both: it never tells that an alert is resolved whose firing it has not sent itself.
        for name, count in before.items():
            whole.stack.wait_until(
                lambda name=name, count=count: posts(whole, name) > count, 60, f"{name} again"
            )
        # It is noted with its runs: what would be run again is there by now.
        assert len(runs_of(whole, "QueueTooLong")) == 1
        assert len(runs_of(whole, "QueueFarTooLong")) == 1

    # Recovery, and a new crossing.
    whole.stack.exporter.set("queue_depth", 1, **metric)
    wait_until(lambda: all_closed(whole), 60, "the episodes closed")
    whole.stack.exporter.set("queue_depth", 97, **metric)
    whole.stack.wait_until(lambda: len(succeeded(whole, "QueueTooLong")) == 2, 60, "soft again")
    whole.stack.wait_until(lambda: len(succeeded(whole, "QueueFarTooLong")) == 2, 60, "hard again")
    assert len(list(whole.files.iterdir())) == 2
    whole.stack.exporter.set("queue_depth", 1, **metric)


def all_closed(whole: Whole) -> bool:
    journal = Journal(whole.journal_url)
    rows = reading.list_episodes(journal)
    journal.close()
    return bool(rows) and all(one["closed_at"] for one in rows)


def test_missing_metric_runs_its_action(whole: Whole) -> None:
    whole.stack.exporter.remove("heartbeat_timestamp_seconds", service="billing")
    run = whole.stack.wait_until(lambda: succeeded(whole, "HeartbeatMissing"), 60, "the absent one")
    assert json.loads(run[0]["call"])["threshold"] == "absent"
    whole.stack.exporter.set("heartbeat_timestamp_seconds", 1, service="billing")
