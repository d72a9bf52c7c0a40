"""The status page at `/`: what happens now, what happened, and why; for people, without a script.

Rendered here, whole. A small script asks for the same page again and puts in what changed.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from flask import Blueprint, Flask, Response, g, render_template, request
from jinja2 import StrictUndefined
from marshmallow import ValidationError
from werkzeug.exceptions import BadRequest, HTTPException

from receiver.declarations import declared
from receiver.desk import OUTCOMES, STATES, DeskOf, JournalDesk
from receiver.errors import CursorError, JournalError, NotFoundError, OperationError
from receiver.journal.dialects import shown_url
from receiver.journal.requests import Person
from receiver.plugins import Actions
from receiver.policies import Policy
from receiver.schemas import RunsQuery
from receiver.settings import Settings, table
from receiver.web import browsers, shown
from receiver.web.auth import Access, Scope
from receiver.web.refusals import RefusedResponse
from receiver.written import setting_as_written

_RECENT = 20
_ROWS = 50
_POLICY = tuple(declared(Policy).values())


def desk(desk_of: DeskOf) -> JournalDesk:
    """Return the desk of whoever sent the request under way."""
    return desk_of(Person(g.caller.name, f"page from {request.remote_addr}"))


def create_pages(
    settings: Settings, actions: Actions, desk_of: DeskOf, access: Access
) -> Blueprint:
    """Return the blueprint of all that only looks."""
    pages = Blueprint(
        "pages",
        __name__,
        template_folder="templates",
        static_folder="static",
        static_url_path="/static",
    )
    browsers.protect(access.guard(pages, Scope.READ))
    answer_errors(pages)

    @pages.get("/")
    def now() -> str:
        here = desk(desk_of)
        return render_template(
            "now.html",
            seen=here.activity(),
            holds=here.holds(),
            runs=here.page_of_runs(_RECENT).rows,
            broken=[one for one in actions.plugins.values() if one.state == "broken"],
        )

    @pages.get("/runs")
    def runs() -> str:
        said = {name: value for name, value in request.args.items() if value}
        try:
            wanted = RunsQuery().load({"limit": _ROWS, **said})
        except ValidationError as error:
            raise BadRequest(f"these runs cannot be looked for: {error.messages}") from None
        found = desk(desk_of).page_of_runs(**wanted)
        said.pop("cursor", None)
        return render_template(
            "runs.html", runs=found.rows, next=found.next, said=said,
            actions=sorted(actions.loaded), states=STATES, outcomes=OUTCOMES,
        )  # fmt: skip

    @pages.get("/runs/<int:run_id>")
    def run(run_id: int) -> str:
        here = desk(desk_of)
        found = here.run(run_id)
        same = here.page_of_runs(
            _RECENT, **{name: found[name] for name in ("source", "fingerprint", "starts_at")}
        )
        others = [one for one in same.rows if one["id"] != run_id]
        alertmanager = shown.alertmanager_link(found["external_url"], found["alert"]["labels"])
        return render_template("run.html", run=found, others=others, alertmanager=alertmanager)

    @pages.get("/actions")
    def all_actions() -> str:
        here = desk(desk_of)
        return render_template(
            "actions.html",
            actions=here.actions(),
            seen=here.activity(),
            holds=here.holds(),
            defaults={one.name: setting_as_written(one, one.default_value()) for one in _POLICY},
        )

    @pages.get("/rejected")
    def rejected() -> str:
        found = desk(desk_of).page_of_rejected(_ROWS, request.args.get("cursor", ""))
        return render_template("rejected.html", rejected=found.rows, next=found.next)

    @pages.get("/audit")
    def audit() -> str:
        found = desk(desk_of).page_of_audit(_ROWS, request.args.get("cursor", ""))
        return render_template("audit.html", asked=found.rows, next=found.next)

    @pages.get("/settings")
    def all_settings() -> str:
        return render_template(
            "settings.html",
            settings=[
                (one, setting_as_written(one, getattr(settings, name)))
                for name, one in table().items()
            ],
            plugins=[
                (plugin, [(one, _value(one, plugin.values)) for one in plugin.settings])
                for plugin in sorted(actions.plugins.values(), key=lambda one: one.name)
            ],
            # A password can stand in the query, too.
            journal=shown_url(settings.journal_url).partition("?")[0],
        )

    return pages


def _value(one: Any, values: Mapping[str, Any]) -> str:
    if one.name in values:
        return setting_as_written(one, values[one.name])
    return one.default or "none"


def prepare(app: Flask) -> None:
    """Let templates be strict, and show nothing of an alert as it is."""
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.finalize = shown.harmless
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(shown.FILTERS)
    app.jinja_env.globals.update(version=version("alert-receiver"), lasted=shown.lasted)

    @app.context_processor
    def about_the_request() -> dict[str, object]:
        return {
            "may_operate": "caller" in g and g.caller.may(Scope.OPERATE),
            "caller": g.caller.name if "caller" in g else "",
            "done": browsers.said_before(),
        }


def answer_errors(blueprint: Blueprint) -> None:
    """Let the blueprint answer errors as pages; with what is needed to log in, where it is."""

    @blueprint.errorhandler(HTTPException)
    def failed(error: HTTPException) -> Response:
        return _error_page(error.code or 500, error.name, error.description or "", error)

    @blueprint.errorhandler(NotFoundError)
    def missing(error: NotFoundError) -> Response:
        return _error_page(404, "Not found", str(error))

    @blueprint.errorhandler(CursorError)
    def lost(error: CursorError) -> Response:
        return _error_page(400, "Bad Request", str(error))

    @blueprint.errorhandler(OperationError)
    def refused(error: OperationError) -> Response:
        return _error_page(409, "That cannot be done", str(error))

    @blueprint.errorhandler(JournalError)
    def failing(error: JournalError) -> Response:
        said = "What is to be shown is in the journal; /-/ready says more. Alertmanager sends "
        said += "again what it could not deliver meanwhile."
        response = _error_page(503, "The journal cannot be reached now", said)
        response.error = str(error)
        return response


def _error_page(
    status: int, title: str, detail: str, error: HTTPException | None = None
) -> RefusedResponse:
    page = render_template("error.html", title=title, detail=detail)
    response = RefusedResponse(page, status)
    response.reason = detail or title
    if error is not None:
        for name, value in error.get_headers():
            if name.lower() in ("allow", "www-authenticate"):
                response.headers.add(name, value)
    return response
