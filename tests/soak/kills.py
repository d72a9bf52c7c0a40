"""Kills a receiver's processes at random moments under load, and says what that broke.

    python -m tests.soak.kills --kills 2000 --seed 7

Real processes, a journal on SQLite, a few threads that post as Alertmanager does: what gets no 2xx
is posted again. In the end every accepted alert must have been acted on, and nothing twice but
what a `kill -9` had cut off: of its worker or fork server, which uses up no attempt, or of its
executor, which does. The exit code is 1 when anything was violated.
"""

import argparse
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import requests

from tests.support.notifications import alert, notification
from tests.support.processes import children_of, descendants_of, send
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until
from tests.support.witness import Record, Seen, Witness

VICTIMS = (
    "web", "web master", "web worker", "worker", "fork server", "executor", "supervisor", "all"
)  # fmt: skip
_SENDERS = 4
# A run of the witness takes 30 ms and four run at a time: the worker is at it for about 0.2 s.
_NOTIFICATIONS = 25
_LONGEST_DELAY_SECONDS = 0.25
# Longer than the longest pause of a run that was interrupted.
_OUTCOME_SECONDS = 330.0
_FOUND_MICROSECONDS = 5_000_000
# A run survives so many deaths of its workers. After so many it runs alone, and causes the next.
_SURVIVED_DEATHS = 10
_DEATHS_BEFORE_ALONE = 2


@dataclass(frozen=True)
class Planned:
    """One kill to come. An early one does not even wait for the receiver to accept again."""

    victim: str
    signal: signal.Signals
    delay_seconds: float
    early: bool


@dataclass(frozen=True)
class Kill:
    """One kill as it happened: between `before` and `after`, microseconds since 1970."""

    victim: str
    signal: signal.Signals
    pids: tuple[int, ...]
    before: int
    after: int

    def interrupts(self, attempt: dict[str, Any]) -> bool:
        """Whether it may have ended the worker in the midst of an attempt."""
        return self.victim != "executor" and self._meets(attempt)

    def crashes(self, attempt: dict[str, Any]) -> bool:
        """Whether it may have ended the executor in the midst of an attempt."""
        return self.victim == "executor" and self._meets(attempt)

    def _meets(self, attempt: dict[str, Any]) -> bool:
        _, _, pid, _ = attempt["owner"].rsplit("-", 3)
        # A worker may claim more before it finds that its fork server or an executor has ended.
        is_found_later = self.victim in ("fork server", "executor")
        until = self.after + (_FOUND_MICROSECONDS if is_found_later else 0)
        return (
            self.signal in (signal.SIGKILL, signal.SIGSTOP)
            and int(pid) in self.pids
            and attempt["started_at"] <= until
            and (attempt["finished_at"] is None or attempt["finished_at"] >= self.before)
        )


@dataclass
class Evidence:
    """All that is known once the receiver has come to rest."""

    accepted: list[str] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    integrity: str = "ok"
    problems: list[str] = field(default_factory=list)

    def ended(self, outcome: str) -> int:
        """Return how many attempts ended so."""
        return sum(one["outcome"] == outcome for one in self.attempts)

    def most_deaths(self) -> int:
        """Return how often the worker of one run died, at most."""
        return max((run["interruptions"] for run in self.runs), default=0)


def plan(kills: int, seed: int, signals: Sequence[signal.Signals]) -> list[Planned]:
    """Return so many kills, every victim about as often, in an order that the seed decides."""
    chance = random.Random(seed)
    planned: list[Planned] = []
    while len(planned) < kills:
        # Shuffled round by round: the supervisor itself falls before its children have died so
        # often that it would, rightly, give up.
        for victim in chance.sample(VICTIMS, len(VICTIMS)):
            delay = chance.uniform(0, _LONGEST_DELAY_SECONDS)
            planned.append(Planned(victim, chance.choice(signals), delay, chance.random() < 0.25))
    return planned[:kills]


class Senders:
    """Threads that post one notification per episode, each until it is answered 2xx."""

    def __init__(self, url: str) -> None:
        self.accepted: list[str] = []
        self.problems: list[str] = []
        self._url = f"{url}/webhook/witness"
        self._released = threading.Semaphore(0)
        self._numbers = iter(range(sys.maxsize))
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(_SENDERS)]
        for thread in self._threads:
            thread.start()

    def release(self, notifications: int) -> None:
        """Let so many more be posted."""
        self._released.release(notifications)

    def close(self) -> None:
        """End the threads, whatever is still to post."""
        self._ending.set()
        self._released.release(len(self._threads))
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with requests.Session() as session:
            while True:
                self._released.acquire()
                if self._ending.is_set():
                    return
                with self._lock:
                    number = next(self._numbers)
                self._post(session, f"{number:08x}")

    def _post(self, session: requests.Session, fingerprint: str) -> None:
        body = notification(alert(fingerprint, annotations={"value": "1"}))
        while not self._ending.is_set():
            try:
                answer = session.post(
                    self._url, body, headers={"Content-Type": "application/json"}, timeout=30
                )
            except requests.RequestException:
                self._ending.wait(0.05)  # As Alertmanager: a pause, then the same again.
                continue
            if answer.ok:
                counts = answer.json()
                if counts["accepted"] + counts["duplicate"] != 1:
                    self.problems.append(f"{fingerprint} was answered {counts}")
                self.accepted.append(fingerprint)
                return
            if answer.status_code != 503:
                self.problems.append(
                    f"{fingerprint} was answered {answer.status_code}: {answer.text[:200]}"
                )
                return
            self._ending.wait(0.05)


class Campaign:
    """One receiver and all that is done to it."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        witness = Witness(directory)
        self._say = say
        self._witness = witness
        self._record = Record(directory / "data")
        self._kills: list[Kill] = []
        self._problems: list[str] = []
        self._receiver = Receiver(
            "serve",
            {
                "RECEIVER_DATA_DIR": str(directory / "data"),
                "LOG_LEVEL": "warning",
                # A run may be hit again and again; that must not be why it fails.
                "RECEIVER_ACTION_WITNESS_MAX_ATTEMPTS": "100",
                "RECEIVER_ACTION_WITNESS_BACKOFF": "10ms..50ms",
                "RECEIVER_ACTION_WITNESS_BREAKER": "none",
                **witness.environment,
            },
            directory / "receiver.log",
        )
        self._senders = Senders(self._receiver.url)

    def close(self) -> None:
        """End the threads, and the receiver as it is."""
        self._senders.close()
        self._receiver.kill()

    def run(self, planned: Sequence[Planned], notifications: int) -> Evidence:
        """Carry out a plan, with so many notifications per kill; wait for rest, and tell all."""
        try:
            for number, one in enumerate(planned, 1):
                self._round(one, notifications)
                if number % 20 == 0 or number == len(planned):
                    accepted = len(self._senders.accepted)
                    self._say(f"{number} of {len(planned)} kills, {accepted} accepted")
            self._come_to_rest(notifications * len(planned))
        except AssertionError as error:  # A deadline that passed; all the rest still counts.
            self._problems.append(str(error))
        return self._evidence()

    def _round(self, planned: Planned, notifications: int) -> None:
        before = len(self._senders.accepted)
        self._senders.release(notifications)
        if not planned.early:
            wait_until(lambda: self._has_accepted(before), 60, "accepting again")
        time.sleep(planned.delay_seconds)  # The random moment; it waits for nothing.
        self._strike(planned)

    def _has_accepted(self, before: int) -> bool:
        self._receiver.revive()
        return len(self._senders.accepted) > before

    def _strike(self, planned: Planned) -> None:
        def victims() -> list[int]:
            self._receiver.revive()
            return self._pids(planned.victim)

        pids = wait_until(victims, 60, f"{planned.victim} there")
        if planned.victim == "executor":
            pids = [random.Random(planned.delay_seconds).choice(pids)]
        process = self._receiver.process
        assert process is not None
        has_begun = bool(children_of(process.pid))
        # The journal knows attempts by their worker.
        served = self._pids("worker") if planned.victim in ("fork server", "executor") else []
        before = time.time_ns() // 1000
        hit = tuple(pid for pid in pids if send(pid, planned.signal))
        if planned.victim in ("supervisor", "all"):
            code = process.wait(60)
            # While it is still being loaded, nothing has to be ended in good order.
            if planned.signal == signal.SIGTERM and code != 0 and has_begun:
                self._problems.append(f"after SIGTERM the supervisor ended with {code}")
        after = time.time_ns() // 1000
        self._kills.append(Kill(planned.victim, planned.signal, (*hit, *served), before, after))
        if process.poll() is not None:
            if planned.victim not in ("supervisor", "all"):
                self._problems.append(f"the supervisor gave up: {process.returncode}")
            self._receiver.start()

    def _pids(self, victim: str) -> list[int]:
        process = self._receiver.process
        assert process is not None
        children = self._receiver.children()
        web = [children["web"]] if "web" in children else []
        worker = [children["worker"]] if "worker" in children else []
        match victim:
            case "supervisor":
                return [process.pid]
            case "all":
                return [process.pid, *descendants_of(process.pid)]
            case "worker":
                return worker
            case "fork server":
                return [one for parent in worker for one in children_of(parent)]
            case "executor":
                forking = [one for parent in worker for one in children_of(parent)]
                return [one for parent in forking for one in children_of(parent)]
            case "web master":
                return web
            case "web worker":
                return [one for master in web for one in children_of(master)]
        return web + [one for master in web for one in children_of(master)]

    def _come_to_rest(self, notifications: int) -> None:
        wait_until(
            lambda: self._has_accepted(notifications - len(self._senders.problems) - 1),
            _OUTCOME_SECONDS,
            "every notification accepted",
        )
        # Of thousands of kills thousands of runs are left; more time is due as long as some end.
        while left := self._record.unfinished():
            fewer = lambda left=left: self._record.unfinished() < left  # noqa: E731
            wait_until(fewer, _OUTCOME_SECONDS, f"another of {left} outcomes")
        code = self._receiver.stop(60)
        if code != 0:
            self._problems.append(f"in the end the receiver ended with {code}")

    def _evidence(self) -> Evidence:
        self.close()
        with closing(sqlite3.connect(self._record.file)) as file:
            integrity = "; ".join(found for (found,) in file.execute("PRAGMA integrity_check"))
        return Evidence(
            accepted=list(self._senders.accepted),
            kills=self._kills,
            runs=self._record.rows("SELECT * FROM runs"),
            attempts=self._record.rows("SELECT * FROM attempts ORDER BY run_id, number"),
            seen=self._witness.seen(),
            integrity=integrity,
            problems=self._problems + self._senders.problems,
        )


def violations(evidence: Evidence) -> list[str]:
    """Return every promise that was broken, in words."""
    found = list(evidence.problems)
    if evidence.integrity != "ok":
        found.append(f"the journal is damaged: {evidence.integrity}")
    return [*found, *_wrong_runs(evidence), *_wrong_attempts(evidence), *_wrong_deeds(evidence)]


def _wrong_runs(evidence: Evidence) -> list[str]:
    found: list[str] = []
    identity = ("source", "fingerprint", "action", "starts_at", "kind", "ordinal")
    for one, times in Counter(
        tuple(run[name] for name in identity) for run in evidence.runs
    ).items():
        if times != 1:
            found.append(f"the run {one} exists {times} times")
    runs_of = Counter(run["fingerprint"] for run in evidence.runs)
    found += [
        f"{fingerprint} was accepted and has {runs_of[fingerprint]} runs"
        for fingerprint in evidence.accepted
        if runs_of[fingerprint] != 1
    ]
    found += [
        f"run {run['id']} is {run['state']}, {run['outcome']}: {run['reason']}"
        for run in evidence.runs
        if (run["state"], run["outcome"]) != ("finished", "succeeded") and not _is_unlucky(run)
    ]
    return found


def _is_unlucky(run: dict[str, Any]) -> bool:
    """Whether so many workers died during a run that it rightly ended as unknown."""
    return run["outcome"] == "unknown" and run["interruptions"] > _SURVIVED_DEATHS


def _wrong_attempts(evidence: Evidence) -> list[str]:
    found: list[str] = []
    attempts_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for attempt in evidence.attempts:
        attempts_of[attempt["run_id"]].append(attempt)
    crashed = 0
    for run in evidence.runs:
        attempts = attempts_of.pop(run["id"], [])
        outcomes = [one["outcome"] for one in attempts]
        cut_off = attempts if _is_unlucky(run) else attempts[:-1]
        if (
            not {*outcomes[: len(cut_off)]} <= {"interrupted", "crashed"}
            or outcomes[len(cut_off) :] != ["succeeded"][: not _is_unlucky(run)]
            or outcomes.count("interrupted") > _DEATHS_BEFORE_ALONE
        ):
            found.append(f"run {run['id']} had attempts that ended {outcomes}")
        if run["attempts"] != len(attempts):
            found.append(f"run {run['id']} counts {run['attempts']} attempts of {len(attempts)}")
        if run["attempts_before"] != outcomes.count("interrupted"):
            found.append(
                f"run {run['id']} counts {run['attempts_before']} attempts as not used up, "
                f"of {outcomes}"
            )
        for number, one in enumerate(cut_off):
            runs_alone = outcomes[:number].count("interrupted") == _DEATHS_BEFORE_ALONE
            is_interrupted = one["outcome"] == ("crashed" if runs_alone else "interrupted")
            if is_interrupted and any(kill.interrupts(one) for kill in evidence.kills):
                continue
            if one["outcome"] == "crashed" and any(kill.crashes(one) for kill in evidence.kills):
                crashed += 1
                continue
            found.append(
                f"run {run['id']} was attempted again, but no kill -9 of its worker or executor "
                f"({one['owner']}) explains that attempt {one['number']} was {one['outcome']}"
            )
    executors = sum(kill.victim == "executor" for kill in evidence.kills)
    if crashed > executors:
        found.append(f"{crashed} attempts crashed, and {executors} executors were killed")
    found += [f"run {run_id} is gone, its attempts are not" for run_id in attempts_of]
    return found


def _wrong_deeds(evidence: Evidence) -> list[str]:
    found: list[str] = []
    known = {(one["run_id"], one["number"]): one["outcome"] for one in evidence.attempts}
    deeds = Counter((one.event, one.run_id, one.attempt) for one in evidence.seen)
    keys: dict[int, set[str]] = defaultdict(set)
    for one in evidence.seen:
        keys[one.run_id].add(one.key)
    for (event, run_id, attempt), times in deeds.items():
        if times != 1:
            found.append(f"attempt {attempt} of run {run_id} {event} {times} times")
        if (run_id, attempt) not in known:
            found.append(f"attempt {attempt} of run {run_id} {event}, and the journal knows none")
    for (run_id, attempt), outcome in known.items():
        if outcome == "succeeded" and not deeds["ends", run_id, attempt]:
            found.append(f"attempt {attempt} of run {run_id} succeeded and was never made")
    for run_id, of_run in keys.items():
        if len(of_run) != 1:
            found.append(f"run {run_id} had {len(of_run)} idempotency keys")
    if len(set().union(*keys.values())) != len(keys):
        found.append("two runs had the same idempotency key")
    return found


def run_campaign(
    directory: Path,
    kills: int,
    seed: int,
    signals: Sequence[signal.Signals],
    say: Callable[[str], None] = print,
) -> Evidence:
    """Kill so many times, with one of the signals each; return what there is to judge."""
    campaign = Campaign(directory, say)
    try:
        return campaign.run(plan(kills, seed, signals), _NOTIFICATIONS)
    finally:
        campaign.close()


_SIGNALS = {
    "kill": (signal.SIGKILL,),
    "term": (signal.SIGTERM,),
    "both": (signal.SIGKILL, signal.SIGTERM),
}


def main() -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="decides whom and when (default: 1)")
    parser.add_argument(
        "--signal", choices=sorted(_SIGNALS), default="both", help="what they get (default: both)"
    )
    parser.add_argument("--directory", type=Path, help="for journal and logs (default: removed)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="kills-"))
    directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    signals = _SIGNALS[options.signal]
    evidence = run_campaign(directory, options.kills, options.seed, signals, say)
    seconds = round(time.monotonic() - began)
    what = (
        f"{len(evidence.kills)} kills, seed {options.seed}, "
        f"{len(evidence.accepted)} notifications accepted, {len(evidence.runs)} runs, {seconds} s"
    )
    return conclude(evidence, what, directory, is_kept=options.directory is not None)


def conclude(evidence: Evidence, what: str, directory: Path, is_kept: bool) -> int:
    """Say what a campaign came to; return the exit code, 1 when a promise was broken."""
    broken = violations(evidence)
    for one in broken[:50]:
        say(f"VIOLATED: {one}")
    say(
        f"{'FAILED' if broken else 'passed'}: {what}, {evidence.ended('interrupted')} attempts "
        f"interrupted, {evidence.ended('crashed')} attempts crashed, "
        f"at most {evidence.most_deaths()} deaths during a run, {len(broken)} violations"
    )
    if broken:
        say(f"journal and logs are in {directory}")
    elif not is_kept:
        shutil.rmtree(directory)
    return 1 if broken else 0


def say(text: str) -> None:
    """Print at once: somebody may be watching."""
    print(text, flush=True)


def end(signum: int, frame: FrameType | None) -> None:
    """End by an exception, as a signal handler: what was started is then ended, too."""
    del signum, frame
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
