"""Kills, freezes and restarts the processes of three replicas on one PostgreSQL, under load.

    python -m tests.soak.replicas --seconds 600 --seed 7

Each notification is posted twice, to any replica each time, as both peers of an HA pair do. What
must hold in the end is what `kills.py` demands of one receiver: one run of each episode, none
lost, and attempts again only where the first was cut off, which a restart in good order never does.
"""

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import requests
from psycopg.rows import dict_row

from tests.soak.kills import Evidence, Kill, conclude, end, say
from tests.support.notifications import alert, notification
from tests.support.processes import children_of, descendants_of, send
from tests.support.receivers import Receiver
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.witness import Witness

_REPLICAS = 3
_SENDERS = 4
_LEASE_SECONDS = 5
# Longer than the lease, and than others take to be sure.
_FROZEN_SECONDS = 11.0
_EVENT_SECONDS = 1.5
# Longer than the longest pause of a run that was interrupted.
_OUTCOME_SECONDS = 330.0
# Long enough to be met by what happens.
_SECONDS = "0.3"
# Longer than the lease, which must be kept until the end; few of them, for most are hit.
_LONG_SECONDS = "7"
_LONG_SHARE = 0.005


_VICTIMS = (
    "web", "worker", "worker", "worker", "fork server", "executor", "executor", "all", "restart"
)  # fmt: skip


def _below(replica: Receiver) -> dict[str, list[int]]:
    """Return the processes of a replica by what is killed or frozen together, the first first."""
    found: dict[str, list[int]] = {"web": [], "worker": [], "fork server": [], "executor": []}
    children = replica.children()
    if "web" in children:
        found["web"] = [children["web"], *children_of(children["web"])]
    if "worker" in children:
        found["worker"] = [children["worker"], *descendants_of(children["worker"])]
        found["fork server"] = children_of(children["worker"])
        found["executor"] = [one for pid in found["fork server"] for one in children_of(pid)]
    return found


class Senders:
    """Threads that post each episode twice, to replicas that chance names, until both got 2xx."""

    def __init__(self, urls: list[str], seed: int) -> None:
        self.accepted: list[str] = []
        self.problems: list[str] = []
        self._urls = urls
        self._giving_up = time.monotonic() + 3600
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(f"{seed} {number}")))
            for number in range(_SENDERS)
        ]
        for thread in self._threads:
            thread.start()

    def close(self, within_seconds: float) -> None:
        """Begin no new episode, and let the threads see through what they have begun."""
        self._giving_up = time.monotonic() + within_seconds
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _run(self, of_thread: int, chance: random.Random) -> None:
        number = 0
        while not self._ending.wait(0.1):
            number += 1
            fingerprint = f"{of_thread}-{number}"
            seconds = _LONG_SECONDS if chance.random() < _LONG_SHARE else _SECONDS
            annotations = {"value": "1", "seconds": seconds}
            body = notification(alert(fingerprint, annotations=annotations))
            counts = [self._post(body, chance) for _ in range(2)]
            if sum(one.get("accepted", 0) for one in counts) > 1:
                self.problems.append(f"{fingerprint} was answered {counts}")
            self.accepted.append(fingerprint)

    def _post(self, body: bytes, chance: random.Random) -> dict[str, int]:
        while time.monotonic() < self._giving_up:
            with suppress(requests.RequestException):
                answer = requests.post(
                    f"{chance.choice(self._urls)}/webhook/witness", body, timeout=5,
                    headers={"Content-Type": "application/json"},
                )  # fmt: skip
                if answer.ok:
                    counts: dict[str, int] = answer.json()
                    return counts
                if answer.status_code != 503:
                    self.problems.append(f"answered {answer.status_code}: {answer.text[:200]}")
                    return {}
            time.sleep(0.05)
        self.problems.append("a notification was never accepted")
        return {}


class Campaign:
    """Three replicas on a server of their own, and all that is done to them."""

    def __init__(self, directory: Path, seed: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._chance = random.Random(seed)
        self._server = Server(directory)
        self._witness = Witness(directory)
        self._kills: list[Kill] = []
        self._problems: list[str] = []
        self.restarts = 0
        self._frozen: list[tuple[float, Kill]] = []
        self._planned: list[str] = []
        settings = {
            "RECEIVER_DATABASE_URL": self._server.url(),
            "RECEIVER_LEASE": f"{_LEASE_SECONDS}s",
            # All three count against it; and a run that is hit again must not fail for that.
            "RECEIVER_ACTION_WITNESS_MAX_CONCURRENT": "12",
            "RECEIVER_ACTION_WITNESS_MAX_ATTEMPTS": "100",
            "RECEIVER_ACTION_WITNESS_BACKOFF": "10ms..50ms",
            "RECEIVER_ACTION_WITNESS_BREAKER": "none",
            **self._witness.environment,
        }
        self._replicas = [
            Receiver("serve", settings, directory / f"receiver-{number}.log")
            for number in range(_REPLICAS)
        ]
        for one in self._replicas:
            one.wait_ready()
        self._senders = Senders([one.url for one in self._replicas], seed)

    def close(self) -> None:
        """End all that was started, as it is."""
        self._thaw(float("inf"))
        self._senders.close(0)
        for one in self._replicas:
            one.kill()
        self._server.close()

    def run(self, seconds: float) -> Evidence:
        """Do harm for so long, let all come to rest, and return what there is to judge."""
        began = time.monotonic()
        is_restarted = False
        try:
            while (passed := time.monotonic() - began) < seconds:
                if passed > seconds / 2 and not is_restarted:
                    is_restarted = True
                    self._restart_server()
                for one in self._replicas:
                    one.revive()
                self._strike()
                time.sleep(self._chance.uniform(0.3, 1) * _EVENT_SECONDS)
                self._thaw(time.monotonic())
            self._come_to_rest()
        except AssertionError as error:  # A deadline that passed; all the rest still counts.
            self._problems.append(str(error))
        return self._evidence()

    def _restart_server(self) -> None:
        self._say("PostgreSQL is restarted")
        self._server.stop(self._chance.choice((signal.SIGINT, signal.SIGQUIT)))
        time.sleep(1)  # It stays away for a moment: not all who want it may come right back.
        self._server.start()

    def _strike(self) -> None:
        replica = self._chance.choice(self._replicas)
        assert replica.process is not None
        if not self._planned:  # Every victim about as often, also in a short campaign.
            self._planned = self._chance.sample(_VICTIMS, len(_VICTIMS))
        victim = self._planned.pop()
        below = _below(replica)
        everything = [replica.process.pid, *descendants_of(replica.process.pid)]
        pids = everything if victim in ("all", "restart") else below[victim]
        frozen = {pid for _, kill in self._frozen for pid in kill.pids}
        if not pids or frozen & {*everything}:
            self._planned.insert(0, victim)
            return
        if victim == "restart":
            self._restart(replica)
            return
        # Where a worker is frozen, all that it has started is.
        freezes = victim in ("web", "worker") and not self._frozen
        number = signal.SIGSTOP if freezes else signal.SIGKILL
        if victim == "executor":
            pids = [self._chance.choice(pids)]
        elif victim == "worker" and not freezes:
            pids = pids[:1]
        # The journal knows attempts by their worker.
        served = below["worker"][:1] if victim in ("fork server", "executor") else []
        before = time.time_ns() // 1000
        hit = tuple(pid for pid in pids if send(pid, number))
        self._say(f"{victim} of {self._replicas.index(replica)}: {number.name}")
        if victim == "all":
            replica.process.wait(60)
        kill = Kill(victim, number, (*hit, *served), before, time.time_ns() // 1000)
        if freezes:
            self._frozen.append((time.monotonic() + _FROZEN_SECONDS, kill))
        else:
            self._kills.append(kill)
        if victim == "all":
            replica.start()

    def _restart(self, replica: Receiver) -> None:
        """Restart a replica in good order; one that is starting still may end otherwise."""
        has_started = len(replica.children()) == 2
        code = replica.stop(60)
        self._say(f"restart of {self._replicas.index(replica)}")
        self.restarts += 1
        if code != 0 and has_started:
            self._problems.append(f"a replica that was told to stop ended with {code}")
        replica.start()

    def _thaw(self, now: float) -> None:
        for due, kill in [*self._frozen]:
            if due <= now:
                for pid in kill.pids:
                    send(pid, signal.SIGCONT)
                self._frozen.remove((due, kill))
                after = time.time_ns() // 1000
                self._kills.append(Kill(kill.victim, kill.signal, kill.pids, kill.before, after))

    def _come_to_rest(self) -> None:
        wait_until(lambda: self._thaw(time.monotonic()) or not self._frozen, 60, "all thawed")
        self._senders.close(_OUTCOME_SECONDS)
        query = "SELECT count(*) FROM runs WHERE state <> 'finished'"
        # After many kills many runs are left; more time is due as long as some end.
        while left := int(self._server.execute(query)[0][0]):
            fewer = lambda left=left: int(self._server.execute(query)[0][0]) < left  # noqa: E731
            wait_until(fewer, _OUTCOME_SECONDS, f"another of {left} outcomes")
        for one in self._replicas:
            code = one.stop(60)
            if code != 0:
                self._problems.append(f"in the end a replica ended with {code}")

    def _rows(self, query: str) -> list[dict[str, Any]]:
        with psycopg.connect(
            self._server.url().replace("+psycopg", ""), row_factory=dict_row
        ) as connection:
            return connection.execute(query.encode()).fetchall()

    def _evidence(self) -> Evidence:
        problems = self._problems + self._senders.problems
        return Evidence(
            accepted=list(self._senders.accepted),
            kills=self._kills,
            runs=self._rows("SELECT * FROM runs"),
            attempts=self._rows("SELECT * FROM attempts ORDER BY run_id, number"),
            seen=self._witness.seen(),
            problems=problems,
        )


def main() -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30, help="of harm (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="decides whom and when (default: 1)")
    parser.add_argument("--directory", type=Path, help="for data and logs (default: removed)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="replicas-"))
    directory.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(directory, options.seed, say)
    try:
        evidence = campaign.run(options.seconds)
    finally:
        campaign.close()
    frozen = sum(kill.signal == signal.SIGSTOP for kill in evidence.kills)
    what = (
        f"{len(evidence.kills) - frozen} kills, {frozen} freezes, {campaign.restarts} restarts, "
        f"seed {options.seed}, "
        f"{len(evidence.accepted)} episodes, {len(evidence.runs)} runs"
    )
    return conclude(evidence, what, directory, is_kept=options.directory is not None)


if __name__ == "__main__":
    sys.exit(main())
