"""How many requests are worked on at a time: few, and never one less for what went wrong."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from receiver.alertmanager import Notification
from receiver.journal.journal import Journal
from receiver.plugins import load_actions
from receiver.settings import load
from receiver.web import webhook
from receiver.web.app import create_app
from receiver.web.slots import InTurn, LookSlots, Slots
from tests.support.notifications import alert, notification


class AtATime:
    """Counts how many are in a block at the same time; each waits there for so many to meet."""

    def __init__(self, to_meet: int = 1) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()
        self._met = threading.Barrier(to_meet)

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self._met.wait(30)
        time.sleep(0.02)  # One too many would come meanwhile.

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self.now -= 1


def call(application: Callable[..., Iterable[bytes]], path: str = "/webhook") -> None:
    b"".join(application({"PATH_INFO": path, "wsgi.input": None}, print))


def busy(environ: dict[str, Any], start_response: object) -> Iterable[bytes]:
    return [b"busy"]


def in_threads(number: int, work: Callable[[], object]) -> None:
    with ThreadPoolExecutor(number) as pool:
        for one in [pool.submit(work) for _ in range(number)]:
            one.result(30)


def test_as_many_are_worked_on_as_there_are_slots_and_none_is_lost() -> None:
    slots, at_a_time = Slots(2, 8, 30), AtATime(to_meet=2)

    def fail(environ: dict[str, Any], start_response: object) -> Iterable[bytes]:
        with slots.given_back:
            raise LookupError

    def answer(environ: dict[str, Any], start_response: object) -> Iterable[bytes]:
        with at_a_time:
            return [b"x"]

    for _ in range(5):
        with pytest.raises(LookupError):
            call(InTurn(fail, lambda path: slots, busy))
    in_threads(8, lambda: call(InTurn(answer, lambda path: slots, busy)))
    assert at_a_time.most == 2


def test_slot_that_is_given_back_is_another_ones() -> None:
    slots, both_wait = Slots(1, 2, 30), threading.Barrier(2)

    def wait(environ: dict[str, Any], start_response: object) -> Iterable[bytes]:
        with slots.given_back:
            both_wait.wait(30)
        return [b"x"]

    in_threads(2, lambda: call(InTurn(wait, lambda path: slots, busy)))


def test_path_is_looked_at_as_the_router_sees_it() -> None:
    seen: list[str] = []
    application = InTurn(lambda environ, start_response: [b"x"], seen.append, busy)
    for path in ("/webhook", "//webhook", "webhook", ""):
        call(application, path)
    assert seen == ["/webhook", "/webhook", "/webhook", "/"]


@pytest.mark.parametrize(("requests", "seconds"), [(1, 30.0), (2, 0.05)])
def test_request_that_would_wait_too_long_is_answered_busy(requests: int, seconds: float) -> None:
    slots, has_begun, may_end = Slots(1, requests, seconds), threading.Event(), threading.Event()

    def answer(environ: dict[str, Any], start_response: object) -> Iterable[bytes]:
        has_begun.set()
        assert may_end.wait(30)
        return [b"x"]

    application = InTurn(answer, lambda path: slots, busy)
    environ = {"PATH_INFO": "/", "wsgi.input": None}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(application, dict(environ), print)
        assert has_begun.wait(30)
        for _ in range(3):
            assert application(dict(environ), print) == [b"busy"]
        may_end.set()
        assert first.result(30) == [b"x"]
    assert application(dict(environ), print) == [b"x"]


def test_threads_take_turns_sooner_while_requests_look() -> None:
    usual = sys.getswitchinterval()
    slots = LookSlots(2, 2, 30)
    with slots:
        with slots:
            assert sys.getswitchinterval() < usual / 5
        assert sys.getswitchinterval() < usual / 5
    assert sys.getswitchinterval() == usual


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    environment = {"RECEIVER_DATA_DIR": str(tmp_path), "ACTION_PLUGIN": "log_action"}
    settings = load(environment, {})
    with closing(Journal(settings.journal_url)) as journal:
        yield create_app(settings, load_actions(settings), journal)


def test_large_notifications_are_parsed_one_at_a_time(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_a_time, parse = AtATime(), webhook.parse_notification

    def slow(body: bytes) -> Notification:
        with at_a_time:
            return parse(body)

    monkeypatch.setattr(webhook, "parse_notification", slow)
    body = notification(alert("f", annotations={f"n{one}": "x" * 10_000 for one in range(10)}))

    def post() -> None:
        answer = app.test_client().post("/webhook", data=body, content_type="application/json")
        assert answer.status_code == 200

    in_threads(6, post)
    assert at_a_time.most == 1


def test_large_notification_is_answered_503_when_another_takes_too_long(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end, parse = threading.Event(), threading.Event(), webhook.parse_notification

    def stuck(body: bytes) -> Notification:
        if len(body) > 100_000:
            has_begun.set()
            assert may_end.wait(60)
        return parse(body)

    monkeypatch.setattr(webhook, "parse_notification", stuck)
    large = notification(alert("f", annotations={f"n{one}": "x" * 10_000 for one in range(12)}))

    def post(body: bytes) -> tuple[int, str | None]:
        answer = app.test_client().post("/webhook", data=body, content_type="application/json")
        return answer.status_code, answer.headers.get("Retry-After")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, large)
        assert has_begun.wait(60)
        assert post(large) == (503, "5")
        assert post(notification(alert("small"))) == (200, None)
        may_end.set()
        assert first.result(60) == (200, None)
