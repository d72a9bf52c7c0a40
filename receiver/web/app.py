"""The Flask application: wiring only."""

import threading
from functools import partial

from flask import Flask

from receiver.journal.journal import Journal
from receiver.journal.wakeup import Bell
from receiver.journal.writer import Writer
from receiver.plugins import Actions, catalog_of, rules_of
from receiver.settings import Settings
from receiver.web import problems
from receiver.web.auth import Access, Scope
from receiver.web.binding import check_bind
from receiver.web.health import create_health
from receiver.web.webhook import create_webhook

# Alertmanager gives up after ten seconds, and its peers start sending after fewer.
_ANSWER_WITHIN_SECONDS = 8.0


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
    settings: Settings, actions: Actions, journal: Journal, drain: Drain | None = None
) -> Flask:
    """Return the application; its writer thread belongs to the process that calls this."""
    check_bind(settings)
    drain = drain or Drain()
    writer = Writer(journal, rules_of(settings, actions), Bell(journal).ring)
    record = partial(writer.record, timeout_seconds=_ANSWER_WITHIN_SECONDS)

    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body
    app.url_map.merge_slashes = False  # It would redirect, and a redirect loses the alert.
    app.extensions["journal_writer"] = writer
    problems.register(app)
    access = Access(settings)
    webhook = create_webhook(settings, catalog_of(actions), record, drain.has_begun)
    app.register_blueprint(access.guard(webhook, Scope.SUBMIT))
    app.register_blueprint(create_health(journal, drain.has_begun))  # Probes have no credentials.
    return app
