"""Notifications of Alertmanager and Grafana: what is accepted, refused or rejected, and why."""

import itertools
import json
import re
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate, validates_schema

from receiver.alert import LARGEST_ALERT, NO_START
from receiver.alertmanager import Alert, Notification, parse_notification
from receiver.errors import NotificationError
from receiver.fingerprint import fingerprint_of
from tests.support.every import every
from tests.support.fuzz import examples
from tests.support.notifications import (
    PAYLOADS,
    SEQUENCES,
    T0,
    TESTS,
    alert,
    notification,
    sequence,
)

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


def body_of(alerts: list[Any], **envelope: Any) -> bytes:
    """Return a body that holds these alerts, whatever they are."""
    return json.dumps({**json.loads(notification()), "alerts": alerts, **envelope}).encode()


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
            {
                "status": "firing",
                "labels": {},
                "startsAt": "2026-01-02T03:04:05Z",
                "fingerprint": "f",
            }
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
        ("version", 5),
        ("version", True),
        ("version", 4.0),
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
        ("truncatedAlerts", 1_000_000_001),
        ("truncatedAlerts", 10**400),
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
    ids=lambda value: "missing" if value is MISSING else str(value)[:20],
)
def test_wrong_field_of_the_envelope_is_named(key: str, value: Any) -> None:
    raw = changed(json.loads(notification(alert())), {key: value})

    error = refusal(json.dumps(raw).encode())

    assert error.detail == "the body is not a notification of Alertmanager or Grafana"
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
        ("labels", {"a": {}}),
        ("labels", {"a": ["x"]}),
        ("annotations", "x"),
        ("annotations", ["x"]),
        ("annotations", 7),
        ("annotations", {"value": {"a": 1}}),
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
        ("fingerprint", 7),
        ("fingerprint", ["f"]),
        ("fingerprint", "f" * 129),
        ("generatorURL", 7),
        ("generatorURL", ["http://prometheus"]),
        ("generatorURL", {"g0.expr": "up"}),
    ],
    ids=lambda value: "missing" if value is MISSING else str(value)[:30],
)
def test_wrong_field_of_an_alert_spoils_that_alert_alone(key: str, value: Any) -> None:
    alerts = [alert(f"f{number}") for number in range(5)]
    right = parse_notification(body_of(alerts)).alerts
    alerts[3] = changed(alerts[3], {key: value})

    found = parse_notification(body_of(alerts)).alerts

    assert found[:3] + found[4:] == right[:3] + right[4:]
    assert found[3].problem.startswith(f"the alert is malformed: {key} ")
    assert ";" not in found[3].problem
    if key != "fingerprint":
        assert found[3].fingerprint == "f3"
    if key != "labels":
        assert found[3].labels == right[3].labels
    assert Alert.from_json(found[3].to_json()) == found[3]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", MISSING),
        ("labels", 7),
        ("annotations", 7),
        ("startsAt", MISSING),
        ("startsAt", "yesterday"),
        ("endsAt", "soon"),
        ("generatorURL", 7),
    ],
)
def test_malformed_resolved_alert_stays_one_that_is_resolved(key: str, value: Any) -> None:
    one = parsed(**{"status": "resolved", key: value})

    assert one.is_resolved
    assert one.fingerprint == "f1"
    assert one.problem
    if key == "endsAt":
        assert one.ends_at is None


@pytest.mark.parametrize("fingerprint", [7, "f" * 129])
def test_malformed_fingerprint_is_computed_anew(fingerprint: Any) -> None:
    one = parsed(status="resolved", fingerprint=fingerprint, labels={"alertname": "Test"})

    assert (one.fingerprint, one.is_resolved) == ("e46aaa9fcf75dd34", True)


def test_resolved_alert_that_nothing_identifies_closes_nothing() -> None:
    one = parsed(status="resolved", fingerprint=None, labels={})

    assert not one.is_resolved
    assert one.problem


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"), (-1.5, "-1.5"), (0, "0"), (90.0, "90.0"), (1e21, "1e+21"), (True, "true"),
        (False, "false"), (float("nan"), "NaN"), (float("inf"), "+Inf"), (float("-inf"), "-Inf"),
        ("", ""), (10**30, "1" + "0" * 30),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["labels", "annotations"])
def test_number_or_boolean_in_labels_or_annotations_becomes_text(
    key: str, value: Any, text: str
) -> None:
    one = parsed(**{key: {"alertname": "Test", "a": value}})

    assert getattr(one, key) == {"alertname": "Test", "a": text}
    assert not one.problem


@pytest.mark.parametrize("key", ["labels", "annotations"])
def test_null_in_labels_or_annotations_means_absent(key: str) -> None:
    one = parsed(**{key: {"alertname": "Test", "a": None}})

    assert getattr(one, key) == {"alertname": "Test"}
    assert not one.problem


@pytest.mark.parametrize("fingerprint", [MISSING, None, ""])
@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_missing_fingerprint_is_computed_as_alertmanager_does(path: Any, fingerprint: Any) -> None:
    recorded = json.loads(path.read_bytes())["alerts"][:300]

    found = parse_notification(body_of([changed(one, {"fingerprint": fingerprint})
                                        for one in recorded])).alerts  # fmt: skip

    assert [one.fingerprint for one in found] == [one["fingerprint"] for one in recorded]
    assert not any(one.problem for one in found)


@pytest.mark.parametrize(
    ("labels", "fingerprint"),
    [
        ({"alertname": "HighCPU", "instance": "web-1:9100", "severity": "critical"},
         "cc6e49118c0ea32b"),
        ({"alertname": "Überlast", "a": 'ä\n"', "émoji": "🔥"}, "c72e360146eb6251"),
        ({"alertname": "A"}, "d2c6efc389df0927"),
        ({"alertname": "A", "dropped": "", "absent": None}, "d2c6efc389df0927"),
    ],
)  # fmt: skip
def test_computed_fingerprint_is_the_known_one(labels: Any, fingerprint: str) -> None:
    assert parsed(labels=labels, fingerprint=None).fingerprint == fingerprint


def test_fingerprint_is_computed_before_characters_are_replaced() -> None:
    assert fingerprint_of({"a": "x\0y"}) != fingerprint_of({"a": "x\ufffdy"})
    one = parsed(labels={"a": "x\0y"}, fingerprint=None)
    assert one.labels == {"a": "x\ufffdy"}
    assert one.fingerprint == fingerprint_of({"a": "x\0y"})

    one = parsed(labels={"a": "x\ud800y\0"}, fingerprint=None)
    assert one.fingerprint == fingerprint_of({"a": "x\ufffdy\0"})


@pytest.mark.parametrize("labels", [MISSING, None, {}, {"a": ""}, {"a": None}, {"a": []}, 7])
def test_alert_without_labels_is_keyed_by_a_hash_of_the_element(labels: Any) -> None:
    changes = {"labels": labels, "fingerprint": MISSING}
    one = parsed(**changes)

    assert one.problem
    assert one.fingerprint == parsed(**changes).fingerprint
    assert one.fingerprint != parsed(**changes, annotations={"a": "b"}).fingerprint


@pytest.mark.parametrize(
    ("key", "nothing"), [("annotations", {}), ("generatorURL", ""), ("endsAt", "")]
)
@pytest.mark.parametrize("value", [None, "", {}, [], 0, 0.0, False], ids=repr)
def test_only_nothing_of_the_right_kind_stands_for_nothing(
    key: str, nothing: Any, value: Any
) -> None:
    one = parsed(**{key: value})

    if value is None or (value == nothing and type(value) is type(nothing)):
        assert one == parsed(**{key: MISSING})
    else:
        assert one.problem.startswith(f"the alert is malformed: {key} ")


@pytest.mark.parametrize("length", [1, 16, 128])
def test_fingerprint_may_have_128_characters(length: int) -> None:
    assert parsed(fingerprint="ü" * length).fingerprint == "ü" * length


@pytest.mark.parametrize("length", [129, 100_000])
def test_longer_fingerprint_is_not_shown(length: int) -> None:
    one = parsed(fingerprint="f" * length)

    assert one.problem == "the alert is malformed: fingerprint is longer than 128 characters"


@pytest.mark.parametrize("value", [None, 7, "x", True, [], [alert()]], ids=str)
def test_alert_that_is_no_object_is_kept_as_one_that_cannot_run(value: Any) -> None:
    right, wrong = parse_notification(body_of([alert(), value])).alerts

    assert not right.problem
    assert wrong.problem == "the alert is malformed: it is not an object"
    assert wrong.fingerprint
    assert wrong == parse_notification(body_of([value])).alerts[0]


def test_every_wrong_field_is_named_at_once() -> None:
    worst = {"status": "x", "labels": 7, "annotations": 7, "startsAt": 7, "endsAt": 7,
             "generatorURL": 7, "fingerprint": 7}  # fmt: skip

    (one,) = parse_notification(body_of([worst])).alerts

    assert one.problem == (
        "the alert is malformed: status must be firing or resolved; "
        "labels must be an object of texts; annotations must be an object of texts; "
        "startsAt is not a time as in RFC 3339, such as 2026-11-22T14:04:10.807Z; "
        "endsAt is not a time as in RFC 3339, such as 2026-11-22T14:04:10.807Z; "
        "generatorURL is not a text; fingerprint is not a text"
    )


def test_error_is_short_whatever_the_envelope_holds() -> None:
    junk = "<" + "\u2028" * 300
    error = refusal(body_of([junk] * 1_000, receiver=[junk], status=junk, groupKey={junk: junk}))

    assert 0 < len(error.fields) <= 20
    assert len(json.dumps(error.fields)) < 4_096
    assert len(str(error)) < 100


def test_problem_of_an_alert_is_short_whatever_it_holds() -> None:
    junk = "<" + "\u2028" * 300
    keys = ("status", "labels", "annotations", "startsAt", "endsAt", "fingerprint", junk)
    for value in (junk, {junk: [junk]}, [junk]):
        (one,) = parse_notification(body_of([dict.fromkeys(keys, value)])).alerts
        assert 0 < len(one.problem) < 2_048


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"{",
        b'{"version": "4",}',
        b"{'version': '4'}",
        b'{"version": "4"} {}',
        b"version=4",
        b"\x00",
        b"\xff\xfe",
        b"\xff\xfe\x00\x00",
        b"\x1f\x8b\x08\x00",
        b'{"receiver": "\xff"}',
        b'{"receiver": "\xc3"}',
        b'{"receiver": "a\x00b"}',
        b'{"receiver": "\\ud83"}',
        b'{"truncatedAlerts": ' + b"9" * 5_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    error = refusal(body)

    assert error.detail.startswith("the body is not JSON: ")
    assert len(error.detail) < 200
    assert error.fields == {}


@pytest.mark.parametrize("body", [b"null", b"[]", b"7", b'"x"', b"true", b"NaN", b"[[]]"], ids=repr)
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    assert refusal(body).detail == "the body is not a notification: not a JSON object"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":['], ids=repr)
@pytest.mark.parametrize("place", ["body", "unknown key", "label", "escape beside it"])
def test_deep_nesting_is_refused(opening: bytes, place: str) -> None:
    deep = opening * 100_000
    if place != "body":
        closing = opening.translate(bytes.maketrans(b"[{", b"]}"), b'"a:')[::-1]
        deep += (b"" if opening.endswith(b"[") else b"1") + closing * 100_000
        key = {"unknown key": b'"x"', "label": b'"labels"', "escape beside it": b'"\\u0000"'}[place]
        deep = b'{"version": "4", "status": "firing", "alerts": [{' + key + b": " + deep + b"}]}"

    assert refusal(deep).detail == "the body is nested too deeply"


@pytest.mark.parametrize("depth", [100, 300, 500, 700, 900, 1_100])
def test_nesting_of_any_depth_is_read_or_refused(depth: int) -> None:
    text = b"[" * depth + b'"\\u0000"' + b"]" * depth
    body = notification(alert())[:-1] + b', "x": ' + text + b"}"

    try:
        assert len(parse_notification(body).alerts) == 1
    except NotificationError as error:
        assert error.detail == "the body is nested too deeply"


def test_last_of_duplicate_keys_counts() -> None:
    body = notification(alert("f1"))[:-1] + b', "receiver": "first", "receiver": "second"}'
    twice = body.replace(b'"fingerprint": "f1"', b'"fingerprint": 7, "fingerprint": "f2"')

    found = parse_notification(twice)

    assert (found.receiver, found.alerts[0].fingerprint) == ("second", "f2")


@pytest.mark.parametrize("number", ["9" * 4_000, "-0", "1e400", "NaN", "-Infinity", "1E-9999"])
def test_number_in_an_unknown_key_does_no_harm(number: str) -> None:
    body = notification(alert())[:-1] + f', "x": {number}}}'.encode()

    assert len(parse_notification(body).alerts) == 1


def test_byte_order_mark_does_no_harm() -> None:
    body = notification(alert())

    assert parse_notification(b"\xef\xbb\xbf" + body) == parse_notification(body)


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        *(
            (one, "it is not in UTF-8")
            for one in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
        ),
        ("latin-1", "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("text", ["Köln", "Köln \0"], ids=["plain", "NUL"])
def test_other_encoding_is_refused(encoding: str, reason: str, text: str) -> None:
    body = json.dumps(json.loads(notification(alert(labels={"a": text}))), ensure_ascii=False)

    assert parse_notification(body.encode()).alerts
    assert refusal(body.encode(encoding)).detail == f"the body is not JSON: {reason}"


NUL_AND_SURROGATES = {
    "NUL escape": (rb"a\u0000b", "a\ufffdb"),
    "high escape": (rb"a\ud800b", "a\ufffdb"),
    "high escape in capitals": (rb"a\uDBFFb", "a\ufffdb"),
    "low escape": (rb"a\udc00b", "a\ufffdb"),
    "low escape in capitals": (rb"a\uDFFFb", "a\ufffdb"),
    "escapes in the wrong order": (rb"\ude00\ud83d", "\ufffd\ufffd"),
    "raw high": (b"a\xed\xa0\x80b", "a\ufffdb"),
    "raw low": (b"a\xed\xbf\xbfb", "a\ufffdb"),
    "raw pair": (b"\xed\xa0\xbd\xed\xb8\x80", "\ufffd\ufffd"),
    "raw and escape": (b"\xed\xa0\xbd\\ude00", "\ufffd\ufffd"),
    "many": (rb"\u0000" * 50, "\ufffd" * 50),
    "pair of escapes": (rb"\ud83d\ude00", "\U0001f600"),
    "raw four bytes": ("\U0001f600".encode(), "\U0001f600"),
    "neighbours of surrogates": (rb"\ud7ff\ue000", "\ud7ff\ue000"),
    "raw neighbour": ("\ud7ff".encode(), "\ud7ff"),
    "no escape at all": (rb"\\u0000\\ud800", r"\u0000\ud800"),
    "other control characters": (rb"\u0001\u001f\u007f", "\x01\x1f\x7f"),
}
TEXTS: dict[str, Callable[[Notification], str]] = {
    "receiver": lambda found: found.receiver,
    "groupKey": lambda found: found.group_key,
    "externalURL": lambda found: found.external_url,
    "fingerprint": lambda found: found.alerts[0].fingerprint,
    "generatorURL": lambda found: found.alerts[0].generator_url,
    "label": lambda found: found.alerts[0].labels["a"],
    "annotation": lambda found: found.alerts[0].annotations["a"],
    "label name": lambda found: next(name for name in found.alerts[0].labels if "_" not in name),
    "annotation name": lambda found: next(iter(found.alerts[0].annotations)),
}


def test_what_no_database_stores_is_replaced() -> None:
    with every() as each:
        for (written, (raw, text)), place in itertools.product(NUL_AND_SURROGATES.items(), TEXTS):
            with each(f"{written} in {place}"):
                found = parse_notification(body_with_text_at(place).replace(b"HERE", raw))

                assert TEXTS[place](found) == text
                assert not UNSTORABLE.search(found.alerts[0].to_json())


def body_with_text_at(place: str) -> bytes:
    """Return a body whose text in this place is HERE."""
    labels, annotations = {"the_name": "x", "a": "x"}, {"a": "x"}
    one = alert() | {"labels": labels, "annotations": annotations}
    envelope = {}
    if place in ("receiver", "groupKey", "externalURL"):
        envelope[place] = "HERE"
    elif place in ("fingerprint", "generatorURL"):
        one[place] = "HERE"
    elif place.endswith(" name"):
        one[f"{place.removesuffix(' name')}s"] = {"the_name": "x"} if "label" in place else {}
        one[f"{place.removesuffix(' name')}s"]["HERE"] = "x"
    else:
        one[f"{place}s"]["a"] = "HERE"
    return body_of([one], **envelope)


def test_replacing_one_character_keeps_what_else_the_body_holds() -> None:
    plain = alert(labels={"queue": "mail"}, annotations={"value": "1e+09"})

    found = parse_notification(notification(plain, alert("\0")))

    assert found.alerts[0] == parse_notification(notification(plain)).alerts[0]
    assert found.truncated_alerts == 0


@given(st.text(st.sampled_from('\0\ud800\udfff\ude00\ud83d\\u0"a\U0001f600\ufffd')))
def test_no_text_brings_in_what_no_database_stores(text: str) -> None:
    raw = json.loads(notification()) | {"alerts": [alert(labels={"a": text, f"x{text}": "x"})]}
    for ascii_only in (True, False):
        body = json.dumps(raw, ensure_ascii=ascii_only).encode(errors="surrogatepass")

        (one,) = parse_notification(body).alerts

        # Two escapes side by side can make a pair; raw halves never do.
        joined = json.loads(json.dumps(text)) if ascii_only else text
        assert one.labels["a"] == UNSTORABLE.sub("\ufffd", joined)
        assert not UNSTORABLE.search("".join(one.labels))


def in_zone(hours: float) -> datetime:
    """Return T0 as a clock shows it that is so many hours ahead of UTC."""
    return T0.astimezone(timezone(timedelta(hours=hours)))


@pytest.mark.parametrize("digits", range(10))
@pytest.mark.parametrize("key", ["startsAt", "endsAt"])
def test_time_has_up_to_nine_fractional_digits(digits: int, key: str) -> None:
    fraction = "123456789"[:digits]
    one = parsed(**{key: f"2026-01-02T03:04:05{'.' if digits else ''}{fraction}Z"})

    expected = T0.replace(microsecond=int(fraction.ljust(6, "0")[:6] or 0))
    assert (one.starts_at if key == "startsAt" else one.ends_at) == expected


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-01-02T03:04:05Z", T0),
        ("2026-01-02t03:04:05z", T0),
        ("2026-01-02T03:04:05+00:00", T0),
        ("2026-01-02T03:04:05-00:00", T0),
        ("2026-01-02T05:04:05+02:00", T0),
        ("2026-01-01T15:04:05.000-12:00", T0),
        ("2026-01-02T17:04:05.0+14:00", T0),
        ("2026-01-02T08:49:05+05:45", T0),
        ("2026-01-03T03:03:05+23:59", T0),
        ("2026-01-02T03:04:05.000000001Z", T0),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("1969-12-31T23:59:59.999999Z", datetime(1969, 12, 31, 23, 59, 59, 999999, UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)),
    ],
)
def test_time_is_read_as_an_instant_in_utc(text: str, instant: datetime) -> None:
    found = parsed(startsAt=text).starts_at

    assert found == instant
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-29T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2026-00-10T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "2026-01-02T25:00:00Z",
        "2026-01-02T03:60:00Z",
        "2026-01-02T03:04:60Z",
        "2026-01-02T03:04:05+24:00",
        "2026-01-02T03:04:05+99:99",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
    ],
)
def test_time_that_does_not_exist_is_malformed(text: str) -> None:
    one = parsed(startsAt=text)

    assert one.problem == "the alert is malformed: startsAt is not a time that exists"
    assert one.starts_at == NO_START


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02T03:04:05",
        "2026-01-02",
        "2026-01-02 03:04:05Z",
        "2026-01-02T03:04Z",
        "2026-1-2T03:04:05Z",
        "20260102T030405Z",
        "2026-W01-5T03:04:05Z",
        "2026-01-02T03:04:05.Z",
        "2026-01-02T03:04:05,5Z",
        "2026-01-02T03:04:05.1234567890Z",
        "2026-01-02T03:04:05+0200",
        "2026-01-02T03:04:05+02",
        "2026-01-02T03:04:05+02:00:30",
        "2026-01-02T03:04:05UTC",
        " 2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05Z\n",
        "+2026-01-02T03:04:05Z",
        "٢٠٢٦-01-02T03:04:05Z",
        "<error expanding template: nope>",
    ],
)
@pytest.mark.parametrize("key", ["startsAt", "endsAt"])
def test_time_in_another_notation_is_malformed_and_gets_an_example(key: str, text: str) -> None:
    assert parsed(**{key: text}).problem == (
        f"the alert is malformed: {key} is not a time as in RFC 3339, "
        "such as 2026-11-22T14:04:10.807Z"
    )


@pytest.mark.parametrize(
    "ends_at",
    ["0001-01-01T00:00:00Z", "0001-01-01t00:00:00z", "0001-01-01T00:00:00+00:00",
     "0001-01-01T00:00:00.000Z", "", None, MISSING],
)  # fmt: skip
@pytest.mark.parametrize("status", ["firing", "resolved"])
def test_end_in_year_1_means_none(status: str, ends_at: Any) -> None:
    assert parsed(status=status, endsAt=ends_at).ends_at is None


def test_end_of_a_resolved_alert_is_kept() -> None:
    one = parsed(status="resolved", endsAt="2026-01-02T05:04:06+02:00")

    assert one.ends_at == T0 + timedelta(seconds=1)
    assert one.is_resolved


@pytest.mark.parametrize("hours", [-12, -9.5, 0, 5.75, 14])
def test_same_instant_makes_the_same_alert(hours: float) -> None:
    assert parsed(startsAt=in_zone(hours).isoformat()) == parsed(startsAt=T0.isoformat())


INSTANTS = st.datetimes(timezones=st.just(UTC))
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))


@given(
    st.builds(
        Alert,
        status=st.sampled_from(["firing", "resolved"]),
        labels=st.dictionaries(TEXT, TEXT, max_size=4),
        annotations=st.dictionaries(TEXT, TEXT, max_size=4),
        starts_at=INSTANTS,
        ends_at=st.none() | INSTANTS.filter(lambda one: one.year > 1),
        generator_url=TEXT,
        fingerprint=TEXT.filter(lambda text: 0 < len(text) <= 128),
    )
)
def test_alert_comes_back_from_the_journal_and_can_be_posted_again(one: Alert) -> None:
    text = one.to_json()

    assert Alert.from_json(text) == one
    assert Alert.from_json(text).starts_at.tzinfo is UTC
    assert parse_notification(body_of([json.loads(text)])).alerts == (one,)


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_recorded_alerts_come_back_from_the_journal(path: Any) -> None:
    for one in parse_notification(path.read_bytes()).alerts[:100]:
        assert Alert.from_json(one.to_json()) == one


class TextbookInstant(fields.Field[datetime]):
    """RFC 3339, read by other means than the receiver's."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:
        match = re.fullmatch(
            r"(\d{4}-\d\d-\d\d)[tT](\d\d:\d\d:\d\d)(\.\d{1,9})?([zZ]|[+-]\d\d:\d\d)",
            value if isinstance(value, str) else "",
            re.ASCII,
        )
        try:
            if not match or re.search(":60[.zZ+-]", value):
                raise ValueError
            zone = match[4].upper().replace("Z", "+00:00")
            found = datetime.strptime(f"{match[1]} {match[2]} {zone}", "%Y-%m-%d %H:%M:%S %z")
            return found.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValidationError("Not an instant.") from None


class TextbookEnd(TextbookInstant):
    """Year 1, an empty text and null mean that there is none."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if value == "" or (isinstance(value, str) and value.startswith("0001-01-01T")):
            return None
        return super()._deserialize(value, attr, data, **kwargs)


class TextbookText(fields.String):
    """A text, or what becomes one."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return value if isinstance(value, int | float) else super()._deserialize(value, attr, data)


class TextbookAlert(Schema):
    """One alert, as the marshmallow manual would have it."""

    class Meta:
        unknown = EXCLUDE

    status = fields.String(required=True, validate=validate.OneOf(["firing", "resolved"]))
    labels = fields.Dict(fields.String(), TextbookText(allow_none=True), required=True)
    annotations = fields.Dict(fields.String(), TextbookText(allow_none=True), allow_none=True)
    starts_at = TextbookInstant(required=True, data_key="startsAt")
    ends_at = TextbookEnd(allow_none=True, data_key="endsAt")
    generator_url = fields.String(allow_none=True, data_key="generatorURL")
    fingerprint = fields.String(allow_none=True, validate=validate.Length(max=128))

    @validates_schema(skip_on_field_errors=False)
    def check_identity(self, values: dict[str, Any], **kwargs: Any) -> None:
        labels = values.get("labels") or {}
        if not values.get("fingerprint") and all(one in (None, "") for one in labels.values()):
            raise ValidationError("Neither fingerprint nor labels.", "fingerprint")


class TextbookNotification(Schema):
    """The body, as the marshmallow manual would have it."""

    class Meta:
        unknown = EXCLUDE

    version = fields.String(required=True, validate=validate.OneOf(["4", "1"]))
    status = fields.String(required=True, validate=validate.OneOf(["firing", "resolved"]))
    receiver = fields.String()
    group_key = fields.String(data_key="groupKey")
    external_url = fields.String(data_key="externalURL")
    truncated_alerts = fields.Integer(
        strict=True, validate=validate.Range(min=0), data_key="truncatedAlerts"
    )
    alerts = fields.List(fields.Raw(allow_none=True), required=True)


ENVELOPE_KEYS = (
    "version", "status", "receiver", "groupKey", "externalURL", "truncatedAlerts", "alerts", "x",
)  # fmt: skip
ALERT_KEYS = (
    "status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint", "x",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 7, -1, 1.5, float("nan"), "x", "4", "firing", "resolved", ["x"], [None],
    {"a": "x"}, {"a": 7}, {"a": None}, {"a": {"a": "x"}}, [{}], "0001-01-01T00:00:00Z",
    "2026-01-02T03:04:05Z", "2026-02-30T03:04:05Z", "2026-01-02T03:04:60Z",
    "2026-01-02t03:04:05.123456789+05:30", "9999-12-31T23:59:59-01:00", "2026-01-02",
    "f" * 128, "f" * 129, "", [], {}, 0, False, 0.0,
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """Return a valid notification in which a few keys were changed, left out or added."""
    alerts = draw(st.lists(st.sampled_from(["firing", "resolved"]), min_size=1, max_size=3))
    raw: dict[str, Any] = json.loads(
        notification(*(alert(f"f{number}", status) for number, status in enumerate(alerts)))
    )
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.integers(0, 3)) == 0:
            target, keys = raw, ENVELOPE_KEYS
        else:
            target, keys = draw(st.sampled_from(raw["alerts"])), ALERT_KEYS
        key = draw(st.sampled_from(keys))
        value = draw(st.just(MISSING) | st.sampled_from(VALUES))
        if value is MISSING:
            target.pop(key, None)
        else:
            target[key] = deepcopy(value)
        if not isinstance(raw.get("alerts"), list) or not all(
            isinstance(one, dict) for one in raw["alerts"]
        ):
            break
        if not raw["alerts"]:
            break
    return raw


@examples(600)
@given(mutated())
def test_verdict_on_envelope_and_alerts_is_that_of_a_textbook_schema(raw: dict[str, Any]) -> None:
    wrong = set(TextbookNotification().validate(raw))

    try:
        found = parse_notification(json.dumps(raw).encode())
    except NotificationError as error:
        assert set(error.fields) == wrong
        return
    assert wrong == set()
    assert len(found.alerts) == len(raw["alerts"])
    for one, as_sent in zip(found.alerts, raw["alerts"], strict=True):
        if isinstance(as_sent, dict):
            assert wrong_fields(one) == set(TextbookAlert().validate(as_sent))
        else:
            assert one.problem == "the alert is malformed: it is not an object"


def wrong_fields(one: Alert) -> set[str]:
    """Return the fields that the problem of an alert names."""
    named = one.problem.removeprefix("the alert is malformed: ").split("; ")
    return {text.partition(" ")[0] for text in named if text}


@examples(300)
@given(mutated())
def test_alert_is_read_the_same_whatever_stands_beside_it(raw: dict[str, Any]) -> None:
    alerts = raw.get("alerts") if isinstance(raw.get("alerts"), list) else []
    alone = [parse_notification(body_of([one])).alerts[0] for one in alerts]

    *found, wrong = parse_notification(body_of([*alerts, None])).alerts

    assert found == alone
    assert wrong.problem


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*ALERT_KEYS, *ENVELOPE_KEYS]), inner, max_size=6)
    ),
    max_leaves=20,
)


@examples(300)
@given(JSON, st.lists(JSON, max_size=3))
def test_any_json_is_accepted_or_refused_with_a_reason(body: Any, alerts: list[Any]) -> None:
    for raw in (json.dumps(body).encode(), body_of(alerts)):
        try:
            parse_notification(raw)
        except NotificationError as error:
            assert error.detail
            assert error.fields or not isinstance(json.loads(raw), dict)


@examples(300)
@given(st.data())
def test_damaged_bytes_are_accepted_or_refused_with_a_reason(data: st.DataObject) -> None:
    body = bytearray(notification(alert(annotations={"summary": "Zürich \0"})))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        end = start + data.draw(st.integers(0, 5))
        body[start:end] = data.draw(st.binary(max_size=4))

    try:
        parse_notification(bytes(body))
    except NotificationError as error:
        assert error.detail


def test_more_alerts_than_can_be_recorded_in_time_are_refused() -> None:
    most = [alert(str(number % 50)) for number in range(50_000)]

    assert len(parse_notification(body_of(most)).alerts) == 50_000
    with pytest.raises(NotificationError) as caught:
        parse_notification(body_of([*most, alert()]))
    assert caught.value.fields == {"alerts": "More than 50000; group them by more labels."}


def test_more_alerts_of_one_fingerprint_than_can_be_recorded_in_time_are_refused() -> None:
    most = [alert("f1", status="resolved"), alert("f2")] * 1_000

    assert len(parse_notification(body_of(most)).alerts) == 2_000
    with pytest.raises(NotificationError) as caught:
        parse_notification(body_of([*most, alert("f2")]))
    assert caught.value.fields == {"alerts": "More than 1000 of the same fingerprint."}


@pytest.mark.parametrize("key", ["labels", "annotations", "generatorURL"])
def test_text_that_is_too_long_is_cut_and_says_so(key: str) -> None:
    longest, longer = "x" * 16_384, "x" * 20_000
    for text, kept in ((longest, longest), (longer, f"{longest}… (cut: 3616 characters more)")):
        raw = {key: text if key == "generatorURL" else {"long": text, "short": "y"}}
        (one,) = parse_notification(body_with(raw)).alerts
        if key == "generatorURL":
            assert one.generator_url == kept
        else:
            assert getattr(one, key) == {"long": kept, "short": "y"}
            (named,) = parse_notification(body_with({key: {text: "x"}})).alerts
            assert getattr(named, key) == {kept: "x"}


@pytest.mark.parametrize("key", ["receiver", "groupKey", "externalURL"])
def test_long_text_of_the_envelope_is_cut(key: str) -> None:
    found = parse_notification(notification(alert(), **{key: "x" * 1_000_000}))

    assert "x" * 2_048 in (found.receiver, found.group_key, found.external_url)


def size_of(one: Alert) -> int:
    return len(one.to_json().encode())


@pytest.mark.parametrize("sign", ["x", "\x01", "ü", "🔥", "\ud800", '"', "\0"])
@pytest.mark.parametrize("length", [2_000, 8_000, 8_300, 16_384, 30_000, 70_000])
def test_alert_takes_at_most_64_kib_of_json(sign: str, length: int) -> None:
    annotations = {f"a{number}": sign * (length // 8) for number in range(20)}
    one = parsed(annotations={"summary": sign * length, **annotations}, labels={"a": sign * 500})

    assert size_of(one) <= LARGEST_ALERT == 65_536
    assert not one.problem
    assert len(one.labels["a"]) == 500
    assert list(one.annotations) == ["summary", *annotations]


def test_annotations_are_cut_before_labels() -> None:
    texts = {f"t{number}": "x" * 9_000 for number in range(6)}
    one = parsed(labels=texts, annotations=texts)

    assert one.labels == texts
    assert one.annotations["t0"] == "x" * 1024 + "… (cut: 7976 characters more)"
    assert parsed(labels=texts | {"t6": "x" * 9_000, "t7": "x" * 9_000}).labels["t7"] == (
        "x" * 4096 + "… (cut: 4904 characters more)"
    )


@pytest.mark.parametrize("number", [300, 2_000, 60_000])
def test_alert_that_is_too_large_even_when_cut_cannot_run(number: int) -> None:
    texts = {f"t{one}": "x" * 250 for one in range(number)}
    one = parsed(labels={"alertname": "Test", **texts})

    assert one.problem.startswith(f"the alert is too large: {number + 1} labels and annotations")
    assert (one.name, one.fingerprint) == ("Test", "f1")
    assert size_of(one) < 1_000


def test_many_short_texts_are_kept() -> None:
    texts = {f"t{one}": "x" for one in range(1_000)}
    assert parsed(annotations=texts).annotations == texts


def test_body_of_too_many_values_is_refused_before_it_is_parsed() -> None:
    most = 1_500_000
    body = notification(alert())[:-1] + b', "x": [HERE0]}'
    used = sum(body.count(sign) for sign in b",[{")
    for filler in (b"{},", b"[],", b'{"a":{}},'):
        tokens = sum(filler.count(sign) for sign in b",[{")
        number = (most - used) // tokens
        assert parse_notification(body.replace(b"HERE", filler * number)).alerts
        error = refusal(body.replace(b"HERE", filler * (number + 1)))
        assert error.detail.startswith("the body holds more than 1500000 JSON values")
    # It is not even looked at.
    assert refusal(b"," * (most + 1)).detail.startswith("the body holds more than")


GRAFANA = {
    "silenceURL": "https://g.example/s", "dashboardURL": "", "panelURL": "",
    "valueString": "[ var='B' labels={} value=91.5 ]", "orgId": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"B": 91.5, "C": 1}, {"B": 91.5, "C": 1.0}),
        (None, {}),
        (MISSING, {}),
        ({}, {}),
        ({"B": None, "C": True, "D": "7", "E": float("nan"), "F": 10**400, "G": -0.5}, {"G": -0.5}),
        ([7], {}),
        ({"x" * 101: 1}, {}),
    ],
)
def test_grafana_is_a_sender_and_its_values_are_kept(values: Any, kept: Any) -> None:
    raw = changed(alert() | GRAFANA, {"values": values})
    (one,) = parse_notification(
        notification(raw, version="1", orgId=1, title="t", state="alerting", message="m")
    ).alerts

    assert (one.values, one.problem) == (kept, "")
    assert Alert.from_json(one.to_json()) == one
    assert parse_notification(notification(alert())).alerts[0].values is None


@pytest.mark.parametrize("version", ["4", 4, "1", 1])
def test_version_may_be_a_number(version: Any) -> None:
    assert parse_notification(notification(alert(), version=version)).alerts


@pytest.mark.parametrize("name", ["DatasourceError", "DatasourceNoData"])
def test_failed_query_of_grafana_is_no_alert_of_its_rule(name: str) -> None:
    labels = {"alertname": name, "rulename": "DiskFull", "action_plugin": "log_action"}
    from_grafana = parsed(labels=labels, **GRAFANA)
    by_alertmanager = parsed(labels=labels)
    of_prometheus = parsed(labels={"alertname": name})

    assert from_grafana.problem.startswith(f"Grafana sends {name} when ")
    assert by_alertmanager.problem == from_grafana.problem
    assert of_prometheus.problem == ""
    assert parsed(labels=labels, status="resolved").is_resolved
    assert not parsed(labels=labels | {"alertname": "DiskFull"}, **GRAFANA).problem


def body_with(more: dict[str, Any]) -> bytes:
    return notification({**alert(), **more})
