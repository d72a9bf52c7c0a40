"""Group commit: one thread that records the notifications of many requests in one transaction.

Each request is answered after its own commit. After a data error each request of the batch
commits alone, so that a poisoned one never fails its neighbours.
"""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field

from receiver.errors import JournalUnavailableError, JournalUnusableError
from receiver.intake import Counts, Intake
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.policies import Rules

_log = logging.getLogger(__name__)

# One transaction takes no more than this, so that nobody waits long behind it.
_BATCH_ALERTS = 2_000
# Beyond this many waiting alerts a request is refused at once: Alertmanager sends it again.
_WAITING_ALERTS = 50_000


@dataclass(frozen=True)
class _Request:
    intake: Intake
    answer: Future[Counts] = field(default_factory=Future)


class Writer:
    """Records notifications for the request threads of one process."""

    def __init__(self, journal: Journal, rules: Rules, after_commit: Callable[[int], None]) -> None:
        """Start the thread.

        `after_commit` is called after each commit with the number of its notifications, and must
        not block.
        """
        self._journal = journal
        self._rules = rules
        self._after_commit = after_commit
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    def record(self, intake: Intake, timeout_seconds: float) -> Counts:
        """Record one notification; it is durable when this returns.

        Raises JournalUnavailableError when it cannot be stored (in time), JournalDataError when
        it never could.
        """
        request = _Request(intake)
        size = len(intake.alerts)
        with self._lock:
            if self._closed:
                raise JournalUnavailableError("the journal is being closed")
            if self._waiting and self._waiting + size > _WAITING_ALERTS:
                raise JournalUnavailableError(f"{self._waiting} alerts wait to be stored already")
            self._waiting += size
            self._requests.put(request)
        try:
            return request.answer.result(timeout_seconds)
        except FutureTimeoutError:
            raise JournalUnavailableError(
                f"the journal took longer than {timeout_seconds:g} s"
            ) from None
        finally:
            with self._lock:
                self._waiting -= size

    def close(self) -> None:
        """Record what was handed over, then stop."""
        with self._lock:
            self._closed = True
            self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            request = self._requests.get()
            if request is None:
                return
            batch, size, stop = [request], len(request.intake.alerts), False
            while size < _BATCH_ALERTS:
                try:
                    another = self._requests.get_nowait()
                except queue.Empty:
                    break
                if another is None:
                    stop = True
                    break
                batch.append(another)
                size += len(another.intake.alerts)
            self._commit(batch)
            if stop:
                return

    def _commit(self, batch: list[_Request]) -> None:
        try:
            counts = record(self._journal, [one.intake for one in batch], self._rules)
        except (JournalUnavailableError, JournalUnusableError) as error:
            for one in batch:
                one.answer.set_exception(error)
        except Exception as error:  # noqa: BLE001 - the thread's outermost loop
            # One of them is to blame, if any: each commits or fails alone.
            if len(batch) == 1:
                _log.warning("notification cannot be recorded", extra={"error": repr(error)})
                batch[0].answer.set_exception(error)
                return
            for one in batch:
                self._commit([one])
        else:
            for one, count in zip(batch, counts, strict=True):
                one.answer.set_result(count)
            self._after_commit(len(batch))
