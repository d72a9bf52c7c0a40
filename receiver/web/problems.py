"""Errors as problem+json (RFC 9457): short, and without secrets, for Alertmanager logs them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from flask import Flask, Response, request
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
)

from receiver.errors import JournalDataError, JournalError, NotificationError
from receiver.web.refusals import RefusedResponse
from receiver.web.wrong_paths import describe_wrong_path

RETRY_AFTER_SECONDS = 5


class QueryError(BadRequest):
    """The query of a request is refused; `fields` maps each wrong parameter to what is wrong."""

    def __init__(self, description: str, fields: Mapping[str, str]) -> None:
        super().__init__(description)
        self.fields = fields


def problem(
    status: int,
    title: str,
    detail: str,
    headers: Iterable[tuple[str, str]] = (),
    errors: Sequence[Mapping[str, str]] = (),
    cause: str = "",
) -> Response:
    """Return an answer that says what is wrong; `errors` names wrong fields by their paths.

    `cause` is for the log alone.
    """
    body: dict[str, object] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = errors
    response = RefusedResponse(
        json.dumps(body) + "\n", status, list(headers), mimetype="application/problem+json"
    )
    response.reason, response.error = detail, cause
    if errors:
        response.field, response.error = errors[0]["field"], errors[0]["error"]
    return response


def register(app: Flask, describe_path: Callable[[str, str], str] = describe_wrong_path) -> None:
    """Turn every error of a request into a problem.

    `describe_path` returns what to answer about a method and a path that lead nowhere.
    """

    @app.errorhandler(NotificationError)
    def _bad_notification(error: NotificationError) -> Response:
        fields = [{"field": path, "error": text} for path, text in error.fields.items()]
        return problem(400, "Bad Request", error.detail, errors=fields)

    @app.errorhandler(JournalError)
    def _not_stored(error: JournalError) -> Response:
        if isinstance(error, JournalDataError):
            detail = "the journal refuses this notification's data"
            return problem(400, "Bad Request", detail, cause=str(error))
        return unavailable("the journal cannot store it now; send it again", str(error))

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        status = error.code or 500
        detail = error.description or error.name
        if isinstance(error, NotFound | MethodNotAllowed) and detail == type(error).description:
            detail = describe_path(request.method, request.path)
        if detail == RequestEntityTooLarge.description:
            limit = app.config["MAX_CONTENT_LENGTH"]
            detail = f"the body is larger than RECEIVER_MAX_BODY, {limit} bytes"
        headers = [
            (name, value)
            for name, value in error.get_headers()
            if name.lower() in ("allow", "www-authenticate", "retry-after")
        ]
        fields = error.fields if isinstance(error, QueryError) else {}
        errors = [{"field": name, "error": text} for name, text in fields.items()]
        return problem(status, error.name, detail, headers, errors)

    @app.errorhandler(Exception)
    def _unexpected(error: Exception) -> Response:
        app.logger.error("request failed unexpectedly", exc_info=error)
        return problem(500, "Internal Server Error", "an error in the receiver; see its log")


def unavailable(detail: str, cause: str = "") -> Response:
    """Return a 503, which makes Alertmanager send the notification again."""
    headers = [("Retry-After", str(RETRY_AFTER_SECONDS))]
    return problem(503, "Service Unavailable", detail, headers, cause=cause)
