"""A commit whose answer is lost on the way: it was made, and who asked for it cannot know."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from databases import Databases
from notifications import alert, notification
from receivers import Receiver
from waiting import wait_until
from witness import Witness


class Wire:
    """The way to a PostgreSQL server; the answer to the first claim's commit is lost on it."""

    def __init__(self, url: sa.URL) -> None:
        self._server = (str(url.query.get("host", url.host)), url.port or 5432)
        self.has_lost = threading.Event()
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


def test_claim_whose_commit_was_not_answered_is_made_good(
    database: sa.URL, wire: Wire, start_receiver: Callable[..., Receiver], tmp_path: Path
) -> None:
    witness = Witness(tmp_path)
    direct = database.render_as_string(hide_password=False)
    by_wire = f"postgresql+psycopg://{database.username}@127.0.0.1:{wire.port}/{database.database}"
    web = start_receiver("web", RECEIVER_DATABASE_URL=direct, **witness.environment).wait_ready()
    worker = start_receiver("worker", RECEIVER_DATABASE_URL=by_wire, **witness.environment)
    worker.wait_ready()
    assert web.post(notification(alert()), "/webhook/witness").status_code == 200
    wait_until(wire.has_lost.is_set, 60)
    with psycopg.connect(direct.replace("+psycopg", ""), autocommit=True) as connection:
        look = lambda: connection.execute("SELECT outcome, attempts FROM runs").fetchall()  # noqa: E731
        wait_until(lambda: look() == [("succeeded", 2)], 60)
    # What it had not heard of was not begun; nobody else was there to take it.
    assert [(one.event, one.attempt) for one in witness.seen()] == [("begins", 2), ("ends", 2)]
    assert worker.stop() == 0
