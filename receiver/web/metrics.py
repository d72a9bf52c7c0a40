"""`GET /metrics`: one scrape sees the web and the worker process, and the journal."""

from flask import Blueprint, Response, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from receiver.metrics.counts import WebCounts
from receiver.metrics.sharing import all_counts

_WEBHOOK = "/webhook"


def create_metrics(counts: WebCounts, state: Collector) -> Blueprint:
    """Return the blueprint; it also counts how every request was answered."""
    metrics = Blueprint("metrics", __name__)
    journal = CollectorRegistry()
    journal.register(state)

    @metrics.get("/metrics")
    def show() -> Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        both = CollectorRegistry()
        for one in (all_counts(counts.registry), journal):
            both.register(one)
        return Response(encode(both), content_type=content_type)

    @metrics.after_app_request
    def count_answer(response: Response) -> Response:
        path = request.path
        if path.startswith(_WEBHOOK) and path[len(_WEBHOOK) :][:1] in ("", "/"):
            counts.answered(response.status_code)
        counts.refused(response.status_code)
        return response

    return metrics
