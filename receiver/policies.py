"""Per-action policy: what `[actions.<name>]` and `RECEIVER_ACTION_<NAME>_<KEY>` may say. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from receiver.declarations import Backoff, setting


@dataclass(frozen=True)
class Policy:
    """How the runs of one action are carried out; the fields are the table of the README."""

    timeout: timedelta = setting(
        "timeout", "duration", "60s", "time for one attempt, as `context.deadline`"
    )
    max_attempts: int = setting(
        "max_attempts", "count", "3", "attempts before the run ends `failed`"
    )
    backoff: Backoff = setting(
        "backoff", "backoff", "1s..5m", "first and longest pause between attempts"
    )


def next_attempt_at(
    failed_at: datetime, attempts: int, policy: Policy, jitter: float
) -> datetime | None:
    """Return when to try again, or None when the policy is used up.

    `attempts` counts those already made; `jitter` is a random number in [0, 1). Exponential with
    full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    if attempts >= policy.max_attempts:
        return None
    first, longest = (pause.total_seconds() for pause in policy.backoff)
    # 2**50 times the shortest pause outlasts every `longest`; more would overflow one day.
    ceiling = min(first * 2 ** min(attempts - 1, 50), longest)
    return failed_at + timedelta(seconds=ceiling * jitter)
