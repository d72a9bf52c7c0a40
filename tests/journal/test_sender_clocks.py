"""Prometheus servers whose clocks are wrong: each real episode has one run, on a real journal.

Real time is the clock of the journal. A peer's startsAt is real time plus the error of its clock.
Alertmanager keeps one alert per fingerprint. It merges what overlaps, and then keeps the earlier
startsAt. What does not overlap replaces the alert, so that two values alternate.

Some things look the same from outside, so they do not happen here:

- The first report of a second peer that is ahead comes when its startsAt has passed, when the
  episode has closed, or after the episode was reported late.
- The first report of a sender that is ahead is late by just the error of its clock.
- An alert ends and fires again between two reports that are less than five minutes apart.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from receiver.alertmanager import parse_notification
from receiver.intake import Counts, intake_of
from receiver.journal import tables
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.policies import Rules
from receiver.routing import Catalog
from tests.support.clock import Clock
from tests.support.fuzz import LONG
from tests.support.notifications import SEQUENCES, T0, alert, notification, sequence

NONE, SECOND, MINUTE = timedelta(0), timedelta(seconds=1), timedelta(minutes=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ERRORS = {
    "2 s ahead": 2 * SECOND,
    "90 s ahead": 90 * SECOND,
    "1 h ahead": HOUR,
    "1 year ahead": 365 * DAY,
    "2 s behind": -2 * SECOND,
    "90 s behind": -90 * SECOND,
}
# Alertmanager takes an alert of this peer for resolved: its endsAt has passed.
FAR_BEHIND = {"1 h behind": -HOUR}
# Prometheus names as the end of a firing alert a time so far ahead: four times its interval.
FIRING_FOR = 4 * MINUTE
RULES = Rules()


def deliver(journal: Journal, body: bytes) -> Counts:
    intake = intake_of(parse_notification(body), "", "a", (), Catalog(frozenset("a")))
    (counts,) = record(journal, [intake], RULES)
    return counts


def fires(journal: Journal, starts_at: datetime) -> Counts:
    return deliver(journal, notification(alert(starts_at=starts_at)))


def resolves(journal: Journal, starts_at: datetime, ends_at: datetime) -> Counts:
    return deliver(journal, notification(alert("f1", "resolved", starts_at, ends_at)))


@dataclass
class Peer:
    """One Prometheus of a pair: the error of its clock, and the episode as it sees it."""

    error: timedelta
    sees_from: datetime = T0
    starts_at: datetime = T0
    is_reported: bool = False


class Conversations(RuleBasedStateMachine):
    """One alert, and all that happens to it."""

    def __init__(self, new_journal: Callable[[Clock], Journal], errors: list[timedelta]) -> None:
        super().__init__()
        self.clock = Clock()
        self.journal = new_journal(self.clock)
        self.errors = errors
        self.is_firing = self.is_prompt = False
        self.began_at = self.reported_at = T0
        self.delivered: list[datetime] = []
        self.episodes = self.accepted = 0

    @initialize(is_ahead_first=st.booleans())
    def peers_start(self, is_ahead_first: bool) -> None:
        errors = self.errors[::-1] if is_ahead_first else self.errors
        self.peers = [Peer(error) for error in errors]

    def _right_peer(self) -> Peer:
        return min(self.peers, key=lambda peer: abs(peer.error))

    def _reports(self, peer: Peer) -> None:
        """Deliver what Alertmanager holds after a report of this peer."""
        self.clock.now = max(self.clock.now, peer.sees_from)
        if not self.delivered and peer.error > FIRING_FOR:
            if abs(self.clock.now - peer.starts_at) < 6 * MINUTE:
                self.clock.now += 12 * MINUTE
        now = self.clock.now
        if peer.error <= -FIRING_FOR:
            if self.delivered:
                resolves(self.journal, peer.starts_at, now + peer.error + FIRING_FOR)
            return
        merged = [
            other.starts_at
            for other in self.peers
            if now >= other.sees_from and abs(other.starts_at - peer.starts_at) < FIRING_FOR
        ]
        starts_at = min(merged)
        is_second_ahead = len(self.peers) > 1 and peer.starts_at - self.began_at > FIRING_FOR
        if is_second_ahead and not peer.is_reported:
            is_prompt = self.is_prompt if self.delivered else self._is_prompt()
            if not is_prompt or starts_at <= now + 5 * MINUTE:
                return
        peer.is_reported = True
        self._deliver(starts_at)

    def _is_prompt(self) -> bool:
        return self.clock.now <= self.began_at + 3 * MINUTE

    def _waits(self, by: timedelta) -> None:
        """Let time pass; the peers alternate, so that no long wait is between their reports."""
        if by > MINUTE and self.delivered and not self._right_peer().is_reported:
            self._reports(self._right_peer())
        self.clock.now += by

    def _deliver(self, starts_at: datetime) -> None:
        self.accepted += fires(self.journal, starts_at).accepted
        if not self.delivered:
            self.is_prompt = self._is_prompt()
        self.delivered.append(starts_at)
        self.reported_at = self.clock.now

    @precondition(lambda self: not self.is_firing)
    @rule(
        gap=st.sampled_from([3 * MINUTE, 10 * MINUTE, 2 * HOUR]),
        delays=st.lists(st.sampled_from([NONE, SECOND, 15 * SECOND]), min_size=2, max_size=2),
    )
    def begins(self, gap: timedelta, delays: list[timedelta]) -> None:
        """The condition comes true, and each peer sees that at its next evaluation."""
        self.clock.now = max(self.clock.now + gap, self.reported_at + 6 * MINUTE)
        self.is_firing, self.began_at = True, self.clock.now
        self.delivered = []
        for peer, delay in zip(self.peers, delays, strict=False):
            peer.sees_from = self.clock.now + delay
            peer.starts_at = peer.sees_from + peer.error
            peer.is_reported = False
        self.episodes += 1

    @precondition(lambda self: self.is_firing)
    @rule(which=st.sampled_from([0, 0, 1]))
    def is_reported(self, which: int) -> None:
        self._reports(self.peers[which % len(self.peers)])

    @precondition(lambda self: self.is_firing)
    @rule()
    def all_report(self) -> None:
        for peer in self.peers:
            self._reports(peer)

    @precondition(lambda self: self.is_firing and self.delivered)
    @rule(which=st.integers(0, 5))
    def is_sent_again(self, which: int) -> None:
        self._deliver(self.delivered[which % len(self.delivered)])

    @precondition(lambda self: self.is_firing and self.delivered)
    @rule(which=st.integers(0, 5), wait=st.sampled_from([SECOND, 4 * MINUTE, 2 * HOUR]))
    def is_falsely_resolved(self, which: int, wait: timedelta) -> None:
        """Prometheus restarts, and then reports the same startsAt."""
        self.clock.now += MINUTE
        resolves(self.journal, self.delivered[-1], self.clock.now)
        self._waits(wait)
        self._deliver(self.delivered[which % len(self.delivered)])

    @rule(by=st.sampled_from([10 * SECOND, MINUTE, 4 * MINUTE, 6 * MINUTE, HOUR, 3 * HOUR]))
    def time_passes(self, by: timedelta) -> None:
        self._waits(by)

    @precondition(lambda self: self.is_firing and self.delivered)
    @rule(which=st.integers(0, 1), is_told=st.booleans())
    def clock_is_corrected(self, which: int, is_told: bool) -> None:
        """A clock that was ahead is set right; a Prometheus that restarts tells the right time."""
        peer = self.peers[which % len(self.peers)]
        if peer.error > NONE and self.clock.now >= peer.sees_from:
            peer.error = NONE
            if is_told:
                peer.starts_at = peer.sees_from

    @precondition(lambda self: self.is_firing and self.delivered and len(self.peers) == 1)
    @rule()
    def corrected_sender_restarts(self) -> None:
        """It takes the time of its restart for the beginning."""
        (peer,) = self.peers
        since_report = self.clock.now - self.reported_at
        if self.clock.now < peer.starts_at and since_report <= 5 * MINUTE:
            peer.error, peer.starts_at = NONE, self.clock.now
            self._reports(peer)

    @precondition(lambda self: self.episodes)
    @rule(is_told=st.booleans())
    def runs_are_deleted(self, is_told: bool) -> None:
        """Retention deletes the runs; the small row of the episode stays."""
        self._waits(31 * DAY)
        with self.journal.writing() as connection:
            connection.execute(sa.delete(tables.runs))
        if self.is_firing and self.delivered and is_told:
            self._deliver(self.delivered[0])

    @precondition(lambda self: self.is_firing)
    @rule(is_told=st.booleans())
    def ends(self, is_told: bool) -> None:
        """The condition is over; Alertmanager tells, or the alert fires again before it does."""
        peer = self._right_peer()
        if not peer.is_reported:
            self._reports(peer)
        self.clock.now = max(self.clock.now, self.began_at + 3 * MINUTE)
        if is_told:
            near = [
                other.error
                for other in self.peers
                if abs(other.error - peer.error) < FIRING_FOR and other.is_reported
            ]
            resolves(self.journal, peer.starts_at, self.clock.now + max(near))
        self.is_firing = False

    @invariant()
    def no_episode_runs_twice_and_none_is_lost(self) -> None:
        assert self.accepted <= self.episodes, "an episode ran twice"
        if not self.is_firing:
            assert self.accepted == self.episodes, "an episode is lost"

    def teardown(self) -> None:
        self.journal.close()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal in which nothing has happened, to copy."""
    file = tmp_path_factory.mktemp("journal") / "empty.db"
    Journal(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def new_journal(tmp_path: Path, empty: Path) -> Callable[[Clock], Journal]:
    """A function that returns an empty journal, in the place of the last one."""
    copy = tmp_path / "copy.db"

    def new(clock: Clock) -> Journal:
        for old in tmp_path.glob("copy.db*"):
            old.unlink()
        shutil.copy(empty, copy)
        return Journal(f"sqlite:///{copy}", clock)

    return new


PAIRS = {
    "right alone": [NONE],
    **{f"{name}, alone": [error] for name, error in ERRORS.items()},
    **{f"{name}, and right": [NONE, error] for name, error in (ERRORS | FAR_BEHIND).items()},
    "both right": [NONE, NONE],
}


@pytest.mark.parametrize("errors", PAIRS.values(), ids=PAIRS)
def test_each_real_episode_runs_once_whatever_the_clocks_of_its_senders_say(
    new_journal: Callable[[Clock], Journal], errors: list[timedelta]
) -> None:
    run_state_machine_as_test(
        lambda: Conversations(new_journal, errors),
        settings=settings(
            max_examples=LONG or 15,
            stateful_step_count=25,
            deadline=None,
            database=None,
            derandomize=not LONG,
            phases=(Phase.generate, Phase.shrink),
        ),
    )


@pytest.mark.parametrize("error", [NONE, *ERRORS.values()], ids=["right", *ERRORS])
@pytest.mark.parametrize("folder", SEQUENCES)
def test_recorded_conversation_of_a_sender_with_a_wrong_clock_has_its_number_of_runs(
    new_journal: Callable[[Clock], Journal], folder: str, error: timedelta
) -> None:
    clock = Clock()
    journal = new_journal(clock)
    accepted = 0
    for now, body in sequence(folder):
        # A sender that is ahead names later times than the clock of the journal.
        clock.now = now - error
        accepted += deliver(journal, body).accepted
    assert accepted == SEQUENCES[folder]
    journal.close()
