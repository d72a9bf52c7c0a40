"""metric-reader's state machine, as its documents say: what the translated rules must equal.

Its code differs in one point: it forgot to reset the timer of hard when soft ended early.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["idle", "soft", "hard"]
STEP_SECONDS = 60


@dataclass(frozen=True)
class Machine:
    """One configuration without pauses; times are in seconds, `None` is a missing value."""

    operator: str
    soft: float
    hard: float | None
    soft_seconds: float = 0
    hard_seconds: float = 0
    missing: str = "zero"

    def is_crossed(self, value: float, threshold: float | None) -> bool:
        """Whether a value lies beyond a threshold."""
        if threshold is None:
            return False
        return value > threshold if self.operator == ">" else value < threshold

    def states(self, values: Sequence[float | None]) -> Iterator[tuple[State, float | None]]:
        """Yield state and value in the middle of each minute; it polls every second."""
        state: State = "idle"
        since_soft = since_hard = last = None
        for now in range(len(values) * STEP_SECONDS):
            value = values[now // STEP_SECONDS]
            last = value if value is not None else last
            seen = value
            if value is None and self.missing != "assume_breached":
                seen = 0.0 if self.missing == "zero" else last
            if value is None and self.missing == "assume_breached":
                state = "soft" if self.hard is None else "hard"
                since_soft = since_hard = now
            elif seen is not None:
                soft, hard = self.is_crossed(seen, self.soft), self.is_crossed(seen, self.hard)
                if not soft:
                    state, since_soft, since_hard = "idle", None, None
                elif state == "idle":
                    since_soft = now if since_soft is None else since_soft
                    if now > since_soft and now - since_soft >= self.soft_seconds:
                        state = "soft"
                elif state == "soft" and hard:
                    since_hard = now if since_hard is None else since_hard
                    if now > since_hard and now - since_hard >= self.hard_seconds:
                        state = "hard"
                elif state == "soft":
                    since_hard = None
            if now % STEP_SECONDS == STEP_SECONDS // 2:
                yield state, seen
