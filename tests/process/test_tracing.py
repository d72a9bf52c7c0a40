"""Traces: from the notification to the attempt and into the plugin, sent by the real SDK."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.collector import Collector
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver, free_port
from tests.support.waiting import wait_until

PLUGIN = """
import logging

from opentelemetry import trace

from receiver import PermanentError, TemporaryError, hookimpl


@hookimpl
def execute(context):
    with trace.get_tracer("plugin").start_as_current_span("inside"):
        logging.info("plugin at work")
    if context.attempt == 1:
        raise TemporaryError("not yet", retry_after=0.05)
    if context.alert.labels.get("fate") == "bad":
        raise PermanentError("no use")
"""
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


@pytest.fixture
def start(start_receiver: Callable[..., Receiver], tmp_path: Path) -> Callable[..., Receiver]:
    """Starts receivers whose action `traced` makes a span of its own."""

    def start(endpoint: str, **environment: str) -> Receiver:
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins" / "traced.py").write_text(PLUGIN)
        traces = {"RECEIVER_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        return start_receiver(
            PLUGIN_DIR=str(tmp_path / "plugins"),
            ACTION_PLUGIN="traced",
            OTEL_BSP_SCHEDULE_DELAY="50",
            **{**traces, **environment},
        ).wait_ready()

    return start


def test_one_trace_leads_from_the_header_to_what_the_plugin_does(
    start: Callable[..., Receiver], collector: Collector
) -> None:
    receiver = start(collector.url)
    assert receiver.post(notification(alert()), traceparent=HEADER).status_code == 200
    wait_until(lambda: len(collector.named("attempt traced")) == 2, 60)
    wait_until(lambda: len(collector.named("inside")) == 2, 60)
    (received,) = wait_until(lambda: collector.named("notification"), 60)
    first, second = sorted(
        collector.named("attempt traced"), key=lambda one: str(one.attributes["receiver.attempt"])
    )
    assert {one.trace_id for one in collector.spans} == {TRACE}
    assert received.parent_id == SPAN
    assert {first.parent_id, second.parent_id} == {received.span_id}
    assert {one.parent_id for one in collector.named("inside")} == {first.span_id, second.span_id}
    assert (first.is_error, second.is_error) == (True, False)
    assert first.attributes["receiver.outcome"] == "failed"
    assert second.attributes["receiver.outcome"] == "succeeded"
    assert received.attributes["receiver.answer"] == 200
    assert received.attributes["receiver.accepted"] == 1
    assert first.resource["service.name"] == "alert-receiver"
    assert received.resource["receiver.process"] == "web"

    for message in ("notification recorded", "plugin at work", "attempt ended"):
        lines = wait_until(lambda message=message: receiver.lines(message), 60)
        assert {one["trace_id"] for one in lines} == {TRACE}


@pytest.mark.parametrize("header", [{}, {"traceparent": "not-a-trace"}], ids=["none", "malformed"])
def test_trace_begins_here_without_a_good_header(
    start: Callable[..., Receiver], collector: Collector, header: dict[str, str]
) -> None:
    receiver = start(collector.url)
    for fingerprint in ("one", "two"):
        body = notification(alert(fingerprint, labels={"fate": "bad"}))
        assert receiver.post(body, **header).status_code == 200
    wait_until(lambda: len(collector.named("attempt traced")) == 4, 60)
    # The web process sends its own spans: they may come later.
    wait_until(lambda: len(collector.named("notification")) == 2, 60)
    begun = collector.named("notification")
    assert [one.parent_id for one in begun] == ["", ""]
    assert len({one.trace_id for one in begun}) == 2
    for one in begun:
        ours = [two for two in collector.named("attempt traced") if two.trace_id == one.trace_id]
        assert [two.parent_id for two in ours] == [one.span_id] * 2


def test_escalation_belongs_to_the_trace_of_what_it_follows(
    start: Callable[..., Receiver], collector: Collector
) -> None:
    receiver = start(collector.url, RECEIVER_ACTION_TRACED_ESCALATE_TO="log_action")
    body = notification(alert(labels={"fate": "bad"}))
    assert receiver.post(body, traceparent=HEADER).status_code == 200
    (escalation,) = wait_until(lambda: collector.named("attempt log_action"), 60)
    assert escalation.trace_id == TRACE


def test_nothing_is_traced_or_kept_when_traces_are_off(
    start: Callable[..., Receiver], collector: Collector, tmp_path: Path
) -> None:
    receiver = start(collector.url, RECEIVER_TRACES="none")
    assert receiver.post(notification(alert()), traceparent=HEADER).status_code == 200
    wait_until(lambda: len(receiver.lines("attempt ended")) == 2, 60)
    assert receiver.stop() == 0
    assert collector.spans == []
    assert "trace_id" not in receiver.text()
    journal = Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")
    (run,) = reading.list_runs(journal)
    journal.close()
    assert run["traceparent"] is None


def test_opentelemetry_is_not_imported_when_traces_are_off() -> None:
    code = (
        "import sys, receiver.web.server, receiver.worker.worker, receiver.cli.serving\n"
        "from receiver import settings, tracing\n"
        "tracing.check(settings.load({}, {}))\n"
        "assert not tracing.start(settings.load({}, {}), 'web').is_on\n"
        "print([one for one in sys.modules if one.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_collector_that_is_not_there_delays_nothing(start: Callable[..., Receiver]) -> None:
    receiver = start(f"http://127.0.0.1:{free_port()}", RECEIVER_GRACE_PERIOD="2s")
    started = time.monotonic()
    assert receiver.post(notification(alert())).status_code == 200
    wait_until(lambda: len(receiver.lines("attempt ended")) == 2, 60)
    assert receiver.stop() == 0
    assert time.monotonic() - started < 20
    assert "killed" not in receiver.text()


def test_missing_package_is_named_with_its_cure() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from receiver import cli; sys.argv = ['receiver', 'serve']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"RECEIVER_TRACES": "otlp", "RECEIVER_DATA_DIR": "/nonexistent"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'alert-receiver[otel]'" in json.loads(done.stdout)["problems"][0]
