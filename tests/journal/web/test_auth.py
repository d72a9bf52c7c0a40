"""Scopes, tokens and logins: who may do what, and what a change of their files does."""

import base64
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Blueprint, Flask, g
from flask.testing import FlaskClient

from receiver.settings import load
from receiver.web import problems
from receiver.web.auth import Access, Scope

SUBMIT, READ, OPERATE = "s-token", "r-token", "o-token"
ALL = {
    "RECEIVER_SUBMIT_TOKEN": SUBMIT,
    "RECEIVER_READ_TOKEN": READ,
    "RECEIVER_OPERATE_TOKEN": OPERATE,
}
PATHS = {"/submit": Scope.SUBMIT, "/read": Scope.READ, "/operate": Scope.OPERATE}


def client_of(**environment: str) -> FlaskClient:
    """Return a client of an application with a view per scope, each of which says who called."""
    app = Flask(__name__)
    access = Access(load(environment, {}))
    for path, scope in PATHS.items():
        blueprint = Blueprint(scope.value, __name__)
        blueprint.add_url_rule(
            path, view_func=lambda: g.caller.name, methods=["GET", "POST"], endpoint="view"
        )
        app.register_blueprint(access.guard(blueprint, scope))
    problems.register(app)
    return app.test_client()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(login: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def answers(client: FlaskClient, headers: dict[str, str]) -> tuple[int, ...]:
    return tuple(client.post(path, headers=headers).status_code for path in PATHS)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        pytest.param(SUBMIT, (200, 403, 403), id="submit stands alone"),
        pytest.param(READ, (403, 200, 403), id="read looks"),
        pytest.param(OPERATE, (403, 200, 200), id="operate looks and acts"),
        pytest.param("wrong", (401, 401, 401), id="wrong"),
    ],
)
def test_token_opens_its_own_scope(token: str, expected: tuple[int, ...]) -> None:
    assert answers(client_of(**ALL), bearer(token)) == expected


@pytest.mark.parametrize(
    ("login", "expected"),
    [
        ("am:s", (200, 403, 403)),
        ("viewer:r:with:colons", (403, 200, 403)),
        ("jürgen:ö€", (403, 200, 200)),
        ("am:r", (401, 401, 401)),
        ("AM:s", (401, 401, 401)),
        ("am:s ", (401, 401, 401)),
        ("am", (401, 401, 401)),
        ("", (401, 401, 401)),
    ],
)
def test_login_opens_its_own_scope(login: str, expected: tuple[int, ...]) -> None:
    client = client_of(
        RECEIVER_SUBMIT_BASIC_AUTH="am:s",
        RECEIVER_READ_BASIC_AUTH="viewer:r:with:colons",
        RECEIVER_OPERATE_BASIC_AUTH="jürgen:ö€",
    )
    assert answers(client, basic(login)) == expected


def test_same_credential_of_two_scopes_opens_both() -> None:
    client = client_of(RECEIVER_SUBMIT_TOKEN="one", RECEIVER_READ_TOKEN="one")
    assert answers(client, bearer("one")) == (200, 200, 403)


@pytest.mark.parametrize("token", ["old", "new"])
def test_two_credentials_hold_at_a_time(token: str) -> None:
    client = client_of(RECEIVER_SUBMIT_TOKEN="old new", RECEIVER_READ_BASIC_AUTH="a:old\nb:new")
    assert client.post("/submit", headers=bearer(token)).status_code == 200
    assert [client.get("/read", headers=basic(f"{user}:{token}")).status_code for user in "ab"] == (
        [200, 401] if token == "old" else [401, 200]
    )


@pytest.mark.parametrize(
    "header",
    [
        "", " ", "Bearer", "Bearer ", "Basic", "Basic !!!", "Basic czp0b2tlbg", "Basic //79",
        SUBMIT, f"Basic {SUBMIT}", f"Token {SUBMIT}", f"Bearer\t{SUBMIT}", f"Bearer {SUBMIT}x",
        "Bearer \xe4", f"Bearer {SUBMIT}, Bearer {SUBMIT}", "Digest username=x",
        "Bearer " + "x" * 100_000,
    ],
)  # fmt: skip
def test_anything_else_in_the_header_is_401(header: str) -> None:
    assert answers(client_of(**ALL), {"Authorization": header}) == (401, 401, 401)


def test_missing_header_is_401_with_a_challenge_for_each_scheme_that_can_be_right() -> None:
    with_logins = client_of(**ALL, RECEIVER_READ_BASIC_AUTH="a:b").get("/read")
    assert with_logins.headers.getlist("WWW-Authenticate") == [
        "Bearer realm=alert-receiver",
        "Basic realm=alert-receiver",
    ]
    without = client_of(**ALL).get("/read")
    assert without.headers.getlist("WWW-Authenticate") == ["Bearer realm=alert-receiver"]
    assert "WWW-Authenticate" not in client_of(**ALL).get("/read", headers=bearer(SUBMIT)).headers


def test_refusal_names_the_setting_and_no_credential() -> None:
    refused = client_of(**ALL).get("/operate", headers=bearer("what-i-tried"))
    assert "RECEIVER_OPERATE_TOKEN" in refused.get_json()["detail"]
    for secret in (SUBMIT, READ, OPERATE, "what-i-tried"):
        assert secret not in refused.text


def test_scope_that_no_credential_is_set_for_is_closed_once_there_is_any() -> None:
    client = client_of(RECEIVER_SUBMIT_TOKEN=SUBMIT)
    assert answers(client, {}) == (401, 401, 401)
    assert answers(client, bearer(SUBMIT)) == (200, 403, 403)


def test_caller_is_told_by_the_name_of_its_login() -> None:
    client = client_of(**ALL, RECEIVER_OPERATE_BASIC_AUTH="alice:1 bob:2")
    assert client.get("/operate", headers=basic("bob:2")).text == "bob"
    assert client.get("/operate", headers=bearer(OPERATE)).text == "token"
    assert client_of().get("/operate").text == "anyone"


# Without credentials


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:9", "[::1]:8080"])
def test_without_credentials_this_machine_may_do_all(host: str) -> None:
    assert answers(client_of(), {"Host": host}) == (200, 200, 200)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example",
     "10.0.0.1:8080", "[::2]", "127.0.0.1@evil.example", "[", "a[b", "0"],
)  # fmt: skip
def test_name_that_leads_here_from_elsewhere_is_refused_without_credentials(host: str) -> None:
    assert set(answers(client_of(), {"Host": host})) <= {400, 403}


def test_any_name_will_do_with_credentials_or_where_something_else_protects() -> None:
    host = {"Host": "alerts.example"}
    assert answers(client_of(**ALL), host | bearer(SUBMIT))[0] == 200
    assert answers(client_of(RECEIVER_AUTH="none"), host) == (200, 200, 200)
    beyond = client_of(RECEIVER_AUTH="none", RECEIVER_BIND="0.0.0.0:8080")
    assert answers(beyond, host) == (200, 200, 200)


# Pages of other origins


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 200, id="no browser"),
        pytest.param({"Origin": "http://localhost"}, 200, id="own page"),
        pytest.param({"Sec-Fetch-Site": "same-origin"}, 200, id="own page, new browser"),
        pytest.param({"Sec-Fetch-Site": "none"}, 200, id="typed by a person"),
        pytest.param(
            {"Sec-Fetch-Site": "same-origin", "Origin": "https://alerts.example"},
            200,
            id="own page behind a proxy that changes the host",
        ),
        pytest.param({"Origin": "http://evil.example"}, 403, id="another page"),
        pytest.param({"Origin": "http://localhost:8081"}, 403, id="another port"),
        pytest.param({"Origin": "null"}, 403, id="a page that hides its origin"),
        pytest.param({"Origin": "http://["}, 403, id="no URL"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, 403, id="another page, new browser"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, 403, id="a sibling"),
    ],
)
@pytest.mark.parametrize("settings", [{}, ALL], ids=["open", "with tokens"])
def test_page_of_another_origin_changes_nothing(
    settings: dict[str, str], headers: dict[str, str], status: int
) -> None:
    sent = headers | bearer(OPERATE)
    assert client_of(**settings).post("/operate", headers=sent).status_code == status
    assert client_of(**settings).get("/operate", headers=sent).status_code == 200


# Files that change


def replace(file: Path, text: str) -> None:
    """Write as careful people do."""
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


@pytest.mark.parametrize("write", [Path.write_text, replace], ids=["in place", "by another file"])
def test_changed_file_decides_from_the_next_request_on(
    write: Callable[[Path, str], None], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    client = client_of(RECEIVER_SUBMIT_TOKEN_FILE=str(file))
    assert client.post("/submit", headers=bearer("first")).status_code == 200
    write(file, "first\nsecond\n")
    for token in ("first", "second"):
        assert client.post("/submit", headers=bearer(token)).status_code == 200
    write(file, "second\n")
    assert client.post("/submit", headers=bearer("first")).status_code == 401
    assert client.post("/submit", headers=bearer("second")).status_code == 200


def test_secret_of_kubernetes_changes_by_a_swapped_link(tmp_path: Path) -> None:
    for version in ("first", "second"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "login").write_text(f"am:{version}")
    (tmp_path / "..data").symlink_to("..first")
    (tmp_path / "login").symlink_to("..data/login")
    client = client_of(RECEIVER_SUBMIT_BASIC_AUTH_FILE=str(tmp_path / "login"))
    assert client.post("/submit", headers=basic("am:first")).status_code == 200
    (tmp_path / "..new").symlink_to("..second")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert client.post("/submit", headers=basic("am:first")).status_code == 401
    assert client.post("/submit", headers=basic("am:second")).status_code == 200


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(Path.unlink, "No such file or directory", id="missing"),
        pytest.param(lambda file: file.write_text(""), "is empty", id="empty"),
        pytest.param(lambda file: file.write_bytes(b"hidden\xff"), "is not UTF-8", id="not UTF-8"),
        pytest.param(lambda file: file.write_text("hidden\0"), "is not a token", id="no token"),
        pytest.param(lambda file: file.write_text("a b hidden"), "more than two", id="three"),
    ],
)
def test_spoilt_file_leaves_the_last_good_token_and_is_logged_once(
    spoil: Callable[[Path], object], why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text("good")
    client = client_of(RECEIVER_SUBMIT_TOKEN_FILE=str(file))
    assert client.post("/submit", headers=bearer("good")).status_code == 200
    spoil(file)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert client.post("/submit", headers=bearer("good")).status_code == 200
        assert client.post("/submit", headers=bearer("hidden")).status_code == 401
    (record,) = caplog.records
    assert record.message == "secret cannot be read again, the last good one stays"
    assert record.__dict__["setting"] == "RECEIVER_SUBMIT_TOKEN_FILE"
    assert why in record.__dict__["error"]
    assert "hidden" not in record.__dict__["error"]
    replace(file, "mended")
    assert client.post("/submit", headers=bearer("mended")).status_code == 200
    assert client.post("/submit", headers=bearer("good")).status_code == 401


def test_file_that_changed_between_the_settings_and_the_first_request_is_seen(
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    settings = load({"RECEIVER_SUBMIT_TOKEN_FILE": str(file)}, {})
    times = file.stat()
    file.write_text("other")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    access = Access(settings)
    app = Flask(__name__)
    with app.test_request_context(method="POST", headers=bearer("other")):
        access.require(Scope.SUBMIT)
        assert g.caller.may(Scope.SUBMIT)
        assert not g.caller.may(Scope.READ)
