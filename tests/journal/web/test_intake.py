"""One alert never spoils its siblings; what Grafana sends arrives with its value."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient

from receiver.journal import reading
from receiver.journal.claims import claim_due_runs
from receiver.journal.journal import Journal
from receiver.policies import Rules
from tests.journal.web.conftest import MakeApp
from tests.support.notifications import alert, notification

Raw = dict[str, Any]
BROKEN = alert("broken") | {"startsAt": "yesterday"}


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    return make_app(ACTION_PLUGIN="log_action").test_client()


def post(client: FlaskClient, *alerts: Any, path: str = "/webhook", **envelope: Any) -> Any:
    body = json.dumps(json.loads(notification(**envelope)) | {"alerts": alerts})
    answer = client.post(path, data=body, content_type="application/json")
    assert answer.status_code == 200, answer.text
    return answer.get_json()


@pytest.fixture
def journal(open_journal: Callable[..., Journal]) -> Journal:
    return open_journal()


def test_wrong_alerts_are_rejected_and_the_others_run(
    client: FlaskClient, journal: Journal
) -> None:
    began = datetime.now(UTC) - timedelta(seconds=5)
    wrong = [BROKEN, 7, {}, alert("status") | {"status": "odd"}, alert("text") | {"labels": [1]}]

    counts = post(client, alert("right"), *wrong, alert("right too"))

    assert counts == {"accepted": 2, "duplicate": 0, "resolved": 0, "rejected": 5}
    assert {one["fingerprint"] for one in reading.list_runs(journal)} == {"right", "right too"}
    rejected = {one["fingerprint"]: one for one in reading.list_rejected(journal)}
    assert len(rejected) == 5
    assert {"broken", "status", "text"} < rejected.keys()
    assert rejected["broken"]["reason"] == (
        "the alert is malformed: startsAt is not a time as in RFC 3339, "
        "such as 2026-11-22T14:04:10.807Z"
    )
    assert began < rejected["broken"]["starts_at"] < datetime.now(UTC) + timedelta(seconds=5)


def test_answer_is_200_when_all_alerts_are_wrong(client: FlaskClient) -> None:
    counts = post(client, None, 7)
    assert counts == {"accepted": 0, "duplicate": 0, "resolved": 0, "rejected": 2}


def test_wrong_alert_that_is_sent_again_is_counted_in_one_row(
    client: FlaskClient, journal: Journal
) -> None:
    for _ in range(3):
        post(client, BROKEN, 7)
    rejected = reading.list_rejected(journal)
    assert [one["times"] for one in rejected] == [3, 3]
    assert all(one["starts_at"] == one["first_seen_at"] for one in rejected)


@pytest.mark.parametrize("path", ["/webhook", "/webhook/log_action"])
def test_rejection_is_closed_once_the_alert_is_right(
    client: FlaskClient, journal: Journal, path: str
) -> None:
    post(client, BROKEN, path=path)
    assert post(client, alert("broken"), path=path)["accepted"] == 1
    (rejected,) = reading.list_rejected(journal)
    assert rejected["closed_by"] == "taken up"


@pytest.mark.parametrize(
    "wrong",
    [
        {"endsAt": "soon"},
        {"labels": None},
        {"annotations": 7},
        {"startsAt": None, "endsAt": None},
    ],
)
def test_malformed_resolved_alert_closes_what_its_fingerprint_finds(
    client: FlaskClient, journal: Journal, wrong: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    post(client, alert())

    counts = post(client, alert(status="resolved") | wrong)

    assert counts == {"accepted": 0, "duplicate": 0, "resolved": 1, "rejected": 0}
    (episode,) = reading.list_episodes(journal)
    assert episode["closed_at"] is not None
    (warning,) = [one for one in caplog.records if one.message == "resolved alert is malformed"]
    assert warning.__dict__["fingerprint"] == "f1"


GRAFANA = alert("g1") | {"orgId": 1, "valueString": "[ var='B' value=91.5 ]"}


@pytest.mark.parametrize(
    ("values", "annotation", "ref_id", "value", "warning"),
    [
        ({"B": 91.5}, None, "", 91.5, ""),
        ({"B": 91.5}, "7", "B", 7.0, ""),
        ({"B": 91.5, "C": 1}, None, "B", 91.5, ""),
        ({"B": 91.5}, None, "A", 91.5, ""),
        ({"B": 91.5, "C": 1}, None, "", "NaN", 'values has "B", "C": set RECEIVER_GRAFANA_VALUE'),
        ({"B": 1, "C": 1}, None, "A", "NaN", 'RECEIVER_GRAFANA_VALUE is "A", and values has "B"'),
        (None, None, "B", "NaN", "RECEIVER_GRAFANA_VALUE is"),
        (None, None, "", "NaN", "values is empty"),
    ],
)
def test_value_of_grafana_arrives(
    client: FlaskClient, journal: Journal, values: Any, annotation: str | None, ref_id: str,
    value: Any, warning: str,
) -> None:  # fmt: skip
    raw = GRAFANA | {"values": values, "annotations": {"value": annotation}}
    assert post(client, raw, version="1")["accepted"] == 1

    (run,) = claim_due_runs(
        journal, "w", ["log_action"], 1, Rules(grafana_value=ref_id)
    ).claimed  # fmt: skip

    call = json.loads(run.call)
    assert call["value"] == value
    assert any(warning in one for one in call["warnings"]) or not warning
    assert any("value" in one for one in call["warnings"]) == bool(warning)


def test_refid_of_the_value_is_a_setting(make_app: MakeApp) -> None:
    client = make_app(RECEIVER_GRAFANA_VALUE="C", ACTION_PLUGIN="log_action").test_client()
    body = notification(GRAFANA | {"values": {"B": 91.5, "C": 1}}, version="1")
    answer = client.post("/api/v1/explain", data=body, content_type="application/json")
    (explained,) = answer.get_json()["explained"]
    assert explained["arguments"]["value"] == 1.0


@pytest.mark.parametrize("path", ["/webhook", "/webhook/log_action"])
def test_failed_query_of_grafana_runs_nothing(
    client: FlaskClient, journal: Journal, path: str
) -> None:
    labels = {"alertname": "DatasourceError", "rulename": "DiskFull", "action_plugin": "log_action"}
    counts = post(client, GRAFANA | {"labels": labels, "values": None}, version="1", path=path)
    assert counts == {"accepted": 0, "duplicate": 0, "resolved": 0, "rejected": 1}
    (rejected,) = reading.list_rejected(journal)
    assert "set the rule's `Alert state if execution error or timeout`" in rejected["reason"]


def test_replay_of_a_wrong_alert_rejects_it_again(client: FlaskClient, journal: Journal) -> None:
    post(client, BROKEN)
    (rejected,) = reading.list_rejected(journal)
    answer = client.post(f"/api/v1/rejected/{rejected['id']}/replay", json={})
    assert answer.get_json()["rejected"] == 1
    assert [one["times"] for one in reading.list_rejected(journal)] == [2]
