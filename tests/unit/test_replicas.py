"""Alerts of a pair of Prometheus that did not drop its replica label."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from receiver.alertmanager import Alert, parse_notification
from receiver.replicas import REPLICA_LABELS, ReplicaLabel, ReplicaWatch
from tests.support.notifications import alert, notification


def alerts(*labels: dict[str, str], status: str = "firing") -> tuple[Alert, ...]:
    bodies: list[dict[str, Any]] = [
        alert(str(number), status, labels=one) for number, one in enumerate(labels)
    ]
    return parse_notification(notification(*bodies)).alerts


@pytest.mark.parametrize("label", sorted(REPLICA_LABELS))
def test_alerts_that_differ_only_in_a_replica_label_are_found(label: str) -> None:
    watch = ReplicaWatch()

    found = watch.look("", alerts({label: "a", "job": "x"}, {label: "b", "job": "x"}))

    assert (found.alerts, found.new) == (1, (ReplicaLabel(label, "Test"),))


def test_peers_are_found_in_two_notifications_and_told_once() -> None:
    watch = ReplicaWatch()
    first, second = alerts({"replica": "a"}), alerts({"replica": "b"})

    assert watch.look("", first).alerts == 0
    assert watch.look("", second).new == (ReplicaLabel("replica", "Test"),)
    again = watch.look("", first + second)
    assert (again.alerts, again.new) == (2, ())


def test_each_name_and_each_label_is_told_of() -> None:
    watch = ReplicaWatch()
    pairs = [
        {label: replica, "alertname": name}
        for label in ("replica", "prometheus_replica")
        for name in ("One", "Two")
        for replica in ("a", "b")
    ]

    found = watch.look("", alerts(*pairs))

    assert found.alerts == 4
    assert {(one.label, one.alert_name) for one in found.new} == {
        (label, name) for label in ("replica", "prometheus_replica") for name in ("One", "Two")
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"replica": "a"}, {"replica": "a"}, id="the same alert"),
        pytest.param({"replica": "a", "pod": "1"}, {"replica": "b", "pod": "2"}, id="more differs"),
        pytest.param({"replica": "a"}, {}, id="only one has the label"),
        pytest.param({"replica": "a"}, {"prometheus_replica": "a"}, id="another label"),
        pytest.param({"instance": "a"}, {"instance": "b"}, id="no replica label"),
    ],
)
def test_other_alerts_are_not_found(first: dict[str, str], second: dict[str, str]) -> None:
    watch = ReplicaWatch()

    assert watch.look("", alerts(first)).alerts == 0
    assert watch.look("", alerts(second)).alerts == 0


def test_alerts_of_two_sources_are_two_alerts() -> None:
    watch = ReplicaWatch()

    watch.look("eu", alerts({"replica": "a"}))
    assert watch.look("us", alerts({"replica": "b"})).alerts == 0


def test_replica_that_replaces_another_is_no_peer() -> None:
    watch = ReplicaWatch()

    watch.look("", alerts({"replica": "a"}))
    watch.look("", alerts({"replica": "a"}, status="resolved"))
    assert watch.look("", alerts({"replica": "b"})).alerts == 0
    assert watch.look("", alerts({"replica": "b"}, status="resolved")).alerts == 0


def test_label_that_differs_is_named() -> None:
    watch = ReplicaWatch()
    first = {"replica": "same", "prometheus_replica": "a"}

    watch.look("", alerts(first))
    (found,) = watch.look("", alerts(first | {"prometheus_replica": "b"})).new
    assert found.label == "prometheus_replica"


def test_operators_can_read_which_labels_are_known() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert [label for label in sorted(REPLICA_LABELS) if f"`{label}`" not in text] == []


@pytest.mark.parametrize("label", sorted(REPLICA_LABELS))
def test_cure_is_configuration_of_prometheus(label: str) -> None:
    assert yaml.safe_load(ReplicaLabel(label, "Test").cure) == {
        "alerting": {"alert_relabel_configs": [{"action": "labeldrop", "regex": label}]}
    }


def test_memory_is_bounded_whatever_alerts_come() -> None:
    watch = ReplicaWatch(kept_alerts=10, kept_warnings=5)
    (some,) = alerts({})
    long = "x" * 16_000
    tracemalloc.start()
    try:
        for number in range(2_000):
            labels = {"alertname": f"{number // 20}{long}", "replica": f"{number}{long}"}
            watch.look("", [replace(some, labels=labels)])
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    # What came last is remembered.
    first, second = {"replica": "a", "last": "1"}, {"replica": "b", "last": "1"}
    assert watch.look("", alerts(first, second)).alerts == 1
