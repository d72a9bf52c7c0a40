"""Every refusal leaves one line in the log of a real receiver, and says how to do it right."""

import socket
import sqlite3
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import requests

from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver, free_port
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]
TOKEN, READ = "submit-secret", "read-secret"
AGENT = "Alertmanager/0.28.0"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "User-Agent": AGENT}
HIDDEN = "hidden-body"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A receiver with tokens for the webhook and the page."""
    directory = tmp_path_factory.mktemp("web")
    environment = {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "RECEIVER_SUBMIT_TOKEN": TOKEN,
        "RECEIVER_READ_TOKEN": READ,
        "RECEIVER_MAX_BODY": "4KiB",
    }
    one = Receiver("web", environment, directory / "receiver.log")
    try:
        yield one.wait_ready()
    finally:
        one.kill()


def refusals(web: Receiver) -> list[dict[str, Any]]:
    return web.lines("request refused")


def new_refusal(web: Receiver, before: int) -> dict[str, Any]:
    """Return the one line that was logged since there were so many."""
    (line,) = wait_until(lambda: refusals(web)[before:])
    return line


GOOD = notification(alert())


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "field", "word"),
    [
        pytest.param("POST", "/webhook", HIDDEN.encode(), {}, 400, None, "JSON", id="not JSON"),
        pytest.param("POST", "/webhook", notification(version="3"), {}, 400, "version", "notif",
                     id="another version"),
        pytest.param("POST", "/webhook?sources=hidden", GOOD, {}, 400, "sources", "source",
                     id="unknown parameter"),
        pytest.param("POST", "/webhook", GOOD, {"Authorization": "Bearer hidden"}, 401, None,
                     "token", id="wrong token"),
        pytest.param("POST", "/webhook", GOOD, {"Authorization": f"Bearer {READ}"}, 403, None,
                     "submit", id="token without the scope"),
        pytest.param("POST", "/webhook/log_acton", GOOD, {}, 404, None, "did you mean",
                     id="unknown action"),
        pytest.param("POST", "/api/v2/alerts", GOOD, {}, 404, None, "Alertmanager's own API",
                     id="path of Alertmanager"),
        pytest.param("POST", "/", GOOD, {}, 405, None, "no path", id="no path"),
        pytest.param("PUT", "/webhook", GOOD, {}, 405, None, "POST", id="method"),
        pytest.param("POST", "/webhook", b" " * 5000, {}, 413, None, "RECEIVER_MAX_BODY",
                     id="large body"),
        pytest.param("POST", "/webhook", GOOD, {"Content-Type": "text/plain"}, 415, None, "json",
                     id="other content"),
        pytest.param("POST", "/webhook", GOOD, {"Content-Encoding": "gzip"}, 415, None,
                     "compressed", id="compressed"),
        pytest.param("GET", "/runs?state=hidden", b"", {"Authorization": f"Bearer {READ}"}, 400,
                     None, "runs", id="page"),
        pytest.param("GET", "/api/v1/runs?stat=hidden", b"", {"Authorization": f"Bearer {READ}"},
                     400, "stat", "request", id="API"),
    ],
)  # fmt: skip
def test_refusal_is_logged_once_with_its_reason_and_without_secrets(
    web: Receiver, method: str, path: str, body: bytes, headers: dict[str, str], status: int,
    field: str | None, word: str,
) -> None:  # fmt: skip
    before = len(refusals(web))
    sent = {"Content-Type": "application/json", **HEADERS, **headers}

    answer = requests.request(method, web.url + path, data=body, headers=sent, timeout=10)

    assert answer.status_code == status
    line = new_refusal(web, before)
    assert line["level"] == "WARNING"
    assert (line["status"], line["client"], line["user_agent"]) == (status, "127.0.0.1", AGENT)
    assert (line["method"], line["path"]) == (method, path.partition("?")[0])
    assert line.get("field") == field
    assert word in line["reason"]
    for secret in ("hidden", TOKEN, READ, "Bearer"):
        assert secret not in web.text()


def test_flood_of_one_refusal_is_logged_once_and_counted_at_the_end(start_receiver: Start) -> None:
    web = start_receiver("web", RECEIVER_SUBMIT_TOKEN=TOKEN).wait_ready()
    with requests.Session() as session:
        for _ in range(50):
            assert session.post(f"{web.url}/webhook", data=b"", timeout=10).status_code == 401
    assert [line["status"] for line in refusals(web)] == [401]

    web.stop()

    (line,) = web.lines("more requests refused")
    assert (line["status"], line["left_out"], line["path"]) == (401, 49, "/webhook")


def test_refusal_while_the_journal_cannot_store_is_logged_once_with_the_cause(
    web: Receiver,
) -> None:
    before = len(refusals(web))
    file = web.log.parent / "data" / "journal.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        answer = web.post(notification(alert("new")), "/webhook/log_action", **HEADERS)
        lock.execute("ROLLBACK")

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    line = new_refusal(web, before)
    assert (line["status"], line["level"]) == (503, "WARNING")
    assert line["error"]


@pytest.mark.parametrize(
    "path", ["/", "", "/alerts", "/api/v2/alerts", "/webhooks", "/webhook/a/b"]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_answer_on_a_wrong_path_names_the_webhook(web: Receiver, method: str, path: str) -> None:
    answer = requests.request(method, web.url + path, data=GOOD, headers=HEADERS, timeout=10)

    assert answer.status_code in (404, 405)
    assert "alerts are posted to /webhook, or to /webhook/<action>" in answer.json()["detail"]
    assert len(answer.content) < 500


def test_unknown_action_names_the_webhook_too(web: Receiver) -> None:
    answer = web.post(GOOD, "/webhook/nothing", **HEADERS)

    assert answer.status_code == 404
    assert "/webhook/<action>, or to /webhook" in answer.json()["detail"]


def test_tls_spoken_to_a_plain_port_is_named_in_the_log_at_once(web: Receiver) -> None:
    before = len(refusals(web))
    context = ssl.create_default_context()
    with (
        socket.create_connection(("127.0.0.1", web.port), 10) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname="localhost")

    line = new_refusal(web, before)

    assert line["reason"].startswith("TLS was spoken to a port without TLS; use http://")
    assert (line["status"], line["client"]) == (400, "127.0.0.1")


def test_sender_that_speaks_tls_to_a_plain_port_is_answered_in_plain_http(web: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", web.port), 10) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"TLS" in answer


@pytest.mark.parametrize(
    ("head", "status", "word"),
    [
        ("nonsense\r\n\r\n", 400, "begin"),
        ("GET / HTTP/3.0\r\n\r\n", 400, "version"),
        (f"GET /{'x' * 5000} HTTP/1.1\r\n\r\n", 414, "4094"),
        (f"GET / HTTP/1.1\r\nX: {'x' * 9000}\r\n\r\n", 431, "RECEIVER_MAX_HEADER"),
        ("GET / HTTP/1.1\r\nExpect: hidden\r\n\r\n", 417, "Expect"),
        ("GET / HTTP/1.1\r\nX : hidden\r\n\r\n", 400, "malformed"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: hidden\r\n\r\n", 400, "chunked"),
    ],
)
def test_what_the_parser_refuses_is_logged_and_answered_in_words(
    web: Receiver, head: str, status: int, word: str
) -> None:
    before = len(refusals(web))
    with socket.create_connection(("127.0.0.1", web.port), 10) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert word.encode() in answer
    line = new_refusal(web, before)
    assert (line["status"], line["client"]) == (status, "127.0.0.1")
    assert word in line["reason"]
    assert "hidden" not in web.text()


def test_request_that_is_never_complete_is_logged_when_it_is_cut(start_receiver: Start) -> None:
    web = start_receiver("web", RECEIVER_REQUEST_TIMEOUT="1s").wait_ready()
    with socket.create_connection(("127.0.0.1", web.port), 10) as connection:
        connection.sendall(b"POST /webhook HTTP/1.1\r\nX: hidden")
        assert connection.recv(1) == b""

    line = new_refusal(web, 0)

    assert "RECEIVER_REQUEST_TIMEOUT" in line["reason"]
    assert "status" not in line
    assert "hidden" not in web.text()


def test_metrics_of_a_worker_log_whom_they_refuse(start_receiver: Start) -> None:
    port = free_port()
    worker = start_receiver(
        "worker", RECEIVER_WORKER_METRICS_BIND=f"127.0.0.1:{port}", RECEIVER_READ_TOKEN=READ
    ).wait_ready()

    assert requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).status_code == 401

    line = new_refusal(worker, 0)
    assert (line["status"], line["path"]) == (401, "/metrics")

    wrong = requests.post(f"http://127.0.0.1:{port}/webhook", data=GOOD, timeout=10)
    assert (wrong.status_code, "nothing but /metrics" in wrong.json()["detail"]) == (404, True)
    assert new_refusal(worker, 1)["path"] == "/webhook"

    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"hidden hidden\r\n\r\n")
        assert b"hidden" not in connection.recv(4096)
    assert "not HTTP" in new_refusal(worker, 2)["reason"]
    assert "hidden" not in worker.text()
