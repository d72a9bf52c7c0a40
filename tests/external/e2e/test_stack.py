"""The stack that the end-to-end tests rest on does what they take for granted."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.stack import (
    Exporter,
    QuietHandler,
    QuietServer,
    Stack,
    pointed_at,
    requires,
    shortened_alertmanager,
    shortened_rules,
)
from tests.support.waiting import wait_until

RULES = """
groups:
  - name: queues
    interval: 1m
    rules:
      - record: queue:depth
        expr: queue_depth * 1
      - alert: QueueFull
        expr: queue:depth > 80
        for: 5m
        labels: {severity: "on", code: '010'}
        annotations: &texts
          value: '{{ $value }}'
          for: 5m
          summary: |
            queue {{ $labels.queue }}
            is full
      - alert: QueueGone
        expr: absent(queue_depth)
        annotations: *texts
"""

ALERTMANAGER = """
global: {resolve_timeout: 5m}
route:
  receiver: hook
  group_by: [queue]
  group_interval: 5m
  routes:
    - matchers: ['severity = "on"']
      group_wait: 30s
      receiver: hook
receivers:
  - name: hook
    webhook_configs:
      - url: https://receiver.example:8443/webhook/log_action?source=a%20b
        send_resolved: true
"""


class Recorder:
    """A webhook that keeps every alert that it is sent."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        recorder = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:  # noqa: N802
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                recorder.received += [(self.path, alert) for alert in body["alerts"]]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def first(self, status: str, queue: str) -> tuple[str, dict[str, Any]] | None:
        for path, alert in self.received:
            if alert["status"] == status and alert["labels"].get("queue") == queue:
                return path, alert
        return None


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    thread = threading.Thread(target=recorder.server.serve_forever, args=(0.05,))
    thread.start()
    yield recorder
    recorder.server.shutdown()
    thread.join()
    recorder.server.server_close()


def test_stack_carries_an_alert_from_the_gauge_to_the_webhook_and_back(
    tmp_path: Path, recorder: Recorder
) -> None:
    with Stack(
        tmp_path,
        rules=shortened_rules(RULES),
        alertmanager=shortened_alertmanager(ALERTMANAGER),
        webhook_url=recorder.url,
        deadline=120,
    ) as stack:
        stack.exporter.set("queue_depth", 97, queue='a"\n\\')
        path, firing = stack.wait_until(
            lambda: recorder.first("firing", 'a"\n\\'), 60, "the alert arrives firing"
        )
        assert path == "/webhook/log_action?source=a%20b"
        assert firing["labels"]["code"] == "010"
        assert firing["annotations"] == {
            "value": "97",
            "for": "5m",
            "summary": 'queue a"\n\\\nis full\n',
        }
        assert firing["generatorURL"].startswith(stack.prometheus_url)
        assert stack.prometheus_get("/api/v1/alerts")["alerts"][0]["state"] == "firing"
        assert len(stack.alertmanager_get("/api/v2/alerts")) == 1

        stack.exporter.set("queue_depth", 1, queue='a"\n\\')
        _, resolved = stack.wait_until(
            lambda: recorder.first("resolved", 'a"\n\\'), 60, "the alert arrives resolved"
        )
        assert resolved["fingerprint"] == firing["fingerprint"]
        assert resolved["startsAt"] == firing["startsAt"]

        stack.restart("alertmanager", signal.SIGKILL)
        stack.post_alerts([{"labels": {"alertname": "Posted", "queue": "b"}}])
        stack.wait_until(lambda: recorder.first("firing", "b"), 60, "the posted alert arrives")

        stack.load(rules=shortened_rules(RULES).replace("80", "60"))
        stack.exporter.set("queue_depth", 70, queue="c")
        stack.wait_until(lambda: recorder.first("firing", "c"), 60, "70 crosses the new threshold")

        stack.exporter.remove("queue_depth", queue="c")
        stack.wait_until(lambda: recorder.first("resolved", "c"), 60, "what is gone resolves")

        stack.restart("prometheus")
        stack.exporter.set("queue_depth", 71, queue="d")
        stack.wait_until(lambda: recorder.first("firing", "d"), 60, "an alert after the restart")


def test_stack_that_cannot_boot_shows_its_log(tmp_path: Path) -> None:
    stack = Stack(tmp_path, rules="groups: [{}]", alertmanager=ALERTMANAGER, webhook_url="http://x")

    with pytest.raises(RuntimeError, match=r"prometheus ended with status 1:\n(?s:.)*rules\.yml"):
        stack.__enter__()


def test_stack_is_ended_after_its_deadline(tmp_path: Path) -> None:
    stack = Stack(
        tmp_path, rules=RULES, alertmanager=ALERTMANAGER, webhook_url="http://x", deadline=0.5
    )

    with pytest.raises(RuntimeError, match="ended with status -9"):
        stack.__enter__()


def test_launched_child_dies_with_its_parent() -> None:
    code = textwrap.dedent("""
        from tests.support.stack import launched
        child = launched(["/bin/sleep", "600"], start_new_session=True)
        print(child.pid, flush=True)
        input()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    ) as parent:
        assert parent.stdout is not None
        command = Path("/proc", parent.stdout.readline().strip(), "cmdline")
        wait_until(lambda: command.read_bytes() == b"/bin/sleep\x00600\x00", 60, "sleep has begun")
        parent.kill()

    def is_gone() -> bool:
        with suppress(FileNotFoundError, ProcessLookupError):
            return not command.read_bytes()
        return True

    wait_until(is_gone, 60, "sleep is gone")


def test_shortened_rules_change_only_the_times() -> None:
    expected = yaml.safe_load(RULES)
    expected["groups"][0]["interval"] = "200ms"
    expected["groups"][0]["rules"][1]["for"] = "1s"

    shortened = shortened_rules(RULES)

    assert yaml.safe_load(shortened) == expected
    assert 'severity: "on"' in shortened


def test_shortened_alertmanager_changes_only_the_times() -> None:
    expected = yaml.safe_load(ALERTMANAGER)
    expected["route"] |= {
        "group_wait": "0s",
        "group_interval": "200ms",
        "repeat_interval": "2s",
    }
    expected["route"]["routes"][0]["group_wait"] = "0s"

    shortened = shortened_alertmanager(ALERTMANAGER, repeat_interval="2s")

    assert yaml.safe_load(shortened) == expected


def test_pointed_at_keeps_path_and_query_and_replaces_the_credentials() -> None:
    webhook = yaml.safe_load(ALERTMANAGER)
    webhook["receivers"][0]["webhook_configs"][0]["http_config"] = {
        "authorization": {"credentials_file": "/etc/token"}
    }

    config = pointed_at(
        yaml.safe_dump(webhook), "http://127.0.0.1:5/", credentials_file=Path("/other")
    )

    (changed,) = yaml.safe_load(config)["receivers"][0]["webhook_configs"]
    assert changed == {
        "url": "http://127.0.0.1:5/webhook/log_action?source=a%20b",
        "send_resolved": True,
        "http_config": {"authorization": {"credentials_file": "/other"}},
    }


def test_exporter_shows_what_was_set_and_not_what_was_removed() -> None:
    exporter = Exporter()
    exporter.set("a", 1, x="1")
    exporter.set("a", float("nan"), x="2")
    exporter.set("a", 3, x="1", y="2")
    exporter.set("b", float("inf"))
    exporter.remove("a", x="1")

    assert exporter.exposition() == 'a{x="2"} nan\nb{} inf\n'
    exporter.stop()


def test_wait_until_returns_the_first_truthy_result_or_says_what_did_not_come() -> None:
    results = iter([0, "", "yes"])

    assert wait_until(lambda: next(results), 60) == "yes"
    with pytest.raises(AssertionError, match=r"0\.05 s: the moon; last: False\nit is day"):
        wait_until(lambda: False, 0.05, "the moon", lambda: "it is day")


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_missing_binary_skips_on_a_laptop_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", os.devnull)

    with pytest.raises(outcome, match="amtool not found; apt-get install prometheus-alertmanager"):
        requires("amtool")
