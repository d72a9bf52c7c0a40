"""Fixtures: a real HTTP endpoint on loopback that records what it is sent and answers as told."""

import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Request:
    """One request as it arrived; headers by their names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Endpoint:
    """The server's face towards a test: set `answer`, read `requests`."""

    def __init__(self, port: int, scheme: str) -> None:
        self.requests: list[Request] = []
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.host = f"127.0.0.1:{port}"
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self.reply(200)
        self.is_closing = threading.Event()

    def reply(
        self, status: int, body: bytes = b"", **headers: str
    ) -> Callable[[BaseHTTPRequestHandler], None]:
        """Return an answer: `_` in the name of a header stands for a hyphen."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(body)

        return answer

    def drip(self, start: bytes, drop: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
        """Return an answer: `start`, then a drop every 50 ms for as long as the client stays."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.close_connection = True
            try:
                handler.wfile.write(start)
                while not self.is_closing.wait(0.05):
                    handler.wfile.write(drop)
            except OSError:
                return

        return answer


def _serve(certificate: Path | None, asks_for_one: bool = False) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            served.requests.append(Request(self.command, self.path, headers, body))
            served.answer(self)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Stay silent about a client that hung up or would not shake hands."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        if asks_for_one:
            tls.verify_mode = ssl.CERT_REQUIRED
            tls.load_verify_locations(certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    served = Endpoint(server.server_address[1], "https" if certificate else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        served.is_closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """An HTTP endpoint that answers 200 until told otherwise."""
    yield from _serve(None)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a self-signed certificate for 127.0.0.1, in one PEM file."""
    path = tmp_path_factory.mktemp("tls") / "endpoint.pem"
    path.write_text(_CERTIFICATE, encoding="ascii")
    return path


@pytest.fixture
def tls_endpoint(certificate: Path) -> Iterator[Endpoint]:
    """An HTTPS endpoint whose certificate no public authority has signed."""
    yield from _serve(certificate)


@pytest.fixture
def mutual_tls_endpoint(certificate: Path) -> Iterator[Endpoint]:
    """The same, to clients alone that show that very certificate."""
    yield from _serve(certificate, asks_for_one=True)


# For tests on loopback only; valid until 2126. Made with: openssl req -x509 -newkey ec -nodes
# -pkeyopt ec_paramgen_curve:P-256 -days 36500 -subj /CN=127.0.0.1 -addext
# subjectAltName=IP:127.0.0.1 -addext keyUsage=digitalSignature,keyCertSign
_CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQnWsYjo0lbofwW8v
IjLaSH72zfv59fdmSt0kEcOLpYShRANCAAS0vtr/okX6406aMIXE4wTHavOhNb96
p0A4fisel6DiBlJ57c4iNprJ96PNCb+jOPzxKvaM1hgUUjbXERZE9fOZ
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBnTCCAUOgAwIBAgIULh3q77T44gYCluRoPdsSE0UL8WQwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyMjE2MzcwMloYDzIxMjYxMDI5
MTYzNzAyWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAS0vtr/okX6406aMIXE4wTHavOhNb96p0A4fisel6DiBlJ57c4iNprJ
96PNCb+jOPzxKvaM1hgUUjbXERZE9fOZo3EwbzAdBgNVHQ4EFgQUFBlgaYWzSSqm
D/VWhl/NyABZc0gwHwYDVR0jBBgwFoAUFBlgaYWzSSqmD/VWhl/NyABZc0gwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAsGA1UdDwQEAwIChDAKBggq
hkjOPQQDAgNIADBFAiAhE+obYX4vCw4XduMfeHiVYoKebketlvxTzeqtPUk97gIh
AKVx/1GK12StbGSk4/uVBss+r/sXIKf7oQcLa8Md+ozI
-----END CERTIFICATE-----
"""
