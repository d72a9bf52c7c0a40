"""What guards the page: its headers, its forms, who may look and who may act, and its secrets."""

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from receiver.journal import reading, tables
from receiver.journal.journal import Journal
from receiver.web.shown import link
from tests.support.notifications import alert, notification

MakeApp = Callable[..., Flask]
MakeJournal = Callable[..., Journal]
PATHS = ("/", "/runs", "/runs/1", "/actions", "/rejected", "/audit", "/settings", "/runs/99",
         "/runs/1/cancel", "/pause", "/static/page.js", "/static/style.css")  # fmt: skip
LOGINS = {
    "RECEIVER_SUBMIT_TOKEN": "s",
    "RECEIVER_READ_BASIC_AUTH": "eve:r",
    "RECEIVER_OPERATE_BASIC_AUTH": "ann:o",
}


def login(text: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


def accept(app: Flask, **headers: str) -> None:
    body = notification(alert("p"), alert("q", labels={"action_plugin": "no_such"}))
    answer = app.test_client().post(
        "/webhook", data=body, content_type="application/json", headers=headers
    )
    assert answer.status_code == 200


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """A receiver with a run that waits and a rejected alert, and nobody who works."""
    made = make_app(ACTION_PLUGIN="log_action")
    accept(made)
    return made


def token_of(client: FlaskClient, path: str = "/runs/1/cancel", **more: str) -> str:
    """Return the token of the form behind a button."""
    page = client.get(path, **more)  # type: ignore[arg-type]
    found = re.search(r'name="csrf_token" value="(\w+)"', page.text)
    assert found, page.text
    return found[1]


def state_of(journal: Journal, run_id: int = 1) -> str:
    return str(reading.find_run(journal, run_id)["state"])


# Headers


def test_every_page_tells_the_browser_to_be_careful(app: Flask) -> None:
    for path in PATHS:
        answer = app.test_client().get(path, buffered=True)
        assert answer.status_code == (404 if path == "/runs/99" else 200), path
        policy = dict(
            one.split(" ", 1) for one in answer.headers["Content-Security-Policy"].split("; ")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert {policy[f"{one}-src"] for one in ("script", "style", "connect")} == {"'self'"}
        assert policy["form-action"] == "'self'"
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


def test_no_page_has_a_script_or_a_style_of_its_own(app: Flask) -> None:
    for path in PATHS:
        if path.startswith("/static"):
            continue
        text = app.test_client().get(path).text
        assert re.findall(r"<script[^>]*>([^<]*)</script>", text) == [""]
        assert not re.search(r"<style| style=| on\w+=|https?://(?!alertmanager|prometheus)", text)


# Forms


def test_form_is_good_once_its_page_was_seen(app: Flask, open_journal: MakeJournal) -> None:
    client = app.test_client()
    form = {"csrf_token": token_of(client), "reason": "known"}
    done = client.post("/runs/1/cancel", data=form)
    assert (done.status_code, done.headers["Location"]) == (303, "/runs/1")
    assert "run 1 is cancelled" in client.get("/runs/1").text
    assert "run 1 is cancelled" not in client.get("/runs/1").text
    run = reading.find_run(open_journal(), 1)
    assert (run["state"], run["reason"]) == ("finished", "cancelled by anyone: known")


@pytest.mark.parametrize(
    "form",
    [{}, {"csrf_token": ""}, {"csrf_token": "0" * 64}, {"csrf_token": "\u00e4\ud7ff"}],
    ids=["none", "empty", "another", "odd"],
)
def test_form_without_its_token_does_nothing(
    app: Flask, open_journal: MakeJournal, form: dict[str, str]
) -> None:
    client = app.test_client()
    assert client.post("/runs/1/cancel", data=form).status_code == 403
    token_of(client)  # Now with the cookie.
    assert client.post("/runs/1/cancel", data=form).status_code == 403
    assert state_of(open_journal()) == "queued"


def test_token_of_one_browser_is_no_good_in_another(app: Flask, open_journal: MakeJournal) -> None:
    mine, theirs = app.test_client(), app.test_client()
    token_of(theirs)
    form = {"csrf_token": token_of(mine)}
    assert theirs.post("/runs/1/cancel", data=form).status_code == 403
    assert state_of(open_journal()) == "queued"


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site"}],
    ids=str,
)  # fmt: skip
def test_page_of_another_origin_cannot_use_even_the_right_token(
    app: Flask, open_journal: MakeJournal, headers: dict[str, str]
) -> None:
    client = app.test_client()
    form = {"csrf_token": token_of(client)}
    assert client.post("/runs/1/cancel", data=form, headers=headers).status_code == 403
    assert state_of(open_journal()) == "queued"


def test_token_of_one_replica_is_good_at_another(
    app: Flask, make_app: MakeApp, open_journal: MakeJournal
) -> None:
    client, other = app.test_client(), make_app(ACTION_PLUGIN="log_action").test_client()
    form = {"csrf_token": token_of(client)}
    held = client.get_cookie("receiver-form")
    assert held is not None
    other.set_cookie("receiver-form", held.value)
    assert other.post("/runs/1/cancel", data=form).status_code == 303
    assert state_of(open_journal()) == "finished"


def test_cookie_is_for_this_host_alone_and_out_of_reach(app: Flask) -> None:
    (plain,) = app.test_client().get("/pause").headers.getlist("Set-Cookie")
    assert plain.startswith("receiver-form=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(plain.split("; "))
    secure = app.test_client().get("/pause", base_url="https://localhost")
    (cookie,) = secure.headers.getlist("Set-Cookie")
    assert cookie.startswith("__Host-receiver-form=")
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "Domain" not in cookie


def test_planted_cookie_never_reaches_the_page(app: Flask) -> None:
    client = app.test_client()
    client.set_cookie("receiver-form", '"><script>alert(1)</script>')
    client.set_cookie("receiver-said", "%3Cscript%3Ealert(1)%3C/script%3E")
    text = client.get("/pause").text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_question_asks_and_does_nothing(app: Flask, open_journal: MakeJournal) -> None:
    journal = open_journal()
    for path in ("/runs/1/cancel", "/pause", "/actions/log_action/pause", "/rejected/1/replay"):
        assert app.test_client().get(path).status_code == 200
        assert app.test_client().head(path).status_code == 200
    assert state_of(journal) == "queued"
    assert reading.list_holds(journal) == reading.audit_of(journal) == []


# Who may


def test_name_that_leads_here_from_elsewhere_is_refused(app: Flask) -> None:
    for path in ("/", "/runs/1", "/api/v1/runs", "/pause"):
        answer = app.test_client().get(path, headers={"Host": "rebound.example"})
        assert answer.status_code == 403
        assert "Test" not in answer.text


def test_reader_sees_no_buttons_and_may_not_act(
    make_app: MakeApp, open_journal: MakeJournal
) -> None:
    app = make_app(**LOGINS, ACTION_PLUGIN="log_action")
    accept(app, Authorization="Bearer s")
    client = app.test_client()
    for path in ("/", "/runs/1", "/actions", "/rejected"):
        seen = {
            who: client.get(path, headers=login(text))
            for who, text in (("eve", "eve:r"), ("ann", "ann:o"))
        }
        assert client.get(path).status_code == 401
        asks = re.compile(r'href="/(runs/1/|actions/|pause|rejected/)')
        assert not asks.search(seen["eve"].text), path
        assert asks.search(seen["ann"].text), path
        assert "you are eve, who may look" in seen["eve"].text
    for path in ("/runs/1/cancel", "/pause"):
        assert client.get(path, headers=login("eve:r")).status_code == 403
        assert client.post(path, headers=login("eve:r")).status_code == 403
    form = {"csrf_token": token_of(client, headers=login("ann:o"))}  # type: ignore[arg-type]
    assert client.post("/runs/1/cancel", data=form, headers=login("ann:o")).status_code == 303
    (asked,) = reading.audit_of(open_journal(), 1)
    assert (asked["who"], asked["origin"]) == ("ann", "page from 127.0.0.1")


def test_login_asks_a_reader_for_a_better_password(make_app: MakeApp) -> None:
    client = make_app(**LOGINS).test_client()
    for headers in ({}, login("eve:r")):
        answer = client.get("/login", headers=headers)
        assert answer.status_code == 401
        assert "Basic realm=alert-receiver" in answer.headers.getlist("WWW-Authenticate")
    assert client.get("/login", headers=login("ann:o")).headers["Location"] == "/"


# What it shows


def test_secrets_are_on_no_page(make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "login").write_text("ann:hidden-4")
    app = make_app(
        RECEIVER_SUBMIT_TOKEN="hidden-1",
        RECEIVER_READ_TOKEN="hidden-2 hidden-3",
        RECEIVER_OPERATE_BASIC_AUTH_FILE=str(tmp_path / "login"),
        HTTP_PLUGIN_ENDPOINT="http://user:hidden-5@127.0.0.1/hidden-6",
    )
    accept(app, Authorization="Bearer hidden-1")
    for path in (*PATHS, "/api/v1/actions", "/api/v1/openapi.json"):
        answer = app.test_client().get(path, headers=login("ann:hidden-4"), buffered=True)
        assert answer.status_code in (200, 404)
        text = answer.text
        assert "hidden-" not in text, path
    shown = app.test_client().get("/settings", headers=login("ann:hidden-4")).text
    assert shown.count("(hidden)") == 4


def test_result_with_half_a_character_is_shown(app: Flask, open_journal: MakeJournal) -> None:
    with open_journal().writing() as connection:
        result = tables.runs.update().values(result='{"name": "a\\ud800\\u0000b"}')
        connection.execute(result)
    assert "a\\ud800\\u0000b" in app.test_client().get("/runs/1").text
    assert app.test_client().get("/api/v1/runs/1").status_code == 200


def test_chart_has_a_bar_where_runs_ended(app: Flask, open_journal: MakeJournal) -> None:
    client = app.test_client()
    assert "runs that ended in the last 24 hours: none" in client.get("/").text
    client.post("/runs/1/cancel", data={"csrf_token": token_of(client)})
    page = client.get("/").text
    assert "runs that ended in the last 24 hours: 1 cancelled" in page
    assert re.findall(r'<rect class="(\w+)" x="(\d+)"', page) == [("rest", "276")]
    assert 'aria-label="log_action runs that ended' in client.get("/actions").text


def test_page_says_that_the_journal_fails(app: Flask, open_journal: MakeJournal) -> None:
    with open_journal().writing() as connection:
        connection.exec_driver_sql("ALTER TABLE runs RENAME TO gone")
    answer = app.test_client().get("/")
    assert answer.status_code == 503
    assert "The journal cannot be reached now" in answer.text


@pytest.mark.parametrize("path", ["/runs", "/rejected", "/audit"])
def test_cursor_that_no_page_gave_is_a_bad_request(app: Flask, path: str) -> None:
    answer = app.test_client().get(path, query_string={"cursor": "<x>"})
    assert answer.status_code == 400
    assert "&#39;&lt;x&gt;&#39; is no cursor that a page of these gave" in answer.text


@pytest.mark.parametrize(
    "url", ["http://a", "https://a.b/c?d=e#f", "HTTPS://a", "http://[::1]:9090/x", "http://ä.example"]
)  # fmt: skip
def test_address_on_the_web_is_a_link(url: str) -> None:
    assert link(url) == url
