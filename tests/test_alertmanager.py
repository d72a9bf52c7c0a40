"""The version-4 notification: what is accepted, what is refused, and in which words."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate
from notifications import PAYLOADS, SEQUENCES, T0, TESTS, alert, notification, sequence

from receiver.alertmanager import Alert, Notification, parse_notification
from receiver.errors import NotificationError

# The table of payloads/README.md: file | bytes | alerts | …
RECORDED = {
    row[1]: int(row[3])
    for row in (
        [cell.strip() for cell in line.split("|")]
        for line in (TESTS / "payloads" / "README.md").read_text().splitlines()
    )
    if len(row) > 3 and row[1].endswith(".json")
}
MISSING = object()
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def parsed(**changes: Any) -> Alert:
    """Return what becomes of one alert, some of whose keys are set otherwise (or left out)."""
    (one,) = parse_notification(notification(changed(alert(), changes))).alerts
    return one


def changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {**raw, **changes}
    return {key: value for key, value in merged.items() if value is not MISSING}


def refusal(body: bytes) -> NotificationError:
    with pytest.raises(NotificationError) as caught:
        parse_notification(body)
    assert caught.value.detail
    return caught.value


def test_every_recorded_body_is_in_the_table() -> None:
    assert RECORDED.keys() == {path.name for path in PAYLOADS}


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_recorded_body_is_accepted_with_all_its_alerts(path: Any) -> None:
    body = path.read_bytes()
    raw = json.loads(body)

    found = parse_notification(body)

    assert len(found.alerts) == RECORDED[path.name] == len(raw["alerts"])
    assert [one.fingerprint for one in found.alerts] == [
        one["fingerprint"] for one in raw["alerts"]
    ]
    assert (found.receiver, found.status) == (raw["receiver"], raw["status"])
    assert (found.group_key, found.external_url) == (raw["groupKey"], raw["externalURL"])
    assert found.truncated_alerts == raw["truncatedAlerts"]
    for one, recorded in zip(found.alerts, raw["alerts"], strict=True):
        assert (one.labels, one.annotations) == (recorded["labels"], recorded["annotations"])
        assert one.is_resolved == (recorded["status"] == "resolved") == (one.ends_at is not None)
        assert one.generator_url == recorded["generatorURL"]


@pytest.mark.parametrize("folder", SEQUENCES)
def test_every_body_of_a_recorded_conversation_is_accepted(folder: str) -> None:
    for _, body in sequence(folder):
        assert parse_notification(body).alerts


def test_all_fields_of_a_notification_arrive() -> None:
    raw = alert(
        "f7",
        "resolved",
        T0,
        T0 + timedelta(minutes=3),
        labels={"queue": "mail"},
        annotations={"value": "90"},
    )

    found = parse_notification(
        notification(raw, receiver="team", groupKey="{}:{a}", truncatedAlerts=7)
    )

    assert found == Notification(
        receiver="team",
        status="resolved",
        alerts=(
            Alert(
                status="resolved",
                labels={"alertname": "Test", "queue": "mail"},
                annotations={"value": "90"},
                starts_at=T0,
                ends_at=T0 + timedelta(minutes=3),
                generator_url="http://prometheus/graph?g0.expr=queue_depth+%3E+80&g0.tab=1",
                fingerprint="f7",
            ),
        ),
        group_key="{}:{a}",
        external_url="http://alertmanager:9093",
        truncated_alerts=7,
    )


def test_what_the_receiver_can_do_without_may_be_left_out() -> None:
    body = {
        "version": "4",
        "status": "firing",
        "alerts": [
            {"status": "firing", "labels": {}, "startsAt": "2026-01-02T03:04:05Z", "fingerprint": "f"}
        ],
    }

    found = parse_notification(json.dumps(body).encode())

    assert found == Notification(
        "", "firing", (Alert("firing", {}, {}, T0, None, "", "f"),), "", "", 0
    )
    assert found.alerts[0].name == ""


def test_notification_without_alerts_is_accepted() -> None:
    assert parse_notification(notification()).alerts == ()


@pytest.mark.parametrize("key", ["annotations", "generatorURL", "endsAt"])
def test_null_means_left_out(key: str) -> None:
    assert parsed(**{key: None}) == parsed(**{key: MISSING})


@pytest.mark.parametrize(
    "unknown",
    [
        None,
        7,
        "text",
        [1, [2, {"a": None}]],
        {"labels": {"a": 1}, "alerts": [7], "version": "3"},
    ],
    ids=json.dumps,
)
def test_unknown_keys_are_ignored_at_every_level(unknown: Any) -> None:
    plain = alert(labels={"queue": "mail"})
    more = {"notification_reason": unknown, "routeLabels": unknown, "": unknown}

    found = parse_notification(notification({**plain, **more}, **more))

    assert found == parse_notification(notification(plain))


@pytest.mark.parametrize("key", ["groupLabels", "commonLabels", "commonAnnotations"])
@pytest.mark.parametrize("value", [None, 7, ["x"], {"a": 7}], ids=json.dumps)
def test_what_is_not_used_is_not_checked(key: str, value: Any) -> None:
    assert parse_notification(notification(alert(), **{key: value})).alerts


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", "3"),
        ("version", "5"),
        ("version", 4),
        ("version", ["4"]),
        ("version", None),
        ("version", MISSING),
        ("status", "pending"),
        ("status", ""),
        ("status", None),
        ("status", MISSING),
        ("receiver", 7),
        ("receiver", None),
        ("groupKey", ["x"]),
        ("externalURL", {"x": "y"}),
        ("truncatedAlerts", -1),
        ("truncatedAlerts", 1.5),
        ("truncatedAlerts", "many"),
        ("truncatedAlerts", True),
        ("truncatedAlerts", float("nan")),
        ("truncatedAlerts", float("inf")),
        ("truncatedAlerts", None),
        ("alerts", MISSING),
        ("alerts", None),
        ("alerts", {}),
        ("alerts", "x"),
        ("alerts", 7),
    ],
    ids=lambda value: "missing" if value is MISSING else str(value),
)
def test_wrong_field_of_the_envelope_is_named(key: str, value: Any) -> None:
    raw = changed(json.loads(notification(alert())), {key: value})

    error = refusal(json.dumps(raw).encode())

    assert error.detail == "the body is not a version-4 notification"
    assert list(error.fields) == [key]
    assert error.fields[key]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status", MISSING),
        ("status", None),
        ("status", "FIRING"),
        ("status", ["firing"]),
        ("status", {}),
        ("labels", MISSING),
        ("labels", None),
        ("labels", []),
        ("labels", "x"),
        ("labels", {"a": 1}),
        ("labels", {"a": None}),
        ("labels", {"a": {}}),
        ("labels", {"a": float("nan")}),
        ("annotations", "x"),
        ("annotations", ["x"]),
        ("annotations", 7),
        ("annotations", {"value": 90}),
        ("annotations", {"value": None}),
        ("startsAt", MISSING),
        ("startsAt", None),
        ("startsAt", ""),
        ("startsAt", "yesterday"),
        ("startsAt", 1767323045),
        ("startsAt", ["2026-01-02T03:04:05Z"]),
        ("endsAt", "soon"),
        ("endsAt", 1767323045),
        ("endsAt", True),
        ("endsAt", ["2026-01-02T03:04:05Z"]),
        ("fingerprint", MISSING),
        ("fingerprint", None),
        ("fingerprint", ""),
        ("fingerprint", 7),
        ("fingerprint", ["f"]),
        ("generatorURL", 7),
        ("generatorURL", ["http://prometheus"]),
        ("generatorURL", {"g0.expr": "up"}),
    ],
    ids=lambda value: "missing" if value is MISSING else str(value),
)
def test_wrong_field_of_an_alert_is_named_by_its_path(key: str, value: Any) -> None:
    alerts = [alert(f"f{number}") for number in range(5)]
    alerts[3] = changed(alerts[3], {key: value})

    error = refusal(notification(*alerts[:3], alerts[3] | {"status": "firing"}, alerts[4]) if False
                    else body_of(alerts))

    assert error.detail == "the body is not a version-4 notification"
    assert list(error.fields) == [f"alerts[3].{key}"]
    assert error.fields[f"alerts[3].{key}"]


def body_of(alerts: list[Any], **envelope: Any) -> bytes:
    """Return a body that holds these alerts, whatever they are."""
    return json.dumps({**json.loads(notification()), "alerts": alerts, **envelope}).encode()


@pytest.mark.parametrize("value", [None, 7, "x", True, [], [alert()]], ids=str)
def test_alert_that_is_no_object_is_named(value: Any) -> None:
    error = refusal(body_of([alert(), value]))

    assert error.fields == {"alerts[1]": "Not an object."}
