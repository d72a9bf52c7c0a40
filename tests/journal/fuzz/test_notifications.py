"""Bodies that nobody would send: none breaks the web; what is answered 200 is in the journal."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from receiver.alertmanager import Notification, parse_notification
from receiver.errors import NotificationError
from receiver.journal import reading
from receiver.journal.journal import Journal
from receiver.plugins import load_actions
from receiver.settings import load
from receiver.web.app import create_app
from tests.support.databases import DIALECTS, Databases
from tests.support.fuzz import bounded, texts
from tests.support.notifications import PAYLOADS

RECORDED = [path.read_bytes() for path in PAYLOADS if path.stat().st_size < 20_000]


@dataclass
class Web:
    """The application on a real journal, and a source of its own for each body."""

    client: FlaskClient
    journal: Journal
    sources: Iterator[str]


@pytest.fixture(scope="module", params=DIALECTS)
def web(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Web]:
    environment = {
        "RECEIVER_DATABASE_URL": databases.new(request.param),
        "FILE_ACTION_DIR": str(tmp_path_factory.mktemp("files")),
    }
    settings = load(environment, {})
    journal = Journal(settings.journal_url)
    app = create_app(settings, load_actions(settings), journal)
    yield Web(app.test_client(), journal, map(str, itertools.count()))
    app.extensions["journal_writer"].close()
    app.extensions["journal_bell"].close()
    journal.close()


def json_values() -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3),
        max_leaves=5,
    )


def times() -> st.SearchStrategy[str]:
    return st.one_of(
        st.datetimes().map(lambda time: f"{time.isoformat()}Z"),
        st.sampled_from(
            ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00-23:59",
             "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30T00:00:00Z"]
        ),
    )  # fmt: skip


def alerts() -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["alertname", "action_plugin", "metric_name", "value", "for"]) | texts()
    labels = st.dictionaries(names, texts(), max_size=4)
    known = st.sampled_from(["log_action", "log_action,file_action", "no_such", ""])
    return st.fixed_dictionaries(
        {
            "status": st.sampled_from(["firing", "resolved"]),
            "labels": st.builds(
                lambda some, action: {**some, "action_plugin": action}, labels, known
            )
            | labels,
            "startsAt": times(),
            "endsAt": times(),
            "fingerprint": st.sampled_from(["f1", "f2"]) | texts().filter(bool),
        },
        optional={"annotations": labels, "generatorURL": texts(), "new": json_values()},
    )


def notifications() -> st.SearchStrategy[bytes]:
    """Return notifications that are right in form, with any content."""
    return st.fixed_dictionaries(
        {
            "version": st.just("4"),
            "status": st.sampled_from(["firing", "resolved"]),
            "receiver": texts(),
            "groupKey": texts(),
            "alerts": st.lists(alerts(), max_size=4),
        },
        optional={
            "truncatedAlerts": st.sampled_from([0, 1, 10**9, 10**400]),
            "externalURL": texts(),
        },
    ).map(lambda body: json.dumps(body).encode())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a recorded body in which one value is another, or some bytes are."""
    body = draw(st.sampled_from(RECORDED))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(body)))
        until = draw(st.integers(at, min(len(body), at + 50)))
        return body[:at] + draw(st.binary(max_size=20)) + body[until:]
    whole = json.loads(body)
    place: Any = whole
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not (isinstance(inner, dict | list) and inner) or draw(st.integers(0, 3)) == 0:
            place[key] = draw(json_values())
            return json.dumps(whole).encode()
        place = inner


@bounded(150)
@given(body=st.one_of(notifications(), damaged(), st.binary(), json_values().map(
    lambda value: json.dumps(value).encode()
)))  # fmt: skip
def test_what_is_answered_200_is_in_the_journal_and_nothing_is_an_error(
    web: Web, body: bytes
) -> None:
    source = next(web.sources)
    answer = web.client.post(
        f"/webhook?source={source}", data=body, content_type="application/json"
    )
    assert answer.status_code in (200, 400), answer.text
    assert len(answer.data) < 20_000
    runs = reading.list_runs(web.journal, source=source)
    rejected = [one for one in reading.list_rejected(web.journal) if one["source"] == source]
    if answer.status_code == 400:
        assert (runs, rejected) == ([], [])
        return
    counts = answer.get_json()
    notification = parse_notification(body)
    firing = {one.fingerprint for one in notification.alerts if not one.is_resolved}
    assert {one["fingerprint"] for one in [*runs, *rejected]} >= firing
    assert counts["accepted"] == len({(one["fingerprint"], one["starts_at"], one["action"])
                                      for one in runs})  # fmt: skip
    assert counts["rejected"] >= len(rejected)


@bounded(300)
@given(body=st.one_of(st.binary(), damaged()))
def test_any_bytes_are_a_notification_or_the_error_that_says_why_not(body: bytes) -> None:
    try:
        parsed = parse_notification(body)
    except NotificationError as error:
        assert error.detail
        assert all(path and text for path, text in error.fields.items())
        assert len(error.fields) <= 20
    else:
        assert isinstance(parsed, Notification)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, id="deep objects"),
        pytest.param(b"[" * 200_000 + b"]" * 200_000, id="deep lists"),
        pytest.param(b"{" + b",".join(b'"%d":1' % n for n in range(200_000)) + b"}", id="keys"),
        pytest.param(b'{"alerts":' + b"9" * 100_000 + b"}", id="digits"),
        pytest.param(b'{"version":1e999,"x":NaN,"y":-Infinity}', id="no numbers"),
        pytest.param(b'{"version":"4","version":"5"}', id="a key twice"),
        pytest.param(b'\xef\xbb\xbf{"version":"4"}', id="byte order mark"),
        pytest.param('{"version":"4"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'"\\ud800"', id="a lone surrogate"),
        pytest.param(
            b'{"version":"4","status":"firing","alerts":[' + b",".join([b"{}"] * 100_000) + b"]}",
            id="too many alerts",
        ),
        pytest.param(
            b'{"version":"4","status":"firing","alerts":[' + b",".join([b"{}"] * 50_000) + b"]}",
            id="wrong alerts",
        ),
    ],
)
def test_body_made_to_exhaust_is_400_with_a_short_answer(web: Web, body: bytes) -> None:
    answer = web.client.post("/webhook", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert len(answer.data) < 4096
