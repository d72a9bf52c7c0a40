"""Processes killed at random moments under load; and that the judge of it would notice."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.soak.kills import VICTIMS, Evidence, Kill, plan, violations
from tests.support.documents import ROOT
from tests.support.witness import Seen

_KILLS = 20
_LIMIT_SECONDS = 300

Campaigns = dict[str, subprocess.Popen[str]]


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaigns]:
    """The program on its way with either signal: side by side, for most of it is waiting."""
    started: Campaigns = {}
    try:
        for name in ("kill", "term"):
            started[name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.soak.kills"),
                    *("--kills", str(_KILLS), "--seed", "20"),
                    *("--signal", name, "--directory", tmp_path_factory.mktemp(name)),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
            )
        yield started
    finally:
        for one in started.values():
            one.terminate()  # It ends what it started; without effect when it has ended.
            one.communicate(timeout=60)


def verdict(campaign: subprocess.Popen[str]) -> str:
    """Wait for a campaign, check that it found nothing, and return its last line."""
    printed, _ = campaign.communicate(timeout=_LIMIT_SECONDS)
    assert campaign.returncode == 0, printed
    last = printed.splitlines()[-1]
    assert f"passed: {_KILLS} kills" in last
    assert "500 notifications accepted, 500 runs" in last
    return last


def test_kill_9_loses_no_accepted_alert_and_repeats_only_what_it_interrupted(
    campaigns: Campaigns,
) -> None:
    last = verdict(campaigns["kill"])
    # Had no kill met an attempt under way, nothing of interest was tested.
    assert " 0 attempts interrupted" not in last
    assert " 0 attempts crashed" not in last


def test_sigterm_loses_no_accepted_alert_and_repeats_nothing(campaigns: Campaigns) -> None:
    assert " 0 attempts interrupted, 0 attempts crashed" in verdict(campaigns["term"])


def test_plan_is_decided_by_its_seed_and_meets_every_victim() -> None:
    both = (signal.SIGKILL, signal.SIGTERM)
    assert plan(60, 7, both) == plan(60, 7, both) != plan(60, 8, both)
    assert {one.victim for one in plan(len(VICTIMS), 7, both)} == set(VICTIMS)


def run(run_id: int, fingerprint: str, attempts: int = 1, **more: Any) -> dict[str, Any]:
    """A row of a run that succeeded."""
    return {
        "id": run_id,
        "source": "",
        "fingerprint": fingerprint,
        "action": "witness",
        "starts_at": 0,
        "kind": "fired",
        "ordinal": 0,
        "state": "finished",
        "outcome": "succeeded",
        "reason": "",
        "attempts": attempts,
        "attempts_before": 0,
        "interruptions": 0,
        **more,
    }


def attempt(run_id: int, number: int, outcome: str, started_at: int = 100) -> dict[str, Any]:
    """A row of an attempt that took 100 microseconds, by the worker with pid 77."""
    return {
        "run_id": run_id,
        "number": number,
        "owner": "worker-a-host-77-0a1b2c3d",
        "started_at": started_at,
        "finished_at": started_at + 100,
        "outcome": outcome,
    }


SOUND = Evidence(
    accepted=["a", "b"],
    kills=[Kill("worker", signal.SIGKILL, (77,), before=150, after=160)],
    runs=[run(1, "a"), run(2, "b", attempts=2, attempts_before=1, interruptions=1)],
    attempts=[
        attempt(1, 1, "succeeded"),
        attempt(2, 1, "interrupted"),
        attempt(2, 2, "succeeded", started_at=300),
    ],
    seen=[
        Seen("begins", 1, "key 1", 1),
        Seen("ends", 1, "key 1", 1),
        Seen("begins", 2, "key 2", 1),
        Seen("begins", 2, "key 2", 2),
        Seen("ends", 2, "key 2", 2),
    ],
)


# The same, but the executor was killed.
CRASHED = replace(
    SOUND,
    kills=[replace(SOUND.kills[0], victim="executor")],
    runs=[SOUND.runs[0], run(2, "b", attempts=2)],
    attempts=[SOUND.attempts[0], attempt(2, 1, "crashed"), SOUND.attempts[2]],
)


def killed_often(times: int) -> Evidence:
    """Evidence of a run that met the death of its worker in each of its attempts."""
    outcomes = ["interrupted", "interrupted", *["crashed"] * (times - 2)]
    return Evidence(
        accepted=["a"],
        kills=[
            Kill("worker", signal.SIGKILL, (77,), before=1000 * number, after=1000 * number + 500)
            for number in range(times)
        ],
        runs=[
            run(1, "a", attempts=times, attempts_before=2, interruptions=times, outcome="unknown")
        ],
        attempts=[
            attempt(1, number + 1, outcome, started_at=1000 * number + 100)
            for number, outcome in enumerate(outcomes)
        ],
    )


@pytest.mark.parametrize(
    "evidence", [SOUND, CRASHED, killed_often(11)], ids=["interrupted", "crashed", "unlucky"]
)
def test_judge_finds_nothing_where_nothing_is_wrong(evidence: Evidence) -> None:
    assert violations(evidence) == []


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (killed_often(10), "run 1 is finished, unknown"),
        (replace(killed_often(11), kills=killed_often(10).kills), "attempt 11 was crashed"),
        (
            replace(CRASHED, kills=SOUND.kills),
            "no kill -9 of its worker or executor (worker-a-host-77-0a1b2c3d) explains that "
            "attempt 1 was crashed",
        ),
        (replace(SOUND, kills=CRASHED.kills), "explains that attempt 1 was interrupted"),
        (
            replace(SOUND, runs=[SOUND.runs[0], run(2, "b", attempts=2)]),
            "run 2 counts 0 attempts as not used up",
        ),
        (
            replace(
                CRASHED,
                runs=[CRASHED.runs[0], run(2, "b", attempts=3)],
                attempts=[
                    *CRASHED.attempts[:2],
                    attempt(2, 2, "crashed", started_at=120),
                    attempt(2, 3, "succeeded", started_at=300),
                ],
            ),
            "2 attempts crashed, and 1 executors were killed",
        ),
    ],
    ids=[
        "unknown too early",
        "crash without a death",
        "death taken for a crash",
        "crash taken for a death",
        "attempt used up by a death",
        "more crashes than kills",
    ],
)
def test_judge_tells_crashes_from_interruptions(evidence: Evidence, words: str) -> None:
    assert any(words in one for one in violations(evidence)), violations(evidence)


Change = Callable[[Evidence], Evidence]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda one: replace(one, accepted=["a", "b", "c"]), "c was accepted and has 0 runs"),
        (lambda one: replace(one, runs=[*one.runs, run(3, "a")]), "exists 2 times"),
        (
            lambda one: replace(one, runs=[one.runs[1], run(1, "a", state="queued")]),
            "run 1 is queued",
        ),
        (
            lambda one: replace(one, runs=[one.runs[1], run(1, "a", outcome="failed")]),
            "run 1 is finished, failed",
        ),
        (lambda one: replace(one, kills=[]), "run 2 was attempted again, but no kill -9"),
        (
            lambda one: replace(one, kills=[replace(one.kills[0], signal=signal.SIGTERM)]),
            "run 2 was attempted again, but no kill -9",
        ),
        (
            lambda one: replace(one, kills=[replace(one.kills[0], pids=(78,))]),
            "run 2 was attempted again, but no kill -9",
        ),
        (
            lambda one: replace(one, kills=[replace(one.kills[0], before=40, after=50)]),
            "run 2 was attempted again, but no kill -9",
        ),
        (lambda one: replace(one, attempts=one.attempts[1:]), "run 1 had attempts that ended []"),
        (
            lambda one: replace(one, attempts=[attempt(2, 1, "failed"), *one.attempts[2:]]),
            "run 2 had attempts that ended ['failed', 'succeeded']",
        ),
        (lambda one: replace(one, runs=one.runs[:1]), "run 2 is gone, its attempts are not"),
        (
            lambda one: replace(one, seen=[*one.seen, one.seen[1]]),
            "attempt 1 of run 1 ends 2 times",
        ),
        (
            lambda one: replace(one, seen=[*one.seen, Seen("begins", 1, "key 1", 2)]),
            "the journal knows none",
        ),
        (lambda one: replace(one, seen=one.seen[2:]), "attempt 1 of run 1 succeeded and was never"),
        (
            lambda one: replace(one, seen=[*one.seen[1:], Seen("begins", 1, "key 3", 1)]),
            "run 1 had 2 idempotency keys",
        ),
        (
            lambda one: replace(one, seen=[replace(seen, key="key") for seen in one.seen]),
            "two runs had the same idempotency key",
        ),
        (lambda one: replace(one, integrity="row 3 missing"), "the journal is damaged"),
        (lambda one: replace(one, problems=["a was answered 500"]), "a was answered 500"),
    ],
    ids=[
        "lost alert",
        "identity twice",
        "no outcome",
        "wrong outcome",
        "repeated without a kill",
        "repeated after SIGTERM",
        "repeated after the kill of another process",
        "repeated after a kill before it began",
        "run without an attempt",
        "repeated after a failure",
        "run gone",
        "acted twice in one attempt",
        "acted without an attempt",
        "success without a deed",
        "two keys",
        "shared key",
        "damaged file",
        "wrong answer",
    ],
)
def test_judge_notices(spoil: Change, words: str) -> None:
    assert any(words in one for one in violations(spoil(SOUND)))
