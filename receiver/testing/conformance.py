"""The conformance suite: what the receiver expects of every action, as tests to inherit.

A pytest plugin (`-p receiver.testing.conformance`) that marks what is inherited from it, so that
`pytest -m conformance` runs that alone. A test module says in one fixture what the action acts on:

    class TestConformance(ActionConformance):
        @pytest.fixture
        def subject(self, door):
            return Subject(open_door, effects=door.opened, environment={"DOOR_URL": door.url}, …)
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from receiver.alertmanager import Alert
from receiver.context import Cancellation
from receiver.errors import (
    DeadlineExceededError,
    PermanentError,
    RunCancelledError,
    StillRunning,
)
from receiver.testing import hooks_of, make_alert, make_context, run_action

THREADS = 8
LOOKS = (1, 2, 3, 5, 8, 13)
# A job that the tests start must have ended after so many looks at it.
MOST_LOOKS = 200
_LOOK_SECONDS = 0.02
_HOSTILE = "$(x) `x` {0} %s {{ x }} ../../x \" ' \\ \r\n\t\x1b[31m\u2028\ud800"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "conformance: what the receiver expects of every action")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is inherited from the suite."""
    for item in items:
        owner = getattr(item, "cls", None)
        if isinstance(owner, type) and issubclass(owner, ActionConformance):
            item.add_marker("conformance")


def _alert(number: int) -> Alert:
    return make_alert(labels={"instance": f"host-{number}"}, fingerprint=f"{number:016x}")


@dataclass(frozen=True)
class Subject:
    """An action and what it acts on, fresh for each test.

    `effects` returns what was done so far, as the other side counts it: a collection with an
    element for each thing done. `alert` makes alerts that name different targets. From
    `temporary_trouble` on everything fails in a way that passes by itself; from
    `permanent_trouble` on, which follows it, in one that a person has to mend.
    `patience_seconds` is how long a call may take to notice that it should stop.
    """

    plugin: object
    effects: Callable[[], Collection[object]]
    environment: Mapping[str, str] = field(default_factory=dict)
    alert: Callable[[int], Alert] = _alert
    temporary_trouble: Callable[[], object] | None = None
    permanent_trouble: Callable[[], object] | None = None
    patience_seconds: float = 10.0
    _states: dict[object, str] = field(default_factory=dict, repr=False)

    def call(self, hook: str = "execute", number: int = 1, **changes: Any) -> Any:
        """Call one hook as the worker does, for the alert and with the key of this number.

        What the action saves, its next call with this key finds.
        """
        call = {name: changes.pop(name) for name in ("metric_name", "value") if name in changes}
        fields = {
            "idempotency_key": _key(hook, number), "kind": _KINDS.get(hook, "fired")
        } | changes  # fmt: skip
        key = fields["idempotency_key"]
        saved = self._states.get(key)

        def save(state: str) -> None:
            self._states[key] = state

        fields = {"state": saved and json.loads(saved), "_store": save} | fields
        context = make_context(self.alert(number), **fields)
        return run_action(
            self.plugin, environment=self.environment, context=context, hook=hook, **call
        )

    def finish(self, hook: str = "execute", number: int = 1, **changes: Any) -> Any:
        """Call one hook until its job has ended: as `call`, and again after each StillRunning."""
        for _ in range(MOST_LOOKS):
            try:
                return self.call(hook, number, **changes)
            except StillRunning:
                time.sleep(_LOOK_SECONDS)
        pytest.fail(f"{hook}() raised StillRunning {MOST_LOOKS} times; let its job end sooner")

    def seen(self) -> Collection[object]:
        """Return the effects so far, as they are now: what `effects` returns may go on changing."""
        effects = self.effects()
        if isinstance(effects, Mapping):
            return dict(effects)
        return set(effects) if isinstance(effects, Set) else tuple(effects)

    def has(self, hook: str) -> bool:
        """Whether the action has a hook."""
        return hook in hooks_of(self.plugin)

    def secrets(self) -> list[str]:
        """Return the secrets among its settings, as they were given."""
        declared = self.plugin.settings() if self.has("settings") else ()  # type: ignore[attr-defined]
        return [
            text for one in declared if one.secret and (text := self.environment.get(one.name, ""))
        ]


_KINDS = {"resolved": "resolved"}


class _DeathError(BaseException):
    """Ends an attempt as the death of its process does: no plugin catches it."""


def _key(hook: str, number: int) -> str:
    return f"{hook}-{number:024x}"


class ActionConformance:
    """Tests that every action should pass; a class that inherits them gives `subject`.

    An action to which one of them cannot apply takes it away, and says why:
    `test_trouble_says_whether_trying_again_helps = None`.
    """

    @pytest.fixture
    def subject(self) -> Subject:
        """The action under test, and what it acts on."""
        pytest.fail("give a fixture `subject` that returns a receiver.testing.conformance.Subject")

    def test_import_does_no_work(self, subject: Subject) -> None:
        """Neither files, processes, threads, connections nor pauses: every process imports it."""
        module = getattr(subject.plugin, "__name__", type(subject.plugin).__module__)
        done = subprocess.run(  # noqa: S603 - this very interpreter
            [sys.executable, "-B", "-c", _IMPORT, module, *sys.path],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.fail(f"importing {module} in a fresh process fails:\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        if found:
            pytest.fail(f"importing {module} acts: {'; '.join(found)}; do it in execute()")

    def test_second_attempt_of_a_run_does_nothing_more(self, subject: Subject) -> None:
        """Called twice with one idempotency key, as after a crash: both succeed, as if once."""
        untouched = subject.seen()
        for hook in ("execute", "resolved") if subject.has("resolved") else ("execute",):
            subject.finish(hook)
            once = subject.seen()
            if once == untouched:
                pytest.fail(f"{hook}() succeeded and effects() did not change: let it show more")
            subject.finish(hook, attempt=2)
            if subject.seen() != once:
                pytest.fail(
                    f"a second {hook}() with the same key did more: from {once!r:.300} to "
                    f"{subject.seen()!r:.300}; hand on context.idempotency_key, or look first"
                )

    def test_deadline_that_has_passed_leaves_all_as_it_was(self, subject: Subject) -> None:
        """Out of time before it began: it says so, soon, and has done nothing."""
        untouched, began = subject.seen(), time.monotonic()
        try:
            returned = subject.call(remaining_seconds=0.0)
        except DeadlineExceededError:
            self._expect_soon(subject, began)
        except Exception as error:  # noqa: BLE001 - whatever the plugin raises
            pytest.fail(f"execute() raised {error!r:.300}; let what the context raises pass")
        else:
            pytest.fail(
                f"execute() had no time and returned {returned!r:.300}; begin with "
                "context.raise_if_cancelled()"
            )
        if subject.seen() != untouched:
            pytest.fail(f"execute() had no time and did {subject.seen()!r:.300}")

    @pytest.mark.parametrize("look", LOOKS)
    def test_cancel_half_way_can_be_made_up_for(self, subject: Subject, look: int) -> None:
        """Cancelled at its first, second … look at the context: the next attempt does the rest."""
        untouched = len(subject.seen())
        subject.finish(number=0)
        expected = 2 * len(subject.seen()) - untouched
        cancellation = _CancelledAtLook(look)
        try:
            subject.call(cancellation=cancellation)
        except (RunCancelledError, StillRunning):
            pass
        except Exception as error:  # noqa: BLE001 - whatever the plugin raises
            pytest.fail(
                f"cancelled at look {look}, execute() raised {error!r:.300}; let what the context "
                "raises pass"
            )
        # It may also have finished what was all but done, as long as that took no time.
        if cancellation.cancelled_at is not None:
            self._expect_soon(subject, cancellation.cancelled_at)
        subject.finish(attempt=2)
        if len(subject.seen()) != expected:
            pytest.fail(
                f"cancelled at look {look} and tried again, execute() did not do what it does at "
                f"once: {subject.seen()!r:.300}"
            )

    def test_job_that_was_saved_is_not_started_again(self, subject: Subject) -> None:
        """Its process dies as soon as it has saved a state: the next attempt goes on from there."""
        untouched = len(subject.seen())
        subject.finish(number=0)
        expected = 2 * len(subject.seen()) - untouched

        def save_and_die(state: str) -> None:
            subject._states[_key("execute", 1)] = state
            raise _DeathError

        with suppress(_DeathError, StillRunning):
            subject.call(_store=save_and_die)
        subject.finish(attempt=2)
        if len(subject.seen()) != expected:
            pytest.fail(
                "execute() saved a state, died, and was called again: it did not do what it does "
                f"at once: {subject.seen()!r:.300}; begin with context.state"
            )

    def test_trouble_says_whether_trying_again_helps(
        self, subject: Subject, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What passes by itself is tried again, what does not is not; neither tells a secret."""
        if subject.temporary_trouble is None or subject.permanent_trouble is None:
            pytest.fail("say how it fails (temporary_trouble, permanent_trouble), or why it cannot")
        caplog.set_level("DEBUG", "receiver")
        untouched = subject.seen()
        subject.temporary_trouble()
        temporary = self._expect_error(subject, attempt=1)
        if isinstance(temporary, PermanentError | RunCancelledError):
            pytest.fail(f"in trouble that passes execute() raised {temporary!r:.300}, which does "
                        "not try again; raise TemporaryError")  # fmt: skip
        subject.permanent_trouble()
        permanent = self._expect_error(subject, attempt=2)
        if not isinstance(permanent, PermanentError):
            pytest.fail(f"in trouble that a person must mend execute() raised {permanent!r:.300}, "
                        "which tries again; raise PermanentError")  # fmt: skip
        if not str(permanent):
            pytest.fail("the PermanentError says nothing; say what to do")
        if subject.seen() != untouched:
            pytest.fail("execute() failed, and effects() changed")
        told = f"{temporary} {permanent} {[vars(one) for one in caplog.records]}"
        if any(secret in told for secret in subject.secrets()):
            pytest.fail("an error or a line of the log tells a secret")

    def test_dry_run_touches_nothing(self, subject: Subject) -> None:
        """`describe` returns one sentence, for hostile texts and odd numbers too, and acts not."""
        if not subject.has("describe"):
            pytest.fail("it has no describe(): a dry run could say nothing; return one sentence")
        untouched = subject.seen()
        for metric_name, value in (("queue_depth", 90.0), (_HOSTILE, float("nan"))):
            said = subject.call("describe", metric_name=metric_name, value=value)
            if not isinstance(said, str) or not said.isprintable() or not said.strip():
                pytest.fail(f"describe() returned {said!r:.300}; return one printable line")
            if any(secret in said for secret in subject.secrets()):
                pytest.fail("describe() tells a secret")
        if subject.seen() != untouched:
            pytest.fail(f"describe() acted: {subject.seen()!r:.300}")

    def test_threads_do_not_disturb_each_other(self, subject: Subject) -> None:
        """Runs for different targets at the same time all succeed, each with its own effect."""
        barrier = threading.Barrier(THREADS)

        def call(number: int) -> object:
            barrier.wait(60)
            return subject.finish(number=number)

        with ThreadPoolExecutor(THREADS) as threads:
            for one in [threads.submit(call, number) for number in range(THREADS)]:
                one.result()
        together = subject.seen()
        for number in range(THREADS):
            subject.finish(number=number, attempt=2)
        if subject.seen() != together:
            pytest.fail(
                "one after the other did what all at once had not: from "
                f"{together!r:.300} to {subject.seen()!r:.300}"
            )

    def _expect_soon(self, subject: Subject, since: float) -> None:
        seconds = time.monotonic() - since
        if seconds > subject.patience_seconds:
            pytest.fail(f"execute() took {seconds:.1f} s to stop; give every call a timeout")

    def _expect_error(self, subject: Subject, attempt: int) -> Exception:
        try:
            returned = subject.call(attempt=attempt)
        except Exception as error:  # noqa: BLE001 - whatever the plugin raises
            return error
        pytest.fail(f"in trouble execute() returned {returned!r:.300}; raise what went wrong")


class _CancelledAtLook(Cancellation):
    """Is thrown by the look at it that has this number."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self._left = look
        self._lock = threading.Lock()
        self.cancelled_at: float | None = None

    @property
    def reason(self) -> str | None:
        """Count the look, and throw the switch when it is the one."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self.cancelled_at = time.monotonic()
                self.cancel("cancelled half-way by the conformance suite")
        return super().reason


_IMPORT = """
import importlib, json, os, sys, threading
module, *sys.path = sys.argv[1:]
import receiver, receiver.testing
found = []
EVENTS = {
    "os.chmod", "os.chown", "os.exec", "os.fork", "os.forkpty", "os.kill", "os.link", "os.mkdir",
    "os.posix_spawn", "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.system",
    "os.truncate", "os.unsetenv", "os.utime",
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "sqlite3.connect", "subprocess.Popen", "time.sleep",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
def look(event, arguments):
    if event in EVENTS or event == "open" and (arguments[2] or 0) & WRITING:
        found.append(f"{event} {arguments[0] if arguments else ''!r:.100}")
start = threading.Thread.start
def start_and_tell(self):
    found.append(f"a thread {self.name!r:.100}")
    start(self)
sys.addaudithook(look)
threading.Thread.start = start_and_tell
importlib.import_module(module)
print(json.dumps(found))
"""
