"""What every journal promises, on every database."""

from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.intake import Counts, Intake, intake_of
from receiver.journal import claims, outcomes, reading, requests, tables
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.requests import Person
from receiver.policies import AttemptEnd, AttemptOutcome, Policy, Rules
from receiver.routing import Catalog
from tests.support.clock import Clock
from tests.support.databases import Databases
from tests.support.notifications import SEQUENCES, T0, alert, notification, sequence

LOADED = frozenset({"a", "b", "page"})
RULES = Rules()


def intake(body: bytes, action: str = "a", source: str = "") -> Intake:
    return intake_of(parse_notification(body), source, action, (), Catalog(LOADED))


def accept(journal: Journal, *alerts: dict, action: str = "a", rules: Rules = RULES) -> Counts:
    (counts,) = record(journal, [intake(notification(*alerts), action)], rules)
    return replace(counts, ahead=0)


def claim(journal: Journal, rules: Rules = RULES, owner: str = "w1", slots: int = 9):
    return claims.claim_due_runs(journal, owner, sorted(LOADED), slots, rules).claimed


def finish(journal: Journal, run, end: AttemptEnd, rules: Rules = RULES, owner: str = "w1"):
    (one,) = outcomes.record_ends(
        journal, owner, [Ended(run.id, run.attempt, end)], rules, lambda: 0.5
    )
    return one.next


def run_all(journal: Journal, rules: Rules = RULES) -> int:
    count = 0
    while runs := claim(journal, rules):
        for run in runs:
            finish(journal, run, AttemptEnd(AttemptOutcome.SUCCEEDED), rules)
            count += 1
    return count


def states(journal: Journal) -> list[tuple[str, int, str, str | None]]:
    found = reversed(reading.list_runs(journal))
    return [(one["kind"], one["ordinal"], one["state"], one["outcome"]) for one in found]


@pytest.mark.parametrize("folder", SEQUENCES)
def test_recorded_conversation_gives_its_number_of_runs(
    journal: Journal, clock: Clock, folder: str
) -> None:
    accepted = 0
    for arrived, body in sequence(folder):
        clock.now = arrived
        (counts,) = record(journal, [intake(body)], RULES)
        accepted += counts.accepted
        run_all(journal)
    assert accepted == SEQUENCES[folder]
    finished = [one for one in reading.list_runs(journal) if one["outcome"] == "succeeded"]
    assert len(finished) == SEQUENCES[folder]


@pytest.mark.parametrize("folder", SEQUENCES)
def test_recorded_conversation_in_one_batch_gives_the_same_number_of_runs(
    journal: Journal, clock: Clock, folder: str
) -> None:
    messages = sequence(folder)
    clock.now = messages[-1][0]
    counts = record(journal, [intake(body) for _, body in messages], RULES)
    assert sum(one.accepted for one in counts) == SEQUENCES[folder]


def test_same_alert_is_accepted_once_and_then_a_duplicate(journal: Journal) -> None:
    assert accept(journal, alert()) == Counts(accepted=1)
    assert accept(journal, alert()) == Counts(duplicate=1)
    assert states(journal) == [("fired", 0, "queued", None)]


def test_sources_and_actions_have_episodes_of_their_own(journal: Journal) -> None:
    bodies = [intake(notification(alert()), action, source)
              for action in ("a", "b") for source in ("", "eu")]  # fmt: skip
    assert [one.accepted for one in record(journal, bodies, RULES)] == [1, 1, 1, 1]


def test_run_is_claimed_by_one_owner_only(journal: Journal) -> None:
    accept(journal, alert())
    (run,) = claim(journal)
    assert run.attempt == 1
    assert claim(journal, owner="w2") == []


def test_outcome_of_another_owner_or_attempt_is_not_written(journal: Journal) -> None:
    accept(journal, alert())
    (run,) = claim(journal)
    done = AttemptEnd(AttemptOutcome.SUCCEEDED)
    assert finish(journal, run, done, owner="w2") is None
    assert finish(journal, replace(run, attempt=2), done) is None
    assert states(journal) == [("fired", 0, "running", None)]
    assert finish(journal, run, done).outcome == "succeeded"
    assert finish(journal, run, done) is None


def test_failed_attempt_waits_for_its_backoff_and_runs_again(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, alert())
    (run,) = claim(journal)
    step = finish(journal, run, AttemptEnd(AttemptOutcome.FAILED, error="no"))
    assert step.outcome is None
    assert step.due_at == clock.now + timedelta(seconds=0.5)
    assert claim(journal) == []
    clock.move(seconds=0.5)
    (again,) = claim(journal)
    assert (again.id, again.attempt) == (run.id, 2)
    assert again.idempotency_key == run.idempotency_key
    assert [one["outcome"] for one in reading.attempts_of(journal, run.id)] == ["failed", None]


def test_attempts_are_used_up_and_the_run_fails(journal: Journal, clock: Clock) -> None:
    accept(journal, alert())
    for attempt in (1, 2, 3):
        (run,) = claim(journal)
        assert run.attempt == attempt
        step = finish(journal, run, AttemptEnd(AttemptOutcome.FAILED, error="no"))
        clock.move(minutes=10)
    assert step.outcome == "failed"
    assert claim(journal) == []


def test_attempts_that_had_not_begun_use_up_none(journal: Journal) -> None:
    accept(journal, alert())
    for _ in range(RULES.policy("a").max_attempts):
        (run,) = claim(journal)
        finish(journal, run, AttemptEnd(AttemptOutcome.INTERRUPTED, has_begun=False))
    (run,) = claim(journal)
    step = finish(journal, run, AttemptEnd(AttemptOutcome.FAILED, error="no"))
    assert (step.outcome, step.reason) == (None, "attempt 1 of 3 failed")


def test_permanent_error_ends_the_run_at_once(journal: Journal) -> None:
    accept(journal, alert())
    (run,) = claim(journal)
    assert (
        finish(journal, run, AttemptEnd(AttemptOutcome.FAILED, permanent=True)).outcome == "failed"
    )


def test_named_retry_time_is_kept(journal: Journal, clock: Clock) -> None:
    accept(journal, alert())
    (run,) = claim(journal)
    at = clock.now + timedelta(hours=3)
    assert finish(journal, run, AttemptEnd(AttemptOutcome.FAILED, retry_at=at)).due_at == at
    clock.move(hours=2.9)
    assert claim(journal) == []
    clock.move(hours=0.1)
    assert len(claim(journal)) == 1


def test_resolved_cancels_what_has_not_started(journal: Journal) -> None:
    accept(journal, alert())
    assert accept(journal, alert(status="resolved")) == Counts(resolved=1)
    assert states(journal) == [("fired", 0, "finished", "cancelled")]
    assert claim(journal) == []


def test_false_resolved_puts_the_cancelled_run_back(journal: Journal) -> None:
    accept(journal, alert())
    accept(journal, alert(status="resolved"))
    assert accept(journal, alert()) == Counts(duplicate=1)
    assert states(journal) == [("fired", 0, "queued", None)]
    assert run_all(journal) == 1


def test_all_of_a_flap_in_one_batch_is_folded_in_order(journal: Journal) -> None:
    later = T0 + timedelta(minutes=5)
    bodies = [
        notification(alert()),
        notification(alert(status="resolved")),
        notification(alert(starts_at=later)),
    ]
    counts = record(journal, [intake(body) for body in bodies], RULES)
    assert [(one.accepted, one.resolved) for one in counts] == [(1, 0), (0, 1), (1, 0)]
    assert states(journal) == [
        ("fired", 0, "finished", "cancelled"),
        ("fired", 0, "queued", None),
    ]


def test_resolved_while_running_cancels_the_retry_and_a_refire_puts_it_back(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, alert())
    (run,) = claim(journal)
    accept(journal, alert(status="resolved"))
    assert finish(journal, run, AttemptEnd(AttemptOutcome.FAILED)).outcome == "cancelled"
    accept(journal, alert())
    clock.move(minutes=1)
    assert [one.attempt for one in claim(journal)] == [2]


def test_resolved_of_an_older_episode_does_not_close_the_newer(journal: Journal) -> None:
    accept(journal, alert(starts_at=T0 + timedelta(seconds=30)))
    accept(journal, alert(status="resolved", ends_at=T0 + timedelta(seconds=20)))
    assert states(journal) == [("fired", 0, "queued", None)]


def test_resolved_that_was_never_seen_firing_leaves_nothing(journal: Journal) -> None:
    assert accept(journal, alert(status="resolved")) == Counts(resolved=1)
    assert reading.list_episodes(journal) == []


RESOLVING = Rules(resolved_hooks=frozenset({"a"}))


def test_resolved_run_follows_once_closed_and_succeeded(journal: Journal, clock: Clock) -> None:
    accept(journal, alert(), rules=RESOLVING)
    run_all(journal, RESOLVING)
    accept(journal, alert(status="resolved"), rules=RESOLVING)
    assert states(journal)[1] == ("resolved", 0, "queued", None)
    assert claim(journal, RESOLVING) == []
    clock.move(minutes=5)
    (run,) = claim(journal, RESOLVING)
    assert run.kind == "resolved"


def test_resolved_run_follows_when_success_comes_second(journal: Journal) -> None:
    accept(journal, alert(), rules=RESOLVING)
    (run,) = claim(journal, RESOLVING)
    accept(journal, alert(status="resolved"), rules=RESOLVING)
    finish(journal, run, AttemptEnd(AttemptOutcome.SUCCEEDED), RESOLVING)
    assert states(journal) == [
        ("fired", 0, "finished", "succeeded"),
        ("resolved", 0, "queued", None),
    ]


def test_refire_cancels_the_resolved_run_and_another_resolved_puts_it_back(
    journal: Journal,
) -> None:
    accept(journal, alert(), rules=RESOLVING)
    run_all(journal, RESOLVING)
    accept(journal, alert(status="resolved"), rules=RESOLVING)
    accept(journal, alert(), rules=RESOLVING)
    assert states(journal)[1] == ("resolved", 0, "finished", "cancelled")
    accept(journal, alert(status="resolved"), rules=RESOLVING)
    assert states(journal)[1] == ("resolved", 0, "queued", None)


def test_refire_after_the_resolved_run_began_runs_the_action_anew(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, alert(), rules=RESOLVING)
    run_all(journal, RESOLVING)
    accept(journal, alert(status="resolved"), rules=RESOLVING)
    clock.move(minutes=5)
    assert run_all(journal, RESOLVING) == 1
    accept(journal, alert(), rules=RESOLVING)
    assert states(journal)[2] == ("fired", 1, "queued", None)
    run_all(journal, RESOLVING)
    accept(journal, alert(status="resolved"), rules=RESOLVING)
    assert states(journal)[3] == ("resolved", 1, "queued", None)


def test_refire_after_a_resolved_run_that_had_not_begun_changes_nothing(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, alert(), rules=RESOLVING)
    run_all(journal, RESOLVING)
    accept(journal, alert(status="resolved"), rules=RESOLVING)
    clock.move(minutes=5)
    (run,) = claim(journal, RESOLVING)
    finish(journal, run, AttemptEnd(AttemptOutcome.INTERRUPTED, has_begun=False), RESOLVING)
    accept(journal, alert(), rules=RESOLVING)
    assert states(journal) == [
        ("fired", 0, "finished", "succeeded"),
        ("resolved", 0, "finished", "cancelled"),
    ]


def test_new_episode_cancels_the_unfinished_resolved_run(journal: Journal) -> None:
    accept(journal, alert(), rules=RESOLVING)
    run_all(journal, RESOLVING)
    accept(journal, alert(status="resolved"), rules=RESOLVING)
    accept(journal, alert(starts_at=T0 + timedelta(minutes=1)), rules=RESOLVING)
    assert states(journal)[1:] == [
        ("resolved", 0, "finished", "cancelled"),
        ("fired", 0, "queued", None),
    ]


def test_new_episodes_cancel_the_unfinished_runs_of_their_own_alerts_alone(
    journal: Journal,
) -> None:
    names = ["a", "b", "c"]
    accept(journal, *map(alert, names), rules=RESOLVING)
    run_all(journal, RESOLVING)
    accept(journal, *(alert(name, status="resolved") for name in names), rules=RESOLVING)
    later = T0 + timedelta(minutes=1)
    counts = accept(journal, *(alert(name, starts_at=later) for name in "ab"), rules=RESOLVING)
    assert counts.accepted == 2
    found = reading.list_runs(journal)
    assert {one["fingerprint"]: one["outcome"] for one in found if one["kind"] == "resolved"} == {
        "a": "cancelled",
        "b": "cancelled",
        "c": None,
    }


def rules(**policy: object) -> Rules:
    return Rules(policies={"a": Policy(**policy)})  # type: ignore[arg-type]


def test_repeat_runs_until_resolved_at_most_max_repeats(journal: Journal, clock: Clock) -> None:
    repeating = rules(repeat_after=timedelta(minutes=10), max_repeats=2)
    accept(journal, alert(), rules=repeating)
    assert run_all(journal, repeating) == 1
    for _ in range(4):
        clock.move(minutes=10)
        run_all(journal, repeating)
    assert [one[:2] for one in states(journal)] == [("fired", 0), ("repeat", 1), ("repeat", 2)]


def test_resolved_cancels_the_pending_repeat(journal: Journal, clock: Clock) -> None:
    repeating = rules(repeat_after=timedelta(minutes=10))
    accept(journal, alert(), rules=repeating)
    run_all(journal, repeating)
    accept(journal, alert(status="resolved"), rules=repeating)
    clock.move(minutes=10)
    assert claim(journal, repeating) == []
    accept(journal, alert(), rules=repeating)
    assert [run.kind for run in claim(journal, repeating)] == ["repeat"]


def test_failed_run_escalates_once_per_episode(journal: Journal) -> None:
    escalating = rules(escalate_to="page")
    accept(journal, alert(), rules=escalating)
    (run,) = claim(journal, escalating)
    finish(journal, run, AttemptEnd(AttemptOutcome.FAILED, permanent=True), escalating)
    (page,) = claim(journal, escalating)
    assert (page.action, page.kind) == ("page", "escalation")


def test_verification_tells_what_the_run_did_to_its_alert(journal: Journal, clock: Clock) -> None:
    verifying = rules(verify_after=timedelta(minutes=5), escalate_to="page")
    accept(journal, alert("helped"), alert("not"), rules=verifying)
    run_all(journal, verifying)
    clock.move(minutes=2)
    accept(journal, alert("helped", "resolved"), rules=verifying)
    assert outcomes.verify_due(journal, LOADED, verifying) == []
    clock.move(minutes=3)
    outcomes.verify_due(journal, LOADED, verifying)
    effects = {one["fingerprint"]: (one["effect"], one["effect_seconds"])
               for one in reading.list_runs(journal, kind="fired")}  # fmt: skip
    assert effects == {"helped": ("effective", 120), "not": ("ineffective", None)}
    assert [run.kind for run in claim(journal, verifying)] == ["escalation"]


def test_effect_is_unverified_where_the_route_never_sent_a_resolved(
    journal: Journal, clock: Clock
) -> None:
    verifying = rules(verify_after=timedelta(minutes=5), escalate_to="page")
    accept(journal, alert(), rules=verifying)
    run_all(journal, verifying)
    clock.move(minutes=5)
    assert [effect for _, effect in outcomes.verify_due(journal, LOADED, verifying)] == [
        "unverified"
    ]
    assert claim(journal, verifying) == []


def test_stale_run_waits_until_its_alert_is_reported_again(journal: Journal, clock: Clock) -> None:
    accept(journal, alert())
    clock.move(hours=5, seconds=1)
    assert claim(journal) == []
    accept(journal, alert())
    assert len(claim(journal)) == 1


def test_interrupted_run_is_claimed_again_or_held_as_the_policy_says(journal: Journal) -> None:
    holding = rules(on_interrupt="hold")
    accept(journal, alert("retry"))
    claim(journal)
    outcomes.recover_from(journal, "w1", LOADED, RULES, lambda: 0.0)
    (again,) = claim(journal, owner="w2")
    assert again.attempt == 2
    finish(journal, again, AttemptEnd(AttemptOutcome.SUCCEEDED), owner="w2")
    accept(journal, alert("hold"), rules=holding)
    claim(journal, holding)
    outcomes.recover_from(journal, "w1", LOADED, holding, lambda: 0.0)
    assert states(journal)[1] == ("fired", 0, "finished", "unknown")


def test_person_can_cancel_what_died_with_an_action_that_nobody_loads_any_more(
    journal: Journal,
) -> None:
    accept(journal, alert("left"), alert("cancelled"))
    _, cancelled = claim(journal)
    requests.cancel(journal, Person("ann", "a test"), cancelled.id)
    outcomes.recover_from(journal, "w1", ["b"], RULES, lambda: 0.5)
    found = {
        one["fingerprint"]: (one["state"], one["outcome"]) for one in reading.list_runs(journal)
    }
    assert found == {"left": ("running", None), "cancelled": ("finished", "cancelled")}


def test_rejected_alert_is_kept_whole_and_closed_by_its_resolve(journal: Journal) -> None:
    refused = alert(labels={"action_plugin": "nope, a"})
    body = notification(refused)
    (counts,) = record(journal, [intake(body, action="")], RULES)
    assert (counts.accepted, counts.rejected) == (1, 1)
    record(journal, [intake(body, action="")], RULES)
    (kept,) = reading.list_rejected(journal)
    assert (kept["name"], kept["times"], kept["closed_at"]) == ("nope", 2, None)
    assert "there is no action 'nope'" in kept["reason"]
    assert '"action_plugin":"nope, a"' in kept["alert"]
    resolved = alert(status="resolved", labels={"action_plugin": "nope, a"})
    record(journal, [intake(notification(resolved), action="")], RULES)
    (kept,) = reading.list_rejected(journal)
    assert kept["closed_by"] == "resolved"


def test_rejected_alert_is_taken_up_by_the_next_re_send(journal: Journal) -> None:
    body = parse_notification(notification(alert(labels={"action_plugin": "new"})))
    record(journal, [intake_of(body, "", "", (), Catalog(LOADED))], RULES)
    mended = Catalog(LOADED | {"new"})
    (counts,) = record(journal, [intake_of(body, "", "", (), mended)], RULES)
    assert counts.accepted == 1
    assert reading.list_rejected(journal)[0]["closed_by"] == "taken up"


def test_sender_ahead_of_the_clock_runs_once_and_never_makes_the_alert_deaf(
    journal: Journal, clock: Clock
) -> None:
    ahead = clock.now + timedelta(hours=1)
    assert accept(journal, alert(starts_at=ahead)).accepted == 1
    assert accept(journal, alert(starts_at=ahead)).duplicate == 1
    clock.move(minutes=10)
    assert accept(journal, alert(starts_at=ahead)).duplicate == 1
    accept(journal, alert(status="resolved", starts_at=ahead))
    clock.move(seconds=1)
    # The sender's clock was set right: its startsAt is earlier than the one before, and yet new.
    assert accept(journal, alert(starts_at=clock.now)).accepted == 1
    clock.move(hours=2)
    assert accept(journal, alert(starts_at=clock.now)).accepted == 1


def test_pair_of_which_one_clock_is_ahead_runs_once(journal: Journal, clock: Clock) -> None:
    right, ahead = clock.now, clock.now + timedelta(hours=1)
    assert accept(journal, alert(starts_at=right)).accepted == 1
    assert accept(journal, alert(starts_at=ahead)).duplicate == 1
    # The time of that startsAt comes; retention deletes the run, and keeps the row.
    clock.move(days=40)
    with journal.writing() as connection:
        connection.execute(sa.delete(tables.runs))
    assert accept(journal, alert(starts_at=ahead)).duplicate == 1
    assert accept(journal, alert(starts_at=right)).duplicate == 1
    clock.move(minutes=1)
    accept(journal, alert("f1", "resolved", right, clock.now))
    # The resolved was false: the runs of the episode are found by its own startsAt.
    assert accept(journal, alert(starts_at=ahead)).duplicate == 1
    (row,) = reading.list_episodes(journal)
    assert (row["starts_at"], row["closed_at"]) == (right, None)


def test_runs_of_one_alert_never_overlap(journal: Journal) -> None:
    accept(journal, alert())
    (first,) = claim(journal)
    accept(journal, alert(starts_at=T0 + timedelta(minutes=1)))
    assert claim(journal) == []
    finish(journal, first, AttemptEnd(AttemptOutcome.SUCCEEDED))
    assert len(claim(journal)) == 1


def test_max_concurrent_bounds_the_runs_of_an_action(journal: Journal) -> None:
    accept(journal, *[alert(str(number)) for number in range(6)])
    assert len(claim(journal)) == 4
    assert claim(journal) == []


def test_ten_thousand_alerts_are_recorded_whole(journal: Journal) -> None:
    many = [alert(f"{number:016x}") for number in range(10_000)]
    assert accept(journal, *many).accepted == 10_000
    assert accept(journal, *many).duplicate == 10_000
    resolved = [alert(f"{number:016x}", "resolved") for number in range(1_000)]
    assert accept(journal, *resolved).resolved == 1_000
    assert reading.count_runs(journal) == {
        ("queued", None): 9_000,
        ("finished", "cancelled"): 1_000,
    }


@pytest.mark.parametrize("newest_first", [True, False])
def test_attempt_that_was_taken_away_and_the_next_one_may_end_at_once(
    journal: Journal, clock: Clock, newest_first: bool
) -> None:
    accept(journal, alert())
    (first,) = claim(journal)
    # Its worker was frozen; it wakes, and claims the run again before the first attempt returns.
    outcomes.recover_from(journal, "w1", LOADED, RULES, lambda: 0.5)
    clock.move(hours=1)
    (second,) = claim(journal)
    ended = [
        Ended(first.id, first.attempt, AttemptEnd(AttemptOutcome.FAILED)),
        Ended(second.id, second.attempt, AttemptEnd(AttemptOutcome.SUCCEEDED)),
    ]
    recorded = outcomes.record_ends(
        journal, "w1", ended[::-1] if newest_first else ended, RULES, lambda: 0.5
    )
    became = {one.ended.attempt: one.next and one.next.outcome for one in recorded}
    assert became == {1: None, 2: "succeeded"}


def test_person_who_cancels_while_a_failure_is_recorded_is_heeded(
    databases: Databases, clock: Clock
) -> None:
    url = databases.new("postgresql")  # SQLite lets only one write at a time.
    with closing(Journal(url, clock=clock)) as journal, closing(Journal(url, clock=clock)) as other:
        accept(journal, alert())
        (run,) = claim(journal)

        def cancel_meanwhile() -> float:
            requests.cancel(other, Person("ann", "a test"), run.id)
            return 0.5

        ended = [Ended(run.id, run.attempt, AttemptEnd(AttemptOutcome.FAILED))]
        (one,) = outcomes.record_ends(journal, "w1", ended, RULES, cancel_meanwhile)
        assert one.next is not None
        assert (one.next.outcome, one.next.reason) == ("cancelled", "cancelled by ann")
        assert states(journal) == [("fired", 0, "finished", "cancelled")]
