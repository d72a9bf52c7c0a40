"""A real Alertmanager logs in: by token, by password, by certificate, and while they change."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.certificates import Authority
from tests.support.documents import blocks
from tests.support.receivers import Receiver
from tests.support.stack import Stack, shortened_alertmanager
from tests.support.whole import Whole

Start = Callable[..., Receiver]


@pytest.fixture
def stack(whole: Whole) -> Iterator[Stack]:
    """The session's Alertmanager, which posts to the session's receiver again in the end."""
    yield whole.stack
    _, config = blocks("README.md", "yaml")
    whole.stack.load(
        alertmanager=shortened_alertmanager(config),
        webhook_url=whole.receiver.url,
        credentials_file=whole.directory / "token",
    )


def post_to(
    stack: Stack, receiver: Receiver, http_config: dict[str, Any], file: Path | None = None
) -> None:
    """Let Alertmanager post all alerts to a receiver, to the action log_action."""
    webhook = {"url": "http://x/webhook/log_action", "http_config": http_config}
    config = {
        "route": {
            "receiver": "one",
            "group_by": ["alertname"],
            "group_wait": "0s",
            "group_interval": "200ms",
        },
        "receivers": [{"name": "one", "webhook_configs": [webhook]}],
    }
    stack.load(alertmanager=yaml.safe_dump(config), webhook_url=receiver.url, credentials_file=file)


def deliver(stack: Stack, receiver: Receiver, name: str) -> None:
    """Let an alert fire, and return once it is accepted."""
    stack.post_alerts([{"labels": {"alertname": name}}])
    stack.wait_until(lambda: accepted(receiver, name), 60, f"{name} is accepted")


def accepted(receiver: Receiver, name: str) -> int:
    """Return how many alerts of a name were; others may still fire since the test before."""
    lines = receiver.lines("notification recorded")
    of_name = [one for one in lines if one["group"] == f'{{}}:{{alertname="{name}"}}']
    return sum(one["accepted"] for one in of_name)


def test_alertmanager_logs_in_by_password(
    stack: Stack, start_receiver: Start, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("pass:wörd")
    receiver = start_receiver(RECEIVER_SUBMIT_BASIC_AUTH="alertmanager:pass:wörd").wait_ready()
    login = {"username": "alertmanager", "password_file": str(password)}
    post_to(stack, receiver, {"basic_auth": login})
    deliver(stack, receiver, "ByPassword")


@pytest.mark.parametrize("token", ["", "only-for-this-test"], ids=["alone", "and a token"])
def test_alertmanager_logs_in_by_certificate(
    token: str, stack: Stack, start_receiver: Start, tmp_path: Path
) -> None:
    servers, clients = Authority(tmp_path, "servers"), Authority(tmp_path, "clients")
    server, client = servers.issue("receiver"), clients.issue("alertmanager")
    receiver = start_receiver(
        RECEIVER_TLS_CERT=str(server[0]),
        RECEIVER_TLS_KEY=str(server[1]),
        RECEIVER_TLS_CLIENT_CA=str(clients.file),
        RECEIVER_SUBMIT_TOKEN=token,
    )
    receiver.tls = {"verify": str(servers.file)}
    receiver.wait_ready()
    tls = {"ca_file": str(servers.file), "cert_file": str(client[0]), "key_file": str(client[1])}
    authorization = {"authorization": {"credentials": token}} if token else {}
    post_to(stack, receiver, {"tls_config": tls, **authorization})
    deliver(stack, receiver, f"ByCertificate{token}")


def test_token_is_changed_on_both_sides_without_a_refusal(
    stack: Stack, start_receiver: Start, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("old")
    theirs.write_text("old")
    receiver = start_receiver(RECEIVER_SUBMIT_TOKEN_FILE=str(ours)).wait_ready()
    before = refusals(stack)
    post_to(stack, receiver, {"authorization": {"credentials_file": "x"}}, theirs)
    deliver(stack, receiver, "OldToken")
    ours.write_text("old\nnew")
    deliver(stack, receiver, "BothTokens")
    theirs.write_text("new")
    deliver(stack, receiver, "NewToken")
    ours.write_text("new")
    deliver(stack, receiver, "OnlyNewToken")
    assert refusals(stack) == before


def refusals(stack: Stack) -> int:
    return (stack.directory / "alertmanager.log").read_text().count("unexpected status code 401")


def test_alert_that_a_wrong_token_kept_back_is_delivered_once_it_is_mended(
    stack: Stack, start_receiver: Start, tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    ours.write_text("right")
    receiver = start_receiver(RECEIVER_SUBMIT_TOKEN_FILE=str(ours)).wait_ready()
    before = refusals(stack)
    post_to(stack, receiver, {"authorization": {"credentials": "mended"}})
    stack.post_alerts([{"labels": {"alertname": "WrongToken"}}])
    stack.wait_until(lambda: refusals(stack) > before, 60, "a refusal")
    assert accepted(receiver, "WrongToken") == 0
    ours.write_text("mended")
    stack.wait_until(lambda: accepted(receiver, "WrongToken"), 60, "the alert is accepted")
