"""The conformance suite finds what each bad action does wrong, and nothing in a good one."""

import re
import subprocess
import sys
from textwrap import dedent, indent

import pytest

HEAD = '''
import itertools
import threading
import time

import pytest

from receiver import PermanentError, Setting, StillRunning, TemporaryError, hookimpl
from receiver.testing.conformance import ActionConformance, Subject


class Good:
    """Does what is expected; each bad one changes one thing."""

    def __init__(self):
        self.done, self.trouble, self.lock = set(), None, threading.Lock()

    @hookimpl
    def settings(self):
        return [Setting("GOOD_TOKEN", secret=True)]

    @hookimpl
    def execute(self, context):
        context.raise_if_cancelled()
        self.fail()
        context.raise_if_cancelled()
        self.do(context)

    def fail(self):
        if self.trouble is not None:
            raise self.trouble

    def do(self, context):
        self.done.add(context.idempotency_key)

    @hookimpl
    def resolved(self, context):
        self.done.add(context.idempotency_key)

    @hookimpl
    def describe(self, metric_name):
        return f"would do {metric_name!r}"


class Conforming(ActionConformance):
    action = Good
    temporary, permanent = TemporaryError("later"), PermanentError("mend it")
    patience_seconds = 60

    @pytest.fixture
    def subject(self):
        action = self.action()

        def trouble(error):
            action.trouble = error

        return Subject(
            action,
            effects=lambda: action.done,  # The very set that goes on changing.
            environment={"GOOD_TOKEN": "s3cret"},
            temporary_trouble=lambda: trouble(self.temporary),
            permanent_trouble=lambda: trouble(self.permanent),
            patience_seconds=self.patience_seconds,
        )


class TestGood(Conforming):
    test_import_does_no_work = ActionConformance.test_import_does_no_work


class TestGoodJob(Conforming):
    class action(Good):
        def do(self, context):
            if context.state is None:
                self.done.add(context.idempotency_key)
                context.save({"looks": 2})
                raise StillRunning("it has begun", check_after=1)
            if context.state["looks"]:
                context.save({"looks": context.state["looks"] - 1})
                raise StillRunning("it goes on", check_after=1)


Conforming.test_import_does_no_work = None  # It takes a process each; two of them are enough.
'''
# Name -> what it does otherwise, which test says so, and how.
BAD = {
    "ActsAtImport": (
        "",  # In a file of its own.
        "test_import_does_no_work",
        r"importing acts_at_import acts: open 'trace'; a thread 'at import'; a thread 'a timer'; "
        r"os.utime 'trace'; do it in execute\(\)",
    ),
    "CountsAttempts": (
        """
        class action(Good):
            def do(self, context):
                self.done.add((context.idempotency_key, context.attempt))
        """,
        "test_second_attempt_of_a_run_does_nothing_more",
        r"a second execute\(\) with the same key did more",
    ),
    "CountsResolved": (
        """
        class action(Good):
            @hookimpl
            def resolved(self, context):
                self.done.add((context.idempotency_key, context.attempt))
        """,
        "test_second_attempt_of_a_run_does_nothing_more",
        r"a second resolved\(\) with the same key did more",
    ),
    "ShowsNothing": (
        """
        class action(Good):
            def do(self, context):
                pass
        """,
        "test_second_attempt_of_a_run_does_nothing_more",
        r"execute\(\) succeeded and effects\(\) did not change",
    ),
    "NeverLooks": (
        """
        class action(Good):
            @hookimpl
            def execute(self, context):
                self.fail()
                self.do(context)
        """,
        "test_deadline_that_has_passed_leaves_all_as_it_was",
        r"execute\(\) had no time and returned None",
    ),
    "LooksTooLate": (
        """
        class action(Good):
            @hookimpl
            def execute(self, context):
                self.fail()
                self.do(context)
                context.raise_if_cancelled()
        """,
        "test_deadline_that_has_passed_leaves_all_as_it_was",
        r"execute\(\) had no time and did \{",
    ),
    "CallsACancelAFailure": (
        """
        class action(Good):
            @hookimpl
            def execute(self, context):
                try:
                    Good.execute(self, context)
                except PermanentError:
                    raise
                except Exception as error:
                    if not isinstance(error, TemporaryError) and not context.remaining_seconds():
                        if context.cancellation.reason:
                            raise TemporaryError("stopped") from error
                    raise
        """,
        r"test_cancel_half_way_can_be_made_up_for\[1\]",
        r"cancelled at look 1, execute\(\) raised TemporaryError",
    ),
    "IgnoresACancel": (
        """
        patience_seconds = 0.5

        class action(Good):
            @hookimpl
            def execute(self, context):
                context.remaining_seconds()
                if context.cancellation.reason:
                    time.sleep(0.7)
                    return self.do(context)
                Good.execute(self, context)
        """,
        r"test_cancel_half_way_can_be_made_up_for\[1\]",
        r"execute\(\) took [0-9.]+ s to stop",
    ),
    "LeavesItHalfDone": (
        """
        class action(Good):
            @hookimpl
            def execute(self, context):
                context.raise_if_cancelled()
                self.fail()
                self.done.add((context.idempotency_key, context.attempt))
                context.raise_if_cancelled()
                self.done.add(context.idempotency_key)
        """,
        r"test_cancel_half_way_can_be_made_up_for\[3\]",
        r"cancelled at look 3 and tried again, execute\(\) did not do what it does at once",
    ),
    "TakesItsTime": (
        """
        patience_seconds = 0.5

        class action(Good):
            @hookimpl
            def execute(self, context):
                if context.is_cancelled:
                    time.sleep(0.7)
                Good.execute(self, context)
        """,
        "test_deadline_that_has_passed_leaves_all_as_it_was",
        r"execute\(\) took [0-9.]+ s to stop",
    ),
    "StartsItsJobAgain": (
        """
        class action(Good):
            def do(self, context):
                self.done.add((context.idempotency_key, context.attempt))
                context.save("started")
        """,
        "test_job_that_was_saved_is_not_started_again",
        r"execute\(\) saved a state, died, and was called again",
    ),
    "NeverEndsItsJob": (
        """
        class action(Good):
            @hookimpl
            def resolved(self, context):
                raise StillRunning
        """,
        "test_second_attempt_of_a_run_does_nothing_more",
        r"resolved\(\) raised StillRunning 200 times",
    ),
    "GivesUp": (
        'temporary = PermanentError("no")',
        "test_trouble_says_whether_trying_again_helps",
        r"in trouble that passes execute\(\) raised PermanentError",
    ),
    "TriesForEver": (
        'permanent = ValueError("no")',
        "test_trouble_says_whether_trying_again_helps",
        r"in trouble that a person must mend execute\(\) raised ValueError",
    ),
    "SaysNothing": (
        "permanent = PermanentError()",
        "test_trouble_says_whether_trying_again_helps",
        "the PermanentError says nothing",
    ),
    "TellsSecrets": (
        'temporary = TemporaryError("401 for s3cret")',
        "test_trouble_says_whether_trying_again_helps",
        "tells a secret",
    ),
    "HidesTrouble": (
        "temporary = None",
        "test_trouble_says_whether_trying_again_helps",
        r"in trouble execute\(\) returned None",
    ),
    "ActsInADryRun": (
        """
        class action(Good):
            @hookimpl
            def describe(self, context):
                self.done.add("a dry run")
                return "would do it"
        """,
        "test_dry_run_touches_nothing",
        r"describe\(\) acted",
    ),
    "PrintsHostileText": (
        """
        class action(Good):
            @hookimpl
            def describe(self, metric_name):
                return f"would do {metric_name}"
        """,
        "test_dry_run_touches_nothing",
        r"describe\(\) returned .*; return one printable line",
    ),
    "SharesItsState": (
        """
        class action(Good):
            @hookimpl
            def execute(self, context):
                context.raise_if_cancelled()
                self.fail()
                self.key = context.idempotency_key
                time.sleep(0.05)
                self.done.add(self.key)
        """,
        "test_threads_do_not_disturb_each_other",
        "one after the other did what all at once had not",
    ),
}
ACTS_AT_IMPORT = """
import os, pathlib, threading
from receiver import hookimpl
pathlib.Path("trace").write_text("I was here")
thread = threading.Thread(target=print, name="at import")
thread.start()
thread.join()
timer = threading.Timer(60, print)
timer.name, timer.daemon = "a timer", True
timer.start()
os.utime("trace")

from receiver.testing import make_alert  # What imports others only is no work.

class Action:
    def __init__(self):
        self.done = set()

    @hookimpl
    def execute(self, context): ...
"""

BAD_IMPORT = """
import acts_at_import
import pytest
from receiver.testing.conformance import ActionConformance, Subject

class TestActsAtImport(ActionConformance):
    @pytest.fixture
    def subject(self):
        return Subject(acts_at_import.Action(), effects=list)
"""


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """What a run of the suite on all of them prints, and its failures by the test's name."""
    directory = tmp_path_factory.mktemp("bad")
    (directory / "acts_at_import.py").write_text(ACTS_AT_IMPORT)
    classes = [
        f"class Test{name}(Conforming):\n{indent(dedent(body).strip(), '    ')}\n"
        for name, (body, _, _) in BAD.items()
        if body
    ]
    (directory / "test_bad_import.py").write_text(BAD_IMPORT)
    other = "def test_of_another_kind():\n    assert False\n"
    (directory / "test_bad.py").write_text("\n\n".join([HEAD, *classes, other]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "receiver.testing.conformance", "-m", "conformance",
         "--strict-markers", "-W", "error", "-q", "--tb=line", "-rf", "-p", "no:cacheprovider",
         "-o", "console_output_style=classic", "."],
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "2000", "TMPDIR": str(directory)},
        cwd=directory, text=True, stdout=subprocess.PIPE, timeout=300, check=False,
    )  # fmt: skip
    found = re.findall(
        r"^FAILED test_bad\w*\.py::Test(\S+) - Failed: (.*)$", done.stdout, re.MULTILINE
    )
    return done.stdout, dict(found)


@pytest.mark.parametrize("name", BAD)
def test_bad_action_is_found_out(name: str, failures: tuple[str, dict[str, str]]) -> None:
    _, test, why = BAD[name]
    (said,) = [
        text for where, text in failures[1].items()
        if re.fullmatch(f"{name}::{test}", where)
    ]  # fmt: skip
    assert re.search(why, said), said


def test_good_action_passes_and_no_other_test_is_run(
    failures: tuple[str, dict[str, str]],
) -> None:
    output, found = failures
    assert not [name for name in found if name.startswith(("Good::", "GoodJob::"))]
    assert "test_of_another_kind" not in output
    assert re.search(r"\d+ failed, \d+ passed, 1 deselected", output), output
