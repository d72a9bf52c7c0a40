"""Carries out queued runs one by one, each step in a commit of its own.

It is what the worker would be without batches: it calls the journal's and the attempt's own
functions, in one thread. `python one_by_one.py NUMBER`, with a receiver's settings in the
environment.
"""

import os
import random
import sys

from receiver import logs
from receiver.context import Cancellation
from receiver.journal import claims, outcomes
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.plugins import load_actions, rules_of
from receiver.settings import load
from receiver.tracing import Span
from receiver.worker.execution import execute_attempt
from receiver.worker.running import RunningAttempt, log_end

_OWNER = "one-by-one"


def main(number: int) -> None:
    """Claim, attempt and record so many runs; each must be there already."""
    settings = load(os.environ, {})
    logs.configure(settings.log_level, settings.log_format)
    actions = load_actions(settings)
    rules, loaded = rules_of(settings, actions), sorted(actions.loaded)
    journal = Journal(settings.journal_url)
    for _ in range(number):
        (run,) = claims.claim_due_runs(journal, _OWNER, loaded, 1, rules).claimed
        policy = rules.policy(run.action)
        attempt = RunningAttempt(run, policy, Span())
        end = execute_attempt(
            run, policy, actions, attempt.deadline, Cancellation(), lambda state: None
        )
        ended = Ended(run.id, run.attempt, end)
        (recorded,) = outcomes.record_ends(journal, _OWNER, [ended], rules, random.random)
        log_end(attempt, recorded)
    journal.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
