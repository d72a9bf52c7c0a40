"""TLS and client certificates, spoken for real."""

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support.certificates import Authority
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]
TOKEN = "only-for-this-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def serve(start_receiver: Start, authority: Authority) -> Start:
    """Starts a receiver that speaks TLS."""

    def start(**environment: str) -> Receiver:
        cert, key = authority.issue("server")
        one = start_receiver(
            "web", RECEIVER_TLS_CERT=str(cert), RECEIVER_TLS_KEY=str(key), **environment
        )
        one.tls = {"verify": str(authority.file)}
        return one.wait_ready()

    return start


def test_webhook_answers_over_tls(serve: Start) -> None:
    web = serve(RECEIVER_SUBMIT_TOKEN=TOKEN)
    assert web.post(notification(alert()), "/webhook/log_action", **BEARER).status_code == 200
    assert web.post(notification(alert()), "/webhook/log_action").status_code == 401
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{web.url}/-/healthy", timeout=10)


def test_http_without_tls_is_refused_in_words_and_logged_once(serve: Start) -> None:
    web = serve(RECEIVER_SUBMIT_TOKEN=TOKEN)
    refused = requests.post(
        f"http://127.0.0.1:{web.port}/webhook", data=b"{}", headers=BEARER, timeout=10
    )
    assert refused.status_code == 400
    assert "use https://" in refused.json()["detail"]
    (line,) = wait_until(lambda: web.lines("request refused"))
    assert (line["client"], line["status"]) == ("127.0.0.1", 400)
    assert "use https://" in line["reason"]
    assert TOKEN not in web.text()
    assert "Traceback" not in web.text()


def test_versions_of_tls_that_are_broken_are_not_spoken(serve: Start) -> None:
    web = serve(RECEIVER_SUBMIT_TOKEN=TOKEN)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", web.port), 10) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain)


def test_client_certificate_is_demanded_of_the_webhook_and_not_of_probes(
    serve: Start, authority: Authority, tmp_path: Path
) -> None:
    clients = Authority(tmp_path, "clients")
    web = serve(RECEIVER_TLS_CLIENT_CA=str(clients.file), RECEIVER_READ_TOKEN="r")
    assert requests.get(f"{web.url}/-/healthy", timeout=10, **web.tls).status_code == 200
    refused = web.post(notification(alert()), "/webhook/log_action")
    assert refused.status_code == 403
    assert "client certificate" in refused.json()["detail"]

    web.tls["cert"] = tuple(map(str, clients.issue("alertmanager")))
    assert web.post(notification(alert()), "/webhook/log_action").status_code == 200
    with requests.Session() as session:
        for _ in range(3):  # Kept alive, the connection is still the one that showed it.
            answer = session.post(
                f"{web.url}/webhook/log_action", data=notification(),
                headers={"Content-Type": "application/json"}, timeout=10, **web.tls,
            )  # fmt: skip
            assert answer.status_code == 200

    web.tls["cert"] = tuple(map(str, authority.issue("stranger")))
    with pytest.raises(requests.ConnectionError):
        web.post(notification(alert()), "/webhook/log_action")
    (line,) = wait_until(lambda: web.lines("request refused")[1:])
    assert line["reason"].startswith("no connection with TLS: ")
    assert "Traceback" not in web.text()


def test_with_a_token_both_are_demanded(serve: Start, tmp_path: Path) -> None:
    clients = Authority(tmp_path, "clients")
    web = serve(RECEIVER_TLS_CLIENT_CA=str(clients.file), RECEIVER_SUBMIT_TOKEN=TOKEN)
    assert web.post(notification(), **BEARER).status_code == 403
    web.tls["cert"] = tuple(map(str, clients.issue("alertmanager")))
    assert web.post(notification()).status_code == 401
    assert web.post(notification(), **BEARER).status_code == 200


def test_renewed_certificate_is_shown_from_the_next_connection_on(
    serve: Start, authority: Authority, tmp_path: Path
) -> None:
    web = serve(RECEIVER_SUBMIT_TOKEN=TOKEN)
    renewed = Authority(tmp_path, "renewed")
    for new, name in zip(renewed.issue("server"), ("crt", "key"), strict=True):
        new.replace(tmp_path / f"authority-server.{name}")
    web.tls["verify"] = str(renewed.file)
    assert web.post(notification(), **BEARER).status_code == 200


def test_sample_is_sent_over_tls_with_a_login(serve: Start, authority: Authority) -> None:
    login = {"RECEIVER_SUBMIT_BASIC_AUTH": "am:pässword"}
    web = serve(**login)
    done = subprocess.run(
        [sys.executable, "-m", "receiver", "send", "firing", "--ca-file", str(authority.file)],
        env={
            "PATH": "/usr/bin:/bin",
            "RECEIVER_BIND": f"127.0.0.1:{web.port}",
            "RECEIVER_TLS_CERT": str(authority.file),
            **login,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('200 {"accepted":1')
