"""The benchmark itself works: a short run. Nothing is said about how fast anything is."""

import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import ROOT

_CONTENDERS = ("bare", "json", "receiver", "receiver+runs")
_JOURNALS = ("receiver", "receiver+runs")
_CONNECTIONS = 16
_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class _Run:
    """What one run of the benchmark printed, wrote and left behind."""

    printed: str
    result: dict[str, Any]
    directory: Path

    def rows(self, contender: str) -> list[tuple[str, int, str, str | None]]:
        """Return fingerprint, startsAt, state and outcome of every run in a journal."""
        with closing(sqlite3.connect(self.directory / contender / "data/journal.db")) as journal:
            return journal.execute(
                "SELECT fingerprint, starts_at, state, outcome FROM runs"
            ).fetchall()

    def log_lines(self, contender: str) -> list[dict[str, Any]]:
        """Return what a receiver logged of the notifications that it recorded."""
        lines = map(json.loads, (self.directory / contender / "log").read_text().splitlines())
        return [line for line in lines if line["message"] == "notification recorded"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> _Run:
    """One short run of the whole benchmark."""
    if missing := " ".join(one for one in ("wrk", "webhook") if shutil.which(one) is None):
        reason = f"{missing} not found; apt-get install {missing}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("bench")
    options = [
        "--rounds=1",
        "--seconds=1",
        "--warm-up=0",
        "--breakdown=3",
        "--journal-runs=500",
        "--day-runs=500",
        "--queued=50",
        f"--connections={_CONNECTIONS}",
    ]
    places = [f"--directory={directory}", f"--results={directory / 'results'}"]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.bench", *options, *places],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    ) as bench:
        try:
            printed, _ = bench.communicate(timeout=_LIMIT_SECONDS)
        finally:
            bench.terminate()  # It ends what it started; without effect when it has ended.
    assert bench.returncode == 0, printed
    (written,) = (directory / "results").glob("*.json")
    return _Run(printed, json.loads(written.read_text()), directory)


@pytest.mark.parametrize("contender", _CONTENDERS)
def test_every_request_is_answered_200(run: _Run, contender: str) -> None:
    (measured,) = run.result["rounds"][contender]
    answers = measured["answers"]
    assert answers["answers"] > 0
    assert (answers["refused"], answers["broken"]) == (0, 0)


@pytest.mark.parametrize("contender", _JOURNALS)
def test_every_notification_is_distinct_and_in_the_journal(run: _Run, contender: str) -> None:
    rows, lines = run.rows(contender), run.log_lines(contender)
    (measured,) = run.result["rounds"][contender]
    answers, recorded = measured["answers"]["answers"], run.result["recorded_alerts"][contender]
    assert len({row[:2] for row in rows}) == len(rows)
    # Some were under way when wrk ended, at most one of each connection.
    assert answers <= recorded <= len(rows) <= answers + _CONNECTIONS
    assert [(line["accepted"], line["duplicate"], line["rejected"]) for line in lines] == [
        (1, 0, 0)
    ] * len(rows)


def test_only_the_contender_with_runs_runs_what_it_accepted(run: _Run) -> None:
    (measured,) = run.result["rounds"]["receiver+runs"]
    ends = [row[2:] for row in run.rows("receiver+runs")]
    assert ends.count(("finished", "succeeded")) >= measured["answers"]["answers"]
    assert {row[2:] for row in run.rows("receiver")} == {("queued", None)}


@pytest.mark.parametrize("contender", _CONTENDERS)
def test_ratios_are_printed_as_finite_positive_numbers(run: _Run, contender: str) -> None:
    (line,) = re.findall(rf"^{re.escape(contender)} .*$", run.printed, re.MULTILINE)
    figures = [float(figure) for figure in re.findall(r"[\d.]+", line)]
    assert len(figures) == 2 * 3 + 4
    summary = run.result["summary"][contender]
    exact = [*summary["throughput"].values(), *summary["p99"].values()]
    assert all(math.isfinite(figure) and figure > 0 for figure in exact)


def test_every_further_question_is_answered_with_a_finite_positive_figure(run: _Run) -> None:
    answers = run.result["rows"]
    assert len(answers) == 23
    for answer in answers:
        assert all(math.isfinite(one) and one > 0 for one in answer["ratio"].values())
        assert f"\n{answer['what']} " in run.printed


def test_runs_that_a_worker_found_waiting_all_succeeded(run: _Run) -> None:
    ends = []
    for file in run.directory.glob("rows/*/busy/data/journal.db"):
        with closing(sqlite3.connect(file)) as journal:
            ends += journal.execute("SELECT outcome, count(*) FROM runs GROUP BY 1").fetchall()
    assert ends == [("succeeded", 50)]


def test_runs_of_one_by_one_each_have_commits_of_their_own(run: _Run) -> None:
    (file,) = run.directory.glob("rows/*/one-by-one/data/journal.db")
    with closing(sqlite3.connect(file)) as journal:
        ends = journal.execute(
            "SELECT runs.outcome, attempts.owner, attempts.started_at, attempts.finished_at "
            "FROM runs JOIN attempts ON run_id = runs.id ORDER BY attempts.started_at"
        ).fetchall()
    assert [end[:2] for end in ends] == [("succeeded", "one-by-one")] * 50
    instants = [instant for end in ends for instant in end[2:]]
    assert instants == sorted(set(instants))


def test_every_hook_runs_the_action_once(run: _Run) -> None:
    (file,) = run.directory.glob("rows/*/receiver+noter/data/journal.db")
    with closing(sqlite3.connect(file)) as journal:
        ends = journal.execute("SELECT outcome, attempts, count(*) FROM runs GROUP BY 1, 2")
        assert ends.fetchall() == [("succeeded", 1, 50)]


def test_programs_of_exec_plugin_have_run(run: _Run) -> None:
    (file,) = run.directory.glob("rows/*/receiver+programs/data/journal.db")
    with closing(sqlite3.connect(file)) as journal:
        ends = journal.execute("SELECT action, result, count(*) FROM runs GROUP BY 1, 2")
        assert ends.fetchall() == [("exec_plugin", '{"status": 0, "output": ""}', 50)]


def test_notifications_sent_again_are_duplicates(run: _Run) -> None:
    logs = [file.read_text() for file in run.directory.glob("rows/*/receiver/log")]
    (again,) = [text for text in logs if '"duplicate": 1' in text]
    lines = [json.loads(line) for line in again.splitlines()]
    recorded = [line for line in lines if line["message"] == "notification recorded"]
    assert {line["accepted"] + line["duplicate"] for line in recorded} == {1}


def test_the_breakdown_times_every_stage(run: _Run) -> None:
    stages = run.result["breakdown"]
    assert len(stages) >= 8
    for stage in stages:
        assert math.isfinite(stage["us"])
        assert stage["us"] > 0
        assert f"\n{stage['stage']} " in run.printed


@pytest.mark.parametrize("missing", ["wrk", "webhook"])
def test_bench_names_the_package_of_a_missing_program(tmp_path: Path, missing: str) -> None:
    programs, directory = tmp_path / "programs", tmp_path / "bench"
    programs.mkdir()
    for other in {"wrk", "webhook"} - {missing}:
        (programs / other).write_text("#!/bin/sh\n")
        (programs / other).chmod(0o755)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench", f"--directory={directory}"],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ended.returncode == 1
    assert f"apt-get install {missing}\n" in ended.stderr
    assert not directory.exists()
