"""Traces: one from the webhook to the attempt, across the journal. Off, and free, unless asked for.

OpenTelemetry (extra `[otel]`) is imported only when traces are on. Its own variables, `OTEL_…`, say
where they go, which are kept, and under which name.
"""

import importlib.util
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from receiver.errors import SettingsError
from receiver.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
# A collector that does not answer must not keep a process from stopping.
_LAST_WORDS_SECONDS = 2.0


class Span:
    """A span under way; one that nobody records when traces are off."""

    def __init__(self, span: "OtelSpan | None" = None, traceparent: str = "") -> None:
        self._span = span
        self.traceparent = traceparent

    @property
    def trace_id(self) -> str:
        """The trace it belongs to, empty when traces are off."""
        return trace_id_of(self.traceparent)

    def note(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes."""
        if self._span is not None:
            for name, value in attributes.items():
                self._span.set_attribute(f"receiver.{name}", value)

    def end(self) -> None:
        """End a span that `Tracing.start_span` has started."""
        if self._span is not None:
            self._span.end()

    def fail(self, reason: str) -> None:
        """Mark it as failed."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, reason))


class Tracing:
    """Traces that are off: every span is one that nobody records."""

    is_on = False

    @contextmanager
    def span(self, name: str, parent: str | None, attributes: Mapping[str, Any]) -> Iterator[Span]:
        """A span that lasts as long as the block, and is current in it.

        `parent` is a W3C traceparent, None or a malformed one for the beginning of a trace.
        """
        del name, parent, attributes
        yield Span()

    def start_span(self, name: str, parent: str | None, attributes: Mapping[str, Any]) -> Span:
        """Start a span that is current nowhere and lasts until its `end`; see `span`."""
        del name, parent, attributes
        return Span()

    @contextmanager
    def within(self, parent: str | None) -> Iterator[None]:
        """Let the spans of the block belong to a span of another process."""
        del parent
        yield

    def close(self) -> None:
        """Send what has not been sent."""


class _OpenTelemetry(Tracing):
    """Traces sent to a collector by OTLP over HTTP, in batches, by a thread of their own."""

    is_on = True

    def __init__(self, settings: Settings, role: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        attributes = {"service.version": version("alert-receiver"), "receiver.process": role}
        if not settings.environment.get("OTEL_SERVICE_NAME"):
            attributes["service.name"] = "alert-receiver"
        self._provider = TracerProvider(
            resource=Resource.create(attributes), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        # So that what a plugin traces by OpenTelemetry's own API is found inside.
        trace.set_tracer_provider(self._provider)
        self._tracer = self._provider.get_tracer("receiver")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, parent: str | None, attributes: Mapping[str, Any]) -> Iterator[Span]:
        """See Tracing."""
        from opentelemetry.trace import SpanKind

        with self._tracer.start_as_current_span(
            name,
            context=self._propagator.extract({"traceparent": parent or ""}),
            kind=SpanKind.CONSUMER,
            attributes={f"receiver.{key}": value for key, value in attributes.items()},
        ) as span:
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
            yield Span(span, carrier["traceparent"])

    def start_span(self, name: str, parent: str | None, attributes: Mapping[str, Any]) -> Span:
        """See Tracing."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        span = self._tracer.start_span(
            name,
            context=self._propagator.extract({"traceparent": parent or ""}),
            kind=SpanKind.CONSUMER,
            attributes={f"receiver.{key}": value for key, value in attributes.items()},
        )
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return Span(span, carrier["traceparent"])

    @contextmanager
    def within(self, parent: str | None) -> Iterator[None]:
        """See Tracing."""
        from opentelemetry import context

        token = context.attach(self._propagator.extract({"traceparent": parent or ""}))
        try:
            yield
        finally:
            context.detach(token)

    def close(self) -> None:
        """Send what has not been sent, as far as the collector answers soon."""
        last_words = threading.Thread(target=self._provider.shutdown, daemon=True)
        last_words.start()
        last_words.join(_LAST_WORDS_SECONDS)


def check(settings: Settings) -> None:
    """Raise SettingsError when traces are wanted and OpenTelemetry is not installed."""
    if settings.traces != "none" and not _is_installed():
        raise SettingsError(
            ["RECEIVER_TRACES: needs OpenTelemetry: pip install 'alert-receiver[otel]'"]
        )


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:  # Not even what it is part of.
        return False


def start(settings: Settings, role: str) -> Tracing:
    """Return the traces of this process; to be called after its last fork."""
    check(settings)
    return Tracing() if settings.traces == "none" else _OpenTelemetry(settings, role)


def trace_id_of(traceparent: str | None) -> str:
    """Return the id of the trace that a traceparent continues, empty without one."""
    return traceparent.split("-")[1] if traceparent else ""
