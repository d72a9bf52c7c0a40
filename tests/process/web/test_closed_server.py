"""Only the receiver's own settings decide: no variable and no header that gunicorn reads."""

import ast
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests

from receiver.web.environment import FOREIGN
from tests.support.certificates import Authority
from tests.support.every import every
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver

Start = Callable[..., Receiver]
TOKEN = "only-for-this-test"
OPERATE = "only-to-operate"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
# Each value changes what gunicorn or Flask does, or ends the start with a traceback.
HOSTILE_VALUES = {
    "GUNICORN_CMD_ARGS": "--bind=127.0.0.1:1 --workers=3 --preload",
    "PORT": "1",
    "WEB_CONCURRENCY": "auto",
    "FORWARDED_ALLOW_IPS": "no address",
    "SCRIPT_NAME": "/elsewhere",
    "SENDFILE": "no",
    "GUNICORN_PID": "1",
    "GUNICORN_FD": "0",
    "GUNICORN_DIRTY_SOCKET": "/nowhere",
    "LISTEN_PID": "1",
    "LISTEN_FDS": "1",
    "LISTEN_FDNAMES": "x",
    "FLASK_DEBUG": "1",
}
# Read where it does no harm, for the named reason.
HARMLESS = {
    "PWD": "the directory of a program that replaces this one, which never happens",
    "XDG_RUNTIME_DIR": "the place of the control socket, which is off",
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A receiver in an environment that was made for gunicorn."""
    directory = tmp_path_factory.mktemp("web")
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(directory / "notify"))
    environment = {
        **HOSTILE_VALUES,
        "NOTIFY_SOCKET": str(directory / "notify"),
        "SSLKEYLOGFILE": str(directory / "keys"),
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "RECEIVER_SUBMIT_TOKEN": TOKEN,
        "RECEIVER_OPERATE_TOKEN": OPERATE,
    }
    one = Receiver("serve", environment, directory / "receiver.log")
    try:
        yield one.wait_ready()
        notify.setblocking(False)
        with pytest.raises(BlockingIOError):  # No message reached systemd.
            notify.recv(100)
    finally:
        one.kill()
        notify.close()


def test_variables_of_gunicorn_and_flask_have_no_effect(web: Receiver) -> None:
    answer = web.post(notification(alert()), "/webhook/log_action", **BEARER)

    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    assert "Traceback" not in web.text()
    assert web.post(b"{}", "/elsewhere/webhook", **BEARER).status_code == 404


def test_variables_stay_for_actions(web: Receiver) -> None:
    assert web.process is not None
    environment = Path(f"/proc/{web.process.pid}/environ").read_bytes().split(b"\0")

    assert b"WEB_CONCURRENCY=auto" in environment


HEADERS = {
    "SCRIPT_NAME": "/webhook",
    "Script-Name": "/webhook",
    "PATH_INFO": "/-/healthy",
    "Path-Info": "/-/healthy",
    "REMOTE_USER": "alice",
    "REMOTE_ADDR": "10.0.0.1",
    "X-Forwarded-For": "10.0.0.1",
    "X-Forwarded-Host": "elsewhere",
    "X-Forwarded-Prefix": "/webhook",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Protocol": "ssl",
    "X-Forwarded-Ssl": "on",
    "X-Forwarded-Port": "1",
    "Forwarded": "for=10.0.0.1;proto=https;host=elsewhere",
    "X-Original-URL": "/-/healthy",
    "X-HTTP-Method-Override": "PUT",
    "Upgrade": "h2c",
}


def test_header_of_a_client_changes_neither_path_nor_scheme(web: Receiver) -> None:
    def answers(headers: dict[str, str]) -> list[object]:
        read = {"Authorization": f"Bearer {OPERATE}", **headers}
        moved = requests.get(f"{web.url}/webhook/api/v1/runs", headers=read, timeout=10)
        healthy = requests.get(f"{web.url}/-/healthy", headers=headers, timeout=10)
        posted = web.post(b"{}", "/webhook", **BEARER, **headers)
        # Its cookie has another name over TLS.
        form = requests.get(f"{web.url}/pause", headers=read, timeout=10)
        statuses = [one.status_code for one in (moved, healthy, posted, form)]
        return [*statuses, *form.cookies.keys()]

    usual = answers({})
    assert usual == [404, 200, 400, 200, "receiver-form"]
    with every() as each:
        for name, value in HEADERS.items():
            with each(name):
                assert answers({name: value}) == usual
    assert "Traceback" not in web.text()


def test_proxy_protocol_is_not_spoken(web: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", web.port), 10) as connection:
        connection.sendall(
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_header_is_accepted_up_to_the_size_that_is_set(start_receiver: Start) -> None:
    web = start_receiver("web", RECEIVER_MAX_HEADER="16KiB").wait_ready()

    def status(size: int) -> int:
        headers = {"X": "x" * size}
        return requests.get(f"{web.url}/-/healthy", headers=headers, timeout=10).status_code

    # The name, a colon, a space and the end of the line count too.
    assert (status(16 * 1024 - 5), status(16 * 1024 - 4)) == (200, 431)


def test_keys_of_tls_are_written_to_no_file(start_receiver: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    cert, key = authority.issue("server")
    keys = tmp_path / "keys"
    web = start_receiver(
        "web",
        RECEIVER_TLS_CERT=str(cert),
        RECEIVER_TLS_KEY=str(key),
        RECEIVER_SUBMIT_TOKEN=TOKEN,
        SSLKEYLOGFILE=str(keys),
    )
    web.tls = {"verify": str(authority.file)}

    web.wait_ready()

    assert not keys.exists()


def variables_read_in(package: str) -> set[str]:
    """Return the names of the variables that the modules of a package read."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    names = set()
    for file in Path(spec.origin).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Subscript) and _is_environment(node.value):
                key: ast.AST = node.slice
            elif isinstance(node, ast.Call) and _reads(node.func) and node.args:
                key = node.args[0]
            elif isinstance(node, ast.Compare) and _is_environment(node.comparators[-1]):
                key = node.left
            else:
                continue
            if isinstance(key, ast.Constant):
                names.add(str(key.value))
    return names


def _is_environment(node: ast.AST) -> bool:
    return ast.unparse(node) in ("os.environ", "self.cfg.env_orig", "self.env_orig")


def _reads(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and (
        _is_environment(node.value) or ast.unparse(node) == "os.getenv"
    )


def test_every_variable_that_gunicorn_reads_is_known() -> None:
    read = variables_read_in("gunicorn")

    assert {"SCRIPT_NAME", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"} <= read
    assert read - {*FOREIGN, *HARMLESS, "SERVER_SOFTWARE"} == set()


def test_every_foreign_variable_was_tried() -> None:
    assert {*HOSTILE_VALUES, "NOTIFY_SOCKET", "SSLKEYLOGFILE"} == set(FOREIGN)
