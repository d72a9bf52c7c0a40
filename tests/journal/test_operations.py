"""Explaining without a trace, saying why a run waits, and replaying what was rejected."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.alertmanager import Notification, parse_notification
from receiver.errors import OperationError
from receiver.intake import Counts, intake_of
from receiver.journal import claims, outcomes, reading, requests
from receiver.journal.acceptance import record
from receiver.journal.due import ClaimedRun
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.requests import Person
from receiver.journal.tables import instances, metadata
from receiver.operations import Explained, Operations
from receiver.plugins import catalog_of, load_actions, rules_of
from receiver.policies import AttemptEnd, AttemptOutcome
from receiver.settings import load
from tests.support.databases import Databases
from tests.support.elsewhere import Elsewhere
from tests.support.notifications import PAYLOADS, SEQUENCES, T0, alert, notification, sequence

ANN = Person("ann", "cli on desk")
NO_WORKER = "no worker that is running has loaded the action fix_it"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
SUCCEEDED = AttemptEnd(AttemptOutcome.SUCCEEDED)
FAILED = AttemptEnd(AttemptOutcome.FAILED, error="no")
PLUGIN = """
from receiver import hookimpl

@hookimpl
def execute(metric_name):
    raise AssertionError("nothing is run")
"""


class Site:
    """A receiver without its processes: settings, plugins, a journal, and a clock to move."""

    def __init__(self, directory: Path, url: str, **environment: str) -> None:
        self.now = T0 + MINUTE
        self.plugins = directory / "plugins"
        self.plugins.mkdir()
        for name in ("fix_it", "page"):
            self.add_plugin(name)
        self.journal = Journal(url, clock=lambda: self.now)
        self.environment: dict[str, str] = {}
        self.configure(
            PLUGIN_DIR=str(self.plugins), RECEIVER_ACTIONS="fix_it, page, log_action", **environment
        )

    def add_plugin(self, name: str) -> None:
        (self.plugins / f"{name}.py").write_text(PLUGIN)

    def configure(self, **environment: str) -> None:
        """Start anew with more settings."""
        self.environment |= environment
        settings = load(self.environment, {})
        actions = load_actions(settings)
        self.actions = actions.loaded
        self.default = settings.action_plugin
        self.rules = rules_of(settings, actions)
        self.catalog = catalog_of(actions)
        self.operations = Operations(settings, actions, self.journal)

    def policy(self, **keys: str) -> None:
        """Start anew with another policy of fix_it."""
        self.configure(
            **{f"RECEIVER_ACTION_FIX_IT_{key.upper()}": text for key, text in keys.items()}
        )

    def accept(
        self, *alerts: dict[str, Any], action: str = "fix_it", source: str = "", **more: Any
    ) -> Counts:
        body = parse_notification(notification(*alerts or [alert()], **more))
        return self.record(body, action, source)

    def record(self, body: Notification, action: str = "fix_it", source: str = "") -> Counts:
        intake = intake_of(body, source, action, self.default, self.catalog)
        (counts,) = record(self.journal, [intake], self.rules)
        return counts

    def explain(
        self, *alerts: dict[str, Any], action: str = "fix_it", source: str = ""
    ) -> list[Explained]:
        body = parse_notification(notification(*alerts or [alert()]))
        return self.operations.explain(body, source, action)

    def claim(self) -> list[ClaimedRun]:
        actions = sorted(self.actions)
        return claims.claim_due_runs(self.journal, "w1", actions, 16, self.rules).claimed

    def finish(self, run: ClaimedRun, end: AttemptEnd = SUCCEEDED) -> None:
        ended = [Ended(run.id, run.attempt, end)]
        outcomes.record_ends(self.journal, "w1", ended, self.rules, lambda: 0.5)

    def run_all(self, end: AttemptEnd = SUCCEEDED) -> None:
        while found := self.claim():
            for run in found:
                self.finish(run, end)

    def why(self, run_id: int) -> str:
        (why,) = self.operations.why_each_waits([reading.find_run(self.journal, run_id)])
        return why

    @contextmanager
    def worker(self, elsewhere: Elsewhere, *actions: str, role: str = "worker") -> Iterator[None]:
        """Have a worker run that has loaded these actions; its last heartbeat is of now."""
        name = elsewhere.enter(self.journal, *actions, role=role)
        with self.journal.writing() as connection:
            # It enters by its own clock, which is ahead of the one of this site.
            connection.execute(sa.update(instances).values(beaten_at=self.now))
        yield
        elsewhere.leave(name)

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return all that the journal holds."""
        with self.journal.reading() as connection:
            return {
                table.name: sorted(map(tuple, connection.execute(sa.select(table))), key=repr)
                for table in metadata.sorted_tables
            }


pytestmark = pytest.mark.usefixtures("fresh_imports")


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """Where the workers run."""
    made = Elsewhere()
    yield made
    made.kill()


@pytest.fixture
def site(databases: Databases, tmp_path: Path) -> Iterator[Site]:
    """A site on SQLite."""
    made = Site(tmp_path, databases.new("sqlite"))
    yield made
    made.journal.close()


@pytest.fixture
def any_site(journal_url: str, tmp_path: Path) -> Iterator[Site]:
    """A site on each database in turn."""
    made = Site(tmp_path, journal_url)
    yield made
    made.journal.close()


# Explain: which action, by which rule


ACTION = "action_plugin"


@pytest.mark.parametrize(
    ("labels", "annotations", "path", "default", "expected"),
    [
        pytest.param(
            {ACTION: "page"}, {ACTION: "page"}, "fix_it", "page",
            [("path", "fix_it", "new", "the first episode of this alert")],
            id="path before all",
        ),
        pytest.param(
            {ACTION: "fix_it"}, {ACTION: "page"}, "", "page",
            [("label action_plugin", "fix_it", "new", "the first episode of this alert")],
            id="label",
        ),
        pytest.param(
            {}, {ACTION: "fix_it"}, "", "page",
            [("annotation action_plugin", "fix_it", "new", "the first episode of this alert")],
            id="annotation",
        ),
        pytest.param(
            {}, {}, "", "fix_it",
            [("ACTION_PLUGIN", "fix_it", "new", "the first episode of this alert")],
            id="ACTION_PLUGIN",
        ),
        pytest.param(
            {ACTION: "page, fix_it"}, {}, "", "",
            [
                ("label action_plugin", "page", "new", "the first episode of this alert"),
                ("label action_plugin", "fix_it", "new", "the first episode of this alert"),
            ],
            id="several",
        ),
        pytest.param(
            {}, {}, "", "",
            [("none", "", "rejected",
              "the alert names no action, and ACTION_PLUGIN is not set; add the label "
              "action_plugin, post to /webhook/<action>, or set ACTION_PLUGIN")],
            id="none",
        ),
        pytest.param(
            {ACTION: "fixit"}, {}, "", "page",
            [("label action_plugin", "", "rejected",
              "label action_plugin: there is no action 'fixit' (did you mean fix_it?)")],
            id="unknown",
        ),
        pytest.param(
            {ACTION: "nope, fix_it"}, {}, "", "",
            [
                ("label action_plugin", "", "rejected",
                 "label action_plugin: there is no action 'nope'"),
                ("label action_plugin", "fix_it", "new", "the first episode of this alert"),
            ],
            id="one of two unknown",
        ),
        pytest.param(
            {}, {}, "file_action", "",
            [("path", "", "rejected",
              "the action file_action is disabled: it is not among RECEIVER_ACTIONS")],
            id="known, but not loaded",
        ),
        pytest.param(
            {}, {ACTION: "<error expanding template: x>"}, "", "page",
            [("annotation action_plugin", "", "rejected",
              "annotation action_plugin: a template failed where the action's name should be; "
              "mend the rule")],
            id="template error",
        ),
    ],
)  # fmt: skip
def test_explain_says_which_action_by_which_rule_or_why_none(
    site: Site,
    labels: dict[str, str],
    annotations: dict[str, str],
    path: str,
    default: str,
    expected: list[tuple[str, str, str, str]],
) -> None:
    site.configure(ACTION_PLUGIN=default)

    found = site.explain(alert(labels=labels, annotations=annotations), action=path)

    assert [(one.rule, one.action, one.episode, one.reason) for one in found] == expected
    for one in found:
        assert (one.call is None, one.verdict == "") == (not one.action, not one.action)


def test_explain_answers_for_every_alert_in_order(site: Site) -> None:
    found = site.explain(
        alert("f1", labels={ACTION: "page"}),
        alert("f2"),
        alert("f3", labels={ACTION: "fix_it, nope"}),
        action="",
    )
    assert [(one.alert.fingerprint, one.action, one.episode) for one in found] == [
        ("f1", "page", "new"),
        ("f2", "", "rejected"),
        ("f3", "", "rejected"),
        ("f3", "fix_it", "new"),
    ]


# Explain: with which arguments


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        pytest.param(
            {"metric_name": "depth", "value": "90.5", "threshold": "> 7", "for": "5m"},
            ("depth", 90.5, "> 7", 6 * MINUTE, 0),
            id="annotations",
        ),
        pytest.param({"value": "1e3"}, ("queue_depth", 1000.0, "> 80", MINUTE, 1), id="expression"),
        pytest.param(
            {"value": "93%", "duration": "soon"},
            ("queue_depth", pytest.approx(float("nan"), nan_ok=True), "> 80", MINUTE, 2),
            id="malformed",
        ),
    ],
)
def test_explain_shows_the_arguments_as_the_action_would_get_them_now(
    site: Site, annotations: dict[str, str], expected: tuple[object, ...]
) -> None:
    (one,) = site.explain(alert(annotations=annotations))
    assert one.call is not None
    call = one.call
    got = (call.metric_name, call.value, call.threshold, call.duration, len(call.warnings))
    assert got == expected
    # The run that follows gets the same.
    site.accept(alert(annotations=annotations))
    (run,) = site.claim()
    assert run.call == call.to_json()


# Explain: what it means for the episode


RESOLVED = alert(status="resolved")
LATER = alert(starts_at=T0 + 30 * timedelta(seconds=1))


@pytest.mark.parametrize(
    ("before", "this", "episode", "reason"),
    [
        pytest.param([], alert(), "new", "the first episode of this alert", id="first"),
        pytest.param([alert()], alert(), "seen", "the same episode", id="sent again"),
        pytest.param(
            [alert()], LATER, "new", "its startsAt is later than the latest accepted", id="re-fired"
        ),
        pytest.param(
            [alert(), RESOLVED], alert(), "put back",
            "the same episode fires again: the resolved was false", id="false resolved",
        ),
        pytest.param([alert()], RESOLVED, "resolved", "the alert resolved", id="resolved"),
        pytest.param(
            [alert(), RESOLVED], RESOLVED, "resolved", "the episode was closed already",
            id="resolved twice",
        ),
        pytest.param([], RESOLVED, "resolved", "it was never seen firing", id="resolved, unknown"),
        pytest.param(
            [LATER], alert(status="resolved", ends_at=T0 + timedelta(seconds=5)), "resolved",
            "it ended before the latest episode began", id="resolved, late",
        ),
    ],
)  # fmt: skip
def test_explain_says_what_an_alert_means_for_its_episode(
    site: Site, before: list[dict[str, Any]], this: dict[str, Any], episode: str, reason: str
) -> None:
    for one in before:
        site.accept(one)
    (found,) = site.explain(this)
    action = "" if reason == "it was never seen firing" else "fix_it"
    assert (found.action, found.episode, found.reason) == (action, episode, reason)
    assert (found.call is not None) == (found.verdict != "") == (episode != "resolved")


def test_explain_of_a_resolved_tells_what_it_closes_by_whatever_route(site: Site) -> None:
    site.accept(action="fix_it")
    site.accept(action="page")
    # By itself this alert would be rejected, which no resolved is.
    found = site.explain(RESOLVED, action="")
    assert [(one.action, one.episode) for one in found] == [
        ("fix_it", "resolved"), ("page", "resolved"),
    ]  # fmt: skip


def test_explain_of_a_false_resolved_foretells_what_runs_again(site: Site) -> None:
    site.accept()
    site.accept(RESOLVED)
    (again,) = site.explain()
    assert (again.episode, again.brings) == ("put back", "run 1, put back,")
    assert again.verdict == "starts at once"
    site.accept()
    site.run_all()
    site.accept(RESOLVED)
    (nothing,) = site.explain()
    assert (nothing.episode, nothing.brings) == ("put back", "")


def test_explain_of_a_sender_whose_clock_is_ahead_foretells_what_happens(any_site: Site) -> None:
    ahead = alert(starts_at=any_site.now + HOUR)
    any_site.accept(ahead)
    any_site.accept(alert(starts_at=any_site.now + 2 * HOUR))
    (again,) = any_site.explain(ahead)
    assert again.episode == "seen"
    assert any_site.accept(ahead).accepted == 0


def test_explain_looks_at_the_episodes_of_the_source_that_was_asked_for(site: Site) -> None:
    site.accept(source="eu")
    assert site.explain(source="eu")[0].episode == "seen"
    assert site.explain(source="us")[0].episode == "new"


@pytest.mark.parametrize("folder", SEQUENCES)
def test_explain_foretells_what_the_webhook_then_does(site: Site, folder: str) -> None:
    for arrived, body in sequence(folder):
        site.now = arrived
        parsed = parse_notification(body)
        foretold = [one.episode for one in site.operations.explain(parsed, "", "fix_it")]
        counts = site.record(parsed)
        assert foretold.count("new") == counts.accepted
        assert foretold.count("seen") + foretold.count("put back") == counts.duplicate
        assert foretold.count("resolved") == counts.resolved
        site.run_all()


# Explain: what would hold it back now


Prepare = Callable[[Site], object]
UNTIL = "until 2026-01-02"


def _fired(*ends: AttemptEnd) -> Prepare:
    """Let runs of other targets end so."""

    def prepare(site: Site) -> None:
        for number, end in enumerate(ends):
            site.accept(alert(f"other-{number}"))
            (run,) = site.claim()
            site.finish(run, end)

    return prepare


def _ran_before(site: Site) -> None:
    site.accept()
    site.run_all()
    site.now += 10 * MINUTE


def _busy(site: Site) -> None:
    site.accept()
    site.claim()


def _all_busy(site: Site) -> None:
    site.accept(alert("other"))
    site.claim()


def _paused(site: Site) -> None:
    requests.pause(site.journal, ANN, "fix_it", "deploy")


def _all_paused(site: Site) -> None:
    requests.pause(site.journal, ANN, None, lasting=HOUR)


def _other_paused(site: Site) -> None:
    requests.pause(site.journal, ANN, "page")


REFIRED = alert(starts_at=T0 + timedelta(seconds=20))
DRY = alert(annotations={"action_dry_run": "true"})
IS_DRY = "; a dry run: the action only says what it would do"


@pytest.mark.parametrize(
    ("settings", "prepare", "this", "verdict"),
    [
        pytest.param({}, None, alert(), "starts at once", id="nothing"),
        pytest.param({}, _paused, alert(), "paused: by ann: deploy", id="pause"),
        pytest.param({}, _all_paused, alert(), "paused: by ann", id="pause of all"),
        pytest.param({}, _other_paused, alert(), "starts at once", id="pause of another"),
        pytest.param(
            {"FIX_IT_COOLDOWN": "1h"}, _ran_before, REFIRED,
            "delayed: the action ran for this target less than 1h ago (cooldown); "
            f"{UNTIL} 04:05:05 UTC",
            id="cooldown",
        ),
        pytest.param(
            {"FIX_IT_COOLDOWN": "1h"}, _ran_before, alert("other"), "starts at once",
            id="cooldown of another target",
        ),
        pytest.param(
            {"FIX_IT_COOLDOWN": "1h", "FIX_IT_WHEN_LIMITED": "skip"}, _ran_before, REFIRED,
            "skipped: the action ran for this target less than 1h ago (cooldown); "
            "when_limited is skip",
            id="cooldown, skip",
        ),
        pytest.param(
            {"FIX_IT_OVERALL_RATE_LIMIT": "1/1h"}, _ran_before, alert("other"),
            "delayed: there were 1 runs in 1h of this action already (overall_rate_limit); "
            f"{UNTIL} 04:05:05 UTC",
            id="overall_rate_limit",
        ),
        pytest.param(
            {"FIX_IT_APPROVAL": "required"}, None, alert(),
            "waits for a person's approval; then: starts at once",
            id="approval",
        ),
        pytest.param(
            {"FIX_IT_APPROVAL": "required"}, _paused, alert(),
            "waits for a person's approval; then: paused: by ann: deploy",
            id="approval and pause",
        ),
        pytest.param(
            {"FIX_IT_APPROVAL": "required"}, None, DRY, f"starts at once{IS_DRY}",
            id="approval, but a dry run",
        ),
        pytest.param(
            {"FIX_IT_DRY_RUN": "true"}, None, alert(), f"starts at once{IS_DRY}", id="dry run"
        ),
        pytest.param({}, None, DRY, f"starts at once{IS_DRY}", id="dry run by annotation"),
        pytest.param({}, _paused, DRY, f"paused: by ann: deploy{IS_DRY}", id="dry run, paused"),
        pytest.param(
            {"FIX_IT_BREAKER": "2 failures, 10m", "FIX_IT_MAX_ATTEMPTS": "1"},
            _fired(FAILED, FAILED), alert(),
            "delayed: the breaker is open: the last 2 attempts of the action failed; "
            f"{UNTIL} 03:15:05 UTC",
            id="breaker",
        ),
        pytest.param(
            {}, _busy, REFIRED, "another run of the same target is running", id="target busy"
        ),
        pytest.param(
            {"FIX_IT_MAX_CONCURRENT": "1"}, _all_busy, alert(),
            "1 runs of the action are running, as many as max_concurrent says",
            id="max_concurrent",
        ),
    ],
)  # fmt: skip
def test_explain_says_what_would_hold_a_new_run_back_now(
    site: Site,
    settings: dict[str, str],
    prepare: Prepare | None,
    this: dict[str, Any],
    verdict: str,
) -> None:
    site.configure(**{f"RECEIVER_ACTION_{name}": text for name, text in settings.items()})
    if prepare is not None:
        prepare(site)
    (found,) = site.explain(this)
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("settings", "prepare", "verdict"),
    [
        pytest.param(
            {"RECEIVER_DRY_RUN": "true"}, None, f"starts at once{IS_DRY}", id="dry run of all"
        ),
        pytest.param(
            {"RECEIVER_LIMITS_RATE_LIMIT": "1/1h"}, _ran_before,
            f"delayed: there were 1 runs in 1h of all actions already (limits); {UNTIL} 04:05:05 "
            "UTC",
            id="[limits] rate_limit",
        ),
        pytest.param(
            {"RECEIVER_LIMITS_MAX_CONCURRENT": "1"}, _all_busy,
            "1 runs are running, as many as [limits] max_concurrent says",
            id="[limits] max_concurrent",
        ),
    ],
)  # fmt: skip
def test_explain_knows_what_bounds_all_actions_together(
    site: Site, settings: dict[str, str], prepare: Prepare | None, verdict: str
) -> None:
    site.configure(**settings)
    if prepare is not None:
        prepare(site)
    (found,) = site.explain(alert(), action="page")
    assert found.verdict == verdict


def test_explain_stores_nothing(any_site: Site) -> None:
    site = any_site
    site.configure(ACTION_PLUGIN="fix_it")
    site.policy(cooldown="1h", approval="required")
    site.accept(alert("f1"), alert("f2", labels={ACTION: "nope"}), action="")
    requests.approve(site.journal, ANN, 1)
    site.run_all()
    site.accept(alert("f1", "resolved"), alert("f3"), action="")
    requests.pause(site.journal, ANN, "page")
    before = site.everything()
    assert {name for name, rows in before.items() if rows} >= {
        "episodes", "runs", "attempts", "rejected", "routes", "holds", "audit",
    }  # fmt: skip

    for body in [path.read_bytes() for path in PAYLOADS if path.stat().st_size < 100_000]:
        site.operations.explain(parse_notification(body))
    of_known = [alert("f1", starts_at=T0 + MINUTE), alert("f1", "resolved"), alert("f3")]
    site.explain(*of_known, alert("f2", labels={ACTION: "nope"}), action="")
    for one in reading.list_runs(site.journal):
        site.operations.why_each_waits([one])

    assert site.everything() == before


# Why a run waits


def _stale(site: Site) -> None:
    site.accept()
    site.now += 5 * HOUR + MINUTE


def _delayed(site: Site) -> None:
    site.policy(target_labels="host", cooldown="1h")
    site.accept(alert("f1", labels={"host": "h"}), alert("f2", labels={"host": "h"}))
    site.run_all()


def _backing_off(site: Site) -> None:
    site.accept()
    site.run_all(FAILED)


def _tried_again(site: Site) -> None:
    site.policy(cooldown="1h")
    _backing_off(site)
    site.now += MINUTE


def _same_target(site: Site) -> None:
    site.policy(target_labels="host")
    site.accept(alert("f1", labels={"host": "h"}), alert("f2", labels={"host": "h"}))
    site.claim()


def _full(site: Site) -> None:
    site.policy(max_concurrent="1")
    site.accept(alert("f1"), alert("f2"))
    site.claim()


def _all_full(site: Site) -> None:
    site.configure(RECEIVER_LIMITS_MAX_CONCURRENT="1")
    site.accept(alert("f1"))
    site.accept(alert("f1"), action="page")
    site.claim()


def _half_open(site: Site) -> None:
    site.policy(breaker="1 failures, 10m", max_attempts="1")
    site.accept(alert("f1"))
    site.run_all(FAILED)
    site.now += 10 * MINUTE
    site.accept(alert("f2"), alert("f3"))
    site.claim()


def _awaiting(site: Site) -> None:
    site.policy(approval="required")
    site.accept()


def _approved(site: Site) -> None:
    _awaiting(site)
    requests.approve(site.journal, ANN, 1)


def _delayed_and_paused(site: Site) -> None:
    _delayed(site)
    requests.pause(site.journal, ANN, None)


def _no_free_executor(site: Site) -> None:
    site.configure(RECEIVER_WORKER_EXECUTORS="1")
    site.accept(alert("f1"), alert("f2"))
    claims.claim_due_runs(site.journal, "w1", ["fix_it"], 1, site.rules)


def _must_run_alone(site: Site) -> None:
    site.accept()
    for _ in range(2):
        site.claim()
        outcomes.recover_from(site.journal, "w1", ["fix_it"], site.rules, lambda: 0.0)
    site.accept(alert("f2"), action="page")
    claims.claim_due_runs(site.journal, "w1", ["page"], 1, site.rules)


def _accepted_dry(site: Site) -> None:
    site.configure(RECEIVER_DRY_RUN="true")
    site.accept()
    site.configure(RECEIVER_DRY_RUN="false")
    site.policy(approval="required")


def _paused_and_accepted(site: Site) -> None:
    requests.pause(site.journal, ANN, None, "deploy")
    site.accept()


def _skipped(site: Site) -> None:
    site.policy(when_limited="skip")
    _delayed(site)


WAITING: Mapping[str, tuple[Prepare, int, str]] = {
    "nothing": (lambda site: site.accept(), 1, "starts at once"),
    "stale": (
        _stale, 1,
        "its alert was last reported at 2026-01-02 03:05:05 UTC, longer ago than max_staleness "
        "(5h): it waits for a report, and is skipped at 2026-01-03 08:05:05 UTC",
    ),
    "paused": (_paused_and_accepted, 1, "paused: by ann: deploy"),
    "delayed and paused": (_delayed_and_paused, 2, "paused: by ann"),
    "no free executor": (_no_free_executor, 2, "waits for a free executor: 1 runs are running"),
    "must run alone": (
        _must_run_alone, 1,
        "its workers died 2 times during its attempts, so it runs alone: it waits until a worker "
        "has nothing under way; 1 runs are running",
    ),
    "delayed": (
        _delayed, 2,
        "delayed: the action ran for this target less than 1h ago (cooldown); "
        "due at 2026-01-02 04:05:05 UTC",
    ),
    "backing off": (
        _backing_off, 1, "attempt 1 of 3 failed; due at 2026-01-02 03:05:05 UTC",
    ),
    "another attempt inside a cooldown": (_tried_again, 1, "starts at once"),
    "target busy": (_same_target, 2, "another run of the same target is running"),
    "max_concurrent": (
        _full, 2, "1 runs of the action are running, as many as max_concurrent says",
    ),
    "limits": (_all_full, 2, "1 runs are running, as many as [limits] max_concurrent says"),
    "half open": (
        _half_open, 3,
        "the breaker is half open: one run at a time shows whether the action works again",
    ),
    "approval": (_awaiting, 1, "waits for approval, 1h at most"),
    "approved": (_approved, 1, "starts at once"),
    "accepted as a dry run": (
        _accepted_dry, 1, "waits for a person's approval; then: starts at once"
    ),
    "running": (_busy, 1, "attempt 1 runs"),
    "succeeded": (_ran_before, 1, "the action succeeded"),
    "skipped": (
        _skipped, 2,
        "skipped: the action ran for this target less than 1h ago (cooldown); "
        "when_limited is skip",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "run_id", "why"), WAITING.values(), ids=WAITING)
def test_run_says_in_words_why_it_does_not_run(
    any_site: Site, elsewhere: Elsewhere, prepare: Prepare, run_id: int, why: str
) -> None:
    prepare(any_site)
    with any_site.worker(elsewhere, "fix_it", "page"):
        assert any_site.why(run_id) == why


def test_run_that_no_worker_has_loaded_says_so(any_site: Site, elsewhere: Elsewhere) -> None:
    any_site.accept()
    with (
        any_site.worker(elsewhere, "page", "fix_it_all"),
        any_site.worker(elsewhere, "fix_it", role="web"),
    ):
        assert any_site.why(1) == NO_WORKER
        with any_site.worker(elsewhere, "fix_it", "page"):
            assert any_site.why(1) == "starts at once"
        assert any_site.why(1) == NO_WORKER


def test_worker_that_died_without_a_word_counts_for_nothing(any_site: Site) -> None:
    any_site.accept()
    any_site.now = datetime.now(UTC)
    worker = Elsewhere()
    worker.enter(any_site.journal, "fix_it")
    assert any_site.why(1) != NO_WORKER
    worker.kill()
    any_site.now += MINUTE
    assert any_site.why(1) == NO_WORKER


def test_stale_run_is_as_good_as_new_once_its_alert_is_reported_again(
    any_site: Site, elsewhere: Elsewhere
) -> None:
    _stale(any_site)
    any_site.accept()
    with any_site.worker(elsewhere, "fix_it"):
        assert any_site.why(1) == "starts at once"


def test_stale_run_that_a_person_retries_waits_for_no_report(
    any_site: Site, elsewhere: Elsewhere
) -> None:
    any_site.accept()
    requests.cancel(any_site.journal, ANN, 1)
    any_site.now += 6 * HOUR
    requests.retry(any_site.journal, ANN, 1)
    with any_site.worker(elsewhere, "fix_it"):
        assert any_site.why(1) == "starts at once"
    assert [run.id for run in any_site.claim()] == [1]


# Replay


def refuse(site: Site, source: str = "", **more: Any) -> int:
    """Have an alert rejected that names the action `newer`; return its number."""
    counts = site.accept(alert(labels={ACTION: "newer"}), action="", source=source, **more)
    assert (counts.accepted, counts.rejected) == (0, 1)
    return int(reading.list_rejected(site.journal)[0]["id"])


def mend(site: Site) -> None:
    site.add_plugin("newer")
    site.configure(RECEIVER_ACTIONS="fix_it, page, newer")


def test_rejected_alert_is_replayed_once_the_configuration_is_mended(any_site: Site) -> None:
    site = any_site
    number = refuse(site, "eu", receiver="team-a", externalURL="http://am.example")
    mend(site)
    site.now += HOUR
    assert site.operations.replay(ANN, number) == Counts(accepted=1)
    (run,) = reading.list_runs(site.journal)
    assert (run["action"], run["state"], run["source"]) == ("newer", "queued", "eu")
    assert (run["receiver"], run["external_url"]) == ("team-a", "http://am.example")
    (kept,) = reading.list_rejected(site.journal)
    assert (kept["closed_by"], kept["closed_at"]) == ("taken up", site.now)
    assert [one.action for one in site.claim()] == ["newer"]


def test_replay_leaves_one_audit_row(any_site: Site) -> None:
    number = refuse(any_site)
    mend(any_site)
    any_site.operations.replay(ANN, number)
    (kept,) = reading.audit_of(any_site.journal)
    assert (kept["at"], kept["who"], kept["origin"]) == (any_site.now, "ann", "cli on desk")
    assert (kept["operation"], kept["detail"]) == ("replay", f"rejected alert {number}")


def test_replay_without_a_mended_configuration_is_rejected_again(site: Site) -> None:
    number = refuse(site)
    assert site.operations.replay(ANN, number) == Counts(rejected=1)
    (kept,) = reading.list_rejected(site.journal)
    assert (kept["id"], kept["times"], kept["closed_at"]) == (number, 2, None)
    assert reading.list_runs(site.journal) == []


def test_replay_runs_nothing_twice_that_its_alert_names_beside_the_rejected(site: Site) -> None:
    site.accept(alert(labels={ACTION: "fix_it, newer"}), action="")
    mend(site)
    (kept,) = reading.list_rejected(site.journal)
    assert site.operations.replay(ANN, kept["id"]) == Counts(accepted=1, duplicate=1)
    assert sorted(one["action"] for one in reading.list_runs(site.journal)) == ["fix_it", "newer"]


def test_replay_of_what_the_path_named_goes_where_the_path_said(site: Site) -> None:
    # Known, but not among the enabled.
    assert site.accept(action="file_action") == Counts(rejected=1)
    site.configure(RECEIVER_ACTIONS="fix_it, file_action", FILE_ACTION_DIR=str(site.plugins))
    (kept,) = reading.list_rejected(site.journal)
    assert site.operations.replay(ANN, kept["id"]) == Counts(accepted=1)
    assert [one["action"] for one in reading.list_runs(site.journal)] == ["file_action"]


def test_rejection_is_not_taken_up_by_a_notification_of_another_route(any_site: Site) -> None:
    site = any_site
    number = refuse(site)
    site.accept(alert(labels={ACTION: "newer"}), action="fix_it")
    (kept,) = reading.list_rejected(site.journal)
    assert (kept["id"], kept["closed_at"]) == (number, None)
    assert site.accept(alert("f2"), action="file_action") == Counts(rejected=1)
    site.accept(alert("f2", labels={ACTION: "page"}), action="")
    assert [one["closed_at"] for one in reading.list_rejected(site.journal)] == [None, None]


@pytest.mark.parametrize("how", ["taken up", "resolved"])
def test_closed_rejected_alert_is_not_replayed(site: Site, how: str) -> None:
    number = refuse(site)
    mend(site)
    status = "firing" if how == "taken up" else "resolved"
    site.accept(alert(status=status, labels={ACTION: "newer"}), action="")
    runs = len(reading.list_runs(site.journal))
    with pytest.raises(OperationError, match=f"rejected alert {number} is closed: {how}"):
        site.operations.replay(ANN, number)
    assert len(reading.list_runs(site.journal)) == runs
    assert reading.audit_of(site.journal) == []


def test_replay_of_an_unknown_number_is_refused_in_words(site: Site) -> None:
    with pytest.raises(OperationError, match="there is no rejected alert 7"):
        site.operations.replay(ANN, 7)
    assert reading.audit_of(site.journal) == []


@pytest.mark.parametrize(
    ("name", "known"),
    [("fix_it", True), ("file_action", True), ("efs_emergency", True), ("nope", False)],
)
def test_known_is_every_action_even_one_that_cannot_run(site: Site, name: str, known: bool) -> None:
    assert site.operations.knows(name) is known
