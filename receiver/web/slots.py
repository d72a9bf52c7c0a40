"""How many requests are worked on at a time, however many are under way.

Whoever waits for a slot takes part in nothing, above all not in the struggle for the interpreter
lock, which among many threads costs more than their work. So a slot is given back while its request
waits for something else: its body, or a commit.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any

from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

# The lock lets one thread work; the other is there when that one writes or reads.
NOTIFICATIONS = 2


class Slots(AbstractContextManager[None]):
    """A block under it has one of so many slots; `given_back`, in it, has none for a while."""

    def __init__(self, number: int) -> None:
        """Start with all of them free."""
        # Written in C, unlike a semaphore: a request takes a slot three times.
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(number):
            self._free.put(None)
        self.given_back = _GivenBack(self)

    def __enter__(self) -> None:
        """Wait for a slot."""
        self._free.get()

    def __exit__(self, *raised: object) -> None:
        """Give it back."""
        self._free.put(None)


class _GivenBack(AbstractContextManager[None]):
    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def __enter__(self) -> None:
        self._slots.__exit__()

    def __exit__(self, *raised: object) -> None:
        self._slots.__enter__()


class InTurn:
    """A WSGI application whose requests wait for a slot of those that `slots_of` their path.

    None: it needs none.
    """

    def __init__(
        self,
        application: Callable[..., Iterable[bytes]],
        slots_of: Callable[[str], Slots | None],
    ) -> None:
        self._application = application
        self._slots_of = slots_of

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        # As the router sees it.
        slots = self._slots_of("/" + environ["PATH_INFO"].lstrip("/"))
        if slots is None:
            return self._application(environ, start_response)
        environ["wsgi.input"] = _Body(environ["wsgi.input"], slots)
        with slots:
            return self._application(environ, start_response)


class _Body:
    """A request's body; reading it may take time, and fails as werkzeug knows it."""

    def __init__(self, body: Any, slots: Slots) -> None:
        self._body, self._slots = body, slots

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, none at the end; raise ClientDisconnected (400) without them."""
        with self._slots.given_back:
            try:
                data: bytes = self._body.read(size)
            except (ParseException, OSError) as error:
                raise ClientDisconnected(
                    "the body ends early, or is not framed as HTTP says"
                ) from error
        return data
