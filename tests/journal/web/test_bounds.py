"""What only reads delays nobody, and loads no more than it shows."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from receiver.alertmanager import Alert, parse_notification
from receiver.errors import JournalUnavailableError, NotificationError
from receiver.journal import claims, reading
from receiver.journal.journal import Journal
from receiver.journal.tables import runs
from receiver.operations import Operations
from receiver.plugins import load_actions
from receiver.policies import Rules
from receiver.settings import load
from receiver.web.app import create_app
from tests.support.notifications import alert, notification


class Gate:
    """A clock at which one thread waits until it may go on."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.thread: int | None = None

    def __call__(self) -> datetime:
        if threading.get_ident() == self.thread:
            self.reached.set()
            assert self.open.wait(60)
        return datetime.now(UTC)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def app(open_journal: Callable[..., Journal], tmp_path: Path, gate: Gate) -> Iterator[Flask]:
    """An application that works on one request at a time, notifications and probes apart."""
    environment = {
        "RECEIVER_DATA_DIR": str(tmp_path),
        "ACTION_PLUGIN": "log_action",
        "RECEIVER_WEB_THREADS": "1",
    }
    settings = load(environment, {})
    app = create_app(settings, load_actions(settings), open_journal(clock=gate))
    yield app
    app.extensions["journal_writer"].close()
    app.extensions["journal_bell"].close()


def post(app: Flask, path: str, body: bytes) -> Any:
    return app.test_client().post(path, data=body, content_type="application/json")


@contextmanager
def explaining(app: Flask, gate: Gate) -> Iterator[None]:
    """A block during which another client's notification is being explained."""

    def explain() -> int:
        gate.thread = threading.get_ident()
        return int(post(app, "/api/v1/explain", notification(alert())).status_code)

    with ThreadPoolExecutor(1) as pool:
        explained = pool.submit(explain)
        assert gate.reached.wait(60)
        try:
            yield
        finally:
            gate.open.set()
        assert explained.result(60) == 200


def test_probes_and_notifications_share_no_slot_with_a_look(app: Flask, gate: Gate) -> None:
    with explaining(app, gate):
        for path in ("/-/ready", "/-/healthy"):
            assert app.test_client().get(path).status_code == 200
        assert post(app, "/webhook", notification(alert())).status_code == 200
        busy = app.test_client().get("/api/v1/runs")
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "5")
    assert app.test_client().get("/api/v1/runs").status_code == 200


def test_explain_takes_a_mebibyte(app: Flask) -> None:
    assert post(app, "/api/v1/explain", notification().ljust(1024 * 1024)).status_code == 200
    answer = post(app, "/api/v1/explain", notification().ljust(1024 * 1024 + 1))
    assert answer.status_code == 413
    assert answer.get_json()["detail"] == "the body is larger than 1048576 bytes"


def test_explain_explains_no_more_than_it_can_in_time(app: Flask) -> None:
    names = ",".join(f"unknown_{number}" for number in range(20))
    many = [alert(f"f{number}", labels={"action_plugin": names}) for number in range(501)]
    assert post(app, "/api/v1/explain", notification(*many[:500])).status_code == 200
    answer = post(app, "/api/v1/explain", notification(*many))
    assert answer.status_code == 400
    assert "name more than 10000 actions" in answer.get_json()["detail"]


def test_explain_watches_its_deadline(open_journal: Callable[..., Journal], tmp_path: Path) -> None:
    settings = load({"RECEIVER_DATA_DIR": str(tmp_path), "ACTION_PLUGIN": "log_action"}, {})
    operations = Operations(settings, load_actions(settings), open_journal())
    body = parse_notification(notification(alert("a"), alert("b")))

    assert len(operations.explain(body, seconds=60)) == 2
    with pytest.raises(NotificationError, match="takes longer than 0 s"):
        operations.explain(body, seconds=0)


def test_readers_leave_connections_for_writes(open_journal: Callable[..., Journal]) -> None:
    journal = open_journal()
    enough, may_end = threading.Barrier(5), threading.Event()

    def read() -> None:
        with journal.reading():
            enough.wait(60)
            assert may_end.wait(60)

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        enough.wait(60)
        journal.check_writable()
        with pytest.raises(JournalUnavailableError, match="others are reading"):
            reading.count_runs(journal)
        may_end.set()
        for reader in readers:
            reader.result(60)
    assert reading.count_runs(journal) == {}


LISTS = ("/", "/runs", "/rejected", "/actions", "/api/v1/runs", "/api/v1/rejected",
         "/api/v1/episodes", "/api/v1/actions")  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
def test_list_loads_no_alert(app: Flask, open_journal: Callable[..., Journal], path: str) -> None:
    bodies = [alert("queued"), alert("dry", annotations={"action_dry_run": "true"}),
              alert("refused", labels={"action_plugin": "nope"})]  # fmt: skip
    assert post(app, "/webhook", notification(*bodies)).status_code == 200
    selected: list[str] = []

    def look(*arguments: Any) -> None:
        selected.append(str(arguments[2]))

    engines = app.extensions["journal_writer"]._journal.engine
    sa.event.listen(engines, "before_cursor_execute", look)
    try:
        assert app.test_client().get(path).status_code == 200
    finally:
        sa.event.remove(engines, "before_cursor_execute", look)
    loads = [text for text in selected if re.search(r"\b(runs|rejected)\.alert\b", text)]
    # Whether a run is a dry run can stand in its alert; that of the others is not read.
    assert all("LIKE" in text for text in loads), loads
    assert selected


def test_claim_reads_a_large_alert_of_an_older_version_alone(
    app: Flask, open_journal: Callable[..., Journal]
) -> None:
    for number in range(3):
        assert post(app, "/webhook", notification(alert(f"f{number}"))).status_code == 200
    journal = open_journal()
    fat = Alert(
        "firing", {"alertname": "Fat"}, {f"a{number}": "x" * 16_000 for number in range(100)},
        datetime.now(UTC), None, "", "f",
    )  # fmt: skip
    with journal.writing() as connection:
        connection.execute(sa.update(runs).where(runs.c.fingerprint != "f1").values(
            alert=fat.to_json()))  # fmt: skip

    claimed = claims.claim_due_runs(journal, "w", ["log_action"], 3, Rules()).claimed

    assert [run.fingerprint for run in claimed] == ["f0", "f1", "f2"]
    assert [len(run.alert) > 20_000 for run in claimed] == [True, False, True]
    assert all(len(run.alert.encode()) <= 65_536 for run in claimed)
    assert Alert.from_json(claimed[0].alert).name == "Fat"


def test_claim_asks_for_no_more_actions_once_alerts_take_too_many_bytes(
    open_journal: Callable[..., Journal], app: Flask
) -> None:
    big = {f"a{number}": "x" * 6_000 for number in range(10)}
    names = [f"a{number}" for number in range(300)]
    bodies = [alert(name, annotations=big) for name in names]
    assert post(app, "/webhook", notification(*bodies)).status_code == 200
    journal = open_journal()
    with journal.writing() as connection:
        connection.execute(sa.update(runs).where(runs.c.id <= 2).values(action="z"))
    policies = Rules()

    claim = claims.claim_due_runs(journal, "w", ["log_action", "z"], 1_000, policies)

    assert claim.claimed
    assert claim.is_more
