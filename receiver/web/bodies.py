"""The body of a request: JSON, no larger than it may be, and not too many of them at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge, ServiceUnavailable, UnsupportedMediaType

from receiver.web.problems import RETRY_AFTER_SECONDS
from receiver.web.slots import without_slot

#: Bodies up to this size are not counted: all threads together hold few bytes of them.
SMALL_BYTES = 64 * 1024
#: No lock and no place is waited for any longer: Alertmanager gives up after ten seconds.
WAIT_SECONDS = 3.0


def check_content() -> None:
    """Raise UnsupportedMediaType for what is not plain `application/json`."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("the body must be application/json")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("a compressed body is not accepted; send it as it is")


def read_body(limit: int) -> bytes:
    """Return the body; raise RequestEntityTooLarge when it is longer than the limit."""
    if request.content_length is not None and request.content_length > limit:
        raise RequestEntityTooLarge
    body = request.get_data(cache=False)
    # A body of unknown length is cut off at the limit without a word.
    if request.content_length is None and len(body) >= limit:
        raise RequestEntityTooLarge
    return body


class LargeBodies:
    """The large bodies that are under way: all together take at most so many bytes."""

    def __init__(self, most: int) -> None:
        """Hold none yet."""
        self._most = most
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def place(self, limit: int) -> Iterator[None]:
        """A block in which the body of this request may be read and used.

        A body of unknown length counts as `limit` bytes. Raises ServiceUnavailable when others take
        the place for too long.
        """
        length = request.content_length
        size = min(limit if length is None else length, self._most)
        if size <= SMALL_BYTES:
            yield
            return
        with without_slot(request.environ), self._changed:
            has_place = self._changed.wait_for(
                lambda: self._held + size <= self._most, WAIT_SECONDS
            )
            if has_place:
                self._held += size
        if not has_place:
            raise ServiceUnavailable(
                "large requests are being read; send it again", retry_after=RETRY_AFTER_SECONDS
            )
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()
