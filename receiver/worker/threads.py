"""Threads that attempts run in. A thread that never comes back is replaced by a new one."""

import queue
import threading
from collections.abc import Callable


class Threads:
    """A few daemon threads: an action that hangs never keeps the process from ending."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._made = 0

    def start(self, task: Callable[[], None]) -> None:
        """Run a task at once, in an idle thread or a new one."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                self._made += 1
                name = f"attempt-{self._made}"
                threading.Thread(target=self._run, name=name, daemon=True).start()
        self._tasks.put(task)

    def _run(self) -> None:
        while True:
            self._tasks.get()()
            with self._lock:
                self._idle += 1
