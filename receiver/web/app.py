"""The Flask application: wiring only."""

import threading
from collections.abc import Iterable
from functools import partial
from typing import Any

from flask import Flask

from receiver.desk import JournalDesk
from receiver.intake import Counts
from receiver.journal.journal import Journal
from receiver.journal.wakeup import Bell
from receiver.journal.writer import Work, Writer
from receiver.metrics.counts import WebCounts
from receiver.metrics.state import JournalState
from receiver.operations import Operations
from receiver.plugins import Actions, catalogs_of, rules_of
from receiver.settings import Settings
from receiver.tracing import Tracing
from receiver.web import pages, problems
from receiver.web.api import create_api
from receiver.web.auth import Access, Scope
from receiver.web.binding import check_bind
from receiver.web.bodies import WAIT_SECONDS, LargeBodies
from receiver.web.connections import REQUEST_THREADS
from receiver.web.forms import create_forms, create_login
from receiver.web.health import HEALTHY, READY, create_health
from receiver.web.metrics import count_answers, create_metrics
from receiver.web.refusals import RefusalLog, log_refusals
from receiver.web.slots import NOTIFICATIONS, InTurn, LookSlots, Slots
from receiver.web.tracing import trace_recording, trace_requests
from receiver.web.webhook import create_webhook, is_webhook

# Alertmanager gives up after ten seconds, and its peers start sending after fewer.
_ANSWER_WITHIN_SECONDS = 8.0
# Requests that are under way or wait, without notifications.
_OTHERS = 64
# Large notifications that are under way take no more than this, or than the largest one.
_LARGE_BYTES = 32 * 1024 * 1024


class Drain:
    """Set once the process is told to stop: from then on it answers 503."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def begin(self) -> None:
        """Accept nothing more."""
        self._event.set()

    def has_begun(self) -> bool:
        """Whether the process is stopping."""
        return self._event.is_set()


def create_app(
    settings: Settings,
    actions: Actions,
    journal: Journal,
    drain: Drain | None = None,
    tracing: Tracing | None = None,
    refusals: RefusalLog | None = None,
) -> Flask:
    """Return the application; its writer belongs to the process that calls this."""
    check_bind(settings)
    drain = drain or Drain()
    rules = rules_of(settings, actions)
    counts = WebCounts()
    journal.wrote = counts.journal.wrote
    bell = Bell(journal)

    def after_commit(notifications: int) -> None:
        bell.ring()
        counts.committed(notifications)

    writer = Writer(journal, rules, after_commit)
    slots = Slots(NOTIFICATIONS, REQUEST_THREADS, _ANSWER_WITHIN_SECONDS)

    def record(work: Work) -> Counts:
        with slots.given_back:
            return writer.record(work, _ANSWER_WITHIN_SECONDS)

    tracing = tracing or Tracing()
    # However many there are, most threads stay free for notifications.
    others = LookSlots(settings.web_threads, max(_OTHERS, settings.web_threads), WAIT_SECONDS)

    def slots_of(path: str) -> Slots | None:
        # Probes wait for nobody: a receiver that is only busy must not be restarted.
        return slots if is_webhook(path) else None if path in (HEALTHY, READY) else others

    def busy(environ: Any, start_response: Any) -> Iterable[bytes]:
        answer = problems.unavailable("too many requests are under way; send it again")
        return answer(environ, start_response)

    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body
    app.url_map.merge_slashes = False  # It would redirect, and a redirect loses the alert.
    app.extensions |= {"journal_writer": writer, "journal_bell": bell}
    problems.register(app)
    count_answers(app, counts)
    log_refusals(app, refusals or RefusalLog())
    access = Access(settings)
    app.wsgi_app = InTurn(app.wsgi_app, slots_of, busy)  # type: ignore[method-assign]
    webhook = create_webhook(
        settings,
        catalogs_of(settings, actions),
        access.source_of,
        trace_recording(record) if tracing.is_on else record,
        LargeBodies(max(settings.max_body, _LARGE_BYTES)),
        drain.has_begun,
        counts.recorded,
        counts.found_replicas,
    )
    access.guard(webhook, Scope.SUBMIT)
    if tracing.is_on:
        trace_requests(webhook, tracing)
    app.register_blueprint(webhook)
    app.register_blueprint(create_health(journal, drain.has_begun))  # Probes have no credentials.
    desk_of = partial(JournalDesk, journal, Operations(settings, actions, journal), actions)
    pages.prepare(app)
    for one in (
        *create_api(desk_of, access),
        pages.create_pages(settings, actions, desk_of, access),
        create_forms(desk_of, access),
        create_login(access),
    ):
        app.register_blueprint(one)
    metrics = create_metrics(counts.registry, JournalState(journal, actions, rules))
    app.register_blueprint(metrics if settings.metrics_open else access.guard(metrics, Scope.READ))
    return app
