"""Group commit: the notifications of many requests, recorded in one transaction.

There is no thread of its own: whoever comes when nobody commits leads, and works for all who have
come meanwhile; then the next one who waits leads. So a request that comes alone is handed to no
other thread, which costs more than to validate it. The leader also prepares what the others hand
over, and says what became of it: the same code, many times in a row, costs half of what it costs in
many threads that take turns. Each request is answered after its own commit. After a data error each
request of the batch commits alone, so that a poisoned one never fails its neighbours.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Protocol

from receiver.errors import JournalUnavailableError, JournalUnusableError
from receiver.intake import Counts, Intake
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.policies import Rules

_log = logging.getLogger(__name__)

# One transaction takes no more than this, so that nobody waits long behind it.
_BATCH_ALERTS = 2_000
# So often the leader lets others go first, as long as they come: a transaction for each would cost
# more than it takes. Who is alone does so once, which takes a microsecond.
_YIELDS = 8
# Beyond this many waiting alerts a request is refused at once: Alertmanager sends it again.
_WAITING_ALERTS = 50_000


class Work(Protocol):
    """A notification as its request hands it over."""

    @property
    def size(self) -> int:
        """About how many alerts it holds."""

    def prepare(self) -> Intake:
        """Return what to record; what it raises, the request gets to see."""

    def recorded(self, counts: Counts) -> None:
        """Note what became of it: it is durable."""


@dataclass(eq=False, slots=True)
class _Request:
    """A notification to be recorded; `outcome` is None until it was, or could not be.

    Its thread waits for `turn`, which is released once it has an outcome, or is to lead. Whoever
    leads works in the `context` of the request, whose variables are then those of this one.
    """

    work: Work
    size: int
    outcome: Counts | Exception | None = None
    turn: threading.Lock = field(default_factory=threading.Lock)
    context: Context = field(default_factory=copy_context)

    def prepare(self) -> Intake | None:
        """Return what to record, None if that fails; then it has its outcome."""
        try:
            return self.context.run(self.work.prepare)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's own
            self.outcome = error
            return None

    def told(self, counts: Counts) -> None:
        """Take note of what became of it; it is durable, whatever `recorded` raises."""
        try:
            self.context.run(self.work.recorded, counts)
        except Exception:  # noqa: BLE001 - it fails nobody: neither this request nor those after it
            _log.exception("notification is recorded, and could not be counted")
        self.outcome = counts


class Writer:
    """Records notifications for the request threads of one process."""

    def __init__(self, journal: Journal, rules: Rules, after_commit: Callable[[int], None]) -> None:
        """Open for requests.

        `after_commit` is called after each commit with the number of its notifications, and must
        not block.
        """
        self._journal = journal
        self._rules = rules
        self._after_commit = after_commit
        # All below is guarded by it. Who leads is the first in the queue; nobody: it is empty.
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[_Request] = deque()
        self._leader: _Request | None = None
        self._waiting = 0
        self._closed = False

    @property
    def waiting_alerts(self) -> int:
        """How many alerts are handed over and not recorded yet."""
        return self._waiting

    def record(self, work: Work, timeout_seconds: float) -> Counts:
        """Record one notification; it is durable when this returns.

        Raises JournalUnavailableError when it cannot be stored (in time), JournalDataError when
        it never could, and what `work.prepare` raises.
        """
        request = _Request(work, work.size)
        request.turn.acquire()
        with self._changed:
            if self._closed:
                raise JournalUnavailableError("the journal is being closed")
            if self._waiting and self._waiting + request.size > _WAITING_ALERTS:
                raise JournalUnavailableError(f"{self._waiting} alerts wait to be stored already")
            self._waiting += request.size
            self._queue.append(request)
            if leads := self._leader is None:
                self._leader = request
        if not leads:
            if not request.turn.acquire(timeout=timeout_seconds):
                self._give_up(request, timeout_seconds)
            leads = request.outcome is None
        if leads:
            self._lead(request)
        if isinstance(request.outcome, Counts):
            return request.outcome
        raise request.outcome or JournalUnavailableError("the commit was interrupted")

    def close(self) -> None:
        """Let what was handed over be recorded; accept nothing more."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._leader is None)

    def _give_up(self, request: _Request, timeout_seconds: float) -> None:
        """Raise JournalUnavailableError, unless its turn came this very moment."""
        with self._changed:
            if request.outcome is not None or self._leader is request:
                return
            if request in self._queue:
                self._queue.remove(request)
                self._waiting -= request.size
        raise JournalUnavailableError(f"the journal took longer than {timeout_seconds:g} s")

    def _lead(self, leader: _Request) -> None:
        """Commit for all who wait, the leader first, and let the next one lead."""
        for _ in range(_YIELDS):
            waiting = len(self._queue)
            time.sleep(0)
            if len(self._queue) == waiting:
                break
        batch, size = [], 0
        with self._changed:
            while self._queue and size < _BATCH_ALERTS:
                batch.append(self._queue.popleft())
                size += batch[-1].size
        try:
            prepared = [(one, intake) for one in batch if (intake := one.prepare()) is not None]
            if prepared:
                self._commit(prepared)
        finally:
            with self._changed:
                self._waiting -= size
                self._leader = self._queue[0] if self._queue else None
                if self._leader is not None:
                    self._leader.turn.release()
                self._changed.notify_all()
            for one in batch:
                if one is not leader:
                    one.outcome = one.outcome or JournalUnavailableError("it was interrupted")
                    one.turn.release()

    def _commit(self, batch: list[tuple[_Request, Intake]]) -> None:
        """Give each request its outcome."""
        try:
            counts = record(self._journal, [intake for _, intake in batch], self._rules)
        except (JournalUnavailableError, JournalUnusableError) as error:
            for one, _ in batch:
                one.outcome = error
        except Exception as error:  # noqa: BLE001 - whatever it is, it is one request's own
            # One of them is to blame, if any: each commits or fails alone.
            if len(batch) > 1:
                for each in batch:
                    self._commit([each])
                return
            _log.warning("notification cannot be recorded", extra={"error": repr(error)})
            batch[0][0].outcome = error
        else:
            self._after_commit(len(batch))
            for (one, _), became in zip(batch, counts, strict=True):
                one.told(became)
