"""The API: what it shows and does, how it says no, and that its document tells the truth."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from receiver.journal import tables
from receiver.journal.journal import Journal
from receiver.journal.reading import LARGE
from receiver.schemas import RunSchema
from tests.support.notifications import PAYLOADS, alert, notification

MakeApp = Callable[..., Flask]
API = "/api/v1"
READ, OPERATE = {"Authorization": "Bearer r"}, {"Authorization": "Bearer o"}
TOKENS = {
    "RECEIVER_SUBMIT_TOKEN": "s", "RECEIVER_READ_TOKEN": "r", "RECEIVER_OPERATE_TOKEN": "o",
}  # fmt: skip


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    """A client of a receiver on which nobody works: what is accepted stays queued."""
    return make_app(RECEIVER_ACTIONS="log_action, file_action").test_client()


def post(client: FlaskClient, *alerts: dict[str, Any], action: str = "log_action") -> None:
    path = f"/webhook/{action}" if action else "/webhook"
    answer = client.post(path, data=notification(*alerts), content_type="application/json")
    assert answer.status_code == 200, answer.text


def get(client: FlaskClient, path: str) -> Any:
    answer = client.get(API + path)
    assert (answer.status_code, answer.mimetype) == (200, "application/json"), answer.text
    return answer.get_json()


def ask(client: FlaskClient, path: str, **body: object) -> Any:
    answer = client.post(API + path, json=body)
    assert (answer.status_code, answer.mimetype) == (200, "application/json"), answer.text
    return answer.get_json()


# Looking


def test_runs_are_filtered_by_each_thing_that_can_be_asked_for(client: FlaskClient) -> None:
    post(client, alert("a", labels={"alertname": "One"}), alert("b", labels={"alertname": "Two"}))
    post(client, alert("a"), action="file_action")
    ask(client, "/runs/1/cancel")
    created = get(client, "/runs/1")["created_at"].replace("+00:00", "Z")

    def found(query: str) -> list[int]:
        return [one["id"] for one in get(client, f"/runs?{query}")["runs"]]

    assert found("") == [3, 2, 1]
    assert found("action=file_action") == [3]
    assert found("alert=Two") == [2]
    assert found("fingerprint=a&action=log_action") == [1]
    assert found("state=queued") == [3, 2]
    assert found("outcome=cancelled") == [1]
    assert found("kind=repeat") == found("source=elsewhere") == []
    assert found(f"since={created}")[-1] == 1
    assert found(f"until={created}") == []


def test_pages_follow_each_other_though_rows_come_meanwhile(client: FlaskClient) -> None:
    for name in ("runs", "episodes", "rejected"):
        wrong = {"action_plugin": "no_such_action"} if name == "rejected" else {}
        action = "" if wrong else "log_action"

        def more(*numbers: int, kind: str = name, labels: Any = wrong, to: str = action) -> None:
            post(client, *(alert(f"{kind}{n}", labels=labels) for n in numbers), action=to)

        more(*range(5))
        first = get(client, f"/{name}?limit=3")
        more(5, 6)
        rest = get(client, f"/{name}?limit=1000&cursor={first['next']}")
        seen = [one["fingerprint"] for one in first[name] + rest[name]]
        assert {f"{name}{n}" for n in range(5)} <= set(seen)
        assert len(seen) == len(set(seen))
        assert not {f"{name}5", f"{name}6"} & set(seen)
        assert rest["next"] is None


def test_run_is_shown_with_its_history_and_who_asked_for_what(client: FlaskClient) -> None:
    post(client, alert("h", annotations={"value": "90"}))
    ask(client, "/runs/1/cancel", reason="known")
    ask(client, "/runs/1/retry")
    run = get(client, "/runs/1")
    assert run["why"] == "no worker that is running has loaded the action log_action"
    assert run["alert"]["annotations"] == {"value": "90"}
    assert run["history"] == []
    asked = [tuple(one[name] for name in ("operation", "who", "detail")) for one in run["audit"]]
    assert asked == [("retry", "anyone", ""), ("cancel", "anyone", "known")]
    assert {one["origin"] for one in run["audit"]} == {"api from 127.0.0.1"}
    assert get(client, "/audit?limit=1")["audit"][0]["operation"] == "retry"


def test_answer_names_every_column_of_the_journal(client: FlaskClient) -> None:
    post(client, alert("c"))
    columns = {one.name for one in tables.runs.columns} | {"why"}
    (listed,) = get(client, "/runs")["runs"]
    assert listed.keys() == columns - {*LARGE} == RunSchema().fields.keys()
    assert get(client, f"/runs/{listed['id']}").keys() == columns | {"history", "audit"}


def test_alert_of_a_rejection_is_shown_with_that_alone(client: FlaskClient) -> None:
    post(client, alert("r", labels={"action_plugin": "nope"}), action="")
    (listed,) = get(client, "/rejected")["rejected"]
    columns = {one.name for one in tables.rejected.columns}
    assert listed.keys() == columns - {"alert"}
    whole = get(client, f"/rejected/{listed['id']}")
    assert whole.keys() == columns
    assert whole["alert"]["labels"] == {"alertname": "Test", "action_plugin": "nope"}
    assert client.get("/api/v1/rejected/999").status_code == 404


def test_actions_are_shown_with_policy_holds_and_work(client: FlaskClient) -> None:
    post(client, alert("w"))
    ask(client, "/pause", action="log_action", reason="deploy", **{"for": "1h"})
    actions = {one["name"]: one for one in get(client, "/actions")["actions"]}
    shown = actions["log_action"]
    assert (shown["state"], shown["has_worker"]) == ("loaded", False)
    assert (shown["unfinished"], shown["ended_last_day"]) == ({"queued": 1}, {})
    assert (shown["policy"]["timeout"], shown["policy"]["backoff"]) == ("1m", "1s..5m")
    assert [hold["reason"] for hold in shown["holds"]] == ["by anyone: deploy"]
    assert actions["efs_emergency"]["state"] == "disabled"
    assert get(client, "/holds")["holds"] == shown["holds"]


# Asking


def test_pause_and_resume_say_what_they_did(client: FlaskClient) -> None:
    assert ask(client, "/pause", **{"for": "90m"}) == {"done": "all actions paused for 1h30m"}
    assert ask(client, "/resume", action=None) == {"done": "all actions resumed"}


def test_replay_answers_as_the_webhook_does(client: FlaskClient) -> None:
    post(client, alert("r", labels={"action_plugin": "no_such_action"}), action="")
    counts = ask(client, "/rejected/1/replay")
    assert (counts["accepted"], counts["rejected"]) == (0, 1)


def test_explanation_of_recorded_notifications_stores_nothing(client: FlaskClient) -> None:
    for body in PAYLOADS[:19]:
        answer = client.post(
            f"{API}/explain?action=log_action",
            data=body.read_bytes(),
            content_type="application/json",
        )
        assert answer.status_code == 200
        assert len(answer.get_json()["explained"]) == len(json.loads(body.read_bytes())["alerts"])
    assert get(client, "/runs")["runs"] == []


# Saying no


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        ("GET", "/runs/9", None, 404, "there is no run 9; see `receiver runs`"),
        ("GET", f"/runs/{10**20}", None, 404, f"there is no run {10**20}; see `receiver runs`"),
        ("GET", "/runs/x", None, 404, None),
        ("POST", "/runs/1/approve", {}, 409, "run 1 waits for no approval: it is queued"),
        ("POST", "/runs/1/retry", {}, 409, None),
        ("POST", "/runs/1/destroy", {}, 404, None),
        ("DELETE", "/runs/1", None, 405, None),
        ("POST", "/rejected/9/replay", {}, 404,
         "there is no rejected alert 9; see `receiver rejected`"),
        ("POST", "/pause", {"action": "no_such"}, 404,
         "there is no action no_such; see `receiver plugins`"),
        ("POST", "/resume", {}, 409, "not all actions are paused; nothing is"),
        ("GET", "/runs?cursor=1.2", None, 400, "'1.2' is no cursor that a page of these gave"),
    ],
)  # fmt: skip
def test_refusal_is_a_problem(
    client: FlaskClient, method: str, path: str, body: Any, status: int, detail: str | None
) -> None:
    post(client, alert("p"))
    answer = client.open(API + path, method=method, json=body)
    problem = answer.get_json()
    assert (answer.status_code, answer.mimetype) == (status, "application/problem+json")
    assert problem["status"] == status
    assert detail is None or problem["detail"] == detail


@pytest.mark.parametrize(
    ("path", "body", "field", "error"),
    [
        ("/runs?limit=0", None, "limit", "less than or equal to 1000."),
        ("/runs?limit=x", None, "limit", "Not a valid integer."),
        ("/runs?state=asleep", None, "state", "Must be one of"),
        ("/runs?since=yesterday", None, "since", "Not a valid datetime."),
        ("/runs?alert=a%00b", None, "alert", "cannot be stored"),
        ("/runs?colour=red", None, "colour", "Unknown field."),
        ("/runs?action=a&action=b", None, "action", "more than once"),
        ("/runs/1?x=1", None, "x", "Unknown field."),
        ("/runs/1/cancel", {"reason": 1}, "reason", "Not a valid string."),
        ("/runs/1/cancel", {"reason": "x" * 1001}, "reason", "Longer than maximum length 1000."),
        ("/runs/1/cancel", {"reason": "\ud800"}, "reason", "cannot be stored"),
        ("/runs/1/cancel", {"why": "x"}, "why", "Unknown field."),
        ("/runs/1/cancel", [], "", "Invalid input type."),
        ("/pause", {"for": "a while"}, "for", "is not a duration; write 30s, 5m or 1h30m"),
    ],
)  # fmt: skip
def test_wrong_field_is_named(
    client: FlaskClient, path: str, body: Any, field: str, error: str
) -> None:
    post(client, alert("p"))
    method = "GET" if body is None else "POST"
    answer = client.open(API + path, method=method, json=body)
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")
    (wrong,) = answer.get_json()["errors"]
    assert wrong["field"] == field
    assert error in wrong["error"]


@pytest.mark.parametrize(
    ("data", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"null", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"reason=x", "application/x-www-form-urlencoded", 415),
        (b'{"reason": "' + b"x" * 70_000 + b'"}', "application/json", 413),
        (b"", "", 200),
    ],
    ids=["cut off", "deep", "no UTF-8", "null", "text", "form", "large", "none"],
)
def test_body_is_json_of_no_great_size(
    client: FlaskClient, data: bytes, content_type: str, status: int
) -> None:
    post(client, alert("p"))
    answer = client.post(f"{API}/runs/1/cancel", data=data, content_type=content_type or None)
    assert answer.status_code == status, answer.text


def test_scope_decides_who_may_look_and_who_may_act(make_app: MakeApp) -> None:
    client = make_app(**TOKENS).test_client()
    looks = ("/runs", "/episodes", "/rejected", "/audit", "/actions", "/holds", "/openapi.json")
    acts = ("/runs/1/retry", "/runs/1/cancel", "/runs/1/approve", "/runs/1/reject", "/pause",
            "/resume", "/rejected/1/replay")  # fmt: skip
    document = client.get(f"{API}/openapi.json", headers=READ).get_json()
    told = {path.removeprefix(API) for path, methods in document["paths"].items()}
    assert {one.replace("/1/", "/{run_id}/") for one in acts if "runs" in one} <= told
    for path in looks:
        status = [client.get(API + path, headers=one).status_code for one in ({}, READ, OPERATE)]
        assert status == [401, 200, 200], path
    for path in acts:
        status = [client.post(API + path, json={}, headers=one).status_code for one in ({}, READ)]
        assert status == [401, 403], path
        assert client.post(API + path, json={}, headers=OPERATE).status_code in (200, 404, 409)
    submit = {"Authorization": "Bearer s"}
    assert {client.get(API + path, headers=submit).status_code for path in looks} == {403}


def test_audit_names_the_login(make_app: MakeApp) -> None:
    client = make_app(
        RECEIVER_SUBMIT_TOKEN="s", RECEIVER_OPERATE_BASIC_AUTH="ann:secret"
    ).test_client()
    login = base64.b64encode(b"ann:secret").decode()
    headers = {"Authorization": f"Basic {login}"}
    assert client.post(f"{API}/pause", json={}, headers=headers).status_code == 200
    (asked,) = client.get(f"{API}/audit", headers=headers).get_json()["audit"]
    assert (asked["who"], asked["origin"], asked["operation"]) == (
        "ann", "api from 127.0.0.1", "pause",
    )  # fmt: skip


def test_answers_are_kept_by_nobody_and_shared_with_no_other_origin(client: FlaskClient) -> None:
    for answer in (
        client.get(f"{API}/runs", headers={"Origin": "http://evil.example"}),
        client.options(f"{API}/runs", headers={"Origin": "http://evil.example"}),
        client.get(f"{API}/runs/9"),
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
    foreign = {"Origin": "http://evil.example"}
    assert client.post(f"{API}/pause", json={}, headers=foreign).status_code == 403
    assert get(client, "/holds")["holds"] == []


def test_journal_that_fails_is_a_503(
    make_app: MakeApp, open_journal: Callable[..., Journal]
) -> None:
    client = make_app().test_client()
    with open_journal().writing() as connection:
        connection.exec_driver_sql("ALTER TABLE runs RENAME TO gone")
    answer = client.get(f"{API}/runs")
    assert (answer.status_code, answer.mimetype) == (503, "application/problem+json")
    assert "gone" not in answer.text


# The document


def test_document_is_that_of_every_endpoint(make_app: MakeApp) -> None:
    app = make_app()
    document = app.test_client().get(f"{API}/openapi.json").get_json()
    told = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if method != "parameters"
    }
    served = {
        (method, str(rule).replace("<int:", "{").replace(">", "}"))
        for rule in app.url_map.iter_rules()
        if str(rule).startswith(API) and not str(rule).endswith("openapi.json")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert told == served
    query = document["paths"][f"{API}/runs"]["get"]["parameters"]
    assert {one["name"]: one["schema"] for one in query}["limit"]["maximum"] == 1000
