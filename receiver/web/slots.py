"""How many requests are worked on at a time, however many are under way, and how many may wait.

Whoever waits for a slot takes part in nothing, above all not in the struggle for the interpreter
lock, which among many threads costs more than their work. So a slot is given back while its request
waits for something else: its body, or a commit.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, SimpleQueue
from typing import Any

from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

# The lock lets one thread work; the other is there when that one writes or reads.
NOTIFICATIONS = 2
_SLOTS = "receiver.slots"
_SHORT_TURN_SECONDS = 0.0005


class BusyError(Exception):
    """There is no slot for a request, and it would wait too long for one."""


class Slots(AbstractContextManager[None]):
    """A block under it has one of so many slots; `given_back`, in it, has none for a while.

    At most `requests` are in such blocks or wait for one, each for at most `seconds`. The others
    raise BusyError. Each of them occupies a thread, and all threads are needed for notifications.
    """

    def __init__(self, number: int, requests: int, seconds: float) -> None:
        """Start with all of them free."""
        # Written in C, unlike a semaphore: a request takes a slot three times.
        self._free: SimpleQueue[None] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(number):
            self._free.put(None)
        for _ in range(requests):
            self._places.put(None)
        self._seconds = seconds
        self.given_back = _GivenBack(self._free)

    def __enter__(self) -> None:
        """Wait for a slot, or raise BusyError."""
        try:
            self._places.get_nowait()
        except Empty:
            raise BusyError from None
        try:
            self._free.get(timeout=self._seconds)
        except Empty:
            self._places.put(None)
            raise BusyError from None

    def __exit__(self, *raised: object) -> None:
        """Give it back."""
        self._free.put(None)
        self._places.put(None)


class LookSlots(Slots):
    """Slots of requests that only look or ask: while one is taken, threads take turns sooner.

    Measured beside 16 that explain and 8 that read pages, on two busy cores: a notification takes
    70 ms instead of 170 ms (median). Always, it would cost notifications throughput.
    """

    def __init__(self, number: int, requests: int, seconds: float) -> None:
        """Start with all of them free."""
        super().__init__(number, requests, seconds)
        self._lock = threading.Lock()
        self._taken = 0
        self._usual_seconds = sys.getswitchinterval()

    def __enter__(self) -> None:
        """Wait for a slot, or raise BusyError."""
        super().__enter__()
        with self._lock:
            self._taken += 1
            sys.setswitchinterval(_SHORT_TURN_SECONDS)

    def __exit__(self, *raised: object) -> None:
        """Give it back."""
        with self._lock:
            self._taken -= 1
            if self._taken == 0:
                sys.setswitchinterval(self._usual_seconds)
        super().__exit__(*raised)


class _GivenBack(AbstractContextManager[None]):
    """Who has had a slot waits as long as it takes: who has one now waits for nothing with it."""

    def __init__(self, free: "SimpleQueue[None]") -> None:
        self._free = free

    def __enter__(self) -> None:
        self._free.put(None)

    def __exit__(self, *raised: object) -> None:
        self._free.get()


class InTurn:
    """A WSGI application whose requests wait for a slot of those that `slots_of` their path.

    None: it needs none. A request without a slot gets the answer `busy`.
    """

    def __init__(
        self,
        application: Callable[..., Iterable[bytes]],
        slots_of: Callable[[str], Slots | None],
        busy: Callable[..., Iterable[bytes]],
    ) -> None:
        self._application = application
        self._slots_of = slots_of
        self._busy = busy

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        # As the router sees it.
        slots = self._slots_of("/" + environ["PATH_INFO"].lstrip("/"))
        if slots is None:
            return self._application(environ, start_response)
        environ["wsgi.input"] = _Body(environ["wsgi.input"], slots)
        environ[_SLOTS] = slots
        try:
            slots.__enter__()
        except BusyError:
            return self._busy(environ, start_response)
        try:
            return self._application(environ, start_response)
        finally:
            slots.__exit__()


def without_slot(environ: dict[str, Any]) -> AbstractContextManager[None]:
    """Return the block in which a request has no slot, to wait for something else."""
    slots: Slots | None = environ.get(_SLOTS)
    return nullcontext() if slots is None else slots.given_back


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
