"""http_plugin against a real endpoint on loopback."""

import json
import logging
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from action_plugins import http_plugin
from receiver import DeadlineExceededError, PermanentError, RunCancelledError, TemporaryError
from receiver.context import Cancellation
from receiver.errors import SettingsError
from receiver.testing import make_alert, make_context, run_action

HOSTILE = "a\r\nX-Injected: 1\x00{x}%s/../\u202e\u2028"


def post(url: str, timeout: str = "10s", ca_bundle: str = "", **call: Any) -> Any:
    environment = {
        "HTTP_PLUGIN_ENDPOINT": url,
        "HTTP_PLUGIN_TIMEOUT": timeout,
        "HTTP_PLUGIN_CA_BUNDLE": ca_bundle,
    }
    return run_action(http_plugin, environment=environment, **call)


def test_it_posts_the_whole_call_as_json(endpoint: Any) -> None:
    alert = make_alert(labels={"queue": "mail"}, annotations={"summary": "long"})
    context = make_context(
        alert, run_id=7, attempt=2, action="http_plugin", source="eu", receiver="pager"
    )
    result = post(
        endpoint.url + "/hook?token=t", context=context, value=93.5, duration=timedelta(minutes=2)
    )
    (request,) = endpoint.requests
    assert (request.method, request.path) == ("POST", "/hook?token=t")
    assert json.loads(request.body) == {
        "metric_name": "queue_depth",
        "value": 93.5,
        "threshold": "> 80",
        "duration_seconds": 120.0,
        "action": "http_plugin",
        "kind": "fired",
        "run_id": 7,
        "attempt": 2,
        "idempotency_key": context.idempotency_key,
        "source": "eu",
        "receiver": "pager",
        "alert": {
            "labels": {"alertname": "QueueTooLong", "queue": "mail"},
            "annotations": {"summary": "long"},
            "starts_at": "2026-01-02T03:04:05+00:00",
            "fingerprint": alert.fingerprint,
            "generator_url": alert.generator_url,
        },
    }
    assert result == {"status": 200, "answer": ""}


def test_its_headers_say_what_it_is_and_which_run(endpoint: Any) -> None:
    context = make_context()
    post(endpoint.url, context=context)
    headers = endpoint.requests[0].headers
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == "alert-receiver"
    assert headers["idempotency-key"] == context.idempotency_key
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("value", "sent"), [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (-0.5, -0.5)]
)
def test_a_value_that_json_has_no_number_for_is_sent_as_text(
    endpoint: Any, value: float, sent: object
) -> None:
    post(endpoint.url, value=value)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(endpoint.requests[0].body, parse_constant=refuse)["value"] == sent


def test_hostile_alert_text_arrives_unchanged_in_the_body_and_nowhere_else(endpoint: Any) -> None:
    alert = make_alert(labels={"x": HOSTILE}, annotations={"y": HOSTILE}, fingerprint=HOSTILE)
    post(endpoint.url, context=make_context(alert), metric_name=HOSTILE, threshold=HOSTILE)
    (request,) = endpoint.requests
    body = json.loads(request.body)
    assert body["metric_name"] == body["threshold"] == HOSTILE
    assert body["alert"]["labels"]["x"] == body["alert"]["fingerprint"] == HOSTILE
    assert request.path == "/"
    assert "x-injected" not in request.headers


def test_the_answer_of_a_success_is_returned_cut_and_visible(endpoint: Any) -> None:
    endpoint.answer = endpoint.reply(201, b"ticket\r\n\x1b[31m 7\xff" + b"x" * 10**6)
    result = post(endpoint.url)
    assert result["status"] == 201
    assert result["answer"].startswith("ticket\\r\\n\\x1b[31m 7\ufffdxxx")
    assert len(result["answer"]) < 600


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_a_status_that_may_pass_is_temporary(endpoint: Any, status: int) -> None:
    endpoint.answer = endpoint.reply(status, b"busy\nnow")
    with pytest.raises(TemporaryError, match=rf"answered {status}: busy\\nnow$") as caught:
        post(endpoint.url)
    assert caught.value.retry_after is None
    assert caught.value.retry_at is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 422])
def test_any_other_refusal_is_permanent(endpoint: Any, status: int) -> None:
    endpoint.answer = endpoint.reply(status, b"no")
    with pytest.raises(PermanentError, match=f"answered {status}: no; look at HTTP_PLUGIN_ENDP"):
        post(endpoint.url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_is_permanent(endpoint: Any, status: int) -> None:
    endpoint.answer = endpoint.reply(status, Location=endpoint.url + "/elsewhere")
    with pytest.raises(PermanentError, match=f"answered {status}; no redirect is followed"):
        post(endpoint.url)
    assert len(endpoint.requests) == 1


def test_an_error_holds_only_the_first_part_of_a_long_answer(endpoint: Any) -> None:
    endpoint.answer = endpoint.reply(500, b"x" * 10**6)
    with pytest.raises(TemporaryError) as caught:
        post(endpoint.url)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_in_seconds_is_honoured(endpoint: Any, status: int) -> None:
    endpoint.answer = endpoint.reply(status, Retry_After="90")
    with pytest.raises(TemporaryError) as caught:
        post(endpoint.url)
    assert caught.value.retry_after == timedelta(seconds=90)


@pytest.mark.parametrize(
    "date", ["Wed, 21 Oct 2026 07:28:00 GMT", "Wednesday, 21-Oct-26 07:28:00 GMT",
             "Wed, 21 Oct 2026 07:28:00 -0000"],
    ids=["rfc 1123", "rfc 850", "no zone"],
)  # fmt: skip
def test_retry_after_as_a_date_is_honoured(endpoint: Any, date: str) -> None:
    endpoint.answer = endpoint.reply(503, Retry_After=date)
    with pytest.raises(TemporaryError) as caught:
        post(endpoint.url)
    assert caught.value.retry_at == datetime(2026, 10, 21, 7, 28, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", "1.5", "9" * 30, "Wed, 99 Oct 2026 07:28:00 GMT", "\u0663"]
)
def test_a_retry_after_that_says_nothing_is_left_aside(endpoint: Any, text: str) -> None:
    endpoint.answer = endpoint.reply(503, Retry_After=text.encode().decode("latin-1"))
    with pytest.raises(TemporaryError) as caught:
        post(endpoint.url)
    assert caught.value.retry_after is None
    assert caught.value.retry_at is None


def test_a_refused_connection_is_temporary_and_says_why() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/secret-path"
        with pytest.raises(TemporaryError, match="gave no answer: Connection refused") as caught:
            post(url)
    assert "secret-path" not in str(caught.value)


def test_a_host_that_nobody_knows_is_temporary() -> None:
    with pytest.raises(TemporaryError, match=r"http://nobody\.invalid gave no answer: "):
        post("http://nobody.invalid/")


def test_a_url_that_cannot_be_called_is_permanent() -> None:
    with pytest.raises(PermanentError, match="look at HTTP_PLUGIN_ENDPOINT"):
        post("http://*.example/")


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"],
    ids=["nothing", "not http", "broken off"],
)  # fmt: skip
def test_a_broken_answer_is_temporary(endpoint: Any, answer: bytes) -> None:
    def break_off(handler: Any) -> None:
        handler.wfile.write(answer)
        handler.close_connection = True

    endpoint.answer = break_off
    with pytest.raises(TemporaryError, match="gave no answer: "):
        post(endpoint.url)


def test_a_refusal_that_breaks_off_is_still_a_refusal(endpoint: Any) -> None:
    def break_off(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nhalf")
        handler.close_connection = True

    endpoint.answer = break_off
    with pytest.raises(PermanentError, match="answered 403"):
        post(endpoint.url)


DRIPS = {
    "silence": (b"", b""),
    "endless headers": (b"HTTP/1.1 200 OK\r\n", b"X-Drop: 1\r\n"),
    "endless body": (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", b"."),
    "endless chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n.\r\n"),
}


@pytest.mark.parametrize(("start", "drop"), DRIPS.values(), ids=DRIPS)
def test_the_timeout_bounds_the_whole_exchange(endpoint: Any, start: bytes, drop: bytes) -> None:
    endpoint.answer = endpoint.drip(start, drop)
    began = time.monotonic()
    with pytest.raises(TemporaryError, match=r"gave no (whole answer in 0\.4s|answer: Timeout)"):
        post(endpoint.url, timeout="400ms")
    assert time.monotonic() - began < 5


def test_of_a_success_that_goes_on_for_ever_only_the_first_part_is_read(endpoint: Any) -> None:
    endpoint.answer = endpoint.drip(DRIPS["endless body"][0], b"x" * 2**16)
    assert post(endpoint.url, timeout="5s")["status"] == 200


def test_the_end_of_the_attempt_bounds_the_whole_exchange(endpoint: Any) -> None:
    endpoint.answer = endpoint.drip(*DRIPS["endless headers"])
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        post(endpoint.url, timeout="1h", context=make_context(remaining_seconds=0.4))
    assert time.monotonic() - began < 5


def test_the_timeout_bounds_an_exchange_over_tls(tls_endpoint: Any, certificate: Path) -> None:
    tls_endpoint.answer = tls_endpoint.drip(*DRIPS["endless body"])
    began = time.monotonic()
    with pytest.raises(TemporaryError, match=r"gave no (whole answer in 0\.5s|answer: Timeout)"):
        post(tls_endpoint.url, timeout="500ms", ca_bundle=str(certificate))
    assert time.monotonic() - began < 5


def test_a_cancel_ends_an_exchange_that_is_under_way(endpoint: Any) -> None:
    cancellation = Cancellation()

    def cancel_then_wait(handler: Any) -> None:
        cancellation.cancel("an operator said so")
        endpoint.is_closing.wait(30)

    endpoint.answer = cancel_then_wait
    began = time.monotonic()
    with pytest.raises(RunCancelledError, match="an operator said so"):
        post(endpoint.url, timeout="30s", context=make_context(cancellation=cancellation))
    assert time.monotonic() - began < 10


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL whose name stands for ten addresses that let nobody in, and answer nobody."""
    with ExitStack() as stack:
        addresses = []
        for _ in range(10):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            addresses.append(listener.getsockname())
            for _ in range(3):  # The queue is full: whoever comes now waits.
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(addresses[-1])
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        yield "http://deaf.example"


def test_the_timeout_bounds_connecting_to_all_addresses_of_a_name(deaf: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemporaryError, match="gave no"):
        post(deaf, timeout="2s")
    assert time.monotonic() - began < 9  # One after the other at half the time: 10.


def test_a_cancel_ends_connecting(deaf: str) -> None:
    cancellation = Cancellation()
    timer = threading.Timer(0.3, cancellation.cancel, ["enough"])
    timer.start()
    began = time.monotonic()
    with pytest.raises(RunCancelledError, match="enough"):
        post(deaf, timeout="60s", context=make_context(cancellation=cancellation))
    assert time.monotonic() - began < 15
    timer.join()


def test_the_first_address_that_answers_is_taken(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(endpoint.host.rpartition(":")[2])
    found = [
        (family, socket.SOCK_STREAM, 6, "", ("127.0.0.1", one))
        for family, one in ((-7, port), (socket.AF_INET, 1), (socket.AF_INET, port))
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert post("http://many.example")["status"] == 200
    assert len(endpoint.requests) == 1


def test_nothing_is_sent_once_the_run_is_cancelled(endpoint: Any) -> None:
    cancellation = Cancellation()
    cancellation.cancel("too late")
    with pytest.raises(RunCancelledError):
        post(endpoint.url, context=make_context(cancellation=cancellation))
    assert endpoint.requests == []


def test_no_proxy_or_netrc_of_the_environment_is_used(
    endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    post(endpoint.url)
    assert "authorization" not in endpoint.requests[0].headers


def test_credentials_in_the_url_are_sent_as_basic_auth(endpoint: Any) -> None:
    post(f"http://j%C3%BCrgen:p%40ss@{endpoint.host}/hook")
    # base64 of jürgen:p@ss in UTF-8
    assert endpoint.requests[0].headers["authorization"] == "Basic asO8cmdlbjpwQHNz"
    assert endpoint.requests[0].path == "/hook"


@pytest.mark.parametrize("status", [200, 302, 404, 503, 0])
def test_credentials_path_and_query_of_the_url_are_never_shown(
    endpoint: Any, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG, "receiver")
    host = endpoint.host if status else "127.0.0.1:1"
    endpoint.answer = endpoint.reply(status)
    url = f"http://user-s3cret:pass-s3cret@{host}/path-s3cret?query=s3cret"
    shown = [run_action(http_plugin, environment={"HTTP_PLUGIN_ENDPOINT": url}, hook="describe")]
    try:
        shown.append(post(url))
    except (TemporaryError, PermanentError) as error:
        shown += [error, error.__cause__, error.__context__]
    assert f"http://{host}" in str(shown)
    assert "s3cret" not in str(shown) + caplog.text


@pytest.mark.parametrize("status", [200, 404, 503])
def test_what_an_answer_quotes_of_the_request_is_hidden(
    endpoint: Any, tmp_path: Path, status: int
) -> None:
    (tmp_path / "token").write_text("token-s3cret")

    def quote(handler: Any) -> None:
        headers = "".join(f"{name}: {value}\n" for name, value in handler.headers.items())
        text = f"Cannot {handler.requestline}: key s3cret-key\n{headers}".encode()
        endpoint.reply(status, text)(handler)

    endpoint.answer = quote
    try:
        result = run_action(
            http_plugin,
            environment={
                "HTTP_PLUGIN_ENDPOINT": f"{endpoint.url}/path-s3cret/%C3%A4?key=s3cret-key",
                "HTTP_PLUGIN_HEADERS": "X-Key: header s3cret",
                "HTTP_PLUGIN_TOKEN_FILE": str(tmp_path / "token"),
            },
        )
        said = result["answer"]
    except (TemporaryError, PermanentError) as error:
        said = str(error)
    assert "Cannot POST (hidden)?(hidden) HTTP/1.1: key (hidden)" in said
    assert "X-Key: (hidden)" in said
    assert "Authorization: (hidden)" in said
    assert "s3cret" not in said


def test_a_secret_that_the_cut_would_halve_is_hidden(endpoint: Any) -> None:
    endpoint.answer = endpoint.reply(200, b"x" * 490 + b"/path-s3cret-s3cret")
    assert "s3cret" not in post(endpoint.url + "/path-s3cret-s3cret")["answer"]


def test_a_malformed_url_is_refused_without_being_shown() -> None:
    with pytest.raises(SettingsError, match="HTTP_PLUGIN_ENDPOINT: is not a URL") as caught:
        post("ftp://user:s3cret@host/")
    assert "s3cret" not in str(caught.value)


def test_an_unknown_authority_is_refused_and_one_from_the_bundle_trusted(
    tls_endpoint: Any, certificate: Path
) -> None:
    with pytest.raises(TemporaryError, match="certificate verify failed"):
        post(tls_endpoint.url)
    assert post(tls_endpoint.url, ca_bundle=str(certificate))["status"] == 200


def test_a_timeout_of_nothing_stops_the_start() -> None:
    with pytest.raises(ValueError, match="HTTP_PLUGIN_TIMEOUT: 0s leaves no time"):
        post("http://127.0.0.1", timeout="0s")


def test_a_missing_bundle_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"HTTP_PLUGIN_CA_BUNDLE: .*missing is not a file"):
        post("http://127.0.0.1", ca_bundle=str(tmp_path / "missing"))


def test_many_threads_may_call_it_at_once(endpoint: Any) -> None:
    barrier = threading.Barrier(8)

    def call(number: int) -> Any:
        barrier.wait(10)
        return post(endpoint.url, context=make_context(idempotency_key=f"run-{number}"))

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(call, range(8)))
    assert [result["status"] for result in results] == [200] * 8
    sent = {
        (one.headers["idempotency-key"], json.loads(one.body)["idempotency_key"])
        for one in endpoint.requests
    }
    assert sent == {(f"run-{number}", f"run-{number}") for number in range(8)}


def test_no_thread_outlives_a_call(endpoint: Any) -> None:
    post(endpoint.url)
    assert not [one for one in threading.enumerate() if one.name == "http_plugin watch"]


def test_describe_says_what_and_where_and_sends_nothing(endpoint: Any) -> None:
    sentence = run_action(
        http_plugin,
        environment={"HTTP_PLUGIN_ENDPOINT": endpoint.url},
        hook="describe",
        metric_name=HOSTILE * 100,
    )
    assert sentence.startswith(f"would POST to {endpoint.url} that 'a\\r\\nX-Injected")
    assert sentence.endswith("is 90, threshold '> 80', for 300s")
    assert sentence.isprintable()
    assert len(sentence) < 400
    assert endpoint.requests == []


def test_importing_it_does_not_import_requests() -> None:
    program = "import sys, action_plugins.http_plugin; sys.exit('requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_it_does_nothing_about_a_resolved_alert() -> None:
    assert not hasattr(http_plugin, "resolved")
