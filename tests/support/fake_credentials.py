"""Fakes of where AWS credentials and the region come from: STS, the Pod Identity agent, IMDSv2.

Each is an HTTP server on 127.0.0.1. STS checks its requests by botocore's own model.
"""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

import botocore.loaders
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

# (method, path, headers, body) -> (status, body)
Answer = Callable[[str, str, Any, str], tuple[int, str]]


class LoopbackServer:
    """Answers every request by one function; `requests` counts them."""

    def __init__(self, answer: Answer) -> None:
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                outer.requests += 1
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length).decode()
                status, text = answer(self.command, self.path, self.headers, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = do_POST = _serve  # noqa: N815 - the names that http.server calls

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Any:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class FakeCredentials(LoopbackServer):
    """Gives out numbered keys that expire at once, so that each call must fetch new ones."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.tokens: list[str] = []
        self.refuses_with: tuple[int, str] | None = None

    def next_keys(self) -> dict[str, str]:
        """Return fresh credentials; obviously none of AWS."""
        number = len(self.tokens)
        return {
            "AccessKeyId": f"FAKEKEYNUMBER{number:03}",
            "SecretAccessKey": f"fake-secret-number-{number}",
            "SessionToken": f"fake-session-token-number-{number}",
            "Expiration": f"{datetime.now(UTC) + timedelta(seconds=60):%Y-%m-%dT%H:%M:%SZ}",
        }


class FakeSts(FakeCredentials):
    """STS' AssumeRoleWithWebIdentity, for IRSA; `tokens` are the web identities that it got."""

    def __init__(self) -> None:
        loader = botocore.loaders.create_loader()
        model = ServiceModel(loader.load_service_model("sts", "service-2"), "sts")
        self._operation = model.operation_model("AssumeRoleWithWebIdentity")
        super().__init__(self._answer)

    def _answer(self, method: str, path: str, headers: Any, body: str) -> tuple[int, str]:
        parameters = dict(parse_qsl(body, strict_parsing=True))
        assert (method, path) == ("POST", "/")
        assert parameters.pop("Action") == self._operation.name
        assert parameters.pop("Version") == self._operation.service_model.api_version
        report = ParamValidator().validate(parameters, self._operation.input_shape)
        assert not report.has_errors(), report.generate_report()
        assert set(parameters) <= set(self._operation.input_shape.members)
        assert parameters["RoleArn"] == "arn:aws:iam::111122223333:role/alert-receiver"
        self.tokens.append(parameters["WebIdentityToken"])
        if self.refuses_with is not None:
            status, code = self.refuses_with
            return status, (
                "<ErrorResponse><Error><Type>Sender</Type>"
                f"<Code>{code}</Code><Message>no</Message></Error>"
                "<RequestId>fake-sts-request</RequestId></ErrorResponse>"
            )
        keys = "".join(f"<{name}>{text}</{name}>" for name, text in self.next_keys().items())
        return 200, (
            '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<AssumeRoleWithWebIdentityResult><Credentials>{keys}</Credentials>"
            "</AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>fake-sts-request"
            "</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>"
        )


class FakePodIdentityAgent(FakeCredentials):
    """The EKS Pod Identity agent; `tokens` are the authorization tokens that it got."""

    def __init__(self) -> None:
        super().__init__(self._answer)

    def _answer(self, method: str, path: str, headers: Any, body: str) -> tuple[int, str]:
        assert (method, path) == ("GET", "/v1/credentials")
        self.tokens.append(headers["Authorization"])
        if self.refuses_with is not None:
            return self.refuses_with
        keys = self.next_keys()
        keys["Token"] = keys.pop("SessionToken")
        return 200, json.dumps({**keys, "AccountId": "111122223333"})


class FakeMetadata(LoopbackServer):
    """EC2's instance metadata, version 2 only: without its token it refuses."""

    def __init__(self, region: str = "eu-west-3", status: int = 200) -> None:
        self._region, self._status = region, status
        super().__init__(self._answer)

    def _answer(self, method: str, path: str, headers: Any, body: str) -> tuple[int, str]:
        if (method, path) == ("PUT", "/latest/api/token"):
            assert headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
            return self._status, "fake-metadata-token"
        assert (method, path) == ("GET", "/latest/meta-data/placement/region")
        if headers["X-aws-ec2-metadata-token"] != "fake-metadata-token":
            return 401, ""
        return 200, self._region
