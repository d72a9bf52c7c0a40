"""Attempts that a stop in good order or the death of their worker cuts off: what that counts."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until
from tests.support.witness import Record, Witness

Start = Callable[..., Receiver]


class Site:
    """A receiver whose action takes as long as an alert says, in one attempt and no more."""

    def __init__(self, start: Start, directory: Path) -> None:
        self.witness = Witness(directory)
        self.record = Record(directory / "data")
        self._start = start

    def serve(self, **environment: str) -> Receiver:
        """Start the receiver."""
        policy = {
            "RECEIVER_ACTION_WITNESS_MAX_ATTEMPTS": "1",
            "RECEIVER_ACTION_WITNESS_BREAKER": "1 failures, 10m",
            "RECEIVER_GRACE_PERIOD": "1s",
            **environment,
        }
        return self._start("serve", **self.witness.environment, **policy).wait_ready()

    def post(self, receiver: Receiver, fingerprint: str, seconds: str) -> None:
        """Let the action run for so many seconds, in each of its attempts."""
        body = notification(alert(fingerprint, annotations={"value": "1", "seconds": seconds}))
        assert receiver.post(body, "/webhook/witness").json()["accepted"] == 1

    def wait_for(self, event: str, times: int) -> None:
        """Wait until so many attempts have begun or ended."""
        wait_until(lambda: len(self.witness.seen(event)) >= times, 60, f"{times} attempts {event}")

    def finished(self, run_id: int = 1) -> dict[str, Any]:
        """Wait for the outcome of a run; return the run."""

        def run() -> dict[str, Any]:
            return self.record.rows("SELECT * FROM runs WHERE id = ?", run_id)[0]

        wait_until(lambda: run()["state"] == "finished", 60, "the outcome of the run")
        return run()

    def outcomes(self, run_id: int = 1) -> list[str]:
        """Return how each attempt of a run ended."""
        return [one["outcome"] for one in self.record.attempts(run_id)]


@pytest.fixture
def site(start_receiver: Start, tmp_path: Path) -> Site:
    return Site(start_receiver, tmp_path)


def kill_worker(receiver: Receiver) -> None:
    os.kill(receiver.children()["worker"], signal.SIGKILL)


def test_three_deploys_during_a_long_action_end_in_its_success(site: Site) -> None:
    receiver = site.serve()
    site.post(receiver, "long", "600 600 600 3")
    for deploys in range(1, 4):
        site.wait_for("begins", deploys)
        assert receiver.stop() == 0
        assert site.outcomes() == ["stopped"] * deploys
        receiver.start()
    run = site.finished()
    assert run["outcome"] == "succeeded"
    assert site.outcomes() == ["stopped", "stopped", "stopped", "succeeded"]
    assert len({one.key for one in site.witness.seen()}) == 1
    assert run["interruptions"] == 0


def test_attempt_that_ends_within_the_grace_period_is_not_cut_off(site: Site) -> None:
    receiver = site.serve(RECEIVER_GRACE_PERIOD="30s")
    site.post(receiver, "short", "1")
    site.wait_for("begins", 1)
    assert receiver.stop() == 0
    assert (site.finished()["outcome"], site.outcomes()) == ("succeeded", ["succeeded"])


def test_stop_that_cuts_off_an_action_to_be_held_ends_its_run_as_unknown(site: Site) -> None:
    receiver = site.serve(RECEIVER_ACTION_WITNESS_ON_INTERRUPT="hold")
    site.post(receiver, "held", "600")
    site.wait_for("begins", 1)
    assert receiver.stop() == 0
    run = site.finished()
    assert (run["outcome"], site.outcomes()) == ("unknown", ["stopped"])
    assert run["reason"] == (
        "the worker stopped before it had ended; it may have acted, and on_interrupt is hold"
    )
    receiver.start()
    receiver.wait_ready()
    site.post(receiver, "next", "0")
    assert site.finished(2)["outcome"] == "succeeded"
    assert len(site.witness.seen("begins")) == 2


def test_death_of_the_worker_uses_up_no_attempt_and_opens_no_breaker(site: Site) -> None:
    receiver = site.serve()
    site.post(receiver, "interrupted", "600 0")
    site.wait_for("begins", 1)
    kill_worker(receiver)
    run = site.finished()
    assert (run["outcome"], site.outcomes()) == ("succeeded", ["interrupted", "succeeded"])
    assert run["interruptions"] == 1


def test_run_that_met_two_deaths_runs_alone_and_the_third_is_its_crash(site: Site) -> None:
    receiver = site.serve()
    site.post(receiver, "deadly", "600")
    for deaths in (1, 2):
        site.wait_for("begins", deaths)
        kill_worker(receiver)
        wait_until(lambda deaths=deaths: len(receiver.lines("worker started")) == deaths + 1)
    site.wait_for("begins", 3)
    kill_worker(receiver)
    run = site.finished()
    assert (run["outcome"], site.outcomes()) == (
        "failed", ["interrupted", "interrupted", "crashed"]
    )  # fmt: skip
    assert "ran alone after 2 deaths of its worker, so it is the cause" in run["error"]
    # A crash counts for the breaker, which opens at the first failure here.
    site.post(receiver, "next", "0")
    query = "SELECT held_by FROM runs WHERE fingerprint = 'next'"
    wait_until(lambda: site.record.rows(query) == [{"held_by": "breaker"}], 60, "the breaker")


def test_run_that_runs_alone_lets_others_go_on_once_it_has_ended(site: Site) -> None:
    receiver = site.serve()
    site.post(receiver, "alone", "600 600 2")
    for deaths in (1, 2):
        site.wait_for("begins", deaths)
        kill_worker(receiver)
        wait_until(lambda deaths=deaths: len(receiver.lines("worker started")) == deaths + 1)
    site.wait_for("begins", 3)
    site.post(receiver, "beside", "0")
    assert (site.finished(1)["outcome"], site.finished(2)["outcome"]) == ("succeeded", "succeeded")
    events = [(one.event, one.run_id) for one in site.witness.seen()]
    assert events[-4:] == [("begins", 1), ("ends", 1), ("begins", 2), ("ends", 2)]
