"""A collector of traces: takes OTLP over HTTP on loopback, and keeps the spans."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Collected:
    """One span as it arrived; ids in hexadecimal, the parent's empty where a trace begins."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    is_error: bool
    attributes: dict[str, object]
    resource: dict[str, object]


class Collector:
    """Listens until closed."""

    def __init__(self) -> None:
        self.spans: list[Collected] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.spans += _spans(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def named(self, name: str) -> list[Collected]:
        """Return the spans of this name."""
        return [one for one in self.spans if one.name == name]

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


def _spans(request: ExportTraceServiceRequest) -> list[Collected]:
    return [
        Collected(
            name=one.name,
            trace_id=one.trace_id.hex(),
            span_id=one.span_id.hex(),
            parent_id=one.parent_span_id.hex(),
            is_error=one.status.code == one.status.STATUS_CODE_ERROR,
            attributes=_plain(one.attributes),
            resource=_plain(of_process.resource.attributes),
        )
        for of_process in request.resource_spans
        for scope in of_process.scope_spans
        for one in scope.spans
    ]


def _plain(attributes: object) -> dict[str, object]:
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value"))
        for one in attributes  # type: ignore[attr-defined]
    }
