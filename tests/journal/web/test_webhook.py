"""The webhook over real HTTP: every answer of the contract."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.notifications import PAYLOADS, SEQUENCES, alert, notification, sequence
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

TOKEN = "only-for-this-test"
LIMIT = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("webhook")


@pytest.fixture(scope="module")
def web(directory: Path) -> Iterator[Receiver]:
    """A real `receiver serve` with a token, a body limit and a default action."""
    environment = {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "RECEIVER_SUBMIT_TOKEN": TOKEN,
        "RECEIVER_MAX_BODY": str(LIMIT),
        "RECEIVER_METRICS_OPEN": "true",
        "ACTION_PLUGIN": "log_action",
    }
    one = Receiver("serve", environment, directory / "receiver.log")
    try:
        yield one.wait_ready()
    finally:
        one.kill()


def post(web: Receiver, body: bytes, path: str = "/webhook", **headers: str) -> requests.Response:
    return web.post(body, path, **{"Authorization": f"Bearer {TOKEN}", **headers})


# Before the bodies of thousands of alerts, whose runs would be in the way for long.
@pytest.mark.parametrize("folder", SEQUENCES)
def test_recorded_conversation_runs_its_action_as_often_as_it_should(
    web: Receiver, directory: Path, folder: str
) -> None:
    for _, body in sequence(folder):
        assert post(web, body, f"/webhook/log_action?source={folder}").status_code == 200
    journal = Journal(f"sqlite:///{directory / 'data' / 'journal.db'}")

    def unfinished() -> int:
        runs = reading.list_runs(journal, source=folder)
        return sum(one["state"] != "finished" for one in runs)

    wait_until(lambda: unfinished() == 0, 60, "all runs finished")
    runs = reading.list_runs(journal, source=folder)
    assert len(runs) == SEQUENCES[folder]
    assert {one["outcome"] for one in runs} <= {"succeeded", "cancelled"}
    assert all(one["attempts"] <= 1 for one in runs)
    journal.close()


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_recorded_body_is_accepted_whole(web: Receiver, path: Path) -> None:
    body = path.read_bytes()
    answer = post(web, body, f"/webhook/log_action?source=payload/{path.stem}")
    assert answer.status_code == 200
    alerts = json.loads(body)["alerts"]
    firing = sum(one["status"] == "firing" for one in alerts)
    assert answer.json() == {
        "accepted": firing,
        "duplicate": 0,
        "resolved": len(alerts) - firing,
        "rejected": 0,
    }


def test_answer_counts_per_alert_and_action(web: Receiver) -> None:
    body = notification(
        alert("two", labels={"action_plugin": "log_action, http_plugin"}),
        alert("default"),
        alert("unknown", labels={"action_plugin": "no_such_action"}),
        alert("gone", "resolved"),
    )
    answer = post(web, body, "/webhook?source=counts")
    assert answer.json() == {"accepted": 3, "duplicate": 0, "resolved": 1, "rejected": 1}
    again = post(web, body, "/webhook?source=counts")
    assert again.json() == {"accepted": 0, "duplicate": 3, "resolved": 1, "rejected": 1}


def test_rejected_alert_is_journalled_with_its_reason(web: Receiver, directory: Path) -> None:
    body = notification(alert(labels={"action_plugin": "log_acton"}))
    assert post(web, body, "/webhook?source=rejected").json()["rejected"] == 1
    journal = Journal(f"sqlite:///{directory / 'data' / 'journal.db'}")
    kept = [one for one in reading.list_rejected(journal) if one["source"] == "rejected"]
    journal.close()
    assert "did you mean log_action?" in kept[0]["reason"]


def test_known_action_that_is_not_configured_is_rejected_not_unknown(web: Receiver) -> None:
    answer = post(web, notification(alert()), "/webhook/efs_emergency?source=known")
    assert answer.status_code == 200
    assert answer.json()["rejected"] == 1


@pytest.mark.parametrize("path", ["/webhook/", "/webhook/log_action/"])
def test_trailing_slash_is_accepted_without_a_redirect(web: Receiver, path: str) -> None:
    assert post(web, notification(), path).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["//webhook", "/webhook//log_action", "/webhook/./log_action", "/Webhook", "/webhook/a/b"],
)
def test_no_path_is_ever_redirected(web: Receiver, path: str) -> None:
    assert post(web, notification(), path).status_code in (200, 404)


def test_unknown_action_in_the_path_is_404_and_names_the_nearest(web: Receiver) -> None:
    answer = post(web, notification(alert()), "/webhook/log_acton")
    assert answer.status_code == 404
    assert "log_action" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param(b"{", None, id="not JSON"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"[]", None, id="not an object"),
        pytest.param(b"[" * 100_000, None, id="nested too deeply"),
        pytest.param(notification(version="3"), "version", id="another version"),
        pytest.param(notification(alerts={}), "alerts", id="alerts not a list"),
    ],
)
def test_what_is_no_notification_is_400_with_each_wrong_field(
    web: Receiver, body: bytes, field: str | None
) -> None:
    answer = post(web, body)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == 400
    assert len(answer.content) < 4096
    if field:
        assert field in [one["field"] for one in problem["errors"]]


@pytest.mark.parametrize("source", ["a%20b", "a%0Ab", "x" * 129, "%C3%A4"])
def test_source_that_is_no_plain_name_is_400(web: Receiver, source: str) -> None:
    assert post(web, notification(), f"/webhook?source={source}").status_code == 400


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer wrong", f"bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer \xe4"],
)
def test_no_or_wrong_credentials_are_401(web: Receiver, value: str) -> None:
    answer = web.post(notification(alert()), Authorization=value.encode("latin-1"))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert TOKEN not in answer.text


def test_scheme_of_the_token_is_not_case_sensitive(web: Receiver) -> None:
    assert web.post(notification(), Authorization=f"bearer {TOKEN}").status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_are_405(web: Receiver, method: str) -> None:
    answer = requests.request(method, f"{web.url}/webhook", timeout=10)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("content", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_content_is_415(web: Receiver, content: str) -> None:
    assert post(web, notification(), **{"Content-Type": content}).status_code == 415


def test_charset_in_the_content_type_is_accepted(web: Receiver) -> None:
    content = "application/json; charset=utf-8"
    assert post(web, notification(), **{"Content-Type": content}).status_code == 200


def test_compressed_body_is_415(web: Receiver) -> None:
    assert post(web, notification(), **{"Content-Encoding": "gzip"}).status_code == 415


def test_body_over_the_limit_is_413_before_it_is_read(web: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", web.port), 10) as connection:
        connection.sendall(
            b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {TOKEN}\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode()
        )
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")


def test_chunked_body_over_the_limit_is_413(web: Receiver) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(LIMIT // 2**20 + 1):
            yield b" " * 2**20

    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    answer = requests.post(f"{web.url}/webhook", data=chunks(), headers=headers, timeout=30)
    assert answer.status_code == 413


def test_characters_that_no_database_stores_are_replaced(web: Receiver, directory: Path) -> None:
    body = notification(alert(labels={"odd": "a\0b"}, annotations={"x": "\ud800"}))
    assert post(web, body, "/webhook?source=odd").json()["accepted"] == 1
    journal = Journal(f"sqlite:///{directory / 'data' / 'journal.db'}")
    (run,) = reading.list_runs(journal, source="odd")
    journal.close()
    kept = json.loads(run["alert"])
    assert (kept["labels"]["odd"], kept["annotations"]["x"]) == ("a\ufffdb", "\ufffd")


def test_truncated_alerts_are_logged_as_a_warning(web: Receiver) -> None:
    post(web, notification(truncatedAlerts=7))
    lines = web.lines("alerts were left out by alertmanager")
    assert lines[-1]["truncated_alerts"] == 7
    assert lines[-1]["level"] == "WARNING"


def test_pair_that_keeps_its_replica_label_is_logged_once_with_the_cure(web: Receiver) -> None:
    pair = [alert(name, labels={"prometheus_replica": name}) for name in ("p-0", "p-1")]
    for _ in range(2):
        counts = post(web, notification(*pair, receiver="replicas")).json()
    assert counts["duplicate"] == 2, "the receiver does not guess: these are two episodes"
    (line,) = [
        line
        for line in web.lines("alerts differ only in a replica label, so the action runs for each")
        if line["receiver"] == "replicas"
    ]
    assert (line["level"], line["label"]) == ("WARNING", "prometheus_replica")
    assert line["cure"] == (
        "drop the label in prometheus.yml: alerting: {alert_relabel_configs: "
        '[{action: labeldrop, regex: "prometheus_replica"}]}'
    )
    assert (
        "receiver_replica_alerts_total 3.0" in requests.get(web.url + "/metrics", timeout=10).text
    )


def test_probes_need_no_credentials(web: Receiver) -> None:
    for path in ("/-/healthy", "/-/ready"):
        assert requests.get(web.url + path, timeout=10).status_code == 200


def test_one_line_is_logged_per_notification_without_body_or_token(web: Receiver) -> None:
    before = len(web.lines("notification recorded"))
    post(web, notification(alert("one-line", annotations={"note": "do-not-log-me"})))
    lines = wait_until(lambda: web.lines("notification recorded")[before:])
    assert len(lines) == 1
    assert (lines[0]["accepted"], lines[0]["alerts"]) == (1, 1)
    assert "do-not-log-me" not in web.text()
    assert TOKEN not in web.text()
