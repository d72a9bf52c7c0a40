"""Who sends: credentials that are bound to a source, and the actions that a source may reach."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from receiver.journal import reading
from receiver.journal.journal import Journal
from receiver.plugins import load_actions
from receiver.settings import load
from receiver.web.app import create_app
from tests.support.notifications import alert, notification

GENERAL, ONE, TWO = "general-token", "token-of-one", "token-of-two"
TOML = f"""
[sources.one]
submit_token = "{ONE} {ONE}-new"
submit_basic_auth = "one:secret"

[sources.two]
submit_token_file = "two"
actions = ["log_action"]

[sources.limited]
actions = ["file_action", "log_action"]
"""


@pytest.fixture
def journal(open_journal: Callable[..., Journal]) -> Journal:
    return open_journal()


@pytest.fixture
def client(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FlaskClient]:
    """A client of a receiver with three sources, and a token for all others."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "receiver.toml").write_text(TOML)
    (tmp_path / "two").write_text(TWO)
    environment = {
        "RECEIVER_SUBMIT_TOKEN": GENERAL,
        "RECEIVER_READ_TOKEN": "read",
        "RECEIVER_OPERATE_TOKEN": "operate",
        "FILE_ACTION_DIR": str(tmp_path),
    }
    settings = load(environment, {}, tmp_path / "receiver.toml")
    app = create_app(settings, load_actions(settings), journal)
    yield app.test_client()
    app.extensions["journal_writer"].close()
    app.extensions["journal_bell"].close()


def basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def post(
    client: FlaskClient, query: str = "", token: str = GENERAL, path: str = "/webhook/log_action",
    body: bytes = b"", **headers: str,
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Post an alert; return the status and the answer."""
    answer = client.post(
        path + query,
        data=body or notification(alert()),
        headers={"Authorization": f"Bearer {token}", **headers},
        content_type="application/json",
    )
    return answer.status_code, answer.get_json()


def sources(journal: Journal) -> list[str]:
    """Return the sources of all runs, the oldest first."""
    return [run["source"] for run in reversed(reading.list_runs(journal))]


@pytest.mark.parametrize("query", ["", "?source=one", "?source="])
@pytest.mark.parametrize(
    "authorization", [f"Bearer {ONE}", f"Bearer {ONE}-new", basic("one:secret")]
)
def test_credentials_of_a_source_post_as_it_with_and_without_the_parameter(
    client: FlaskClient, journal: Journal, query: str, authorization: str
) -> None:
    status, _ = post(client, query, Authorization=authorization)

    assert status == 200
    assert sources(journal) == ["one"]


@pytest.mark.parametrize("query", ["?source=two", "?source=limited", "?source=nobody"])
def test_credentials_of_a_source_may_not_post_as_another(
    client: FlaskClient, journal: Journal, query: str
) -> None:
    status, answer = post(client, query, ONE)

    assert status == 403
    assert "those of the source one" in answer["detail"]
    assert sources(journal) == []


def test_general_token_may_not_post_as_a_source_that_has_its_own(
    client: FlaskClient, journal: Journal
) -> None:
    status, answer = post(client, "?source=two")

    assert status == 403
    assert "[sources.two]" in answer["detail"]
    assert sources(journal) == []


def test_general_token_posts_as_every_other_source(client: FlaskClient, journal: Journal) -> None:
    for query in ("", "?source=limited", "?source=nobody"):
        assert post(client, query)[0] == 200

    assert sources(journal) == ["", "limited", "nobody"]


def test_two_clusters_with_the_same_labels_count_apart(
    client: FlaskClient, journal: Journal
) -> None:
    body = notification(alert())

    answers = [post(client, token=token, body=body)[1] for token in (ONE, TWO, ONE)]

    assert [answer["accepted"] for answer in answers] == [1, 1, 0]
    assert sources(journal) == ["one", "two"]


def test_credentials_of_a_source_open_nothing_but_the_webhook(client: FlaskClient) -> None:
    for path in ("/", "/metrics", "/api/v1/runs"):
        assert client.get(path, headers={"Authorization": f"Bearer {ONE}"}).status_code == 403


def test_changed_file_of_a_source_counts_at_once(client: FlaskClient, tmp_path: Path) -> None:
    assert post(client, token=TWO)[0] == 200

    (tmp_path / "two").write_text("another-token")

    assert post(client, token=TWO)[0] == 401
    assert post(client, token="another-token")[0] == 200


def test_credential_that_two_sources_have_after_a_change_is_refused(
    client: FlaskClient, journal: Journal, tmp_path: Path
) -> None:
    (tmp_path / "two").write_text(ONE)

    assert post(client, token=ONE)[0] == 403
    assert sources(journal) == []


# Actions of a source


@pytest.mark.parametrize(
    ("query", "token"), [("", TWO), ("?source=limited", GENERAL)], ids=["bound", "not bound"]
)
@pytest.mark.parametrize("path", ["/webhook", "/webhook/http_plugin"])
def test_alert_for_an_action_out_of_reach_is_rejected_with_the_reason_and_stored(
    client: FlaskClient, journal: Journal, query: str, token: str, path: str
) -> None:
    one = alert(labels={"action_plugin": "http_plugin"})

    status, answer = post(client, query, token, path, notification(one))

    assert (status, answer["accepted"], answer["rejected"]) == (200, 0, 1)
    (stored,) = reading.list_rejected(journal)
    assert stored["name"] == "http_plugin"
    assert stored["source"] == ("limited" if query else "two")


def test_action_within_reach_runs_beside_one_that_is_not(
    client: FlaskClient, journal: Journal
) -> None:
    one = alert(labels={"action_plugin": "log_action, file_action"})

    _, answer = post(client, token=TWO, path="/webhook", body=notification(one))

    assert (answer["accepted"], answer["rejected"]) == (1, 1)
    (stored,) = reading.list_rejected(journal)
    assert stored["reason"] == "the source two may reach only log_action, not file_action"
    assert [run["action"] for run in reading.list_runs(journal)] == ["log_action"]


def test_source_without_a_list_reaches_every_action(client: FlaskClient) -> None:
    one = alert(labels={"action_plugin": "log_action, file_action"})

    for token in (ONE, GENERAL):
        _, answer = post(client, token=token, path="/webhook", body=notification(one))
        assert (answer["accepted"], answer["rejected"]) == (2, 0)


def test_explain_and_replay_keep_to_the_list(client: FlaskClient, journal: Journal) -> None:
    body = notification(alert(labels={"action_plugin": "file_action"}))
    post(client, token=TWO, path="/webhook", body=body)
    (stored,) = reading.list_rejected(journal)

    explained = client.post(
        "/api/v1/explain?source=two", data=body, content_type="application/json",
        headers={"Authorization": "Bearer read"},
    )  # fmt: skip
    replayed = client.post(
        f"/api/v1/rejected/{stored['id']}/replay", headers={"Authorization": "Bearer operate"}
    )

    assert [one["episode"] for one in explained.get_json()["explained"]] == ["rejected"]
    assert (replayed.get_json()["accepted"], replayed.get_json()["rejected"]) == (0, 1)


# The query


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?sources=one", "sources"),
        ("?Source=one", "Source"),
        ("?source=x&cluster=y", "cluster"),
        ("?cluster", "cluster"),
        ("?=x", ""),
        ("?source=x&source=y", "source"),
        ("?source=x&source=x", "source"),
        ("?source=a%20b", "source"),
        ("?source=" + "x" * 129, "source"),
        ("?source[]=x", "source[]"),
        ("?source=x;source=y", "source"),
    ],
)
def test_query_with_anything_but_one_source_is_refused_and_names_it(
    client: FlaskClient, journal: Journal, query: str, field: str
) -> None:
    status, answer = post(client, query)

    assert status == 400
    assert "source" in answer["detail"]
    assert field in [error["field"] for error in answer["errors"]]
    assert sources(journal) == []


def test_many_unknown_parameters_make_a_short_answer(client: FlaskClient) -> None:
    query = "?" + "&".join(f"{number}{'x' * 100}=secret" for number in range(20))

    status, answer = post(client, query)

    assert status == 400
    assert len(json.dumps(answer)) < 1500
    assert "secret" not in json.dumps(answer)
