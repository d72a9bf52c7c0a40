"""`receiver --url`: the commands say through the API what they say on the journal itself."""

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from receiver.cli import main
from receiver.journal import reading
from tests.support.notifications import alert, notification
from tests.support.pages import Site, start_site
from tests.support.receivers import free_port

TOKENS = {
    "RECEIVER_SUBMIT_BASIC_AUTH": "am:s",
    "RECEIVER_READ_TOKEN": "r",
    "RECEIVER_OPERATE_BASIC_AUTH": "ann:ö",
}
OPERATE = {"RECEIVER_OPERATE_BASIC_AUTH": "ann:ö"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A receiver that lets nobody in without a name."""
    started = start_site(tmp_path_factory.mktemp("url"))
    yield started
    started.close()


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    returncode: object
    stdout: str
    stderr: str


def run(*arguments: object, **environment: str) -> Ended:
    """Run a command in this process, with nothing set but what is given."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["receiver", *map(str, arguments)]),
        patch.dict(os.environ, {"PATH": os.environ["PATH"], **environment}, clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
        sys.exit(0)
    return Ended(ended.value.code, out.getvalue(), err.getvalue())


def both(site: Site, *arguments: object) -> Ended:
    """Run a command on the journal and through the API; return what both said alike."""
    directory = site.serving.log.parent
    here = run(
        *arguments, RECEIVER_DATA_DIR=str(directory / "data"),
        PLUGIN_DIR=str(directory / "plugins"), RECEIVER_ACTIONS="fix_it, gated, broken, slow, held",
        RECEIVER_ACTION_HELD_COOLDOWN="1h", RECEIVER_ACTION_HELD_TARGET_LABELS="host",
    )  # fmt: skip
    there = run("--url", site.url, *arguments)
    assert there.returncode == here.returncode, there.stderr
    assert without_duration(there.stdout) == without_duration(here.stdout)
    assert there.stderr == here.stderr
    return there


def without_duration(text: str) -> str:
    """Return an explanation without the time that goes on while one looks twice."""
    return re.sub(r'("duration_seconds": |duration=)[\w.]+', "", text)


@pytest.fixture(scope="module")
def seen(site: Site) -> dict[str, Any]:
    """What there is to be looked at: runs of every sort, and a rejected alert."""
    done, failed = site.post("fix_it", "Url"), site.post("broken", "Url")
    site.post("held", "Url", host="n1")
    held = site.post("held", "Url", host="n1")
    asks = site.post("gated", "Url \x1b[2J\u202e")
    site.wait_for(done, outcome="succeeded")
    site.wait_for(failed, outcome="failed")
    site.wait_for(held, held_by="cooldown")
    site.wait_for(asks, state="awaiting_approval")
    rejected = site.reject("Url", "fixit")
    return {"done": done, "failed": failed, "held": held, "asks": asks, "rejected": rejected}


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs"],
        ["runs", "--json"],
        ["runs", "--alert", "Url", "--action", "held", "--state", "queued"],
        ["runs", "--outcome", "failed", "--limit", "1"],
        ["run", "<done>"],
        ["run", "<failed>", "--json"],
        ["run", "<held>"],
        ["run", "<asks>", "--json"],
        ["run", "99999"],
        ["rejected"],
        ["rejected", "--json"],
        ["explain", "<held>"],
        ["explain", "<held>", "--json"],
        ["approve", "99999"],
        ["retry", "<done>"],
        ["approve", "<failed>"],
        ["resume", "fix_it"],
        ["pause", "no_such"],
        ["replay", "99999"],
    ],
    ids=" ".join,
)
def test_command_says_the_same_by_either_way(
    site: Site, seen: dict[str, Any], arguments: list[str]
) -> None:
    named = {f"<{name}>": number for name, number in seen.items()}
    done = both(site, *(named.get(one, one) for one in arguments))
    assert done.stdout or done.returncode == 1
    assert "Traceback" not in done.stderr


def test_explanation_of_a_file_is_the_same_by_either_way(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    body = json.loads(notification(alert("x"), alert("y", labels={"action_plugin": "fixit"})))
    for arguments in ([], ["--action", "fix_it", "--json"]):
        file.write_text(json.dumps(body))
        both(site, "explain", file, *arguments)
    body["alerts"][0]["startsAt"] = "soon"
    file.write_text(json.dumps(body))
    assert "malformed: startsAt is not a time" in both(site, "explain", file).stdout
    body["truncatedAlerts"] = "many"
    file.write_text(json.dumps(body))
    assert "truncatedAlerts" in both(site, "explain", file).stderr


def test_operations_are_done_there_and_audited(site: Site) -> None:
    run_id, other = site.post("gated", "There"), site.post("gated", "There")
    for one in (run_id, other):
        site.wait_for(one, state="awaiting_approval")
    for arguments, said in (
        (["approve", run_id], f"run {run_id} is approved"),
        (["reject", other, "--reason", "no"], f"run {other} is rejected"),
        (["retry", other], f"run {other} is queued again"),
        (["pause", "fix_it", "--for", "1h30m", "--reason", "x"], "fix_it paused for 1h30m"),
        (["resume", "fix_it"], "fix_it resumed"),
        (["pause"], "all actions paused"),
        (["resume"], "all actions resumed"),
    ):
        done = run("--url", f"{site.url}/", *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{said}\n", "")
    asked = reading.audit_of(site.journal, limit=7)
    assert [one["operation"] for one in reversed(asked)] == [
        "approve", "reject", "retry", "pause", "resume", "pause", "resume",
    ]  # fmt: skip
    assert {(one["who"], one["origin"]) for one in asked} == {("anyone", "api from 127.0.0.1")}
    rejected = site.reject("There", "fixit")
    done = run("--url", site.url, "replay", rejected)
    assert (done.returncode, done.stdout) == (1, "accepted 0, duplicate 0, rejected 1\n")


def test_more_runs_than_fit_on_a_page_are_listed(site: Site) -> None:
    alerts = [alert(f"many{number}", labels={"alertname": "Page"}) for number in range(1100)]
    assert site.serving.post(notification(*alerts), "/webhook/held").json()["accepted"] == 1100
    done = run("--url", site.url, "runs", "--json", "--alert", "Page", "--limit", "10000")
    listed = [one["fingerprint"] for one in json.loads(done.stdout)]
    assert sorted(listed) == sorted(one["fingerprint"] for one in alerts)


def test_url_and_credentials_come_from_the_environment(tmp_path: Path) -> None:
    locked = start_site(tmp_path, **TOKENS)
    try:
        at = {"RECEIVER_URL": locked.url}
        refused = run("runs", **at)
        assert refused.returncode == 1
        assert "the receiver answers 401: this needs a token or a login" in refused.stderr
        assert run("runs", **at, RECEIVER_READ_TOKEN="r").returncode == 0
        wrong = run("pause", **at, RECEIVER_READ_TOKEN="r")
        assert "answers 403: these credentials are good, but not for what" in wrong.stderr
        assert run("pause", **at, **OPERATE).stdout == "all actions paused\n"
        assert [one["who"] for one in reading.audit_of(locked.journal)] == ["ann"]
    finally:
        locked.close()


def test_nobody_there_is_said_in_words(site: Site) -> None:
    nobody = run("--url", f"http://127.0.0.1:{free_port()}", "runs")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "/api/v1/runs cannot be asked: " in nobody.stderr
    assert "Connection refused" in nobody.stderr
    other = run("--url", f"{site.url}/-", "runs")
    assert (other.returncode, other.stdout) == (1, "")
    assert run("--url", "ftp://x", "runs").returncode == 2


def test_login_in_the_address_is_not_said(site: Site) -> None:
    address = f"127.0.0.1:{free_port()}"
    nobody = run("--url", f"http://ann:secret@{address}", "runs")
    assert nobody.returncode == 1
    assert f"http://{address}/api/v1/runs cannot be asked" in nobody.stderr
    assert "secret" not in nobody.stderr
    assert run("--url", site.url.replace("//", "//ann:secret@"), "runs").returncode == 0
