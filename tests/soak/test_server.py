"""A PostgreSQL server that is full, gone or silent: 503 meanwhile, and nothing accepted is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from receiver.errors import JournalUnavailableError
from receiver.journal.journal import Journal
from tests.support.databases import Databases
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.servers import NAMESPACE, Server
from tests.support.waiting import wait_until
from tests.support.witness import Witness

# The server's own files and its log fit in; not much else.
_DISK_BYTES = 120 * 2**20
_FINISHED = "SELECT count(*) FROM runs WHERE outcome = 'succeeded'"


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, getattr(request, "param", 0))
    yield made
    made.close()


@pytest.fixture
def receiver(
    server: Server, tmp_path: Path, start_receiver: Callable[..., Receiver]
) -> tuple[Receiver, Witness]:
    witness = Witness(tmp_path)
    settings = {"RECEIVER_DATABASE_URL": server.url(), **witness.environment}
    return start_receiver("serve", **settings).wait_ready(), witness


def status(receiver: Receiver, fingerprint: str, **annotations: str) -> int:
    """Post an alert, and return what was answered, within the time Alertmanager has at least."""
    body = notification(alert(fingerprint, annotations={"value": "1", **annotations}))
    began = time.monotonic()
    answer = receiver.post(body, "/webhook/witness")
    assert time.monotonic() - began < 10
    return answer.status_code


def is_ready(receiver: Receiver) -> bool:
    return requests.get(f"{receiver.url}/-/ready", timeout=10).status_code == 200


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["in order", "crash"])
def test_restart_of_the_server_loses_no_run_and_none_runs_twice(
    server: Server, receiver: tuple[Receiver, Witness], how: signal.Signals
) -> None:
    one, witness = receiver
    # One finishes while there is no server to tell, one has not begun.
    assert status(one, "under way", seconds="3") == 200
    wait_until(lambda: witness.seen("begins"), 60)
    server.stop(how)
    assert status(one, "meanwhile") == 503
    wait_until(lambda: not is_ready(one), 60)
    wait_until(lambda: witness.seen("ends"), 60)
    # What it cannot tell keeps the worker from nothing, nor from waiting: it tries once a second.
    began, before = time.monotonic(), failures(one)
    wait_until(lambda: failures(one) >= before + 3, 60)
    assert time.monotonic() - began > 1
    server.start()
    wait_until(lambda: is_ready(one), 60)
    assert status(one, "meanwhile") == 200
    wait_until(lambda: server.execute(_FINISHED) == [(2,)], 60)
    assert [made.attempt for made in witness.seen("begins")] == [1, 1]
    assert one.stop() == 0


def failures(receiver: Receiver) -> int:
    return len(receiver.lines("journal fails the worker"))


@pytest.mark.parametrize("server", [_DISK_BYTES], indirect=True)
def test_full_disk_of_the_server_is_answered_503_and_left_behind_by_itself(
    server: Server, receiver: tuple[Receiver, Witness]
) -> None:
    one, witness = receiver
    assert status(one, "before") == 200
    wait_until(lambda: witness.seen("ends"), 60)
    filler = server.disk / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"\0" * 2**16)
            file.flush()
    refused: list[str] = []
    accepted = ["before"]

    def fills() -> bool:
        fingerprint = f"f{len(accepted) + len(refused)}"
        text = "".join(chr(33 + (len(accepted) * 7 + number) % 90) for number in range(200_000))
        answered = status(one, fingerprint, text=text)
        assert answered in (200, 503)
        (accepted if answered == 200 else refused).append(fingerprint)
        return len(refused) >= 3

    wait_until(fills, 60, "refused for want of space")
    filler.unlink()

    def is_accepted(fingerprint: str) -> bool:
        # A server that could not even write its log ends, sooner or later: that is for its
        # operator.
        if not server.is_running:
            server.start()
        return status(one, fingerprint) == 200

    for fingerprint in refused:
        wait_until(lambda name=fingerprint: is_accepted(name), 60)
    wait_until(lambda: is_ready(one), 60)
    everything = len(accepted) + len(refused)
    wait_until(lambda: server.execute(_FINISHED) == [(everything,)], 60)
    runs = [made.run_id for made in witness.seen("ends")]
    assert len(runs) == len(set(runs)) == everything


# The first to record how an attempt ended is refused its words, the second finds no server.
_REFUSING = """
CREATE SEQUENCE asked;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    CASE nextval('asked')
        WHEN 1 THEN RAISE 'no such words' USING ERRCODE = 'data_exception';
        WHEN 2 THEN RAISE 'not now' USING ERRCODE = 'cannot_connect_now';
        ELSE RETURN NEW;
    END CASE;
END $$;
CREATE TRIGGER refusing BEFORE UPDATE ON attempts
    FOR EACH ROW WHEN (NEW.outcome IS NOT NULL) EXECUTE FUNCTION refuse();
"""


def test_server_that_goes_while_words_are_looked_for_that_it_refuses_ends_no_worker(
    server: Server, receiver: tuple[Receiver, Witness]
) -> None:
    serving, witness = receiver
    worker = serving.children()["worker"]
    server.execute(_REFUSING)
    assert status(serving, "refused") == 200
    wait_until(lambda: server.execute(_FINISHED) == [(1,)], 60, "the run")
    assert server.execute("SELECT last_value FROM asked") == [(3,)]
    assert serving.children()["worker"] == worker
    assert [one.event for one in witness.seen()] == ["begins", "ends"]


def test_connections_have_the_options_that_find_a_dead_server(server: Server) -> None:
    journal = Journal(server.url())
    with journal.engine.connect() as connection:
        fairy = connection.connection.driver_connection
        with socket.socket(fileno=socket.dup(fairy.fileno())) as seen:
            option = {
                name: seen.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            }
            assert seen.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert option == {
        "TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 5000,
    }  # fmt: skip
    assert journal.engine.pool.size() == 4
    assert journal.engine.pool.timeout() == 2
    journal.close()


# In a network of its own, which is cut: no packet comes or goes, and nobody says so.
_CUT = """
import fcntl, socket, struct, sys, time
from pathlib import Path
from receiver.errors import JournalUnavailableError
from receiver.journal.journal import Journal
from tests.support.servers import Server

def switch(up):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_one:
        fcntl.ioctl(any_one, 0x8914, struct.pack("16sh14x", b"lo", 1 if up else 0))  # SIOCSIFFLAGS

switch(True)
server = Server(Path(sys.argv[1]))
journal = Journal(server.url())
journal.check_writable()
switch(False)
began = time.monotonic()
try:
    journal.check_writable()
except JournalUnavailableError:
    print(time.monotonic() - began)
switch(True)
journal.check_writable()
journal.close()
server.close()
"""


def test_server_whose_machine_is_gone_is_noticed_within_ten_seconds(tmp_path: Path) -> None:
    ways = ("unshare", "-n") if os.geteuid() == 0 else (*NAMESPACE, "-n")
    ended = subprocess.run(
        [*ways, sys.executable, "-c", _CUT, tmp_path],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 10


def test_pool_that_is_used_up_is_a_journal_that_is_busy(databases: Databases) -> None:
    journal = Journal(databases.new("postgresql"))
    taken = [journal.engine.connect() for _ in range(8)]
    began = time.monotonic()
    with pytest.raises(JournalUnavailableError, match="busy"), journal.reading():
        pass
    assert time.monotonic() - began < 8
    for one in taken:
        one.close()
    with journal.reading():
        pass
    journal.close()
