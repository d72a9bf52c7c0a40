"""`GET /metrics`: one scrape sees the web and the worker process, and the journal."""

from collections.abc import Callable

from flask import Blueprint, Flask, Response, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from receiver.metrics.counts import WebCounts
from receiver.metrics.sharing import all_counts
from receiver.web.webhook import is_webhook


def create_metrics(counts: CollectorRegistry, state: Collector | None = None) -> Blueprint:
    """Return the blueprint that shows what was counted, and `state` if any."""
    metrics = Blueprint("metrics", __name__)

    @metrics.get("/metrics")
    def show() -> Response:
        encode, content_type = _encoder(request.headers.get("Accept", ""))
        both = CollectorRegistry()
        both.register(all_counts(counts))
        if state is not None:
            both.register(state)
        return Response(encode(both), content_type=content_type)

    return metrics


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # A version in it that is none; the text format is for whoever asks for nothing.
        return choose_encoder("")


def count_answers(app: Flask, counts: WebCounts) -> None:
    """Count how every request is answered, wherever it ends."""

    @app.after_request
    def count_answer(response: Response) -> Response:
        if is_webhook(request.path):
            counts.answered(response.status_code)
        counts.refused(response.status_code)
        return response
