"""Whether an alert begins a new episode, continues one or ends it. Pure.

One row per (source, fingerprint, action) holds the latest episode. A firing alert whose startsAt
is later than the row's watermark begins a new one. No simpler rule gives the right number of runs
for what Alertmanager really sends: re-sends, both peers of a pair, a false resolved followed by
the same startsAt, a startsAt that moves back or on without a resolved.

The clock of a sender can be wrong. So the watermark never passes the journal's clock, and
`_match` lists the cases in which a later startsAt is still the same episode.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto

from receiver.clock import AHEAD, latest_past

# A startsAt that lies further ahead of the journal's clock comes from a sender with a wrong clock.
# After a report of such a sender, so much time may pass until the sender is corrected, or its peer
# with the right clock follows.
FAR_AHEAD = timedelta(minutes=5)
# "Seen" is written at most this often for a row: a pair's second copy costs no write.
SEEN_RESOLUTION = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Episode:
    """The latest episode of one (source, fingerprint, action).

    `starts_at` began the episode. `mark_at` is the latest startsAt that was accepted, at most the
    journal's clock at that time. `seen_at` is when it was last reported firing. `ends_at` and
    `closed_at` are None while it fires. `round` counts how often the action had to run anew
    because the alert fired again after its `resolved` run had begun. `ahead_starts_at` is the
    startsAt under which a peer whose clock is far ahead reports the same episode. It is the row's
    own where such a peer cannot be told from the sender that began the episode.
    """

    source: str
    fingerprint: str
    action: str
    starts_at: datetime
    mark_at: datetime
    seen_at: datetime
    receiver: str
    closed_at: datetime | None = None
    ends_at: datetime | None = None
    round: int = 0
    ahead_starts_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether the alert still fires, as far as anyone said."""
        return self.closed_at is None


@dataclass(frozen=True, slots=True)
class Decision:
    """What one alert means for one row.

    `kind` is `new`, `seen`, `closed` or `put back`. `row` is the row to write, None when it stays
    as it is. `is_ahead`: the sender's clock is ahead of the receiver's, worth a warning.
    """

    kind: str
    reason: str
    row: Episode | None = None
    is_ahead: bool = False


def is_ahead(starts_at: datetime, now: datetime) -> bool:
    """Whether a startsAt lies so far in the future that its sender's clock must be wrong."""
    return starts_at > now + FAR_AHEAD


class _Match(Enum):
    """How a startsAt belongs to the episode of a row."""

    COVERED = auto()
    BEYOND_WATERMARK = auto()
    BY_PEER_AHEAD = auto()


def _match(row: Episode, starts_at: datetime, now: datetime, tolerance: timedelta) -> _Match | None:
    """Return how a firing alert belongs to the episode of a row, None when it does not."""
    if starts_at in (row.starts_at, row.ahead_starts_at):
        return _Match.COVERED
    latest = latest_past(now)
    marks = [row.mark_at, min(row.starts_at, row.seen_at)]
    if starts_at <= latest:
        # What the journal recorded while its clock was ahead says nothing about today.
        marks = [mark for mark in marks if mark <= latest]
    watermark = max(marks, default=None)
    if watermark is not None and starts_at <= watermark:
        return _Match.COVERED
    # Both lie in the future, by the same wrong clock: it moved back, as it does in the past.
    if latest < starts_at <= row.starts_at <= starts_at + FAR_AHEAD:
        return _Match.COVERED
    if watermark is not None and _is_before_end(row, starts_at):
        # The clock that began the episode was ahead, and was corrected or has a right peer.
        is_overtaken = starts_at <= min(row.starts_at, watermark + FAR_AHEAD)
        is_tolerated = row.is_open and starts_at <= watermark + tolerance
        if is_overtaken or is_tolerated:
            return _Match.BEYOND_WATERMARK
    # The clock that began the episode was right, and so was the journal's: a peer's is ahead.
    # Once is enough: when such a startsAt moves on, the alert has fired anew.
    is_peer_ahead = (
        row.is_open
        and row.ahead_starts_at is None
        and is_ahead(starts_at, now)
        and max(row.starts_at, row.seen_at) <= latest
    )
    return _Match.BY_PEER_AHEAD if is_peer_ahead else None


def _is_before_end(row: Episode, starts_at: datetime) -> bool:
    if row.closed_at is None:
        return True
    return starts_at < min(row.closed_at, row.ends_at or row.closed_at)


def needs_identity(
    row: Episode | None, starts_at: datetime, now: datetime, tolerance: timedelta = timedelta(0)
) -> bool:
    """Whether `decide_firing` must be told if a run with this very startsAt exists.

    A row outlives its runs, so without a row only a startsAt from the future can have one.
    """
    if row is None:
        return is_ahead(starts_at, now)
    return _match(row, starts_at, now, tolerance) is None


def decide_firing(
    row: Episode | None,
    source: str,
    fingerprint: str,
    action: str,
    starts_at: datetime,
    receiver: str,
    now: datetime,
    tolerance: timedelta = timedelta(0),
    has_run: bool = False,
) -> Decision:
    """Decide what a firing alert means; `has_run` matters only where `needs_identity` says so."""
    ahead = is_ahead(starts_at, now)
    match = None if row is None else _match(row, starts_at, now, tolerance)
    if row is None or not (match or has_run):
        begun = _begin(source, fingerprint, action, starts_at, receiver, now)
        if row is not None:
            reason = "its startsAt is later than the latest accepted"
            return Decision("new", reason, begun, ahead)
        if has_run:
            return Decision("seen", "a run of this very startsAt exists", begun, ahead)
        return Decision("new", "the first episode of this alert", begun, ahead)
    seen = replace(row, seen_at=now, receiver=receiver)
    if match is _Match.BEYOND_WATERMARK:
        # The watermark moves on, so that it stays the same episode once closed.
        seen = replace(seen, mark_at=max(row.mark_at, min(starts_at, latest_past(now))))
    elif match is _Match.BY_PEER_AHEAD:
        seen = replace(seen, ahead_starts_at=starts_at)
    if not row.is_open:
        reason = "the same episode fires again: the resolved was false"
        return Decision("put back", reason, replace(seen, closed_at=None, ends_at=None), ahead)
    reason = "the same episode"
    if match in (_Match.BEYOND_WATERMARK, _Match.BY_PEER_AHEAD):
        return Decision("seen", reason, seen, ahead)
    # A startsAt ahead of the latest report: that report is the watermark, so each is written.
    resolution = SEEN_RESOLUTION if row.starts_at <= row.seen_at else timedelta(0)
    if timedelta(0) <= now - row.seen_at < resolution:
        return Decision("seen", reason, None, ahead)
    return Decision("seen", reason, seen, ahead)


def _begin(
    source: str, fingerprint: str, action: str, starts_at: datetime, receiver: str, now: datetime
) -> Episode:
    # Only a startsAt of about now shows that the clock of its sender is right.
    is_clock_right = now - FAR_AHEAD <= starts_at <= now + AHEAD
    return Episode(
        source,
        fingerprint,
        action,
        starts_at,
        min(starts_at, now),
        now,
        receiver,
        ahead_starts_at=None if is_clock_right else starts_at,
    )


def decide_resolved(row: Episode, ends_at: datetime | None, now: datetime) -> Decision:
    """Decide what a resolved alert means for a row of its source and fingerprint."""
    if not row.is_open:
        return Decision("seen", "the episode was closed already")
    began_at = min(row.starts_at, row.mark_at)
    # What the journal recorded while its clock was ahead says nothing about today.
    is_known = began_at <= latest_past(now) or (ends_at or now) > latest_past(now)
    if ends_at is not None and is_known and ends_at <= began_at:
        return Decision("seen", "it ended before the latest episode began")
    closed = replace(row, closed_at=now, ends_at=ends_at or now)
    return Decision("closed", "the alert resolved", closed)
