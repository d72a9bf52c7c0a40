"""Stores what an attempt saves for the next attempt of its run."""

import sqlalchemy as sa

from receiver.journal.journal import Journal
from receiver.journal.tables import runs
from receiver.policies import MAX_STATE_BYTES


def save_state(journal: Journal, owner: str, run_id: int, attempt: int, state: str) -> bool:
    """Store the state of a run, as JSON text; it is durable when this returns.

    Return False when the attempt is not the run's any more: another worker has taken it over, or
    it has ended. Raise ValueError for a state of more than MAX_STATE_BYTES.
    """
    size = len(state.encode())
    if size > MAX_STATE_BYTES:
        raise ValueError(f"the state has {size} bytes; at most {MAX_STATE_BYTES} can be saved")
    with journal.writing() as connection:
        saved = connection.execute(_SAVE, {
            "run_id": run_id, "made": attempt, "of_owner": owner, "json": state,
        })  # fmt: skip
        return saved.rowcount == 1


_SAVE = (
    sa.update(runs)
    .where(
        runs.c.id == sa.bindparam("run_id"),
        runs.c.attempts == sa.bindparam("made"),
        runs.c.owner == sa.bindparam("of_owner"),
        runs.c.state == sa.literal_column("'running'"),
    )
    .values(saved_state=sa.bindparam("json", type_=sa.Text()))
)
