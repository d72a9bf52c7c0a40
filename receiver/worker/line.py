"""What a worker and its performer say to each other, and the line that it goes over.

A message is sent and taken in as a whole or not yet: neither end ever waits for the rest of one
while the other, of whose threads any may keep the interpreter lock, cannot go on.
"""

import pickle
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from receiver.journal.due import ClaimedRun
from receiver.policies import AttemptEnd, Rules

_LENGTH = struct.Struct("!Q")
_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the plugins are to those who do not run them."""

    actions: frozenset[str]
    rules: Rules


@dataclass(frozen=True, slots=True)
class Cancel:
    """The wish that an action stops."""

    run_id: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Performed:
    """How an attempt ended; `trace_id` is empty when nothing is traced."""

    run_id: int
    attempt: int
    end: AttemptEnd
    trace_id: str


# The runs to attempt, all at once.
Orders = list[ClaimedRun]


class Line:
    """One end of the line; nothing that it does waits but `wait` and `wait_until_sent`."""

    def __init__(self, end: socket.socket) -> None:
        """Take over one end of a pair of stream sockets."""
        end.setblocking(False)
        self._end = end
        self._to_send = bytearray()
        self._received = bytearray()

    def fileno(self) -> int:
        """What can be read when something has come, and written when something goes."""
        return self._end.fileno()

    def send(self, message: object) -> None:
        """Send a message, or as much of it as goes now; raises OSError when nobody hears."""
        text = pickle.dumps(message)
        self._to_send += _LENGTH.pack(len(text)) + text
        self.send_on()

    def send_on(self) -> None:
        """Send what could not be sent before, as far as it goes now."""
        while self._to_send:
            try:
                sent = self._end.send(self._to_send)
            except BlockingIOError:
                return
            del self._to_send[:sent]

    @property
    def is_sending(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._to_send)

    def received(self) -> Iterator[object]:
        """Yield the messages that have come by now; raises EOFError after the last."""
        has_ended = False
        while True:
            try:
                some = self._end.recv(_BYTES)
            except BlockingIOError:
                break
            self._received += some
            if not some:
                has_ended = True
            if len(some) < _BYTES:
                break
        while (message := self._whole()) is not None:
            yield pickle.loads(message)  # noqa: S301 - from the other end, which is this program
        if has_ended:
            raise EOFError

    def _whole(self) -> bytes | None:
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        message = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return message

    def wait(self, seconds: float | None = None) -> None:
        """Wait until something has come, or for so long."""
        select.select([self], [], [], seconds)

    def wait_until_sent(self) -> None:
        """Wait until the other end has taken everything."""
        while self._to_send:
            select.select([], [self], [])
            self.send_on()

    def close(self) -> None:
        """Say and hear no more."""
        self._end.close()
