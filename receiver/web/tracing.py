"""Lets a trace begin, or go on, with a notification; nothing of it is there when traces are off."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace

from flask import Blueprint, Response, g, request

from receiver import logs
from receiver.intake import Counts, Intake
from receiver.journal.writer import Work
from receiver.tracing import Span, Tracing


def trace_requests(webhook: Blueprint, tracing: Tracing) -> None:
    """Put a span around every request that the blueprint's guards have let through."""

    @webhook.before_request
    def begin() -> None:
        g.traced = ExitStack()
        parent = request.headers.get("traceparent")
        g.span = g.traced.enter_context(tracing.span("notification", parent, {}))
        g.traced.enter_context(logs.fields_of_run({"trace_id": g.span.trace_id}))

    @webhook.after_request
    def note_answer(response: Response) -> Response:
        if "span" in g:
            g.span.note({"answer": response.status_code})
            if response.status_code >= 500:
                g.span.fail(response.status)
        return response

    @webhook.teardown_request
    def end(error: BaseException | None) -> None:
        del error
        if "traced" in g:
            g.traced.close()


def trace_recording(record: Callable[[Work], Counts]) -> Callable[[Work], Counts]:
    """Return `record` that hands the request's trace on to the runs which it creates."""
    return lambda work: record(_Traced(work))


class _Traced:
    def __init__(self, work: Work) -> None:
        self._work = work

    @property
    def size(self) -> int:
        return self._work.size

    def prepare(self) -> Intake:
        span: Span = g.span
        intake = self._work.prepare()
        span.note({"source": intake.source, "alerts": len(intake.alerts)})
        return replace(intake, traceparent=span.traceparent)

    def recorded(self, counts: Counts) -> None:
        self._work.recorded(counts)
        span: Span = g.span
        span.note(asdict(counts))
