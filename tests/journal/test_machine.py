"""Random stories of alerts, workers, crashes, people and time, told to the journal and to a model.

After every step the journal must stand exactly where `episode_model` stands. A failure prints the
shortest story found. For long runs, each with other stories: `RECEIVER_FUZZ_EXAMPLES=5000`.
"""

import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import Phase, event, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from receiver.alertmanager import parse_notification
from receiver.errors import OperationError
from receiver.intake import intake_of
from receiver.journal import approvals, claims, outcomes, requests, retention, tables
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.requests import Person
from receiver.journal.retention import Retention
from receiver.journal.saved_state import save_state
from receiver.policies import AttemptEnd, AttemptOutcome, Policy, Rules
from receiver.routing import Catalog
from tests.support.databases import Databases
from tests.support.episode_model import JITTER, WAITING, Identity, Model, Run
from tests.support.notifications import T0, alert, notification

# So few for each seed: beyond ten, hypothesis goes on with variations of those.
STORIES = 10
# Read at import: no test sees the environment of whoever runs it.
LONG = int(os.environ.get("RECEIVER_FUZZ_EXAMPLES", "0"))
SEEDS = random.sample(range(2**32), LONG // STORIES) if LONG else range(10)

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
NONE, MONTH = timedelta(0), timedelta(days=31)
RETENTION = timedelta(days=30)
NEVER = "0001-01-01T00:00:00Z"
ALERTS = ("f1", "f2")
ACTIONS = ("a", "b", "page")
CATALOG = Catalog(frozenset(ACTIONS))
ALL = {
    table: sa.select(table).order_by(*table.primary_key.columns)
    for table in (tables.runs, tables.attempts, tables.episodes)
}

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Said:
    """One alert of a notification; its times are told by what they are relative to."""

    fingerprint: str
    actions: str
    starts: str = "same"
    ends: str | None = None


# What is named more than once is drawn more often: most of what happens is ordinary.
fingerprints = st.sampled_from(["f1", "f1", "f2"])
actions = st.sampled_from(["a", "a", "a, b", "b"])
fires = st.builds(
    Said,
    fingerprints,
    actions,
    st.sampled_from(
        ["same", "same", "same", "now", "now"]
        + ["later", "edge", "back", "soon", "ahead", "first", "before"]
    ),
)
resolves = st.builds(
    Said,
    fingerprints,
    actions,
    st.just("same"),
    st.sampled_from(["now", "now", "now", "after", "start", "back", "unknown"]),
)
receivers = st.sampled_from(["r1", "r2"])
waits = st.sampled_from([NONE, NONE, 30 * SECOND, 5 * MINUTE, 10 * MINUTE])
workers = st.sampled_from([0, 1])
ends = st.sampled_from(
    ["succeeded", "succeeded", "succeeded"]
    + ["failed", "failed", "permanent", "named", "named past", "asked to stop", "not begun"]
    + ["crashed", "killed", "stopped", "still_running", "still_running", "checked late"]
)
scenes = st.sampled_from(
    ["fires", "fires", "resolves", "resolves", "works", "works", "waits", "waits"]
    + ["begins", "claims", "succeeds", "fails", "gives up", "dies", "never begins"]
    + ["dies", "crashes", "is polled", "is polled", "is stopped"]
)


happenings = {
    "tell": st.fixed_dictionaries(
        {
            "said": st.lists(fires | resolves, min_size=1, max_size=4),
            "receiver": receivers,
            "apart": st.booleans(),
            "after": waits,
        }
    ),
    "turn": st.fixed_dictionaries(
        {
            "worker": workers,
            "how": st.lists(ends, max_size=3),
            "slots": st.integers(0, 4),
            "after": waits,
        }
    ),
    "play": st.fixed_dictionaries(
        {
            "fingerprint": fingerprints,
            "to": actions,
            "plot": st.lists(scenes, min_size=4, max_size=12),
        }
    ),
    "crash": st.fixed_dictionaries({"worker": workers}),
    "frozen": st.fixed_dictionaries(
        {"which": st.integers(0, 7), "outcome": st.sampled_from(["succeeded", "failed"])}
    ),
    "save": st.fixed_dictionaries(
        {"which": st.integers(0, 7), "job": st.integers(1, 3), "is_late": st.booleans()}
    ),
    "ask": st.fixed_dictionaries(
        {
            "asks": st.sampled_from(["cancel", "retry", "approve", "reject"]),
            "which": st.integers(0, 9),
        }
    ),
    "time_passes": st.fixed_dictionaries(
        {
            "by": st.sampled_from([SECOND, MINUTE, 5 * MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, MONTH]),
            "cleans": st.booleans(),
        }
    ),
}
# One rule for all: of many, hypothesis leaves out half in each story, and then little happens.
steps = st.sampled_from(
    ["tell"] * 4
    + ["turn"] * 5
    + ["play"] * 2
    + ["ask", "crash", "crash", "frozen", "save", "time_passes"]
).flatmap(lambda name: st.tuples(st.just(name), happenings[name]))


def policies(max_concurrent: int) -> st.SearchStrategy[Policy]:
    """Return policies with and without all that makes runs follow on runs, but without limits."""
    return st.builds(
        Policy,
        max_attempts=st.sampled_from([2, 3]),
        backoff=st.just((10 * SECOND, MINUTE)),
        on_interrupt=st.sampled_from(["retry", "retry", "hold"]),
        max_duration=st.sampled_from([6 * HOUR, 15 * MINUTE]),
        max_concurrent=st.just(max_concurrent),
        breaker=st.none(),
        repeat_after=st.sampled_from([10 * MINUTE, None]),
        max_repeats=st.sampled_from([2, 1]),
        verify_after=st.sampled_from([5 * MINUTE, None]),
        escalate_to=st.sampled_from(["page", None]),
    )


class Story(RuleBasedStateMachine):
    """What the world does, in any order; few rules, for a story leaves out half of them."""

    def __init__(self, new_journal: Callable[[Clock], Journal]) -> None:
        super().__init__()
        self.now = T0 + HOUR
        self.journal = new_journal(lambda: self.now)
        self.said: dict[str, list[datetime]] = {one: [] for one in ALERTS}
        self.names = (f"w{number}" for number in itertools.count(1))
        self.workers = [next(self.names), next(self.names)]
        self.reported: list[tuple[str, Ended]] = []
        self.cancelled_by_person: set[int] = set()
        self.retried_by_person: set[int] = set()
        self.ids: dict[Identity, int] = {}
        self.was: dict[int, str] = {}
        self.agrees = False

    @initialize(
        a=policies(max_concurrent=4),
        b=policies(max_concurrent=1),
        approval=st.sampled_from(["", "", "a", "b"]),
        tolerance=st.sampled_from([NONE, 30 * SECOND]),
    )
    def begin(self, a: Policy, b: Policy, approval: str, tolerance: timedelta) -> None:
        page = Policy(max_attempts=2, backoff=(10 * SECOND, MINUTE), breaker=None)
        of = {"a": a, "b": b, "page": page}
        if approval:
            of[approval] = replace(of[approval], approval="required")
        self.rules = Rules(tolerance, of, frozenset({"a"}))
        self.model = Model(self.rules, self.now)

    @rule(step=steps)
    def happens(self, step: tuple[str, dict[str, Any]]) -> None:
        name, arguments = step
        getattr(self, name)(**arguments)

    def play(self, fingerprint: str, to: str, plot: list[str]) -> None:
        """What usually happens to one alert, in any order."""
        fired, begun = Said(fingerprint, to), Said(fingerprint, to, "now")
        resolved = Said(fingerprint, to, ends="now")
        for scene in plot:
            match scene:
                case "fires":
                    self.tell([fired], "r1")
                case "begins":
                    self.tell([begun], "r1")
                case "resolves":
                    self.tell([resolved], "r1")
                case "works":
                    self._end(self._claim(0, 4), ["succeeded"])
                case "waits":
                    self.time_passes(5 * MINUTE)
                case "claims":
                    self._claim(0, 4)
                case "succeeds":
                    self._end(self._running(0), ["succeeded"])
                case "fails":
                    self._end(self._running(0), ["failed"])
                case "gives up":
                    self._end(self._running(0), ["permanent"])
                case "never begins":
                    self._end(self._running(0), ["not begun"])
                case "dies":
                    self._claim(0, 4)
                    self.crash(0)
                case "crashes":
                    self._end(self._running(0), ["crashed"])
                case "is polled":
                    self._claim(0, 4)
                    self._end(self._running(0), ["still_running"])
                case "is stopped":
                    self._end(self._running(0), ["stopped"])
            self.check()

    # Alertmanager.

    def tell(
        self, said: list[Said], receiver: str, apart: bool = False, after: timedelta = NONE
    ) -> None:
        """Alerts are recorded at once, in one notification or each in its own."""
        self.time_passes(after)
        self._record([self._alert(one) for one in said], receiver, apart)

    def _alert(self, said: Said) -> dict[str, Any]:
        known = self.said[said.fingerprint] or [self.now]
        starts_at = {
            "same": known[-1],
            "now": self.now,
            "later": known[-1] + 20 * SECOND,
            "edge": known[-1] + 30 * SECOND,
            "back": known[-1] - MINUTE,
            "ahead": self.now + HOUR,
            "soon": self.now + 4 * MINUTE,
            "first": known[0],
            "before": known[-2:][0],
        }[said.starts]
        labels = {"action_plugin": said.actions}
        if said.ends is None:
            self.said[said.fingerprint].append(starts_at)
            return alert(said.fingerprint, "firing", starts_at, labels=labels)
        ends_at = {
            "now": self.now,
            "after": starts_at + SECOND,
            "start": starts_at,
            "back": starts_at - MINUTE,
            "unknown": None,
        }[said.ends]
        body = alert(said.fingerprint, "resolved", starts_at, ends_at, labels)
        return body if ends_at else body | {"endsAt": NEVER}

    def _record(self, alerts: list[dict[str, Any]], receiver: str, apart: bool = False) -> None:
        groups = [[one] for one in alerts] if apart else [alerts]
        bodies = [notification(*one, receiver=receiver) for one in groups]
        batch = [intake_of(parse_notification(one), "", "", (), CATALOG) for one in bodies]
        counts = record(self.journal, batch, self.rules)
        accepted = 0
        for one in alerts:
            fingerprint, starts_at = one["fingerprint"], datetime.fromisoformat(one["startsAt"])
            if one["status"] == "firing":
                for action in one["labels"]["action_plugin"].split(", "):
                    accepted += self.model.fire(fingerprint, action, starts_at, receiver)
            else:
                ends_at = None if one["endsAt"] == NEVER else datetime.fromisoformat(one["endsAt"])
                self.model.resolve(fingerprint, ends_at, receiver)
        assert sum(one.accepted for one in counts) == accepted
        (runs,) = self._read(tables.runs)
        first = {_identity(one) for one in runs if (one.kind, one.ordinal) == ("fired", 0)}
        assert len(first - self.ids.keys()) == accepted, "what was accepted once never is again"

    # Time.

    def time_passes(self, by: timedelta, cleans: bool = False) -> None:
        self.now += by
        self.model.now = self.now
        if cleans:
            retention.delete_all_old(self.journal, Retention(RETENTION, RETENTION, RETENTION))
            self.model.forget(RETENTION)

    # Workers.

    def turn(self, worker: int, how: list[str], slots: int, after: timedelta) -> None:
        """One turn of a worker: as many attempts have ended; it claims, verifies and expires."""
        self.time_passes(after)
        self._end(self._running(worker)[: len(how)], how)
        if slots:
            self._claim(worker, slots)
        effects = dict(outcomes.verify_due(self.journal, ACTIONS, self.rules))
        assert effects == {self.ids[one]: effect for one, effect in self.model.verify().items()}
        expired = set(approvals.expire_approvals(self.journal, ACTIONS, self.rules))
        assert expired == {self.ids[one] for one in self.model.expire()}

    def _claim(self, worker: int, slots: int) -> list[Run]:
        due = [one for one in self.model.runs.values() if not self.model.why_not_now(one)]
        first = min((max(one.due_at, one.created_at) for one in due), default=None)
        owner, begun = self.workers[worker], []
        under_way = len(self._running(worker))
        alone = [one for one in due if self.model.must_run_alone(one)]
        found = claims.claim_due_runs(
            self.journal, owner, ACTIONS, slots, self.rules, under_way=under_way
        )
        for one in found.claimed:
            run = self.model.runs[_identity(one)]
            assert not self.model.why_not_now(run), self.model.why_not_now(run)
            self.model.claim(run, owner)
            assert one.attempt == run.made
            assert one.saved_state == run.saved_state
            assert one.running_since == run.running_since
            assert one.runs_alone == self.model.must_run_alone(run)
            begun.append(run)
        assert len(begun) <= slots
        if any(one.runs_alone for one in found.claimed):
            assert (len(begun), under_way) == (1, 0), "it runs alone"
        if under_way and alone:
            first_alone = min(max(one.due_at, one.created_at) for one in alone)
            late = [one for one in begun if max(one.due_at, one.created_at) > first_alone]
            assert not late, "nothing overtakes a run that must run alone"
        else:
            assert bool(begun) == bool(due), "what is due is claimed"
        order = [max(one.due_at, one.created_at) for one in begun]
        assert order == sorted(order), "what waits longest comes first"
        assert not begun or order[0] == first
        return begun

    def _end(self, runs: list[Run], how: list[str]) -> None:
        """The owner of these runs reports that their attempts ended, in these ways in turn."""
        if not runs:
            return
        ended = [self._ended(run, way) for run, way in zip(runs, itertools.cycle(how))]
        (owner,) = {str(run.owner) for run in runs}
        recorded = outcomes.record_ends(self.journal, owner, ended, self.rules, lambda: JITTER)
        self.reported += [(owner, one) for one in ended]
        for run, one in sorted(zip(runs, ended, strict=True), key=lambda pair: pair[0].row_key):
            way = "permanent" if one.end.permanent else one.end.outcome
            way = way if one.end.has_begun else "not begun"
            pause = one.end.check_after or 30 * SECOND
            self.model.end(run, way, one.end.retry_at, pause)
        told = {one.ended.run_id: one.next.outcome if one.next else "lost" for one in recorded}
        assert told == {self.ids[run.identity]: run.outcome for run in runs}

    def _ended(self, run: Run, how: str) -> Ended:
        named_at = {"named": self.now + 2 * HOUR, "named past": self.now - HOUR}.get(how)
        end = AttemptEnd(AttemptOutcome.FAILED, permanent=how == "permanent", retry_at=named_at)
        if how == "succeeded":
            end = AttemptEnd(AttemptOutcome.SUCCEEDED)
        elif how == "not begun":
            end = AttemptEnd(AttemptOutcome.INTERRUPTED, has_begun=False)
        elif how == "checked late":
            end = AttemptEnd(AttemptOutcome.STILL_RUNNING, check_after=10 * MINUTE)
        elif how in ("crashed", "killed", "stopped", "still_running"):
            end = AttemptEnd(AttemptOutcome(how))
        elif how == "asked to stop" and run.must_stop:
            end = AttemptEnd(AttemptOutcome.CANCELLED, error="a person wants it stopped")
        return Ended(self.ids[run.identity], run.made, end)

    def crash(self, worker: int) -> None:
        """A worker dies, another proves it, and a new one takes its place."""
        dead, lost = self.workers[worker], self._running(worker)
        self.reported += [(dead, self._ended(one, "succeeded")) for one in lost]
        recovered = outcomes.recover_from(self.journal, dead, ACTIONS, self.rules, lambda: JITTER)
        assert len(recovered) == len(lost)
        for run in sorted(lost, key=lambda one: one.row_key):
            self.model.end(run, "interrupted")
        self.workers[worker] = next(self.names)

    def frozen(self, which: int, outcome: str) -> None:
        """The owner of an attempt that is over wakes up and reports it again."""
        if self.reported:
            owner, ended = self.reported[-1 - which % len(self.reported)]
            again = Ended(ended.run_id, ended.attempt, AttemptEnd(AttemptOutcome(outcome)))
            (one,) = outcomes.record_ends(self.journal, owner, [again], self.rules, lambda: JITTER)
            assert one.next is None, "nothing changes any more"

    def save(self, which: int, job: int, is_late: bool) -> None:
        """An attempt saves its state; whoever owned one that is over saves too late."""
        state = f'{{"job": {job}}}'
        running = [*self._running(0), *self._running(1)]
        if is_late and self.reported:
            owner, ended = self.reported[-1 - which % len(self.reported)]
            saved = save_state(self.journal, owner, ended.run_id, ended.attempt, state)
            assert not saved, "nothing changes any more"
        elif running:
            run = running[which % len(running)]
            run_id, owner = self.ids[run.identity], str(run.owner)
            assert save_state(self.journal, owner, run_id, run.made, state)
            self.model.save(run, state)

    # People.

    def ask(self, asks: str, which: int) -> None:
        """A person asks something of a run; what cannot be is refused, and changes nothing."""
        of_state = {"approve": ("awaiting_approval",), "reject": ("awaiting_approval",)}
        of_state |= {"cancel": ("running", *WAITING), "retry": ("finished",)}
        runs = [*self.model.runs.values()][::-1]
        late = [run for run in runs if asks == "approve" and self._is_late(run)]
        fitting = [run for run in runs if run.state in of_state[asks] and run not in late] or runs
        if not fitting:
            return
        run = fitting[which % len(fitting)]
        run_id = self.ids[run.identity]
        may = run.state in of_state[asks] and (asks, run.outcome) != ("retry", "succeeded")
        may = may and run not in late
        request = getattr(requests, asks)
        try:
            request(self.journal, Person("anna", "test"), run_id)
        except OperationError:
            assert not may
            return
        assert may
        if asks == "retry":
            self.cancelled_by_person.discard(run_id)
            self.retried_by_person.add(run_id)
        elif asks != "approve" and run.state != "running":
            self.cancelled_by_person.add(run_id)
        {"retry": self.model.retry, "approve": self.model.approve}.get(asks, self.model.cancel)(run)

    # What holds after every step.

    @invariant()
    def check(self) -> None:
        self.agrees = False
        runs, made, rows = self._read(tables.runs, tables.attempts, tables.episodes)
        attempts: dict[int, dict[int, str | None]] = {one.id: {} for one in runs}
        for one in made:
            attempts[one.run_id][one.number] = one.outcome
        self.ids = {_identity(one): one.id for one in runs}
        assert len(self.ids) == len(runs), "no identity twice"
        found = {_identity(one): _standing(one, attempts[one.id]) for one in runs}
        assert found == {
            identity: _standing(run, run.attempts) for identity, run in self.model.runs.items()
        }
        found_rows = {(one.fingerprint, one.action): _row_standing(one) for one in rows}
        assert found_rows == {key: _row_standing(row) for key, row in self.model.rows.items()}
        self._check_without_model(runs, rows)
        self._count(runs)
        self.agrees = True

    def _check_without_model(self, runs: list[Any], rows: list[Any]) -> None:
        running = Counter((one.action, one.target) for one in runs if one.state == "running")
        assert all(number == 1 for number in running.values()), "runs of one row never overlap"
        closed = {(one.fingerprint, one.action, one.starts_at) for one in rows if one.closed_at}
        for one in runs:
            assert (one.state == "finished") == (one.outcome is not None)
            assert (one.state == "running") == (one.owner is not None)
            if one.id in self.cancelled_by_person:
                assert (one.outcome, one.cancelled_by) == ("cancelled", "person")
            key = (one.fingerprint, one.episode_action, one.starts_at)
            if key in closed and one.id not in self.retried_by_person:
                waits = one.state in WAITING and one.kind in ("fired", "repeat")
                assert not waits, "what is resolved does not run"
        for one in rows:
            assert one.mark_at <= one.seen_at + MINUTE

    def _count(self, runs: list[Any]) -> None:
        """Let `--hypothesis-show-statistics` tell what the stories reach."""
        for one in runs:
            now = f"{one.state} {one.outcome or ''} {one.cancelled_by or ''}"
            if self.was.get(one.id) != now:
                event(f"{one.kind} {min(one.ordinal, 1)}: {self.was.get(one.id, 'new')} -> {now}")
                self.was[one.id] = now

    def teardown(self) -> None:
        try:
            if self.agrees:
                self._finish_the_story()
        finally:
            self.journal.close()

    def _finish_the_story(self) -> None:
        """While alerts are reported, people approve and all goes well, whatever waits is done."""
        for worker in (0, 1):
            self._end(self._running(worker), ["succeeded"])
        for _ in range(8):
            again = [
                alert(key[0], "firing", row.starts_at, labels={"action_plugin": key[1]})
                for key, row in self.model.rows.items()
                if row.closed_at is None
            ]
            self._record(again, "r1")
            self.check()
            while any(
                run.state == "awaiting_approval" and not self._is_late(run)
                for run in self.model.runs.values()
            ):
                self.ask("approve", 0)
            while runs := self._claim(0, 9):
                self._end(runs, ["succeeded"])
            self.check()
            if not any(self._is_left(run) for run in self.model.runs.values()):
                return
            self.turn(0, [], 0, HOUR)
            self.check()
        raise AssertionError("what waits is done in the end")

    def _is_late(self, run: Run) -> bool:
        return run.expires_at is not None and run.expires_at <= self.model.now

    def _is_left(self, run: Run) -> bool:
        row = self.model.rows[run.row_key]
        return run.state != "finished" and row.closed_at is None

    def _running(self, worker: int) -> list[Run]:
        owner = self.workers[worker]
        return [one for one in self.model.runs.values() if one.owner == owner]

    def _read(self, *asked: sa.Table) -> list[list[Any]]:
        """Return all rows of these tables, in order of their keys."""
        with self.journal.reading() as connection:
            return [list(connection.execute(ALL[table])) for table in asked]


def _identity(one: Any) -> Identity:
    return (one.fingerprint, one.action, one.starts_at, one.kind, one.ordinal)


def _standing(one: Any, attempts: dict[int, str | None]) -> dict[str, Any]:
    """Return all that matters of a run, in the journal or in the model."""
    return {
        "episode": one.episode_action,
        "standing": (one.state, one.outcome, one.cancelled_by),
        "due_at": one.due_at if one.state == "queued" else None,
        "owner": one.owner,
        "attempts": attempts,
        "interruptions": one.interruptions,
        "saved_state": one.saved_state,
        "finished_at": one.finished_at,
        "approval": (one.approval, one.expires_at if one.state == "awaiting_approval" else None),
        "effect": (one.verify_at, one.effect, one.effect_seconds),
    }


def _row_standing(one: Any) -> dict[str, Any]:
    return {
        "times": (one.starts_at, one.mark_at, one.seen_at, one.closed_at),
        "ahead_starts_at": one.ahead_starts_at,
        "receiver": one.receiver,
        "round": one.round,
    }


def _tell_stories(new_journal: Callable[[Clock], Journal], number: int) -> None:
    run_state_machine_as_test(
        seed(number)(lambda: Story(new_journal)),
        settings=settings(
            max_examples=STORIES,
            stateful_step_count=25,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
        ),
    )


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal in which nothing has happened, to copy."""
    file = tmp_path_factory.mktemp("journal") / "empty.db"
    Journal(f"sqlite:///{file}").close()
    return file


@pytest.mark.parametrize("number", SEEDS)
def test_any_story_leaves_sqlite_where_it_leaves_the_model(
    tmp_path: Path, empty: Path, number: int
) -> None:
    copy = tmp_path / "copy.db"

    def new_journal(clock: Clock) -> Journal:
        for old in tmp_path.glob("copy.db*"):
            old.unlink()
        shutil.copy(empty, copy)
        return Journal(f"sqlite:///{copy}", clock)

    _tell_stories(new_journal, number)


def test_any_story_leaves_postgresql_where_it_leaves_the_model(databases: Databases) -> None:
    url = databases.new("postgresql")

    def new_journal(clock: Clock) -> Journal:
        journal = Journal(url, clock)
        with journal.writing() as connection:
            for table in tables.metadata.sorted_tables:
                connection.execute(sa.delete(table))
        return journal

    _tell_stories(new_journal, SEEDS[0])
