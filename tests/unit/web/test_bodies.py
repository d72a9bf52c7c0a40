"""Large bodies have a bound together; small ones wait for nobody."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from werkzeug.exceptions import ServiceUnavailable

from receiver.web.bodies import SMALL_BYTES, LargeBodies

MIB = 1024 * 1024
APP = Flask(__name__)


def takes_place(bodies: LargeBodies, length: int | None) -> bool:
    with APP.test_request_context("/", environ_overrides=_length(length)):
        try:
            with bodies.place(MIB):
                return True
        except ServiceUnavailable as error:
            assert error.retry_after == 5
            return False


def _length(length: int | None) -> dict[str, str]:
    return {} if length is None else {"CONTENT_LENGTH": str(length)}


class Held:
    """A body of a size that is held by another thread until `end`."""

    def __init__(self, bodies: LargeBodies, pool: ThreadPoolExecutor, length: int) -> None:
        self._began, self._may_end = threading.Event(), threading.Event()
        self._done = pool.submit(self._hold, bodies, length)
        assert self._began.wait(30)

    def _hold(self, bodies: LargeBodies, length: int) -> None:
        with APP.test_request_context("/", environ_overrides=_length(length)), bodies.place(MIB):
            self._began.set()
            assert self._may_end.wait(30)

    def end(self) -> None:
        self._may_end.set()
        self._done.result(30)


def test_large_bodies_take_no_more_than_they_may_together() -> None:
    bodies = LargeBodies(MIB)
    with ThreadPoolExecutor(2) as pool:
        first = Held(bodies, pool, MIB // 2)
        second = Held(bodies, pool, MIB // 2)
        assert not takes_place(bodies, SMALL_BYTES + 1)
        assert takes_place(bodies, SMALL_BYTES)
        first.end()
        assert takes_place(bodies, MIB // 2)
        assert not takes_place(bodies, MIB // 2 + 1)
        second.end()
    assert takes_place(bodies, MIB)


def test_body_of_unknown_length_counts_as_the_largest() -> None:
    bodies = LargeBodies(MIB)
    with ThreadPoolExecutor(1) as pool:
        held = Held(bodies, pool, SMALL_BYTES + 1)
        assert not takes_place(bodies, None)
        held.end()
    assert takes_place(bodies, None)


def test_place_is_free_again_when_its_request_fails() -> None:
    bodies = LargeBodies(MIB)
    with (
        APP.test_request_context("/", environ_overrides=_length(MIB)),
        pytest.raises(LookupError),
        bodies.place(MIB),
    ):
        raise LookupError
    assert takes_place(bodies, MIB)
