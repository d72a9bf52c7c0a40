"""The listening socket: where it is bound, and one clear line for each reason why it cannot be."""

import os
import socket
import subprocess
import sys

import pytest

from receiver.declarations import Address
from receiver.errors import SettingsError
from receiver.web.listener import is_in_use, open_listener


def problem_of(address: Address) -> str:
    with pytest.raises(SettingsError) as caught:
        open_listener(address)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::"])
def test_listens_at_once_and_is_closed_in_programs(host: str) -> None:
    with open_listener(Address(host, 0)) as listener:
        port = listener.getsockname()[1]
        there = "::1" if listener.family == socket.AF_INET6 else "127.0.0.1"
        with socket.create_connection((there, port), timeout=10):
            pass
        assert not listener.get_inheritable()


def test_port_of_another_program_is_refused_with_its_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = Address("127.0.0.1", port)
        problem = problem_of(address)
        assert is_in_use(address)
    for part in (f"127.0.0.1:{port}", "--bind", "RECEIVER_BIND", "BIND=", "another program"):
        assert part in problem
    assert not is_in_use(address)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "this machine has no such address"),
        ("2001:db8::1", "this machine has no such address"),
        ("no-such-host.invalid", "the host name cannot be resolved"),
    ],
)
def test_address_that_is_not_here_is_refused_with_its_cure(host: str, reason: str) -> None:
    problem = problem_of(Address(host, 8080))
    assert str(Address(host, 8080)) in problem
    assert reason in problem
    assert "--bind" in problem


@pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"),
    reason="only root can become a user without privileges",
)
def test_privileged_port_is_refused_with_its_cure() -> None:
    code = (
        "import os\n"
        "import encodings.idna  # The user that this becomes may not read Python's files.\n"
        "from receiver.declarations import Address\n"
        "from receiver.errors import SettingsError\n"
        "from receiver.web.listener import open_listener\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    open_listener(Address('0.0.0.0', 1000))\n"
        "except SettingsError as error:\n"
        "    print(error)\n"
    )
    # In a network of its own, because this machine may let every user bind every port.
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("RECEIVER_BIND: 0.0.0.0:1000: port 1000 is privileged")
    assert "CAP_NET_BIND_SERVICE" in done.stdout
