"""A commit whose answer is lost on the way: it was made, and who asked for it cannot know."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from tests.support.databases import Databases
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until
from tests.support.witness import Witness


class Wire:
    """The way to a PostgreSQL server; the answer to the first claim's commit is lost on it."""

    def __init__(self, url: sa.URL) -> None:
        self._server = (str(url.query.get("host", url.host)), url.port or 5432)
        self.has_lost = threading.Event()
        # Called when the answer is lost, before whoever waits for it is cut off.
        self.when_lost: Callable[[], None] = lambda: None
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut every connection."""
        for one in (self._listener, *self._ends):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = self._connect()
                self._ends += [near, far]
                threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _connect(self) -> socket.socket:
        host, port = self._server
        if not host.startswith("/"):
            return socket.create_connection(self._server)
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{host}/.s.PGSQL.{port}")
        return far

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        """Carry questions to the server and answers back, until one is lost."""
        losing = threading.Event()
        threading.Thread(target=self._carry_back, args=(near, far, losing), daemon=True).start()
        claims = False
        with suppress(OSError):
            while asked := near.recv(65536):
                claims = claims or b"INSERT INTO attempts" in asked
                if claims and b"COMMIT" in asked and not self.has_lost.is_set():
                    losing.set()
                far.sendall(asked)
        far.close()

    def _carry_back(self, near: socket.socket, far: socket.socket, losing: threading.Event) -> None:
        with suppress(OSError):
            while (answer := far.recv(65536)) and not losing.is_set():
                near.sendall(answer)
        if losing.is_set():
            assert b"COMMIT" in answer  # It was made.
            self.when_lost()
            self.has_lost.set()
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def database(databases: Databases) -> sa.URL:
    return sa.make_url(databases.new("postgresql"))


@pytest.fixture
def wire(database: sa.URL) -> Iterator[Wire]:
    made = Wire(database)
    yield made
    made.close()


class Site:
    """A web process beside its database, and a worker at the other end of the wire."""

    def __init__(
        self, database: sa.URL, wire: Wire, start: Callable[..., Receiver], directory: Path
    ) -> None:
        self.witness = Witness(directory)
        self._url = database.render_as_string(hide_password=False)
        by_wire = database.set(host="127.0.0.1", port=wire.port, query={})
        far = by_wire.render_as_string(hide_password=False)
        plugins = self.witness.environment
        self._web = start("web", RECEIVER_DATABASE_URL=self._url, **plugins).wait_ready()
        self.worker = start("worker", RECEIVER_DATABASE_URL=far, **plugins).wait_ready()

    def accept(self) -> None:
        assert self._web.post(notification(alert()), "/webhook/witness").status_code == 200

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self._url.replace("+psycopg", ""), autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()


@pytest.fixture
def site(
    database: sa.URL, wire: Wire, start_receiver: Callable[..., Receiver], tmp_path: Path
) -> Site:
    return Site(database, wire, start_receiver, tmp_path)


def test_claim_whose_commit_was_not_answered_is_made_good(site: Site, wire: Wire) -> None:
    site.accept()
    wait_until(wire.has_lost.is_set, 60)
    wait_until(lambda: site.rows("SELECT outcome, attempts FROM runs") == [("succeeded", 2)], 60)
    # What it had not heard of was not begun; nobody else was there to take it.
    seen = [(one.event, one.attempt) for one in site.witness.seen()]
    assert seen == [("begins", 2), ("ends", 2)]
    assert site.worker.stop() == 0


def test_worker_that_stops_before_it_hears_of_its_claim_gives_it_back(
    site: Site, wire: Wire
) -> None:
    process = site.worker.process
    assert process is not None
    wire.when_lost = process.terminate
    site.accept()
    assert process.wait(60) == 0
    assert wire.has_lost.is_set()
    assert site.rows("SELECT state, attempts FROM runs") == [("queued", 1)]
    assert site.rows("SELECT outcome, error FROM attempts") == [
        ("interrupted", "the claim was not confirmed")
    ]
    assert site.witness.seen() == []
