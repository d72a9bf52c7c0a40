"""A fake of Amazon EFS for tests: HTTP on 127.0.0.1, built on botocore's own model of the service.

What a request may hold, what an answer must hold and which errors exist is read from that model, so
the fake cannot drift from what boto3 really sends and parses. It knows DescribeFileSystems and
UpdateFileSystem, life-cycle states, the 24-hour rule, maxIO, and can fail on demand.

In a test:       with FakeEfs() as fake: fake.add("fs-0123456789abcdef0"); ... fake.url ...
As a program:    python fake_efs.py --port 4566 --file-system fs-0123456789abcdef0
boto3 is led to it by AWS_ENDPOINT_URL_EFS; GET /fake/state shows what it holds.
"""

import argparse
import json
import re
import signal
import threading
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import botocore.loaders
from botocore.model import OperationModel, ServiceModel
from botocore.validate import ParamValidator

ACCOUNT = "111122223333"
CHANGE_INTERVAL = timedelta(hours=24)
THROUGHPUT_LIMIT_MIBPS = 1024.0

# Errors that any AWS service may answer, and so no service's model lists.
COMMON_ERRORS = {
    "AccessDeniedException": 403,
    "ExpiredTokenException": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "ServiceUnavailable": 503,
    "ThrottlingException": 400,
    "UnrecognizedClientException": 403,
    "ValidationException": 400,
}
_CREDENTIAL = re.compile(r"Credential=([^/]+)/\d{8}/([^/]+)/([^/]+)/aws4_request")


@cache
def _load_model() -> ServiceModel:
    loader = botocore.loaders.create_loader()
    return ServiceModel(loader.load_service_model("efs", "service-2"), "efs")


class AwsError(Exception):
    """An error to be answered; `code` must be modelled, or common to all services."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}")


@dataclass
class FakeFileSystem:
    """One file system. An update takes `updating_for` descriptions until it is available again."""

    id: str
    region: str = "us-east-1"
    account: str = ACCOUNT
    throughput_mode: str = "bursting"
    performance_mode: str = "generalPurpose"
    state: str = "available"
    provisioned_mibps: float | None = None
    mode_changed_at: datetime | None = None
    updating_for: int = 0
    pending: tuple[str, float | None] | None = None
    descriptions_left: int = 0

    def settle(self) -> None:
        """Count one description; finish the update once enough were made."""
        if self.pending is None:
            return
        if self.descriptions_left > 0:
            self.descriptions_left -= 1
            return
        self.throughput_mode, self.provisioned_mibps = self.pending
        self.pending, self.state = None, "available"

    def describe(self) -> dict[str, Any]:
        """Return it in the words of the model's FileSystemDescription."""
        description = {
            "OwnerId": self.account,
            "CreationToken": f"fake-{self.id}",
            "FileSystemId": self.id,
            "FileSystemArn": (
                f"arn:aws:elasticfilesystem:{self.region}:{self.account}:file-system/{self.id}"
            ),
            "CreationTime": datetime(2025, 1, 1, tzinfo=UTC),
            "LifeCycleState": self.state,
            "NumberOfMountTargets": 2,
            "SizeInBytes": {"Value": 6144, "Timestamp": datetime(2025, 1, 1, tzinfo=UTC)},
            "PerformanceMode": self.performance_mode,
            "Encrypted": True,
            "ThroughputMode": self.throughput_mode,
            "Tags": [{"Key": "Name", "Value": "fake"}],
        }
        if self.provisioned_mibps is not None:
            description["ProvisionedThroughputInMibps"] = self.provisioned_mibps
        return description


@dataclass
class SeenRequest:
    """One request as it arrived, and how it was answered."""

    operation: str
    parameters: dict[str, Any]
    access_key_id: str
    session_token: str | None
    region: str
    user_agent: str
    request_id: str
    status: int = 0


@dataclass
class Fault:
    """What to do instead of answering, or before it."""

    error: AwsError | None = None
    garble: str = ""
    delay_seconds: float = 0.0


@dataclass
class FakeEfs:
    """The server. `file_systems` and `requests` are for tests to look at; `clock` can be set."""

    port: int = 0
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    on_request: Callable[[str], None] = lambda operation: None
    file_systems: dict[str, FakeFileSystem] = field(default_factory=dict)
    requests: list[SeenRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = _load_model()
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    # ---- for tests -----------------------------------------------------------------------------

    def __enter__(self) -> "FakeEfs":
        fake = self

        class Handler(_Handler):
            efs = fake

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        # A short poll: the default half second would be paid at each stop.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Forget file systems, requests and faults, as if just started."""
        self.file_systems, self.requests = {}, []
        self.on_request = lambda operation: None
        self._faults.clear()

    @property
    def url(self) -> str:
        """The endpoint, for AWS_ENDPOINT_URL_EFS."""
        return f"http://127.0.0.1:{self.port}"

    def add(self, file_system_id: str, **changes: Any) -> FakeFileSystem:
        """Create a file system; `changes` set any field of it."""
        file_system = FakeFileSystem(file_system_id, **changes)
        self.file_systems[file_system_id] = file_system
        return file_system

    def seen(self, operation: str) -> list[SeenRequest]:
        """Return the requests of one operation that arrived so far."""
        return [request for request in self.requests if request.operation == operation]

    def fail(self, operation: str, code: str, message: str = "because", times: int = 1) -> None:
        """Answer the next requests of an operation with an error that it can have."""
        self._status_of(self.model.operation_model(operation), code)
        faults = [Fault(error=AwsError(code, message))] * times
        self._faults[operation].extend(faults)

    def garble(self, operation: str, how: str, times: int = 1) -> None:
        """Answer the next requests of an operation with what is not an answer of EFS.

        `how` is `html` (a proxy's 502 page), `text` (200, not JSON), `empty` (200, no fields),
        `cut` (the connection ends inside the body) or `reset` (no answer at all).
        """
        self._faults[operation].extend([Fault(garble=how)] * times)

    def delay(self, operation: str, seconds: float, times: int = 1) -> None:
        """Answer the next requests of an operation so much later."""
        self._faults[operation].extend([Fault(delay_seconds=seconds)] * times)

    # ---- for the handler -----------------------------------------------------------------------

    def take_fault(self, operation: str) -> Fault:
        """Return what is to go wrong with this request; wait here if it is to be slow."""
        with self._lock:
            fault = self._faults[operation].popleft() if self._faults[operation] else Fault()
        if fault.delay_seconds:
            self._stopping.wait(fault.delay_seconds)
        return fault

    def answer(self, operation: OperationModel, seen: SeenRequest) -> Any:
        """Carry out one operation; return its output, checked by the model. Raises AwsError."""
        problems = list(_problems(seen.parameters, operation.input_shape))
        if problems:
            raise AwsError("BadRequest", "; ".join(problems))
        with self._lock:
            output = {
                "DescribeFileSystems": self._describe,
                "UpdateFileSystem": self._update,
            }[operation.name](seen)
            problems = list(_problems(output, operation.output_shape))
            assert not problems, f"the fake itself breaks the model: {problems}"
            return _serialize(output, operation.output_shape)

    def error_body(self, operation: OperationModel, error: AwsError) -> tuple[int, dict[str, str]]:
        """Return status and body of an error as the model describes it."""
        status = self._status_of(operation, error.code)
        if error.code in COMMON_ERRORS:
            return status, {"message": error.message}
        body = {"ErrorCode": error.code, "Message": error.message}
        shape = self.model.shape_for_error_code(error.code)
        assert not list(_problems(body, shape))
        return status, body

    def state(self) -> dict[str, Any]:
        """Return everything it holds, for GET /fake/state."""
        with self._lock:
            return {
                "file_systems": {key: asdict(one) for key, one in self.file_systems.items()},
                "requests": [asdict(one) for one in self.requests],
            }

    @staticmethod
    def _status_of(operation: OperationModel, code: str) -> int:
        modelled = {
            shape.error_code: shape.metadata["error"]["httpStatusCode"]
            for shape in operation.error_shapes
        }
        status = modelled.get(code, COMMON_ERRORS.get(code))
        assert status is not None, f"{operation.name} cannot answer {code}: {sorted(modelled)}"
        return int(status)

    def _find(self, seen: SeenRequest) -> FakeFileSystem:
        name = seen.parameters["FileSystemId"]
        found = self.file_systems.get(name.rpartition("/")[2])
        if found is None or found.region != seen.region:
            raise AwsError("FileSystemNotFound", f"File system '{name}' does not exist.")
        return found

    def _describe(self, seen: SeenRequest) -> dict[str, Any]:
        if "FileSystemId" not in seen.parameters:
            everything = [one for one in self.file_systems.values() if one.region == seen.region]
            return {"FileSystems": [one.describe() for one in everything]}
        found = self._find(seen)
        found.settle()
        return {"FileSystems": [found.describe()]}

    def _update(self, seen: SeenRequest) -> dict[str, Any]:
        found, now = self._find(seen), self.clock()
        mode = seen.parameters.get("ThroughputMode", found.throughput_mode)
        amount = seen.parameters.get("ProvisionedThroughputInMibps")
        if found.state != "available":
            raise AwsError(
                "IncorrectFileSystemLifeCycleState",
                f"File system '{found.id}' is in state {found.state}.",
            )
        if (mode == "provisioned") != (amount is not None):
            raise AwsError("BadRequest", "provisioned needs an amount, and nothing else takes one")
        if mode == "elastic" and found.performance_mode != "generalPurpose":
            raise AwsError("BadRequest", "Elastic throughput needs the General Purpose mode.")
        if amount is not None and amount > THROUGHPUT_LIMIT_MIBPS:
            raise AwsError("ThroughputLimitExceeded", "The throughput limit has been reached.")
        if mode != found.throughput_mode and found.mode_changed_at is not None:
            allowed_at = found.mode_changed_at + CHANGE_INTERVAL
            if now < allowed_at:
                raise AwsError(
                    "TooManyRequests",
                    "You have reached the maximum number of throughput mode changes or provisioned "
                    "throughput value decreases. Wait until "
                    f"{allowed_at:%Y-%m-%dT%H:%M:%SZ} UTC and try again.",
                )
        found.pending = mode, amount
        found.state, found.descriptions_left = "updating", found.updating_for
        found.mode_changed_at = now
        return found.describe()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a client that has gone away go in silence."""


class _Handler(BaseHTTPRequestHandler):
    efs: FakeEfs

    def do_GET(self) -> None:
        if self.path == "/fake/state":
            self._send(200, json.dumps(self.efs.state(), default=str))
        else:
            self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Be quiet."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        operation, parameters = self._parse(body)
        scope = _CREDENTIAL.search(self.headers.get("Authorization", ""))
        seen = SeenRequest(
            operation=operation.name,
            parameters=parameters,
            access_key_id=scope[1] if scope else "",
            session_token=self.headers.get("X-Amz-Security-Token"),
            region=scope[2] if scope else "",
            user_agent=self.headers.get("User-Agent", ""),
            request_id=str(uuid.uuid4()),
        )
        self.efs.requests.append(seen)
        self.efs.on_request(operation.name)
        fault = self.efs.take_fault(operation.name)
        headers = {"x-amzn-RequestId": seen.request_id}
        if fault.garble:
            self._garble(fault.garble, headers)
            return
        try:
            if scope is None:
                raise AwsError("MissingAuthenticationTokenException", "not signed")
            if scope[3] != "elasticfilesystem":
                raise AwsError("InvalidSignatureException", f"signed for {scope[3]}")
            if fault.error is not None:
                raise fault.error
            output = self.efs.answer(operation, seen)
            seen.status = operation.http.get("responseCode", 200)
        except AwsError as error:
            seen.status, output = self.efs.error_body(operation, error)
            headers["x-amzn-ErrorType"] = error.code
        self._send(seen.status, json.dumps(output), headers)

    def _parse(self, body: bytes) -> tuple[OperationModel, dict[str, Any]]:
        """Return which operation of the model this is, and its parameters by the model's names."""
        target = urlsplit(self.path)
        for name in self.efs.model.operation_names:
            operation = self.efs.model.operation_model(name)
            template = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(_path(operation)))
            match = re.fullmatch(template, target.path)
            if match and operation.http["method"] == self.command:
                break
        else:
            raise AssertionError(f"no operation of EFS: {self.command} {self.path}")
        parameters: dict[str, Any] = {key: unquote(text) for key, text in match.groupdict().items()}
        parameters |= dict(parse_qsl(target.query, strict_parsing=bool(target.query)))
        if body:
            parameters |= json.loads(body)
        return operation, parameters

    def _garble(self, how: str, headers: dict[str, str]) -> None:
        if how == "reset":
            self.close_connection = True
        elif how == "cut":
            self._send(200, '{"FileSystems": [{"FileSys', headers, promised=10_000)
        elif how == "html":
            self._send(502, "<html><body>Bad Gateway</body></html>", {"Content-Type": "text/html"})
        elif how == "text":
            self._send(200, "all is well", headers)
        else:
            assert how == "empty", how
            self._send(200, "{}", headers)

    def _send(
        self, status: int, body: str, headers: dict[str, str] | None = None, promised: int = 0
    ) -> None:
        payload = body.encode()
        with suppress(ConnectionError):
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(promised or len(payload)))
            self.end_headers()
            self.wfile.write(payload)


def _path(operation: OperationModel) -> str:
    return str(operation.http["requestUri"]).partition("?")[0]


def _problems(value: Any, shape: Any) -> Iterator[str]:
    """Yield what breaks the model: what botocore checks, and what it leaves to the service."""
    report = ParamValidator().validate(value, shape)
    if report.has_errors():
        yield report.generate_report()
        return
    yield from _broken_constraints(value, shape, shape.name)


def _broken_constraints(value: Any, shape: Any, path: str) -> Iterator[str]:
    if shape.type_name == "structure":
        for name, member in value.items():
            if name not in shape.members:
                yield f"{path}.{name} is no member of {shape.name}"
            else:
                yield from _broken_constraints(member, shape.members[name], f"{path}.{name}")
    elif shape.type_name == "list":
        for index, member in enumerate(value):
            yield from _broken_constraints(member, shape.member, f"{path}[{index}]")
    elif shape.type_name == "string":
        limits = shape.metadata
        if limits.get("enum") and value not in limits["enum"]:
            yield f"{path}: {value!r} is none of {limits['enum']}"
        if not limits.get("min", 0) <= len(value) <= limits.get("max", len(value)):
            yield f"{path}: {value!r} has a length that is not allowed"
        pattern = limits.get("pattern")
        # Python's re does not know \p{L}.
        if pattern and r"\p" not in pattern and not re.search(pattern, value):
            yield f"{path}: {value!r} does not match {pattern}"


def _serialize(value: Any, shape: Any) -> Any:
    """Return a checked value as rest-json writes it."""
    if shape.type_name == "structure":
        return {
            shape.members[name].serialization.get("name", name): _serialize(
                member, shape.members[name]
            )
            for name, member in value.items()
        }
    if shape.type_name == "list":
        return [_serialize(member, shape.member) for member in value]
    if shape.type_name == "timestamp":
        return value.timestamp()
    return value


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="A fake of Amazon EFS on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--file-system", action="append", default=[], metavar="ID")
    parser.add_argument("--performance-mode", default="generalPurpose")
    parser.add_argument("--updating-for", type=int, default=0, metavar="DESCRIPTIONS")
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with FakeEfs(port=arguments.port) as fake:
        for file_system_id in arguments.file_system:
            fake.add(
                file_system_id,
                region=arguments.region,
                performance_mode=arguments.performance_mode,
                updating_for=arguments.updating_for,
            )
        print(f"listening on {fake.url}", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
