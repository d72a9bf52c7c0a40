"""Slow, silent and broken connections: none of them keeps Alertmanager from its answer."""

import select
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

import pytest
import requests

from tests.support.certificates import Authority
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]
TOKEN = "only-for-this-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HEAD = (
    "POST /webhook/log_action HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    f"Authorization: Bearer {TOKEN}\r\n"
)
SLOW = {
    "silent": "",
    "in the request line": "POST /web",
    "in a header": HEAD + "X-Slow: ",
    "before the body": HEAD + "Content-Length: 1000\r\n\r\n",
    "in the body": HEAD + "Content-Length: 1000\r\n\r\n{",
    "in a chunk": HEAD + "Transfer-Encoding: chunked\r\n\r\nff\r\n{",
    "between chunks": HEAD + "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    "unwelcome": "POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
}


def receivers(directory: Path, **environment: str) -> Iterator[Receiver]:
    environment = {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "RECEIVER_SUBMIT_TOKEN": TOKEN,
        **environment,
    }
    one = Receiver("web", environment, directory / "receiver.log")
    try:
        yield one.wait_ready()
    finally:
        one.kill()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A receiver that works on two requests at a time."""
    yield from receivers(tmp_path_factory.mktemp("web"), RECEIVER_WEB_THREADS="2")


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A receiver that gives a request a second."""
    yield from receivers(tmp_path_factory.mktemp("impatient"), RECEIVER_REQUEST_TIMEOUT="1s")


def connected(web: Receiver, text: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", web.port), 30)
    connection.sendall(text.encode())
    return connection


def answer_on(connection: socket.socket) -> bytes:
    """Return an answer of the webhook, up to the line of JSON that ends it."""
    answer = b""
    while not answer.endswith(b"}\n"):
        data = connection.recv(4096)
        assert data, answer
        answer += data
    return answer


def seconds_to_answer(web: Receiver) -> float:
    began = time.monotonic()
    assert web.post(notification(alert()), "/webhook/log_action", **BEARER).status_code == 200
    return time.monotonic() - began


def seconds_beside(web: Receiver, texts: list[str]) -> float:
    """Return how long a post takes, the median of five, beside these connections that trickle."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(web, text)) for text in texts]
        seconds = []
        for _ in range(5):
            seconds.append(seconds_to_answer(web))
            for connection, text in zip(slow, texts, strict=True):
                if text:
                    connection.sendall(b"x")
        return median(seconds)


@pytest.mark.parametrize("where", SLOW)
def test_two_hundred_slow_connections_do_not_delay_an_answer(web: Receiver, where: str) -> None:
    assert seconds_beside(web, [SLOW[where]] * 200) < 1


def test_two_hundred_handshakes_that_never_end_do_not_delay_an_answer(
    start_receiver: Start, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    cert, key = authority.issue("server")
    web = start_receiver(
        "web",
        RECEIVER_TLS_CERT=str(cert),
        RECEIVER_TLS_KEY=str(key),
        RECEIVER_SUBMIT_TOKEN=TOKEN,
        # Longer than all of them take below: a connection that is cut delays nobody.
        RECEIVER_REQUEST_TIMEOUT="5s",
    )
    web.tls = {"verify": str(authority.file)}
    web.wait_ready()
    hello = "\x16\x03\x01\x01\x00\x01"
    assert seconds_beside(web, ["", hello] * 100) < 1
    with connected(web, hello) as connection:
        assert connection.recv(1) == b""


@pytest.mark.parametrize("where", SLOW)
def test_slow_connection_is_cut_after_the_time_that_is_set(impatient: Receiver, where: str) -> None:
    with connected(impatient, SLOW[where]) as connection:
        began = time.monotonic()
        while connection.recv(1000):
            assert time.monotonic() - began < 20
    assert "Traceback" not in impatient.text()


def test_slow_connections_do_not_delay_the_end(start_receiver: Start) -> None:
    web = start_receiver("web", RECEIVER_SUBMIT_TOKEN=TOKEN, RECEIVER_REQUEST_TIMEOUT="1s")
    web.wait_ready()
    with ExitStack() as stack:
        for text in SLOW.values():
            stack.enter_context(connected(web, text))
        began = time.monotonic()
        assert web.stop() == 0
        assert time.monotonic() - began < 15


def test_connection_that_is_kept_alive_outlives_the_time_for_a_request(
    impatient: Receiver,
) -> None:
    text = HEAD + f"Content-Length: {len(notification())}\r\n\r\n" + notification().decode()
    with connected(impatient, text) as connection:
        assert answer_on(connection).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 3)
        connection.sendall(text.encode())
        assert answer_on(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        pytest.param("\r\n\r\n\0\r\n\r\n", 400, id="nonsense"),
        pytest.param("GET / HTTP/9.9\r\n\r\n", 400, id="another version"),
        pytest.param(f"GET /{'x' * 5000} HTTP/1.1\r\n\r\n", 414, id="long URL"),
        pytest.param(f"{HEAD}X: {'x' * 10_000}\r\n\r\n", 431, id="long header"),
        pytest.param(f"{HEAD}{'X: x' + chr(13) + chr(10)}" * 200 + "\r\n", 400, id="no header"),
        pytest.param(HEAD + "X: x\r\n" * 200 + "\r\n", 431, id="many headers"),
        pytest.param(HEAD + "X-Secret\0: hidden\r\n\r\n", 400, id="name of a header"),
        pytest.param(HEAD + "X: hidden\0\r\n\r\n", 400, id="value of a header"),
        pytest.param(HEAD + "X: a\r\n hidden\r\n\r\n", 400, id="folded header"),
        pytest.param(HEAD + "Authorization : hidden\r\n\r\n", 400, id="space after a name"),
        pytest.param(HEAD + "Content-Length: -1\r\n\r\n", 400, id="negative length"),
        pytest.param(HEAD + "Content-Length: 1_0\r\n\r\n", 400, id="length of Python"),
        pytest.param(HEAD + "Content-Length: 1\r\n" * 2 + "\r\n{", 400, id="two lengths"),
        pytest.param(
            HEAD + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
            id="length and chunks",
        ),
        pytest.param(HEAD + "Transfer-Encoding: hidden\r\n\r\n", 400, id="other coding"),
        pytest.param(HEAD + "Transfer-Encoding: gzip, chunked\r\n\r\n", 400, id="compressed"),
        pytest.param(HEAD + "Expect: hidden\r\n\r\n", 417, id="expectation"),
        pytest.param(HEAD + "Transfer-Encoding: chunked\r\n\r\nhidden\r\n", 400, id="no chunk"),
        pytest.param(HEAD + "Transfer-Encoding: chunked\r\n\r\n1\r\n{hidden", 400, id="odd chunk"),
    ],
)  # fmt: skip
def test_what_is_no_http_is_refused_without_a_word_of_it_in_the_log(
    web: Receiver, text: str, status: int
) -> None:
    with connected(web, text) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"application/problem+json" in answer
    assert b"hidden" not in answer
    assert "hidden" not in web.text()
    assert TOKEN not in web.text()
    assert "Traceback" not in web.text()


@pytest.mark.parametrize("where", SLOW)
def test_connection_that_breaks_off_leaves_no_error(web: Receiver, where: str) -> None:
    for _ in range(3):
        connected(web, SLOW[where]).close()
    assert seconds_to_answer(web) < 5
    assert '"ERROR"' not in web.text()
    assert "Traceback" not in web.text()


def test_more_requests_at_a_time_than_are_worked_on_are_all_answered(web: Receiver) -> None:
    with ExitStack() as stack:
        text = HEAD + "Content-Length: 500000\r\n\r\n"
        sockets = [stack.enter_context(connected(web, text)) for _ in range(50)]
        body = notification(alert()).ljust(500_000)
        for connection in sockets:
            connection.sendall(body)
        for connection in sockets:
            assert answer_on(connection).startswith(b"HTTP/1.1 200")


def test_probe_is_answered_beside_bodies_that_never_come(web: Receiver) -> None:
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connected(web, SLOW["in the body"]))
        assert requests.get(f"{web.url}/-/ready", timeout=20).status_code == 200


def test_process_is_healthy_while_the_journal_makes_every_post_wait(web: Receiver) -> None:
    body = notification(alert()).decode()
    text = f"{HEAD}Content-Length: {len(body.encode())}\r\n\r\n{body}"
    file = web.log.parent / "data" / "journal.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as lock, ExitStack() as stack:
        lock.execute("BEGIN EXCLUSIVE")
        waiting = [stack.enter_context(connected(web, text)) for _ in range(8)]
        beside = 0
        for _ in range(20):
            assert requests.get(f"{web.url}/-/healthy", timeout=10).status_code == 200
            beside += not select.select(waiting, [], [], 0)[0]
        assert beside, "each waited until a post was answered"
        lock.execute("ROLLBACK")
        for connection in waiting:
            assert answer_on(connection).startswith((b"HTTP/1.1 200", b"HTTP/1.1 503"))
