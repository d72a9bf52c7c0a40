"""Looking, explaining and operating from the command line while a real receiver runs."""

import io
import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from receiver.cli import main
from receiver.journal import reading
from receiver.journal.journal import Journal
from receiver.journal.tables import metadata
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

PLUGINS = {
    "fix_it": 'def execute(metric_name):\n    return {"fixed": metric_name}',
    "gated": 'def execute():\n    return "opened"',
    "broken": 'def execute():\n    raise PermanentError("no way")',
    "flaky": 'def execute():\n    raise PermanentError("down")',
    "slow": "def execute(context):\n    context.sleep(50)",
    "held": 'def execute():\n    return "let go"',
}
NOBODY = 99_999
BEYOND_ALL = 10**20


def write_plugin(directory: Path, name: str, body: str) -> None:
    directory.mkdir(exist_ok=True)
    source = f"from receiver import PermanentError, hookimpl\n\n@hookimpl\n{body}\n"
    (directory / f"{name}.py").write_text(source)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which must be JSON in the strict sense."""
        assert self.out.isascii()
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(name))


def receiver(*arguments: object, **environment: str) -> Ended:
    """Run a command in this process, with nothing set but what is given."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["receiver", *map(str, arguments)]),
        patch.dict(os.environ, {"LOGNAME": "ann", **environment}),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Site:
    """A running receiver, and its journal."""

    serving: Receiver
    journal: Journal
    environment: dict[str, str]

    def run(self, *arguments: object) -> Ended:
        """Run a command beside the receiver."""
        done = receiver(*arguments, **self.environment)
        assert "Traceback" not in done.err
        return done

    def post(self, action: str, *alerts: dict[str, Any]) -> list[int]:
        """Post alerts to an action; return the numbers of their runs."""
        answer = self.serving.post(notification(*alerts), f"/webhook/{action}")
        assert answer.json()["accepted"] == len(alerts)
        return [
            reading.list_runs(self.journal, fingerprint=one["fingerprint"], action=action)[0]["id"]
            for one in alerts
        ]

    def wait_for(self, run_id: int, **values: object) -> dict[str, Any]:
        """Return the run once it has these values."""

        def found() -> dict[str, Any] | None:
            run = reading.find_run(self.journal, run_id)
            return run if all(run[name] == value for name, value in values.items()) else None

        run = wait_until(found, what=f"run {run_id}: {values}")
        assert run is not None
        return run

    def everything(self) -> dict[str, list[str]]:
        """Return all that the journal holds, but for the heartbeat of processes."""
        with self.journal.reading() as connection:
            return {
                table.name: sorted(repr(row) for row in connection.execute(sa.select(table)))
                for table in metadata.sorted_tables
                if table.name not in ("instances", "probe")
            }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One receiver for all tests: each of them uses alerts of its own."""
    directory = tmp_path_factory.mktemp("operating")
    for name, body in PLUGINS.items():
        write_plugin(directory / "plugins", name, body)
    environment = {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "PLUGIN_DIR": str(directory / "plugins"),
        "RECEIVER_ACTIONS": ", ".join(PLUGINS),
        "RECEIVER_ACTION_GATED_APPROVAL": "required",
        "RECEIVER_ACTION_HELD_TARGET_LABELS": "host",
        "RECEIVER_ACTION_HELD_COOLDOWN": "1h",
        "RECEIVER_ACTION_BROKEN_BREAKER": "none",
    }
    serving = Receiver("serve", environment, directory / "receiver.log")
    journal = Journal(f"sqlite:///{directory / 'data' / 'journal.db'}")
    try:
        yield Site(serving.wait_ready(), journal, environment)
    finally:
        journal.close()
        serving.kill()


pytestmark = pytest.mark.usefixtures("fresh_imports")


@pytest.fixture
def paused(site: Site) -> Iterator[str]:
    """An action that is paused during the test."""
    assert site.run("pause", "fix_it", "--reason", "deploy").code == 0
    yield "fix_it"
    site.run("resume", "fix_it")


# Looking


def test_runs_lists_what_ran_and_why_what_waits_does(site: Site) -> None:
    name = {"alertname": "Listed"}
    first, second = site.post(
        "held", alert("l1", labels={"host": "l", **name}), alert("l2", labels={"host": "l", **name})
    )
    site.wait_for(first, outcome="succeeded")
    site.wait_for(second, held_by="cooldown")
    done = site.run("runs", "--alert", "Listed")
    assert (done.code, done.err) == (0, "")
    head, *rows = done.out.splitlines()
    assert head.split() == [
        "run", "created", "(UTC)", "alert", "action", "kind", "state", "tries", "why",
    ]  # fmt: skip
    assert rows[0].startswith(str(second))
    shown = " ".join(" ".join(rows).split())
    assert "Listed held fired queued 0 delayed: the action ran for this target" in shown
    assert "Listed held fired succeeded 1 the action succeeded" in shown


def test_runs_are_json_and_one_run_has_all_that_is_known(site: Site) -> None:
    (run_id,) = site.post("fix_it", alert("j1", labels={"alertname": "AsJson"}))
    site.wait_for(run_id, outcome="succeeded")
    (run,) = site.run("runs", "--alert", "AsJson", "--json").json
    assert run["id"] == run_id
    assert (run["state"], run["outcome"], run["why"]) == (
        "finished", "succeeded", "the action succeeded",
    )  # fmt: skip
    # The rule told no value: that is NaN, which JSON has not.
    assert run["call"]["value"] == "NaN"
    assert "alert" not in run
    run = site.run("run", run_id, "--json").json
    assert run["alert"]["labels"] == {"alertname": "AsJson"}
    assert run["result"] == {"fixed": "queue_depth"}


def test_runs_can_be_narrowed(site: Site) -> None:
    labels = {"alertname": "Narrowed"}
    run_ids = site.post("fix_it", *[alert(f"n{number}", labels=labels) for number in range(3)])
    (failed,) = site.post("broken", alert("n0", labels=labels))
    for run_id in run_ids:
        site.wait_for(run_id, outcome="succeeded")
    site.wait_for(failed, outcome="failed")

    def found(*options: str) -> list[int]:
        listed = site.run("runs", "--json", "--alert", "Narrowed", *options).json
        return [one["id"] for one in listed]

    newest_first = [failed, *reversed(run_ids)]
    assert found() == newest_first
    assert found("--action", "broken") == [failed]
    assert found("--outcome", "failed") == [failed]
    assert found("--state", "finished", "--limit", "2") == newest_first[:2]
    assert found("--state", "running") == []
    assert found("--action", "no_such_action") == []


def test_runs_begin_with_what_is_paused(site: Site, paused: str) -> None:
    assert site.run("pause", "--for", "1h").code == 0
    shown = site.run("runs").out.splitlines()
    site.run("resume")
    assert shown[0].startswith("pause: all actions, by ann until 20")
    assert shown[1] == f"pause: {paused}, by ann: deploy"


def test_run_shows_all_about_one(site: Site) -> None:
    labels = {"alertname": "Whole", "queue": "orders"}
    annotations = {"value": "90", "for": "5m"}
    (run_id,) = site.post("broken", alert("w1", labels=labels, annotations=annotations))
    site.wait_for(run_id, outcome="failed")
    assert site.run("retry", run_id).code == 0
    site.wait_for(run_id, outcome="failed", attempts=2)
    shown = site.run("run", run_id)
    assert (shown.code, shown.err) == (0, "")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.out.splitlines()}
    assert lines["run"] == str(run_id)
    assert lines["state"] == "failed"
    assert lines["why"] == "the action said that trying again cannot help"
    assert lines["target"] == "w1"
    assert json.loads(lines["labels"]) == labels
    assert json.loads(lines["arguments"])["value"] == 90
    assert lines["error"] == "PermanentError: no way"
    attempts = [line for line in shown.out.splitlines() if line.startswith("attempt")]
    assert [line.partition(", ")[2] for line in attempts] == ["failed: PermanentError: no way"] * 2
    assert shown.out.splitlines()[-1].endswith(f" retry by ann, cli on {socket.gethostname()}")


def test_run_is_json_with_its_attempts_and_who_did_what(site: Site) -> None:
    (run_id,) = site.post("broken", alert("w2"))
    site.wait_for(run_id, outcome="failed")
    site.run("retry", run_id)
    site.wait_for(run_id, outcome="failed", attempts=2)
    shown = site.run("run", run_id, "--json").json
    assert (shown["id"], shown["why"]) == (run_id, "the action said that trying again cannot help")
    assert [(one["number"], one["outcome"]) for one in shown["history"]] == [
        (1, "failed"),
        (2, "failed"),
    ]
    (asked,) = shown["audit"]
    assert (asked["who"], asked["operation"], asked["run_id"]) == ("ann", "retry", run_id)


def test_rejected_alerts_are_listed_with_their_reason(site: Site) -> None:
    refused = alert("r1", labels={"alertname": "Refused", "action_plugin": "fixit"})
    for _ in range(2):
        assert site.serving.post(notification(refused)).json()["rejected"] == 1
    why = "label action_plugin: there is no action 'fixit' (did you mean fix_it?)"
    (kept,) = [one for one in site.run("rejected", "--json").json if one["fingerprint"] == "r1"]
    assert (kept["name"], kept["times"], kept["closed_by"], kept["reason"]) == (
        "fixit", 2, None, why,
    )  # fmt: skip
    assert "alert" not in kept
    shown = " ".join(site.run("rejected").out.split())
    assert f"Refused fixit 2 open {why}" in shown


# Operating


def test_retry_lets_a_failed_run_run_again(site: Site) -> None:
    first, second = site.post("broken", alert("o1"), alert("o2"))
    for run_id in (first, second):
        site.wait_for(run_id, outcome="failed")
    done = site.run("retry", first)
    assert (done.code, done.out) == (0, f"run {first} is queued again\n")
    assert site.run("retry", second, "--json").json == {"done": f"run {second} is queued again"}
    for run_id in (first, second):
        site.wait_for(run_id, outcome="failed", attempts=2)


def test_cancel_ends_what_waits_at_once(site: Site, paused: str) -> None:
    first, second = site.post(paused, alert("c1"), alert("c2"))
    done = site.run("cancel", first, "--reason", "known")
    assert (done.code, done.out) == (0, f"run {first} is cancelled\n")
    assert site.run("cancel", second, "--json").json == {"done": f"run {second} is cancelled"}
    cancelled = reading.find_run(site.journal, first)
    assert (cancelled["outcome"], cancelled["reason"]) == (
        "cancelled",
        "cancelled by ann: known",
    )


def test_cancel_stops_what_runs(site: Site) -> None:
    (run_id,) = site.post("slow", alert("s1"))
    site.wait_for(run_id, state="running")
    assert site.run("explain", run_id).out == f"run {run_id} is running: attempt 1 runs\n"
    done = site.run("cancel", run_id)
    assert done.out == f"run {run_id} is running; its attempt was asked to stop\n"
    run = site.wait_for(run_id, state="finished")
    assert (run["outcome"], run["reason"]) == ("cancelled", "cancelled by ann")


def test_approve_lets_a_waiting_run_run(site: Site) -> None:
    first, second = site.post("gated", alert("a1"), alert("a2"))
    why = f"run {first} is awaiting_approval: waits for approval, 1h at most\n"
    assert site.run("explain", first).out == why
    done = site.run("approve", first)
    assert (done.code, done.out) == (0, f"run {first} is approved\n")
    assert site.run("approve", second, "--json").json == {"done": f"run {second} is approved"}
    for run_id in (first, second):
        assert site.wait_for(run_id, outcome="succeeded")["result"] == '"opened"'


def test_reject_cancels_a_waiting_run(site: Site) -> None:
    first, second = site.post("gated", alert("a3"), alert("a4"))
    done = site.run("reject", first, "--reason", "not today")
    assert (done.code, done.out) == (0, f"run {first} is rejected\n")
    assert site.run("reject", second, "--json").json == {"done": f"run {second} is rejected"}
    run = reading.find_run(site.journal, first)
    assert (run["outcome"], run["reason"]) == ("cancelled", "rejected by ann: not today")


def test_paused_action_starts_nothing_until_resumed(site: Site) -> None:
    assert site.run("pause", "fix_it").out == "fix_it paused\n"
    (run_id,) = site.post("fix_it", alert("p1"))
    assert site.run("explain", run_id).out == f"run {run_id} is queued: paused: by ann\n"
    assert site.run("resume", "fix_it").out == "fix_it resumed\n"
    site.wait_for(run_id, outcome="succeeded")


def test_resume_of_an_action_resets_its_breaker_though_it_is_not_paused(site: Site) -> None:
    for number in range(5):
        (run_id,) = site.post("flaky", alert(f"flaky{number}"))
        site.wait_for(run_id, outcome="failed")
    (held,) = site.post("flaky", alert("flaky-held"))
    site.wait_for(held, held_by="breaker")
    assert site.run("resume", "flaky").out == "the breaker of flaky is reset\n"
    site.wait_for(held, outcome="failed")
    # Without an action it concerns pauses alone.
    assert site.run("resume").code == 1


def test_pause_of_all_starts_nothing_until_resumed(site: Site) -> None:
    paused = site.run("pause", "--json", "--for", "1h", "--reason", "storm").json
    assert paused["done"].startswith("all actions paused for ")
    (run_id,) = site.post("fix_it", alert("p2"))
    explained = site.run("explain", run_id, "--json").json
    assert explained == {"run": run_id, "state": "queued", "why": "paused: by ann: storm"}
    assert site.run("resume", "--json").json == {"done": "all actions resumed"}
    site.wait_for(run_id, outcome="succeeded")


def test_every_operation_is_audited_with_who_and_from_where(site: Site) -> None:
    before = len(reading.audit_of(site.journal, limit=10_000))
    (run_id,) = site.post("gated", alert("u1"))
    carried_out = [
        ("reject", run_id, "--reason", "one"), ("retry", run_id), ("pause", "held"),
        ("resume", "held"),
    ]  # fmt: skip
    refused = [("reject", run_id), ("retry", run_id), ("resume", "held"), ("pause", "nope")]
    assert [site.run(*one).code for one in (*carried_out, *refused)] == [0] * 4 + [1] * 4
    site.wait_for(run_id, outcome="succeeded")
    audit = reading.audit_of(site.journal, limit=10_000)
    made = [
        (one["operation"], one["action"], one["run_id"], one["detail"])
        for one in reversed(audit[: len(audit) - before])
    ]
    # What was refused has changed nothing, and is not among them.
    assert made == [
        ("reject", "gated", run_id, "one"),
        ("retry", "gated", run_id, ""),
        ("pause", "held", None, ""),
        ("resume", "held", None, ""),
    ]
    assert {(one["who"], one["origin"]) for one in audit} == {
        ("ann", f"cli on {socket.gethostname()}")
    }


def test_replay_takes_a_rejected_alert_up_once_the_configuration_is_mended(
    start_receiver: Callable[..., Receiver], tmp_path: Path
) -> None:
    write_plugin(tmp_path / "plugins", "fix_it", PLUGINS["fix_it"])
    write_plugin(tmp_path / "plugins", "newer", 'def execute():\n    return "at last"')
    environment = {
        "RECEIVER_DATA_DIR": str(tmp_path / "data"),
        "PLUGIN_DIR": str(tmp_path / "plugins"),
        "RECEIVER_ACTIONS": "fix_it",
    }
    first = start_receiver(**environment).wait_ready()
    refused = notification(alert(labels={"action_plugin": "newer"}))
    assert first.post(refused).json()["rejected"] == 1
    (kept,) = receiver("rejected", "--json", **environment).json
    again = receiver("replay", kept["id"], **environment)
    assert (again.code, again.out) == (1, "accepted 0, duplicate 0, rejected 1\n")
    assert first.stop() == 0

    environment["RECEIVER_ACTIONS"] = "fix_it, newer"
    start_receiver(**environment).wait_ready()
    done = receiver("replay", kept["id"], "--json", **environment)
    counts = {"accepted": 1, "duplicate": 0, "resolved": 0, "rejected": 0, "ahead": 0}
    assert (done.code, done.json) == (0, counts)

    def ran() -> list[dict[str, Any]]:
        return [
            one
            for one in receiver("runs", "--json", **environment).json
            if (one["action"], one["outcome"]) == ("newer", "succeeded")
        ]

    assert len(wait_until(ran)) == 1
    closed = receiver("replay", kept["id"], **environment)
    assert closed.code == 1
    assert f"the rejected alert {kept['id']} is closed: taken up" in closed.err


# Refused, in words


@pytest.mark.parametrize("command", ["run", "explain", "retry", "cancel", "approve", "reject"])
def test_unknown_run_ends_with_1_and_words(site: Site, command: str) -> None:
    for more in ([], ["--json"]):
        done = site.run(command, NOBODY, *more)
        assert (done.code, done.out) == (1, "")
        assert done.err == (
            f"receiver: 1 problem:\n  there is no run {NOBODY}; see `receiver runs`\n"
        )


@pytest.mark.parametrize("command", ["run", "explain", "retry", "cancel", "approve", "reject"])
def test_number_that_no_database_can_hold_is_that_of_no_run(site: Site, command: str) -> None:
    done = site.run(command, BEYOND_ALL)
    assert (done.code, done.out) == (1, "")
    assert f"there is no run {BEYOND_ALL}; see `receiver runs`" in done.err


@pytest.mark.parametrize("number", [NOBODY, BEYOND_ALL])
def test_unknown_rejected_alert_ends_with_1_and_words(site: Site, number: int) -> None:
    done = site.run("replay", number)
    assert (done.code, done.out) == (1, "")
    assert f"there is no rejected alert {number}; see `receiver rejected`" in done.err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("retry", "run {} is succeeded; only one that ended "
                  "failed, unknown, cancelled, skipped can be retried"),
        ("cancel", "run {} has finished: succeeded, the action succeeded"),
        ("approve", "run {} waits for no approval: it is succeeded"),
        ("reject", "run {} waits for no approval: it is succeeded"),
    ],
)  # fmt: skip
def test_wrong_state_ends_with_1_and_words(site: Site, command: str, words: str) -> None:
    (run_id,) = site.post("fix_it", alert(f"wrong-{command}"))
    site.wait_for(run_id, outcome="succeeded")
    done = site.run(command, run_id)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"receiver: 1 problem:\n  {words.format(run_id)}\n"


def test_pause_of_an_unknown_action_is_refused(site: Site) -> None:
    done = site.run("pause", "fixit")
    assert (done.code, done.out) == (1, "")
    assert "there is no action fixit; see `receiver plugins`" in done.err
    assert reading.list_holds(site.journal) == []


@pytest.mark.parametrize(
    "arguments",
    [["pause"], ["resume"], ["runs"], ["run", "1"], ["retry", "1"], ["rejected"], ["replay", "1"]],
    ids=lambda arguments: arguments[0],
)
def test_command_on_no_journal_makes_none_and_says_so(tmp_path: Path, arguments: list[str]) -> None:
    done = receiver(*arguments, RECEIVER_DATA_DIR=str(tmp_path / "typo"))
    assert (done.code, done.out) == (1, "")
    assert f"there is no journal in {tmp_path / 'typo'}; set RECEIVER_DATA_DIR" in done.err
    assert not (tmp_path / "typo").exists()


def test_explain_needs_no_journal_and_makes_none(tmp_path: Path) -> None:
    (tmp_path / "payload.json").write_bytes(notification(alert()))
    environment = {"RECEIVER_DATA_DIR": str(tmp_path / "none")}
    done = receiver("explain", tmp_path / "payload.json", "--action", "log_action", **environment)
    assert (done.code, done.err) == (0, "")
    assert "a new run starts at once" in done.out
    assert not (tmp_path / "none").exists()


def test_pause_where_no_worker_listens_says_so(site: Site, tmp_path: Path) -> None:
    assert site.run("pause", "held").err == ""
    assert site.run("resume", "held").err == ""
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    Journal(url).close()
    done = receiver("pause", RECEIVER_DATA_DIR=str(tmp_path))
    assert (done.code, done.err) == (0, "no worker of this journal is running\n")


def test_pause_for_a_time_says_it_as_it_was_asked(site: Site) -> None:
    assert site.run("pause", "held", "--for", "1h30m").out == "held paused for 1h30m\n"
    assert site.run("resume", "held").out == "held resumed\n"


def test_broken_plugin_that_a_policy_names_keeps_nobody_from_stopping_and_looking(
    site: Site, tmp_path: Path
) -> None:
    write_plugin(tmp_path / "plugins", "page", "def execute(:")
    write_plugin(tmp_path / "plugins", "fix_it", PLUGINS["fix_it"])
    (run_id,) = site.post("fix_it", alert("broken-page"))
    site.wait_for(run_id, outcome="succeeded")
    environment = {
        "RECEIVER_DATA_DIR": site.environment["RECEIVER_DATA_DIR"],
        "PLUGIN_DIR": str(tmp_path / "plugins"),
        "RECEIVER_ACTION_FIX_IT_ESCALATE_TO": "page",
    }
    for arguments in (["pause", "fix_it"], ["runs"], ["run", run_id], ["resume", "fix_it"]):
        done = receiver(*arguments, **environment)
        assert (done.code, done.err) == (0, ""), arguments


@pytest.mark.parametrize("arguments", [["resume"], ["resume", "held"]], ids=["all", "an action"])
def test_resume_of_what_is_not_paused_is_refused(site: Site, arguments: list[str]) -> None:
    done = site.run(*arguments)
    assert (done.code, done.out) == (1, "")
    assert "paused" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["run"], id="no run"),
        pytest.param(["retry", "first"], id="no number"),
        pytest.param(["approve", "1", "--reason", "x"], id="reason where none is taken"),
        pytest.param(["pause", "--for", "soon"], id="no duration"),
        pytest.param(["runs", "--state", "waiting"], id="no state"),
        pytest.param(["runs", "--outcome", "good"], id="no outcome"),
        pytest.param(["runs", "--limit", "0"], id="no limit"),
        pytest.param(["replay", "1", "2"], id="one too many"),
        pytest.param(["explain"], id="nothing to explain"),
    ],
)
def test_wrong_usage_ends_with_2(site: Site, arguments: list[str]) -> None:
    done = site.run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err


# Explaining a notification


@pytest.fixture
def payload(tmp_path: Path) -> Callable[..., Path]:
    """Writes a notification into a file."""

    def write(*alerts: dict[str, Any]) -> Path:
        file = tmp_path / "payload.json"
        file.write_bytes(notification(*alerts))
        return file

    return write


def test_explain_tells_people_where_each_alert_goes(
    site: Site, payload: Callable[..., Path]
) -> None:
    annotations = {"value": "90", "for": "1h30m", "metric_name": "depth", "threshold": "> 80"}
    known = {"alertname": "Known", "action_plugin": "gated"}
    file = payload(
        alert("e1", labels=known, annotations=annotations),
        alert("e2", labels={"alertname": "Unknown", "action_plugin": "nope"}),
    )
    before = site.everything()
    done = site.run("explain", file)
    assert site.everything() == before
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert lines[:2] == [
        "Known (firing) goes to gated, by label action_plugin",
        "  new: the first episode of this alert",
    ]
    call = "  execute(metric_name='depth', value=90, threshold='> 80', duration="
    assert lines[2].startswith(call)
    assert lines[3] == "  a new run waits for a person's approval; then: starts at once"
    assert lines[4:] == [
        "Unknown (firing) goes to no action",
        "  rejected: label action_plugin: there is no action 'nope'",
    ]


def test_explain_is_json_with_arguments_and_guardrails(
    site: Site, payload: Callable[..., Path], paused: str
) -> None:
    file = payload(alert("e3"), alert("e4", "resolved"))
    done = site.run("explain", file, "--action", paused, "--source", "eu", "--json")
    assert done.code == 0
    fired, resolved = done.json
    assert (fired["fingerprint"], fired["status"], fired["rule"], fired["action"]) == (
        "e3", "firing", "path", paused,
    )  # fmt: skip
    assert (fired["episode"], fired["guardrails"]) == ("new", "paused: by ann: deploy")
    arguments = fired["arguments"]
    assert (arguments["metric_name"], arguments["value"], arguments["threshold"]) == (
        "queue_depth", "nan", "> 80",
    )  # fmt: skip
    assert arguments["duration_seconds"] > 0
    assert arguments["warnings"]
    assert (resolved["status"], resolved["episode"], resolved["arguments"]) == (
        "resolved", "resolved", None,
    )  # fmt: skip


def test_explain_says_that_a_known_episode_runs_nothing_new(
    site: Site, payload: Callable[..., Path]
) -> None:
    site.post("fix_it", alert("e5"))
    done = site.run("explain", payload(alert("e5")), "--action", "fix_it")
    assert done.code == 0
    assert "  seen: the same episode" in done.out
    assert done.out.endswith("  nothing new runs\n")


@pytest.mark.parametrize(
    ("alerts", "options", "code"),
    [
        pytest.param([alert("x1")], ["--action", "fix_it"], 0, id="taken"),
        pytest.param([alert("x1", "resolved")], ["--action", "fix_it"], 0, id="resolved"),
        pytest.param([alert("x1")], [], 1, id="no action"),
        pytest.param([alert("x1")], ["--action", "no_such_action"], 1, id="unknown action"),
        pytest.param(
            [alert("x1"), alert("x2", labels={"action_plugin": "fix_it"})], [], 1, id="one of two"
        ),
        pytest.param(
            [alert("x1", labels={"action_plugin": "fix_it, nope"})], [], 1, id="one name of two"
        ),
        pytest.param([], [], 0, id="no alerts"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_explain_ends_with_1_when_an_alert_would_be_rejected(
    site: Site,
    payload: Callable[..., Path],
    alerts: list[dict[str, Any]],
    options: list[str],
    code: int,
    more: list[str],
) -> None:
    done = site.run("explain", payload(*alerts), *options, *more)
    assert (done.code, done.err) == (code, "")


def test_explain_of_a_bad_alert_names_each_wrong_field(site: Site, tmp_path: Path) -> None:
    body = json.loads(notification(alert(), alert("f2")))
    body["alerts"][1] |= {"status": "burning", "startsAt": "soon"}
    (tmp_path / "bad.json").write_text(json.dumps(body))
    done = site.run("explain", tmp_path / "bad.json")
    assert (done.code, done.err) == (1, "")
    assert "rejected: the alert is malformed: status must be " in done.out
    assert "; startsAt is not a time " in done.out


def test_superscript_is_no_number_of_a_run(site: Site) -> None:
    done = site.run("explain", "²")
    assert (done.code, done.out) == (1, "")
    assert "is neither a run nor a file that can be read" in done.err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "is neither a run nor a file that can be read", id="no file"),
        pytest.param("{", "the body is not JSON", id="no JSON"),
        pytest.param("[]", "the body is not a notification", id="no object"),
        pytest.param('{"version": "3"}', "version: Must be", id="no version"),
    ],
)
def test_explain_of_what_is_no_notification_ends_with_1_and_words(
    site: Site, tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "odd.json"
    if content is not None:
        file.write_text(content)
    done = site.run("explain", file)
    assert (done.code, done.out) == (1, "")
    assert problem in done.err


# Hostile texts on a terminal


# A title, a cleared screen, colours (of two kinds), reversed writing, and lines of their own.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m\u202egnp\x08\x08\rFAKE\nFAKE 99 succeeded"


def on_terminal(*arguments: object, **environment: str) -> tuple[int, str]:
    """Run a command on a terminal that knows no colours; return its code and all that arrived.

    Where nobody looks at a terminal, click removes escape sequences by itself.
    """
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "receiver", *map(str, arguments)],
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": "dumb", "LOGNAME": "ann",
             "COLUMNS": "400", **environment},
        stdin=there,
        stdout=there,
        stderr=there,
        start_new_session=True,
    )  # fmt: skip
    os.close(there)
    arrived = b""
    while chunk := _read(here):
        arrived += chunk
    os.close(here)
    return process.wait(30), arrived.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Nobody has the other end any more.
        return b""


@pytest.fixture(scope="module")
def hostile(site: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """A run and a notification whose every text is hostile."""
    texts = {"alertname": HOSTILE, "host": HOSTILE, HOSTILE: HOSTILE}
    said = {"metric_name": HOSTILE, "value": HOSTILE, "threshold": HOSTILE, "for": HOSTILE}
    (run_id,) = site.post("held", alert("h1", labels=texts, annotations=said))
    site.wait_for(run_id, outcome="succeeded")
    (waiting,) = site.post("held", alert("h2", labels=texts, annotations=said))
    site.wait_for(waiting, held_by="cooldown")
    named = alert("h3", labels={**texts, "action_plugin": HOSTILE}, annotations=said)
    assert site.serving.post(notification(named)).json()["rejected"] > 0
    file = tmp_path_factory.mktemp("hostile") / "payload.json"
    file.write_bytes(notification(alert("h1", labels=texts, annotations=said), named))
    return run_id, file


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("runs", id="runs"),
        pytest.param("runs --json", id="runs as JSON"),
        pytest.param("run {run}", id="run"),
        pytest.param("run {run} --json", id="run as JSON"),
        pytest.param("rejected", id="rejected"),
        pytest.param("explain {run}", id="explain a run"),
        pytest.param("explain {file}", id="explain a notification, by label"),
        pytest.param("explain {file} --action held", id="explain a notification, by path"),
        pytest.param("explain {file} --action held --json", id="explain as JSON"),
    ],
)
def test_hostile_texts_reach_no_terminal_as_they_are(
    site: Site, hostile: tuple[int, Path], command: str
) -> None:
    run_id, file = hostile
    words = command.format(run=run_id, file=file).split()
    code, arrived = on_terminal(*words, **site.environment)
    assert code in (0, 1)
    assert {char for char in arrived if not char.isprintable()} <= {"\r", "\n"}
    assert not [line for line in arrived.splitlines() if line.startswith("FAKE")]
    if words[0] != "explain" or words[1] == str(file):
        assert "owned" in arrived


def test_markup_in_a_text_is_shown_as_it_is(site: Site) -> None:
    name = "[bold]loud[/bold] [link=http://x]y[/link] [/] :warning:"
    (run_id,) = site.post("fix_it", alert("m1", labels={"alertname": name}))
    site.wait_for(run_id, outcome="succeeded")
    shown = " ".join(site.run("runs", "--alert", name).out.split())
    assert name in shown


# Policies that do not fit together stop every start


TOO_SHORT = "a limit looks back further than RECEIVER_RETENTION keeps runs"
UNFIT: dict[str, tuple[dict[str, str], str]] = {
    "escalation to nothing": (
        {"RECEIVER_ACTION_FIX_IT_ESCALATE_TO": "pager"},
        "[actions.fix_it] escalate_to: there is no ",
    ),
    "escalation in a circle": (
        {
            "RECEIVER_ACTION_FIX_IT_ESCALATE_TO": "held",
            "RECEIVER_ACTION_HELD_ESCALATE_TO": "fix_it",
        },
        "escalate_to goes in a circle: fix_it → held → fix_it",
    ),
    "rate_limit": (
        {"RECEIVER_ACTION_FIX_IT_RATE_LIMIT": "3/1h, 9/2d", "RECEIVER_RETENTION": "1d"},
        f"[actions.fix_it]: {TOO_SHORT}",
    ),
    "cooldown": (
        {"RECEIVER_ACTION_FIX_IT_COOLDOWN": "2d", "RECEIVER_RETENTION": "1d"},
        f"[actions.fix_it]: {TOO_SHORT}",
    ),
    "[limits] rate_limit": (
        {"RECEIVER_LIMITS_RATE_LIMIT": "9/2d", "RECEIVER_RETENTION": "1d"},
        f"[limits] rate_limit: {TOO_SHORT}",
    ),
}


@pytest.mark.parametrize(
    ("command", "unfit"),
    [("serve", "cooldown"), ("web", "cooldown"), *[("worker", unfit) for unfit in UNFIT]],
)
def test_policies_that_do_not_fit_together_stop_the_start_with_words(
    site: Site, tmp_path: Path, command: str, unfit: str
) -> None:
    settings, problem = UNFIT[unfit]
    environment = {**site.environment, "RECEIVER_DATA_DIR": str(tmp_path / "data"), **settings}
    done = subprocess.run(
        [sys.executable, "-m", "receiver", command, "--bind", "127.0.0.1:0"],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert json.dumps(problem)[1:-1] in done.stdout
    assert "Traceback" not in done.stderr


def test_policy_of_a_plugin_yields_to_the_operators(site: Site, tmp_path: Path) -> None:
    careful = (
        PLUGINS["fix_it"]
        + """


@hookimpl
def default_policy():
    return {"approval": "required", "dry_run": "true"}
"""
    )
    write_plugin(tmp_path / "plugins", "careful", careful)
    (tmp_path / "payload.json").write_bytes(notification(alert()))
    environment = {
        "RECEIVER_DATA_DIR": str(tmp_path / "data"), "PLUGIN_DIR": str(tmp_path / "plugins"),
    }  # fmt: skip

    def explained(**more: str) -> str:
        payload = tmp_path / "payload.json"
        done = receiver("explain", payload, "--action", "careful", **environment, **more)
        return done.out.splitlines()[-1].strip()

    dry = "a new run starts at once; a dry run: the action only says what it would do"
    assert explained() == dry
    waits = explained(RECEIVER_ACTION_CAREFUL_DRY_RUN="false")
    assert waits == "a new run waits for a person's approval; then: starts at once"
    config = tmp_path / "receiver.toml"
    config.write_text("[actions.careful]\ndry_run = false\napproval = 'none'\n")
    assert explained(RECEIVER_CONFIG=str(config)) == "a new run starts at once"
