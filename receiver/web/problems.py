"""Errors as problem+json (RFC 9457): short, and without secrets, for Alertmanager logs them."""

import json
from collections.abc import Iterable, Mapping, Sequence

from flask import Flask, Response
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from receiver.errors import JournalDataError, JournalError, NotificationError

RETRY_AFTER_SECONDS = 5


def problem(
    status: int,
    title: str,
    detail: str,
    headers: Iterable[tuple[str, str]] = (),
    errors: Sequence[Mapping[str, str]] = (),
) -> Response:
    """Return an answer that says what is wrong; `errors` names wrong fields by their paths."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = errors
    return Response(
        json.dumps(body) + "\n", status, list(headers), mimetype="application/problem+json"
    )


def register(app: Flask) -> None:
    """Turn every error of a request into a problem."""

    @app.errorhandler(NotificationError)
    def _bad_notification(error: NotificationError) -> Response:
        fields = [{"field": path, "error": text} for path, text in error.fields.items()]
        return problem(400, "Bad Request", error.detail, errors=fields)

    @app.errorhandler(JournalError)
    def _not_stored(error: JournalError) -> Response:
        app.logger.error("notification not stored", extra={"error": str(error)})
        if isinstance(error, JournalDataError):
            return problem(400, "Bad Request", "the journal refuses this notification's data")
        return unavailable("the journal cannot store it now; send it again")

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        status = error.code or 500
        detail = error.description or error.name
        if detail == RequestEntityTooLarge.description:
            limit = app.config["MAX_CONTENT_LENGTH"]
            detail = f"the body is larger than RECEIVER_MAX_BODY, {limit} bytes"
        headers = [
            (name, value)
            for name, value in error.get_headers()
            if name.lower() in ("allow", "www-authenticate", "retry-after")
        ]
        return problem(status, error.name, detail, headers)

    @app.errorhandler(Exception)
    def _unexpected(error: Exception) -> Response:
        app.logger.error("request failed unexpectedly", exc_info=error)
        return problem(500, "Internal Server Error", "an error in the receiver; see its log")


def unavailable(detail: str) -> Response:
    """Return a 503, which makes Alertmanager send the notification again."""
    return problem(503, "Service Unavailable", detail, [("Retry-After", str(RETRY_AFTER_SECONDS))])
