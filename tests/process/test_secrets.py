"""Secrets planted wherever one can be: none is in a log, an answer or what a command writes."""

import base64
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support.databases import Databases
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

MARK = "hunter2"
WRONG = f"{MARK}-wrong"


@dataclass
class Site:
    """A receiver at its most talkative that knows, and was sent, many secrets."""

    receiver: Receiver
    environment: dict[str, str]
    answers: str


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def site(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("secrets")
    database = sa.make_url(databases.new("postgresql")).set(password=f"{MARK}-database")
    (directory / "token").write_text(f"{MARK}-submit\n{MARK}-submit-new")
    environment = {
        "LOG_LEVEL": "debug",
        "RECEIVER_LOG_FORMAT": request.param,
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "RECEIVER_DATABASE_URL": database.render_as_string(hide_password=False),
        "RECEIVER_SUBMIT_TOKEN_FILE": str(directory / "token"),
        "RECEIVER_SUBMIT_BASIC_AUTH": f"alertmanager:{MARK}-login",
        "RECEIVER_READ_TOKEN": f"{MARK}-read",
        "RECEIVER_OPERATE_BASIC_AUTH": f"alice:{MARK}-operate",
        "RECEIVER_ACTION_HTTP_PLUGIN_MAX_ATTEMPTS": "1",
        "HTTP_PLUGIN_ENDPOINT": f"http://user:{MARK}-endpoint@127.0.0.1:1/{MARK}?key={MARK}",
        "AWS_SECRET_ACCESS_KEY": f"{MARK}-aws",
        "SOME_PLUGIN_PASSWORD": f"{MARK}-environment",
    }
    receiver = Receiver("serve", environment, directory / "receiver.log")
    try:
        receiver.wait_ready()
        answers = send_secrets(receiver)
        (directory / "token").write_text(f"{MARK}-1 {MARK}-2 {MARK}-3")
        receiver.post(notification(), **bearer(f"{MARK}-submit"))
        wait_until(lambda: "attempt ended" in receiver.text(), 60, "the action that fails")
        wait_until(lambda: "secret cannot be read again" in receiver.text())
        receiver.stop()
        # The file is mended, so that the commands start.
        (directory / "token").write_text(f"{MARK}-submit")
        yield Site(receiver, environment, answers)
    finally:
        receiver.kill()


def send_secrets(receiver: Receiver) -> str:
    """Send right and wrong secrets in every part of a request; return all answers."""
    right = bearer(f"{MARK}-submit")
    # Only in what no action is told: a malformed `value` is quoted in a warning, as it should be.
    note = {"note": f"{MARK}-annotation"}
    body = notification(alert(annotations=note), groupKey="{}")
    login = base64.b64encode(f"alertmanager:{MARK}-login".encode()).decode()
    wrong_login = base64.b64encode(f"x:{WRONG}".encode()).decode()
    answers = [
        receiver.post(body, "/webhook/http_plugin", **right, Cookie=f"session={MARK}-cookie"),
        receiver.post(body, "/webhook/log_action", Authorization=f"Basic {login}"),
        receiver.post(body, **bearer(WRONG)),
        receiver.post(body, Authorization=f"Basic {wrong_login}"),
        receiver.post(body, Authorization=f"Digest {WRONG}"),
        receiver.post(body, **bearer(f"{MARK}-read")),
        receiver.post(f'{{"version": "4", "password": "{MARK}-bo'.encode(), **right),
        receiver.post(f'{{"version": "{MARK}", "alerts": "{MARK}"}}'.encode(), **right),
        receiver.post(notification({**alert(), "startsAt": MARK, "status": MARK}), **right),
        receiver.post(body, f"/webhook?token={MARK}-query&source=a%20b", **right),
        receiver.post(body, **right, **{"X-Api-Key": f"{MARK}-header", "Content-Type": MARK}),
        receiver.post(body, **right, **{"Content-Encoding": MARK}),
    ]
    texts = [f"{one.status_code} {one.headers} {one.text}" for one in answers]
    assert {text[:3] for text in texts} == {"200", "400", "401", "403", "415"}
    for line in (f"Authorization : Bearer {MARK}", f"X: {MARK}\0", f"Transfer-Encoding: {MARK}"):
        with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
            connection.sendall(f"POST /webhook HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
            connection.shutdown(socket.SHUT_WR)
            texts.append(connection.recv(4096).decode())
    return "\n".join(texts)


JSON = pytest.mark.parametrize("site", ["json"], indirect=True)


@pytest.mark.parametrize("site", ["json", "text"], indirect=True)
def test_no_secret_is_in_the_log(site: Site) -> None:
    assert MARK not in site.receiver.text()
    assert base64.b64encode(MARK.encode())[:8].decode() not in site.receiver.text()
    # It has a lot to say all the same.
    for message in ("web started", "notification recorded", "attempt ended", "request refused"):
        assert message in site.receiver.text()


@JSON
def test_no_secret_is_in_an_answer(site: Site) -> None:
    assert MARK not in site.answers


@JSON
@pytest.mark.parametrize(
    "command",
    ["check", "plugins", "plugins --json", "plugins http_plugin", "runs", "runs --json", "rejected",
     "--debug check"],
)  # fmt: skip
def test_no_secret_of_the_settings_is_in_what_a_command_writes(site: Site, command: str) -> None:
    done = run(command, site.environment)
    assert done.returncode == 0, done.stderr
    # What an alert says is the journal's to show; nothing else is.
    said = (done.stdout + done.stderr).replace(f"{MARK}-annotation", "")
    assert MARK not in said


@JSON
@pytest.mark.parametrize("command", ["check", "web", "worker", "serve", "runs", "send firing"])
def test_no_secret_is_in_an_error(site: Site, command: str, tmp_path: Path) -> None:
    nowhere = {
        **site.environment,
        "RECEIVER_DATABASE_URL": f"postgresql+psycopg://user:{MARK}@127.0.0.1:1/{MARK}?x={MARK}",
        "RECEIVER_SUBMIT_BASIC_AUTH": MARK,
        "RECEIVER_READ_TOKEN": f"{MARK} {MARK} {MARK}",
        "RECEIVER_OPERATE_TOKEN_FILE": str(tmp_path / "none"),
        "RECEIVER_BIND": "127.0.0.1:0",
    }
    done = run(command, nowhere)
    assert done.returncode == 1
    assert "RECEIVER_SUBMIT_BASIC_AUTH" in done.stderr
    assert MARK not in done.stdout + done.stderr
    only_database = {**site.environment, "RECEIVER_DATABASE_URL": nowhere["RECEIVER_DATABASE_URL"]}
    if command == "runs":
        done = run(command, only_database)
        assert done.returncode == 1
        assert MARK not in done.stdout + done.stderr


def run(command: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "receiver", *command.split()],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
