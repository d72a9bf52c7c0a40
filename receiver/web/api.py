"""`/api/v1`: all that people can look at and ask for, as JSON; errors are problems.

Each endpoint is declared once, for Flask and for the OpenAPI document.
"""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Response, g, request
from marshmallow import Schema, ValidationError
from werkzeug.exceptions import RequestEntityTooLarge

from receiver import schemas
from receiver.desk import DeskOf, JournalDesk
from receiver.errors import (
    CursorError,
    JournalDataError,
    JournalError,
    NotFoundError,
    OperationError,
)
from receiver.journal.requests import Person
from receiver.web.auth import Access, Scope
from receiver.web.bodies import WAIT_SECONDS, LargeBodies, check_content, read_body
from receiver.web.browsers import protect
from receiver.web.openapi import Endpoint, document
from receiver.web.problems import problem, unavailable
from receiver.web.slots import without_slot

PREFIX = "/api/v1"
_LONGEST_BODY = 64 * 1024
_LONGEST_EXPLAINED = 1024 * 1024
_EXPLAIN_SECONDS = 5.0
View = Callable[..., Any]


class _Api:
    """The endpoints as they are declared: a blueprint per scope, and the document."""

    def __init__(self, desk_of: DeskOf, access: Access) -> None:
        self.endpoints: list[Endpoint] = []
        self._desk_of = desk_of
        self._blueprints = {
            scope: protect(
                access.guard(Blueprint(f"api_{scope.value}", __name__, url_prefix=PREFIX), scope)
            )
            for scope in (Scope.READ, Scope.OPERATE)
        }
        for blueprint in self.blueprints:
            _answer_errors(blueprint)

    @property
    def blueprints(self) -> list[Blueprint]:
        """Those to register."""
        return list(self._blueprints.values())

    def get(
        self,
        path: str,
        summary: str,
        answer: type[Schema],
        query: type[Schema] = schemas.NothingQuery,
    ) -> Callable[[View], View]:
        """Declare a view that looks: it gets the desk, the path's values and the query's."""
        return self._declare(Endpoint("get", path, summary, answer, query=query), Scope.READ)

    def post(
        self, path: str, summary: str, answer: type[Schema], body: type[Schema]
    ) -> Callable[[View], View]:
        """Declare a view that acts: it gets the desk, the path's values and the body's."""
        return self._declare(Endpoint("post", path, summary, answer, body=body), Scope.OPERATE)

    def _declare(self, endpoint: Endpoint, scope: Scope) -> Callable[[View], View]:
        answer = endpoint.answer()
        query, body = endpoint.query(), endpoint.body() if endpoint.body else None
        self.endpoints.append(endpoint)

        def declare(view: View) -> View:
            def answer_request(**path: Any) -> Response:
                said = query.load(_once(request.args.lists()))
                if body is not None:
                    said |= body.load(_json_body())
                return _json(answer.dump(view(self._desk(), **path, **said)))

            self._blueprints[scope].add_url_rule(
                endpoint.path,
                endpoint=endpoint.name,
                view_func=answer_request,
                methods=[endpoint.method.upper()],
            )
            return view

        return declare

    def _desk(self) -> JournalDesk:
        return self._desk_of(Person(g.caller.name, f"api from {request.remote_addr}"))

    def declare_explain(self) -> None:
        """Declare the one endpoint whose body is Alertmanager's.

        It explains one notification at a time, of a bounded size, for a bounded time: a request
        that only reads must not delay notifications.
        """
        endpoint = Endpoint(
            "post",
            "/explain",
            "What a notification, as Alertmanager posts it, would lead to; nothing is done",
            schemas.ExplanationSchema,
            query=schemas.ExplainQuery,
            takes_notification=True,
        )
        self.endpoints.append(endpoint)
        answer, query = endpoint.answer(), schemas.ExplainQuery()
        bodies, turn = LargeBodies(4 * _LONGEST_EXPLAINED), threading.Lock()

        def explain() -> Response:
            said = query.load(_once(request.args.lists()))
            check_content()
            with bodies.place(_LONGEST_EXPLAINED):
                body = _read_body(_LONGEST_EXPLAINED)
                with without_slot(request.environ):
                    has_turn = turn.acquire(timeout=WAIT_SECONDS)
                if not has_turn:
                    return unavailable("other notifications are being explained; try again")
                try:
                    found = self._desk().explain(
                        body, said["source"], said["action"], _EXPLAIN_SECONDS
                    )
                    return _json(answer.dump({"explained": found}))
                finally:
                    turn.release()

        # It is a POST for its body's sake: it changes nothing, and so reading is enough.
        self._blueprints[Scope.READ].add_url_rule(
            endpoint.path, endpoint=endpoint.name, view_func=explain, methods=["POST"]
        )


def create_api(desk_of: DeskOf, access: Access) -> list[Blueprint]:
    """Return the blueprints; `desk_of` opens the desk of whoever asks."""
    api = _Api(desk_of, access)
    _declare_looking(api)
    _declare_acting(api)
    api.declare_explain()
    written = json.dumps(document(PREFIX, api.endpoints))

    @api.blueprints[0].get("/openapi.json")
    def openapi() -> Response:
        return Response(written, mimetype="application/json")

    return api.blueprints


def _declare_looking(api: _Api) -> None:
    pages = {
        "runs": (schemas.RunSchema, schemas.RunsQuery, "Runs, the newest first"),
        "episodes": (
            schemas.EpisodeSchema,
            schemas.PageQuery,
            "The latest episode of each alert and action, the last seen first",
        ),
        "rejected": (
            schemas.RejectedSchema,
            schemas.PageQuery,
            "Alerts that could not be mapped to an action, the last seen first",
        ),
        "audit": (
            schemas.AuditSchema,
            schemas.PageQuery,
            "What people asked for, the latest first",
        ),
    }

    def declare_page(name: str) -> None:
        rows, query, summary = pages[name]

        @api.get(f"/{name}", summary, schemas.page_of(name, rows), query)
        def page(desk: JournalDesk, **said: Any) -> Mapping[str, Any]:
            found = getattr(desk, f"page_of_{name}")(**said)
            return {name: found.rows, "next": found.next}

    for name in pages:
        declare_page(name)

    @api.get("/runs/<int:run_id>", "All about one run", schemas.WholeRunSchema)
    def run(desk: JournalDesk, run_id: int) -> Mapping[str, Any]:
        return desk.run(run_id)

    @api.get(
        "/rejected/<int:rejected_id>", "All about one rejected alert", schemas.WholeRejectedSchema
    )
    def rejected_alert(desk: JournalDesk, rejected_id: int) -> Mapping[str, Any]:
        return desk.rejected_alert(rejected_id)

    @api.get("/actions", "Every plugin, and what its runs do", schemas.ActionsSchema)
    def actions(desk: JournalDesk) -> Mapping[str, Any]:
        return {"actions": desk.actions()}

    @api.get("/workers", "The workers that are running", schemas.WorkersSchema)
    def workers(desk: JournalDesk) -> Mapping[str, Any]:
        return {"workers": desk.workers()}

    @api.get("/holds", "Pauses, and breakers that were opened", schemas.HoldsSchema)
    def holds(desk: JournalDesk) -> Mapping[str, Any]:
        return {"holds": desk.holds()}


def _declare_acting(api: _Api) -> None:
    for name, summary, body in (
        ("retry", "Let a run that ended without success run again", schemas.NothingBody),
        ("cancel", "Cancel a run, or ask its attempt to stop", schemas.ReasonBody),
        ("approve", "Let a run that waits for approval run", schemas.NothingBody),
        ("reject", "Cancel a run that waits for approval", schemas.ReasonBody),
    ):
        _declare_on_run(api, name, summary, body)

    @api.post("/pause", "Start no run of an action, or of any", schemas.DoneSchema,
              schemas.PauseBody)  # fmt: skip
    def pause(desk: JournalDesk, **said: Any) -> Mapping[str, str]:
        return {"done": desk.pause(**said)}

    @api.post(
        "/resume",
        "Take a pause away, and reset a breaker",
        schemas.DoneSchema,
        schemas.ActionBody,
    )
    def resume(desk: JournalDesk, action: str | None) -> Mapping[str, str]:
        return {"done": desk.resume(action)}

    @api.post("/rejected/<int:rejected_id>/replay", "Route a rejected alert again",
              schemas.CountsSchema, schemas.NothingBody)  # fmt: skip
    def replay(desk: JournalDesk, rejected_id: int) -> Mapping[str, int]:
        return desk.replay(rejected_id)


def _declare_on_run(api: _Api, name: str, summary: str, body: type[Schema]) -> None:
    @api.post(f"/runs/<int:run_id>/{name}", summary, schemas.DoneSchema, body)
    def ask(desk: JournalDesk, run_id: int, **said: str) -> Mapping[str, str]:
        return {"done": getattr(desk, name)(run_id, **said)}


def _once(lists: Any) -> dict[str, str]:
    """Return the query as a mapping; raise ValidationError for what is said twice."""
    found = {}
    for name, values in lists:
        if len(values) > 1:
            raise ValidationError({name: ["Said more than once."]})
        found[name] = values[0]
    return found


def _read_body(longest: int) -> bytes:
    try:
        return read_body(longest)
    except RequestEntityTooLarge:
        raise RequestEntityTooLarge(f"the body is larger than {longest} bytes") from None


def _json_body() -> Any:
    body = _read_body(_LONGEST_BODY)
    if not body:
        return {}
    check_content()
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ValidationError("The body is not JSON.") from None


def _json(value: Any) -> Response:
    return Response(json.dumps(value) + "\n", mimetype="application/json")


def _answer_errors(blueprint: Blueprint) -> None:
    @blueprint.errorhandler(ValidationError)
    def wrong(error: ValidationError) -> Response:
        messages: Any = error.messages
        if isinstance(messages, list):
            messages = {"_schema": messages}
        errors = [
            {"field": "" if field == "_schema" else str(field)[:200], "error": " ".join(said)}
            for field, said in messages.items()
        ]
        return problem(400, "Bad Request", "the request is not one of these", errors=errors)

    @blueprint.errorhandler(NotFoundError)
    def missing(error: NotFoundError) -> Response:
        return problem(404, "Not Found", str(error))

    @blueprint.errorhandler(CursorError)
    def lost(error: CursorError) -> Response:
        return problem(400, "Bad Request", str(error))

    @blueprint.errorhandler(OperationError)
    def refused(error: OperationError) -> Response:
        return problem(409, "Conflict", str(error))

    @blueprint.errorhandler(JournalError)
    def failing(error: JournalError) -> Response:
        if isinstance(error, JournalDataError):
            detail = "the journal has no place for these values"
            return problem(400, "Bad Request", detail, cause=str(error))
        return unavailable("the journal cannot be reached now; try again", str(error))
