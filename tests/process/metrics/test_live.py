"""One scrape of a running receiver: what both of its processes did, and what its journal holds."""

import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from receiver.metrics.instruments import BY_NAME
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver, free_port
from tests.support.stack import requires
from tests.support.waiting import wait_until

PLUGINS = {
    "good": "def execute():\n    return 'done'\n",
    "bad": "def execute():\n    raise PermanentError('no use')\n",
    "shaky": "def execute(context):\n"
    "    if context.attempt == 1:\n        raise TemporaryError('not yet', retry_after=0.05)\n",
}
HEAD = """
import threading

from receiver import PermanentError, TemporaryError, hookimpl


@hookimpl
"""
LOGGED = 'receiver_runs_total{action="log_action",outcome="succeeded"} 1.0'
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(receiver: Receiver) -> Samples:
    """Return (name, labels) -> value of everything that it exposes now."""
    text = requests.get(f"{receiver.url}/metrics", timeout=10).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), math.nan)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A receiver that has run actions that succeed, fail and are tried again."""
    directory = tmp_path_factory.mktemp("metrics")
    (directory / "plugins").mkdir()
    for name, text in PLUGINS.items():
        (directory / "plugins" / f"{name}.py").write_text(HEAD + text)
    one = Receiver(
        "serve",
        {
            "RECEIVER_DATA_DIR": str(directory / "data"),
            "PLUGIN_DIR": str(directory / "plugins"),
            "RECEIVER_ACTION_BAD_BREAKER": "1 failures, 1h",
        },
        directory / "receiver.log",
    )
    try:
        yield act(one.wait_ready())
    finally:
        one.kill()


def act(receiver: Receiver) -> Receiver:
    """Post what brings every kind of count, and wait until the runs have ended."""
    alerts = [
        alert(name, labels={"action_plugin": name})
        for name in (*PLUGINS, "nobody knows", "efs_emergency")
    ]
    assert receiver.post(notification(*alerts, truncatedAlerts=3)).status_code == 200
    assert receiver.post(notification(alerts[0])).status_code == 200
    assert receiver.post(b"{}").status_code == 400
    hostile = {"action_plugin": "good", "alertname": 'x"} evil{a="b', "queue": "\n# TYPE"}
    assert receiver.post(notification(alert("hostile", labels=hostile))).status_code == 200

    def have_ended() -> bool:
        samples = scrape(receiver)
        ended = [("good", "succeeded", 2), ("bad", "failed", 1), ("shaky", "succeeded", 1)]
        # The last that is counted of a run is how long it took.
        return all(
            value(samples, "receiver_runs_total", action=action, outcome=outcome) == number
            and value(samples, "receiver_run_duration_seconds_count", action=action) == number
            for action, outcome, number in ended
        )

    wait_until(have_ended, 60, "all runs are counted")

    def is_seen() -> bool:
        samples = scrape(receiver)
        unfinished = [
            number for (name, _), number in samples.items() if name == "receiver_unfinished_runs"
        ]
        return value(samples, "receiver_breaker_open", action="bad") == 1 and not any(unfinished)

    # What the journal holds is looked at every few seconds only.
    wait_until(is_seen, 60, "the journal is seen as it is now")
    return receiver


@pytest.fixture
def samples(receiver: Receiver) -> Samples:
    return scrape(receiver)


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("receiver_notifications_total", {"answer": "200"}, 3),
        ("receiver_notifications_total", {"answer": "400"}, 1),
        ("receiver_notifications_total", {"answer": "503"}, 0),
        ("receiver_alerts_total", {"fate": "accepted"}, 4),
        ("receiver_alerts_total", {"fate": "duplicate"}, 1),
        ("receiver_alerts_total", {"fate": "rejected"}, 2),
        ("receiver_alerts_total", {"fate": "resolved"}, 0),
        ("receiver_truncated_alerts_total", {}, 3),
        ("receiver_auth_failures_total", {"answer": "401"}, 0),
        ("receiver_notification_duration_seconds_count", {}, 3),
        ("receiver_commit_batch_notifications_sum", {}, 3),
        ("receiver_runs_total", {"action": "good", "outcome": "failed"}, 0),
        ("receiver_attempts_total", {"action": "shaky", "outcome": "failed"}, 1),
        ("receiver_attempts_total", {"action": "shaky", "outcome": "succeeded"}, 1),
        ("receiver_attempt_duration_seconds_count", {"action": "shaky"}, 2),
        ("receiver_run_duration_seconds_count", {"action": "shaky"}, 1),
        ("receiver_run_wait_seconds_count", {"action": "shaky"}, 1),
        ("receiver_reaction_seconds_count", {"action": "good"}, 2),
        ("receiver_journal_errors_total", {"process": "web"}, 0),
        ("receiver_journal_errors_total", {"process": "worker"}, 0),
        ("receiver_unfinished_runs", {"action": "good", "state": "queued"}, 0),
        ("receiver_breaker_open", {"action": "bad"}, 1),
        ("receiver_breaker_open", {"action": "good"}, 0),
        ("receiver_action_paused", {"action": "good"}, 0),
        ("receiver_open_rejected_alerts", {}, 2),
        ("receiver_plugin_info", {"plugin": "good", "state": "loaded"}, 1),
        ("receiver_workers", {}, 1),
        ("receiver_journal_up", {}, 1),
    ],
)
def test_scrape_counts_what_was_done(
    samples: Samples, name: str, labels: dict[str, str], expected: float
) -> None:
    assert value(samples, name, **labels) == expected


def test_journal_is_measured_in_both_processes(samples: Samples) -> None:
    name = "receiver_journal_write_duration_seconds_count"
    assert value(samples, name, process="web") >= 3
    assert value(samples, name, process="worker") >= 5
    assert value(samples, "receiver_journal_size_bytes") > 10_000
    assert value(samples, "receiver_journal_free_bytes") > 0


def test_promtool_finds_nothing_wrong(receiver: Receiver) -> None:
    (promtool,) = requires("promtool")
    text = requests.get(f"{receiver.url}/metrics", timeout=10).text
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_every_metric_of_the_table_is_exposed_with_its_type_and_labels(receiver: Receiver) -> None:
    text = requests.get(f"{receiver.url}/metrics", timeout=10).text
    families = {one.name: one for one in text_string_to_metric_families(text)}
    # Those with labels whose values only an event can tell.
    seldom = {"receiver_guardrail_decisions_total"}
    for one in BY_NAME.values():
        if one.name in seldom:
            continue
        family = families.pop(one.name.removesuffix("_total"))
        assert family.type == one.type, one.name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(one.labels), one.name
    assert not families.keys() - {name.removesuffix("_total") for name in seldom}


def test_no_text_of_an_alert_becomes_a_label(samples: Samples) -> None:
    said = {text for _, labels in samples for _, text in labels}
    assert not {one for one in said if "evil" in one or "# TYPE" in one or "nobody" in one}


def test_prometheus_is_answered_in_the_format_that_it_asks_for(receiver: Receiver) -> None:
    asked = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    answer = requests.get(f"{receiver.url}/metrics", headers=asked, timeout=10)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_worker_that_is_replaced_counts_on_where_its_predecessor_ended(receiver: Receiver) -> None:
    name, labels = "receiver_runs_total", {"action": "good", "outcome": "succeeded"}
    before = value(scrape(receiver), name, **labels)
    started = len(receiver.lines("worker started"))
    os.kill(receiver.children()["worker"], signal.SIGKILL)
    assert value(scrape(receiver), name, **labels) == before, "the dead worker's counts stay"
    wait_until(lambda: len(receiver.lines("worker started")) > started, 60)
    assert receiver.post(notification(alert("after", labels={"action_plugin": "good"}))).ok
    wait_until(lambda: value(scrape(receiver), name, **labels) == before + 1, 60)


@pytest.fixture
def alone(start_receiver: Callable[..., Receiver]) -> Callable[..., tuple[Receiver, str]]:
    """Starts workers without a web process, and says where their metrics are."""

    def start(**environment: str) -> tuple[Receiver, str]:
        address = f"127.0.0.1:{free_port()}"
        worker = start_receiver("worker", RECEIVER_WORKER_METRICS_BIND=address, **environment)
        return worker.wait_ready(), f"http://{address}/metrics"

    return start


def test_worker_that_runs_alone_shows_what_it_counts(
    alone: Callable[..., tuple[Receiver, str]], start_receiver: Callable[..., Receiver]
) -> None:
    _, url = alone()
    web = start_receiver("web", ACTION_PLUGIN="log_action").wait_ready()
    assert web.post(notification(alert())).ok
    wait_until(lambda: LOGGED in requests.get(url, timeout=10).text, 60)
    assert LOGGED not in requests.get(f"{web.url}/metrics", timeout=10).text
    assert "receiver_notifications_total" not in requests.get(url, timeout=10).text
    assert requests.get(url.replace("/metrics", "/"), timeout=10).status_code == 404


def test_what_died_with_an_action_that_is_loaded_no_more_is_not_counted(
    alone: Callable[..., tuple[Receiver, str]],
    start_receiver: Callable[..., Receiver],
    tmp_path: Path,
) -> None:
    (tmp_path / "plugins").mkdir()
    never_returns = HEAD + "def execute():\n    threading.Event().wait()\n"
    (tmp_path / "plugins" / "gone.py").write_text(never_returns)
    loads = {"PLUGIN_DIR": str(tmp_path / "plugins")}
    web = start_receiver("web", **loads).wait_ready()
    first, _ = alone(**loads)
    assert web.post(notification(alert(labels={"action_plugin": "gone"}))).ok
    run = f"{web.url}/api/v1/runs/1"
    wait_until(lambda: requests.get(run, timeout=10).json()["state"] == "running", 60)
    first.kill()
    assert requests.post(f"{run}/cancel", json={}, timeout=10).ok
    second, url = alone()
    (found,) = wait_until(lambda: second.lines("interrupted attempt found"), 60)
    assert (found["action"], found["next"]) == ("gone", "cancelled by anyone")
    # What is posted after it is counted after it.
    assert web.post(notification(alert("after", labels={"action_plugin": "log_action"}))).ok
    wait_until(lambda: LOGGED in requests.get(url, timeout=10).text, 60)
    assert 'action="gone"' not in requests.get(url, timeout=10).text


def test_worker_that_runs_alone_asks_for_the_credential(
    alone: Callable[..., tuple[Receiver, str]],
) -> None:
    _, url = alone(RECEIVER_READ_TOKEN="reads", RECEIVER_SUBMIT_TOKEN="submits")
    asked = {
        token: requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10)
        for token in ("reads", "submits", "wrong")
    }
    assert {token: one.status_code for token, one in asked.items()} == {
        "reads": 200, "submits": 403, "wrong": 401,
    }  # fmt: skip


def test_worker_does_not_show_metrics_to_others_without_a_credential(
    start_receiver: Callable[..., Receiver],
) -> None:
    # An address of documentation: nothing could listen there, and nothing tries to.
    worker = start_receiver("worker", RECEIVER_WORKER_METRICS_BIND="192.0.2.1:9100")
    assert worker.process is not None
    assert worker.process.wait(30) == 1
    assert "RECEIVER_WORKER_METRICS_BIND: 192.0.2.1:9100 can be reached" in worker.text()
